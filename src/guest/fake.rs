//! Nodes without machines: answers by rule, with state where a test wants it, and failure at a chosen step.
//! Tests of `apply`, `verify` and drills use it in place of `ssh`.
//! It runs nothing: a command nobody wrote a rule for fails like a command that is not there.

use super::{Cmd, Exit, Guest, GuestError, Output};
use crate::spec::NodeName;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::{Mutex, MutexGuard, PoisonError};

type Answer = Box<dyn FnMut(&NodeName, &Cmd) -> Reply + Send>;

/// What a fake node does with a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Output(Output),
    Error(GuestError),
    /// Never answers: `Deadline` once the command's deadline has passed (at once under paused tokio time).
    Hang,
}

impl Reply {
    /// Exit 0 with this on standard output.
    pub fn ok(stdout: impl Into<Vec<u8>>) -> Reply {
        Reply::exit(0, stdout, "")
    }
    pub fn exit(code: u32, stdout: impl Into<Vec<u8>>, stderr: impl Into<Vec<u8>>) -> Reply {
        Reply::Output(Output { exit: Exit::Code(code), stdout: stdout.into(), stderr: stderr.into(), truncated: false })
    }
    /// The connection is refused.
    pub fn unreachable(node: &NodeName) -> Reply {
        Reply::Error(GuestError::Connect {
            node: node.clone(),
            addr: "fake:22".to_owned(),
            reason: "Connection refused".to_owned(),
        })
    }
    /// The connection ends under the command.
    pub fn lost(node: &NodeName, cmd: &Cmd) -> Reply {
        Reply::Error(GuestError::Lost { node: node.clone(), command: cmd.line.clone(), reason: "Keepalive timeout".to_owned() })
    }
}

impl From<&str> for Reply {
    fn from(stdout: &str) -> Reply {
        Reply::ok(stdout)
    }
}

impl From<GuestError> for Reply {
    fn from(error: GuestError) -> Reply {
        Reply::Error(error)
    }
}

struct Rule {
    node: Option<NodeName>,
    /// Part of the command line or of the script on standard input.
    part: String,
    /// How often it still applies.
    left: usize,
    answer: Answer,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<(NodeName, Cmd)>,
    forgotten: Vec<NodeName>,
    fail_at: Option<(usize, GuestError)>,
}

/// A scripted `Guest`. Rules are tried in the order in which they were added; the first that applies answers.
#[derive(Default)]
pub struct FakeGuests {
    state: Mutex<State>,
}

impl FakeGuests {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any node, any number of times: commands containing `part` get `reply`.
    pub fn on(self, part: &str, reply: impl Into<Reply>) -> Self {
        let reply = reply.into();
        self.rule(None, part, usize::MAX, Box::new(move |_, _| reply.clone()))
    }

    /// The same for one node.
    pub fn on_node(self, node: &NodeName, part: &str, reply: impl Into<Reply>) -> Self {
        let reply = reply.into();
        self.rule(Some(node.clone()), part, usize::MAX, Box::new(move |_, _| reply.clone()))
    }

    /// Each of these once, in order; then the rules after it apply.
    pub fn then(mut self, part: &str, replies: impl IntoIterator<Item = Reply>) -> Self {
        for reply in replies {
            self = self.rule(None, part, 1, Box::new(move |_, _| reply.clone()));
        }
        self
    }

    /// A closure that may keep state between commands.
    pub fn with(self, part: &str, answer: impl FnMut(&NodeName, &Cmd) -> Reply + Send + 'static) -> Self {
        self.rule(None, part, usize::MAX, Box::new(answer))
    }

    /// The command number `step`, counted from 0 over all nodes, fails with this; those after it are answered again.
    pub fn fail_at(self, step: usize, error: GuestError) -> Self {
        self.state().fail_at = Some((step, error));
        self
    }

    /// Every command so far, in order.
    pub fn seen(&self) -> Vec<(NodeName, Cmd)> {
        self.state().seen.clone()
    }

    /// Command lines so far as `node: line`.
    pub fn lines(&self) -> Vec<String> {
        self.state().seen.iter().map(|(node, cmd)| format!("{node}: {}", cmd.line)).collect()
    }

    /// Nodes whose connection was dropped, in order.
    pub fn forgotten(&self) -> Vec<NodeName> {
        self.state().forgotten.clone()
    }

    fn rule(self, node: Option<NodeName>, part: &str, left: usize, answer: Answer) -> Self {
        self.state().rules.push(Rule { node, part: part.to_owned(), left, answer });
        self
    }

    /// A closure that panicked in one test thread must not hide what it was.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn reply(&mut self, node: &NodeName, cmd: &Cmd) -> Reply {
        let step = self.seen.len();
        self.seen.push((node.clone(), cmd.clone()));
        if let Some((_, error)) = self.fail_at.as_ref().filter(|(at, _)| *at == step) {
            return Reply::Error(error.clone());
        }
        let script = cmd.stdin.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let rule = self.rules.iter_mut().find(|rule| {
            rule.left > 0
                && rule.node.as_ref().is_none_or(|only| only == node)
                && (cmd.line.contains(&rule.part) || script.contains(&rule.part))
        });
        match rule {
            Some(rule) => {
                if rule.left != usize::MAX {
                    rule.left -= 1;
                }
                (rule.answer)(node, cmd)
            }
            None => Reply::exit(127, "", format!("fake {node}: no rule for {:?}", cmd.line)),
        }
    }
}

impl Guest for FakeGuests {
    fn run<'a>(&'a self, node: &'a NodeName, cmd: Cmd) -> BoxFuture<'a, Result<Output, GuestError>> {
        async move {
            let reply = self.state().reply(node, &cmd);
            match reply {
                Reply::Output(mut output) => {
                    for kept in [&mut output.stdout, &mut output.stderr] {
                        output.truncated |= kept.len() > cmd.limit;
                        kept.truncate(cmd.limit);
                    }
                    Ok(output)
                }
                Reply::Error(error) => Err(error),
                Reply::Hang => {
                    let _ = tokio::time::timeout(cmd.deadline, std::future::pending::<()>()).await;
                    Err(GuestError::Deadline { node: node.clone(), command: cmd.line, after: cmd.deadline })
                }
            }
        }
        .boxed()
    }

    fn forget<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, ()> {
        async move { self.state().forgotten.push(node.clone()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{put, run_ok};
    use std::time::Duration;

    fn cmd(line: &str) -> Cmd {
        Cmd::new(line, Duration::from_secs(5))
    }

    #[tokio::test(start_paused = true)]
    async fn rules_apply_in_order_and_state_is_kept() {
        let (first, second) = (NodeName::controller(0), NodeName::controller(1));
        let mut term = 1;
        let guests = FakeGuests::new()
            .on_node(&second, "date", Reply::unreachable(&second))
            .then("is-active etcd", ["activating".into(), Reply::ok("active")])
            .with("status", move |_, _| {
                term += 1;
                Reply::ok(format!("term {term}"))
            })
            .on("date", "noon")
            .on("stuck", Reply::Hang);
        let said = async |node: &NodeName, line: &str| guests.run(node, cmd(line)).await.map(|o| o.stdout_text());
        assert_eq!(said(&first, "date").await.as_deref(), Ok("noon"));
        assert!(matches!(said(&second, "date").await, Err(GuestError::Connect { .. })));
        assert_eq!(said(&first, "systemctl is-active etcd").await.as_deref(), Ok("activating"));
        assert_eq!(said(&first, "systemctl is-active etcd").await.as_deref(), Ok("active"));
        assert_eq!(guests.run(&first, cmd("systemctl is-active etcd")).await.expect("ran").exit, Exit::Code(127));
        assert_eq!(said(&first, "status").await.as_deref(), Ok("term 2"));
        assert_eq!(said(&second, "status").await.as_deref(), Ok("term 3"));
        assert!(matches!(said(&first, "stuck").await, Err(GuestError::Deadline { .. })));
        assert_eq!(guests.lines()[0], "controller-0: date");
    }

    #[tokio::test]
    async fn failing_at_a_step_and_what_must_succeed() {
        let node = NodeName::worker(3);
        let lost = GuestError::Lost { node: node.clone(), command: "x".to_owned(), reason: "gone".to_owned() };
        let guests = FakeGuests::new().on("say", "ok").fail_at(1, lost.clone());
        assert!(run_ok(&guests, &node, cmd("say 0")).await.is_ok());
        assert_eq!(run_ok(&guests, &node, cmd("say 1")).await, Err(lost));
        assert!(run_ok(&guests, &node, cmd("say 2")).await.is_ok());
        let error = put(&guests, &node, "/etc/x", b"secret", 0o600, Duration::from_secs(1)).await.expect_err("no rule");
        assert!(matches!(&error, GuestError::Failed { exit: Exit::Code(127), .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert_eq!(guests.seen()[3].1.stdin.as_deref(), Some(&b"secret"[..]));
    }

    /// What a node says of a failure goes into messages, events and the journal.
    #[tokio::test]
    async fn a_node_that_shouts_is_told_in_three_short_lines() {
        let node = NodeName::worker(0);
        let flood = format!("first\n\n{}\nnot\ttoday\r\nlast\n", "\u{1b}".repeat(1 << 20));
        let guests = FakeGuests::new().on("flood", Reply::exit(1, "", flood)).on("line", Reply::exit(1, vec![b'x'; 4 << 20], ""));
        let error = run_ok(&guests, &node, cmd("flood")).await.expect_err("1 is not 0");
        assert!(matches!(&error, GuestError::Failed { stderr, .. } if stderr == "first / not today / last"), "{error}");
        let error = run_ok(&guests, &node, cmd("line")).await.expect_err("1 is not 0").to_string();
        assert!(error.len() < 1000, "{} bytes", error.len());
    }
}
