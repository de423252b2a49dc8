//! A process of its own that drills or heals a cluster of the suite's, until it is done or killed.
//! `crashes` starts it: the suite's own binary, told by the environment what to do.
//! It is the command line in small: what is open in the journal is healed first, and every step is said.

use crate::cluster::Cluster;
use crate::injector::Native;
use crate::runs::{drill, options};
use ktcw_vm::drill::heal::heal;
use ktcw_vm::drill::injector::FaultLog;
use ktcw_vm::drill::judge::{Result as Came, judge};
use ktcw_vm::drill::run::run;
use ktcw_vm::inject::log::JournalLog;
use ktcw_vm::store::journal::Journal;
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Tells the process what to do: `heal`, or a drill's name.
const DO: &str = "KTCW_NATIVE_DO";
/// What it says about its steps begins with it.
const MARK: &str = "· ";

/// The faults of a cluster as every process finds them: in its journal.
pub fn journal(cluster: &Cluster) -> JournalLog {
    let path = cluster.path("journal.jsonl");
    let (journal, _) = Journal::open(&path, ktcw_vm::store::draw_id(), "drill").expect("the journal opens");
    JournalLog { journal: Arc::new(journal), path }
}

#[test]
#[ignore = "`crashes` starts it in a process of its own"]
fn does_as_told() {
    let told = std::env::var(DO).expect("started by `crashes`");
    let say = |text: &str| eprintln!("{MARK}{text}");
    let cluster = Arc::new(Cluster::attached());
    let native = Native::new(cluster.clone());
    let (site, log) = (cluster.site(), journal(&cluster));
    cluster.block_on(async {
        if told == "heal" || !log.pending().expect("a list").is_empty() {
            let done = heal(&site, &native, &log).await.expect("healed");
            done.iter().for_each(|what| say(&format!("healed: {what}")));
        }
        if told == "heal" {
            return;
        }
        let mut drill = drill(&told);
        drill.load.baseline = "0.4 s".parse().expect("a bound");
        let options = ktcw_vm::drill::run::Options { progress: Arc::new(move |text| say(text)), ..options(&cluster) };
        let record = run(&drill, &site, &native, &log, &options).await.unwrap_or_else(|error| panic!("{told}: {error}"));
        let judgement = judge(&record);
        // Others are busy beside it: lengths are not its matter, safety is.
        assert!(judgement.result != Came::Fail || safe(&judgement.reasons), "{told}: {:?}", judgement.reasons);
        say("judged");
    });
}

fn safe(reasons: &[String]) -> bool {
    !reasons.iter().any(|reason| reason.starts_with('I'))
}

/// Such a process, seen from outside.
pub struct Driver {
    child: Child,
    said: Lines<BufReader<ChildStderr>>,
    heard: Vec<String>,
}

impl Driver {
    pub fn start(cluster: &Cluster, told: &str) -> Driver {
        let (name, invitation) = cluster.invitation();
        let mut child = Command::new(std::env::current_exe().expect("our own binary"))
            .args(["driver::does_as_told", "--exact", "--ignored", "--nocapture"])
            .env(name, invitation)
            .env(DO, told)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("our own binary starts");
        let said = BufReader::new(child.stderr.take().expect("piped")).lines();
        Driver { child, said, heard: Vec::new() }
    }

    /// Waits until it says something for the so many-th time.
    #[track_caller]
    pub fn says(&mut self, what: &str, nth: usize) {
        let mut times = 0;
        while let Some(Ok(line)) = self.said.next() {
            times += usize::from(line.strip_prefix(MARK).is_some_and(|step| step.contains(what)));
            self.heard.push(line);
            if times == nth {
                return;
            }
        }
        panic!("it never said {what:?} {nth} times:\n{}", self.heard.join("\n"));
    }

    /// SIGKILL, a while from now.
    pub fn kill_after(mut self, delay: Duration) {
        std::thread::sleep(delay);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its own end, which must be a good one. Returns what it said of its steps.
    #[track_caller]
    pub fn ends_well(mut self) -> Vec<String> {
        self.heard.extend(self.said.by_ref().map_while(Result::ok));
        let status = self.child.wait().expect("it ends");
        let told: Vec<&str> =
            self.heard.iter().map(String::as_str).take_while(|line| !line.starts_with("stack backtrace")).collect();
        assert!(status.success(), "{status}:\n{}", told.join("\n"));
        self.heard.iter().filter_map(|line| line.strip_prefix(MARK)).map(str::to_owned).collect()
    }
}
