//! Scripts of a lab, run where they belong: on machines over SSH, or on this computer with the cluster's tools.
//! `cli lab` calls it to break and to check; every script has its deadline, on the machine and here.
//! It grades nothing and chooses nobody: the scene says who is who.

use super::catalogue::{Check, Lab, On};
use super::grade::{Outcome, judge, one_line};
use super::words::Scene;
use crate::event::Verdict;
use crate::guest::{Cmd, Guest};
use crate::plan::NodePlan;
use crate::spec::NodeName;
use futures::future::join_all;
use jiff::Timestamp;
use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

/// What a script may say; more is cut off.
const MOST_BYTES: usize = 256 << 10;
/// Between the end of a script by its own deadline and the end of our patience.
const GRACE: Duration = Duration::from_secs(10);

/// How a script ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

/// A way to run scripts.
pub struct Stage<'a> {
    pub scene: Scene<'a>,
    pub guest: &'a dyn Guest,
    /// Environment of scripts on this computer: where the tools are, and the files of their keys.
    pub tools: Vec<(OsString, OsString)>,
    pub clock: fn() -> Timestamp,
}

impl Stage<'_> {
    /// Runs a script everywhere that `on` means, all at the same time. `Err`: it could not be run, or did not end.
    pub async fn run(&self, on: On, body: &str, seconds: u16) -> Vec<(Option<NodeName>, Result<Said, String>)> {
        match on {
            On::Here => vec![(None, self.here(body, seconds).await)],
            on => {
                join_all(
                    self.scene
                        .machines(on)
                        .into_iter()
                        .map(|node| async move { (Some(node.name.clone()), self.there(node, body, seconds).await) }),
                )
                .await
            }
        }
    }

    async fn there(&self, node: &NodePlan, body: &str, seconds: u16) -> Result<Said, String> {
        let script = self.scene.script(Some(node), (self.clock)(), body);
        let deadline = Duration::from_secs(seconds.into()) + GRACE;
        let cmd = Cmd { line: bounded(seconds), stdin: Some(script.into_bytes()), deadline, limit: MOST_BYTES };
        let output = self.guest.run(&node.name, cmd).await.map_err(|error| one_line(&error.to_string()))?;
        let said = Said { ok: output.ok(), stdout: output.stdout_text(), stderr: output.stderr_text() };
        ended(said, output.exit == crate::guest::Exit::Code(124), seconds)
    }

    async fn here(&self, body: &str, seconds: u16) -> Result<Said, String> {
        let script = self.scene.script(None, (self.clock)(), body);
        let failed = |error: std::io::Error| format!("bash: {error}");
        let mut child = tokio::process::Command::new("bash")
            .args(["-c", &bounded(seconds)])
            .envs(self.tools.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A bash that ends early is told by its exit.
            let _ = stdin.write_all(script.as_bytes()).await;
        }
        let (out, error) = (child.stdout.take(), child.stderr.take());
        let whole = async { tokio::try_join!(beginning(out), beginning(error), child.wait()) };
        let (stdout, stderr, status) = tokio::time::timeout(Duration::from_secs(seconds.into()) + GRACE, whole)
            .await
            .map_err(|_| format!("it did not end within {seconds} s"))?
            .map_err(failed)?;
        ended(Said { ok: status.success(), stdout, stderr }, status.code() == Some(124), seconds)
    }

    /// Asks every check, one after the other: machines of one CPU are asked one thing at a time.
    pub async fn look(&self, lab: &Lab) -> Vec<Vec<Outcome>> {
        let mut all = Vec::new();
        for check in &lab.checks {
            let answers = self.run(check.on, &check.run, check.seconds).await;
            all.push(answers.into_iter().map(|(node, answer)| outcome(check, node, answer)).collect());
        }
        all
    }
}

/// bash under `timeout`, which ends what the script has started as well.
fn bounded(seconds: u16) -> String {
    format!("timeout -k 2 {seconds} bash -s")
}

/// As much of it as is kept. The rest is read all the same: who writes it is not to wait for a reader, nor to miss one.
async fn beginning(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let Some(mut pipe) = pipe else { return Ok(String::new()) };
    let mut kept = Vec::new();
    (&mut pipe).take(MOST_BYTES as u64).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&kept).into_owned())
}

fn ended(said: Said, late: bool, seconds: u16) -> Result<Said, String> {
    if late { Err(format!("it did not end within {seconds} s")) } else { Ok(said) }
}

fn outcome(check: &Check, node: Option<NodeName>, answer: Result<Said, String>) -> Outcome {
    let (verdict, evidence) = match answer {
        Ok(said) => judge(check, said.ok, &said.stdout, &said.stderr),
        Err(why) => (Verdict::Unknown, why),
    };
    Outcome { node, verdict, evidence }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::fake::{FakeGuests, Reply};
    use crate::plan::{Accel, samples};

    fn stage<'a>(scene: Scene<'a>, guest: &'a dyn Guest) -> Stage<'a> {
        Stage { scene, guest, tools: vec![("KTCW_TOLD".into(), "yes".into())], clock: || Timestamp::UNIX_EPOCH }
    }

    #[tokio::test]
    async fn scripts_here_see_their_tools_end_in_time_and_leave_nothing_running() {
        let plan = samples::plan("ktcw", 1, 0, Accel::Tcg);
        let guest = FakeGuests::new();
        let stage = stage(Scene { plan: &plan, hit: &[] }, &guest);
        let ran = stage.run(On::Here, "echo \"$KTCW_TOLD $CLUSTER\"", 5).await;
        assert_eq!(ran[0].1.as_ref().map(|said| (said.ok, said.stdout.as_str())), Ok((true, "yes ktcw\n")));
        assert_eq!(stage.run(On::Here, "false; echo on", 5).await[0].1.as_ref().map(|said| said.ok), Ok(false));
        let begin = std::time::Instant::now();
        let late = stage.run(On::Here, "sleep 60 & sleep 60", 1).await;
        assert_eq!(late[0].1, Err("it did not end within 1 s".to_owned()));
        assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    }

    /// A script that says much ends as it would have, and only the beginning of it is kept.
    #[tokio::test]
    async fn a_script_that_says_too_much_is_heard_to_its_end_and_kept_in_part() {
        let plan = samples::plan("ktcw", 1, 0, Accel::Tcg);
        let guest = FakeGuests::new();
        let ran = stage(Scene { plan: &plan, hit: &[] }, &guest)
            .run(On::Here, "head -c 50000000 /dev/zero | tr '\\0' x; exit 3", 60)
            .await;
        let said = ran[0].1.as_ref().expect("it ended");
        assert_eq!((said.ok, said.stdout.len(), said.stderr.as_str()), (false, MOST_BYTES, ""));
        let pipe = tokio::io::repeat(b'x').take(100 << 20);
        assert_eq!(beginning(Some(pipe)).await.expect("read").capacity() / MOST_BYTES, 1, "no more than that is in memory");
    }

    #[tokio::test]
    async fn what_cannot_be_asked_is_unknown_and_keeps_nobody_else_from_being_asked() {
        let plan = samples::plan("ktcw", 3, 0, Accel::Tcg);
        let hit = [NodeName::controller(0), NodeName::controller(1)];
        let guest = FakeGuests::new()
            .on_node(&NodeName::controller(0), "bash", Reply::unreachable(&NodeName::controller(0)))
            .on_node(&NodeName::controller(1), "bash", "kept\n");
        let mut lab = crate::lab::catalogue::labs(None).expect("built in").swap_remove(0);
        lab.checks.truncate(1);
        lab.checks[0] = Check { on: On::Hit, run: "true".to_owned(), prints: None, ..lab.checks[0].clone() };
        let seen = stage(Scene { plan: &plan, hit: &hit }, &guest).look(&lab).await;
        let verdicts: Vec<Verdict> = seen[0].iter().map(|outcome| outcome.verdict).collect();
        assert_eq!(verdicts, [Verdict::Unknown, Verdict::Pass], "{seen:?}");
        assert_eq!(seen[0][1].evidence, "kept");
    }
}
