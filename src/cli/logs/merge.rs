//! What `logs -f` does with the journals of several nodes as they come: the lines put in order of time, and the reasons why one ended.
//! `logs` gives each node's command to `reader`, and `merge` hands the lines on, each after a moment in which an older one may still come.
//! It knows no SSH and prints nothing: streams go in, lines and reasons come out.

use super::{Line, failed, parse};
use crate::cli::exit;
use crate::guest::{Exit, GuestError};
use crate::said::one_line;
use crate::spec::NodeName;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How long a line is held, so that an older one of another node can still come before it.
const WINDOW: Duration = Duration::from_millis(300);

/// How long the first lines are held for a node that has said none yet: connections are made in their own time.
const BEGINNING: Duration = Duration::from_secs(2);

/// Bytes of lines that are held at most; with more all of them are handed on at once.
const MOST: usize = 32 << 20;

/// Bytes of a line that are read. journalctl leaves out a field of more than 4 KiB, so none of its own comes near.
const LONGEST: u64 = 64 << 10;

/// Bytes of a standard error that are kept.
const TOLD: usize = 4 << 10;

/// What comes from a node.
#[derive(Debug)]
pub(super) enum Heard {
    Line(Line),
    /// Something to be told beside the lines.
    Note(String),
    /// Its journal has ended, well or for this reason.
    Ended(NodeName, Result<(), String>),
}

/// Why nothing more is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Whoever has seen enough, as `grep -m1` has, closes the pipe: nothing went wrong.
    Unread,
    Stopped,
    /// All journals have ended, one of them well at least.
    Over,
    /// All have ended, and none of them well.
    Failed,
}

impl End {
    pub(super) fn code(self) -> u8 {
        match self {
            End::Unread | End::Over => exit::OK,
            End::Stopped => exit::INTERRUPTED,
            End::Failed => exit::FAILED,
        }
    }
}

/// Follows one node to its end. `command` runs journalctl there, with its standard output and error connected to these.
pub(super) async fn reader<F>(node: NodeName, command: impl FnOnce(DuplexStream, DuplexStream) -> F, to: mpsc::Sender<Heard>)
where
    F: Future<Output = Result<Exit, GuestError>>,
{
    let (out, stdout) = duplex(64 << 10);
    let (err, stderr) = duplex(4 << 10);
    let (ended, (), said) = tokio::join!(command(stdout, stderr), lines(&node, out, &to), complaint(err));
    let how = match ended {
        Ok(Exit::Code(0)) => Ok(()),
        Ok(other) => Err(failed(&node, other, &said)),
        Err(error) => Err(error.to_string()),
    };
    let _ = to.send(Heard::Ended(node, how)).await;
}

/// Passes on the entries of a journal. A line that is too long is left out, and that is told once.
async fn lines(node: &NodeName, from: DuplexStream, to: &mpsc::Sender<Heard>) {
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    let (mut within, mut told) = (false, false);
    loop {
        let mut piece = AsyncReadExt::take(&mut from, LONGEST);
        let Ok(1..) = piece.read_until(b'\n', &mut bytes).await else { return };
        // A piece that fills the limit without an end of line has more to come; another one was the stream's last.
        let cut = bytes.last() != Some(&b'\n') && bytes.len() as u64 == LONGEST;
        let heard = match (std::mem::replace(&mut within, cut), cut) {
            (false, false) => parse(node, &String::from_utf8_lossy(&bytes)).map(Heard::Line),
            (false, true) if !told => {
                told = true;
                Some(Heard::Note(format!("{node}: left out: a line of more than {} KiB", LONGEST >> 10)))
            }
            _ => None,
        };
        bytes.clear();
        if let Some(heard) = heard
            && to.send(heard).await.is_err()
        {
            return;
        }
    }
}

/// The beginning of what a command says on its standard error, on one line; the rest is read and dropped.
async fn complaint(mut from: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let room = TOLD.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
    one_line(&String::from_utf8_lossy(&kept))
}

/// Hands lines on in order of time until every reader of `nodes` has ended, `stop` comes, or `print` finds nobody who reads.
/// `say` hears notes and reasons as they come.
pub(super) async fn merge(
    nodes: &[NodeName],
    mut heard: mpsc::Receiver<Heard>,
    stop: impl Future<Output = ()>,
    mut print: impl FnMut(&Line) -> bool,
    mut say: impl FnMut(&str),
) -> End {
    let mut stop = pin!(stop);
    let mut held = Held { lines: Vec::new(), bytes: 0, awaited: nodes.iter().cloned().collect(), begun: false };
    let mut well = false;
    let end = loop {
        let due = held.due();
        let ready = tokio::select! {
            biased;
            () = &mut stop => break End::Stopped,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => held.ripe(Instant::now()),
            next = heard.recv() => match next {
                None => break if well { End::Over } else { End::Failed },
                Some(Heard::Line(line)) => held.take(line, Instant::now()),
                Some(Heard::Note(text)) => {
                    say(&text);
                    Vec::new()
                }
                Some(Heard::Ended(node, how)) => {
                    held.awaited.remove(&node);
                    match how {
                        Ok(()) => well = true,
                        Err(why) => say(&why),
                    }
                    Vec::new()
                }
            },
        };
        if !ready.iter().all(&mut print) {
            return End::Unread;
        }
    };
    if held.all().iter().all(&mut print) { end } else { End::Unread }
}

/// Lines that wait for older ones.
struct Held {
    /// With the moment at which each came, in that order.
    lines: Vec<(Instant, Line)>,
    bytes: usize,
    /// Nodes that have neither said a line nor ended.
    awaited: BTreeSet<NodeName>,
    /// Lines have been handed on.
    begun: bool,
}

impl Held {
    /// When the next lines are to be handed on. At the beginning every node says many at once, of long ago: those of all nodes
    /// are gathered, until no more come or it takes too long.
    fn due(&self) -> Option<Instant> {
        let ((first, _), (last, _)) = (self.lines.first()?, self.lines.last()?);
        Some(match (self.begun, self.awaited.is_empty()) {
            (true, _) => *first + WINDOW,
            (false, true) => (*last + WINDOW).min(*first + BEGINNING),
            (false, false) => *first + BEGINNING,
        })
    }

    /// Holds one more. What is returned did not find room.
    fn take(&mut self, line: Line, now: Instant) -> Vec<Line> {
        self.awaited.remove(&line.node);
        self.bytes += line.bytes();
        self.lines.push((now, line));
        if self.bytes > MOST { self.all() } else { Vec::new() }
    }

    /// Those that have been held long enough, and whatever is older than one of them.
    fn ripe(&mut self, now: Instant) -> Vec<Line> {
        let long_enough = self.lines.iter().filter(|(came, _)| *came + WINDOW <= now);
        let Some(until) = long_enough.map(|(_, line)| (line.at, line.node.clone())).max() else { return Vec::new() };
        let (ripe, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.lines).into_iter().partition(|(_, line)| (line.at, &line.node) <= (until.0, &until.1));
        self.lines = rest;
        self.handed_on(ripe)
    }

    fn all(&mut self) -> Vec<Line> {
        let all = std::mem::take(&mut self.lines);
        self.handed_on(all)
    }

    /// In order of time. Of lines of one moment on one node the first to come stays the first.
    fn handed_on(&mut self, lines: Vec<(Instant, Line)>) -> Vec<Line> {
        self.begun |= !lines.is_empty();
        let mut lines: Vec<Line> = lines.into_iter().map(|(_, line)| line).collect();
        self.bytes -= lines.iter().map(Line::bytes).sum::<usize>();
        lines.sort_by(|a, b| (a.at, &a.node).cmp(&(b.at, &b.node)));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    const HOUR: Duration = Duration::from_secs(3600);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn entries(times: impl IntoIterator<Item = u64>) -> String {
        let entry =
            |at: u64| format!("{{\"__REALTIME_TIMESTAMP\":\"{at}\",\"_SYSTEMD_UNIT\":\"etcd.service\",\"MESSAGE\":\"m{at}\"}}\n");
        times.into_iter().map(entry).collect()
    }

    /// What a node does: after each pause it writes, and in the end it says no more for an hour.
    type Script = Vec<(Duration, String)>;

    /// What came out of journals that end well, each time with the moment; and what was told.
    async fn followed(nodes: Vec<Script>) -> (Vec<(Duration, u64)>, Vec<String>) {
        let names: Vec<NodeName> = (0..).map(NodeName::controller).take(nodes.len()).collect();
        let (sender, heard) = mpsc::channel(256);
        for (name, script) in names.iter().zip(nodes) {
            let command = |mut out: DuplexStream, _: DuplexStream| async move {
                for (pause, text) in script {
                    tokio::time::sleep(pause).await;
                    out.write_all(text.as_bytes()).await.expect("it is read");
                }
                tokio::time::sleep(HOUR).await;
                Ok(Exit::Code(0))
            };
            tokio::spawn(reader(name.clone(), command, sender.clone()));
        }
        drop(sender);
        let (begin, mut came, mut said) = (Instant::now(), Vec::new(), Vec::new());
        let print = |line: &Line| {
            came.push((begin.elapsed(), line.at));
            true
        };
        let end = merge(&names, heard, std::future::pending(), print, |text| said.push(text.to_owned())).await;
        assert_eq!(end, End::Over);
        (came, said)
    }

    fn times(came: &[(Duration, u64)]) -> Vec<u64> {
        came.iter().map(|(_, at)| *at).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_logged_before_comes_in_order_of_time_whoever_connects_first() {
        // Two hundred lines each, in turn; connections are made one after the other.
        let backlog = |node: u64| entries((0..200).map(move |i| 3 * i + node));
        let nodes = (0..3).map(|node| vec![(ms(500 * node), backlog(node))]).collect();
        let (came, said) = followed(nodes).await;
        assert_eq!(times(&came), (0..600).collect::<Vec<u64>>());
        assert!(came.iter().all(|(when, _)| *when < ms(1400)), "held no longer than it takes: {:?}", came.last());
        assert_eq!(said, [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_takes_its_time_over_many_lines_is_waited_for() {
        let slowly = (0..10).map(|i| (ms(100), entries([2 * i + 1]))).collect();
        let nodes = vec![vec![(ms(0), entries((0..10).map(|i| 2 * i)))], slowly];
        assert_eq!(times(&followed(nodes).await.0), (0..20).collect::<Vec<u64>>());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_quiet_time_lines_are_still_held_for_older_ones() {
        let first = vec![(ms(0), entries([1])), (ms(60_000), entries([20])), (ms(200), entries([40]))];
        let second = vec![(ms(0), entries([2])), (ms(60_100), entries([10])), (ms(200), entries([30]))];
        let (came, _) = followed(vec![first, second]).await;
        assert_eq!(times(&came), [1, 2, 10, 20, 30, 40]);
        for ((when, at), written) in came[2..].iter().zip([60_100, 60_000, 60_300, 60_200]) {
            assert!(*when <= ms(written) + WINDOW + ms(10), "{at} after {when:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_says_anything_holds_the_others_up_for_a_moment_only() {
        let nodes = vec![vec![(ms(5000), entries([3, 4]))], vec![(ms(5100), entries([1, 2])), (ms(9900), entries([5]))], vec![]];
        let (came, _) = followed(nodes).await;
        assert_eq!(times(&came), [1, 2, 3, 4, 5]);
        assert!(came[3].0 >= ms(5000) + BEGINNING && came[3].0 <= ms(5010) + BEGINNING, "{came:?}");
        assert!(came[4].0 <= ms(15_010) + WINDOW, "once is enough: {came:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_without_end_is_left_out_and_told_once() {
        let long = |n: usize| "x".repeat(n << 20) + "\n";
        let text = [long(1), entries([1]), long(3), entries([2]), "garbage\n".to_owned(), entries([3])].concat();
        // The last line of a journal needs no end.
        let (came, said) = followed(vec![vec![(ms(0), text.trim_end().to_owned())]]).await;
        assert_eq!(times(&came), [1, 2, 3]);
        assert_eq!(said, ["controller-0: left out: a line of more than 64 KiB"]);
    }

    /// Commands that say this and end so. How it ended, what was printed and what was told.
    async fn ended(nodes: Vec<(String, String, Result<Exit, GuestError>)>) -> (End, Vec<u64>, Vec<String>) {
        let names: Vec<NodeName> = (0..).map(NodeName::controller).take(nodes.len()).collect();
        let (sender, heard) = mpsc::channel(256);
        for (name, (text, says, how)) in names.iter().zip(nodes) {
            let command = |mut out: DuplexStream, mut err: DuplexStream| async move {
                out.write_all(text.as_bytes()).await.expect("it is read");
                err.write_all(says.as_bytes()).await.expect("it is read");
                how
            };
            tokio::spawn(reader(name.clone(), command, sender.clone()));
        }
        drop(sender);
        let (mut came, mut said) = (Vec::new(), Vec::new());
        let print = |line: &Line| {
            came.push(line.at);
            true
        };
        let end = merge(&names, heard, std::future::pending(), print, |text| said.push(text.to_owned())).await;
        said.sort();
        (end, came, said)
    }

    #[tokio::test(start_paused = true)]
    async fn that_none_could_be_followed_is_a_failure_with_its_reasons() {
        let text = |text: &str| text.to_owned();
        let refused = || {
            let (node, addr) = (NodeName::controller(1), text("192.0.2.1:22"));
            Err(GuestError::Connect { node, addr, reason: text("Connection refused") })
        };
        let long = format!("Failed to parse timestamp: nonsense\n{}", "x".repeat(1 << 20));
        let nodes =
            vec![(text(""), long, Ok(Exit::Code(1))), (text(""), text(""), refused()), (text(""), text(""), Ok(Exit::Lost))];
        let (end, came, said) = ended(nodes).await;
        assert_eq!((end, end.code(), came), (End::Failed, exit::FAILED, vec![]));
        assert!(said[0].starts_with("controller-0: journalctl: Failed to parse timestamp: nonsense x"), "{said:?}");
        assert!(said[0].len() < 400, "{said:?}");
        let others =
            ["controller-1: no SSH connection to 192.0.2.1:22: Connection refused", "controller-2: journalctl failed (Lost)"];
        assert_eq!(said[1..], others);

        // With one that was followed to its end the others are told, and no more.
        let nodes = vec![(entries([7]), text(""), Ok(Exit::Code(0))), (text(""), text(""), refused())];
        let (end, came, said) = ended(nodes).await;
        assert_eq!((end, end.code(), came, said), (End::Over, exit::OK, vec![7], vec![text(others[0])]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_printed_at_a_stop_and_nothing_more_where_nobody_reads() {
        let names = [NodeName::controller(0), NodeName::controller(1)];
        let (sender, heard) = mpsc::channel(256);
        for at in [3, 1, 2] {
            let line = parse(&names[0], &entries([at])).expect("an entry");
            sender.send(Heard::Line(line)).await.expect("room");
        }
        let mut came = Vec::new();
        let print = |line: &Line| {
            came.push(line.at);
            true
        };
        let end = merge(&names, heard, tokio::time::sleep(ms(100)), print, |_| {}).await;
        assert_eq!((end, end.code(), came), (End::Stopped, exit::INTERRUPTED, vec![1, 2, 3]));

        let (sender, heard) = mpsc::channel(256);
        for at in [1, 2] {
            let line = parse(&names[0], &entries([at])).expect("an entry");
            sender.send(Heard::Line(line)).await.expect("room");
        }
        let mut asked = 0;
        let print = |_: &Line| {
            asked += 1;
            false
        };
        let end = merge(&names, heard, std::future::pending(), print, |_| {}).await;
        assert_eq!((end, end.code(), asked), (End::Unread, exit::OK, 1));
    }

    #[test]
    fn what_finds_no_room_is_handed_on_at_once() {
        let mut held = Held { lines: Vec::new(), bytes: 0, awaited: BTreeSet::from([NodeName::worker(0)]), begun: false };
        let line = |at| Line { at, node: NodeName::controller(0), unit: "etcd".to_owned(), text: "x".repeat(15 << 20) };
        let now = Instant::now();
        assert_eq!(held.take(line(3), now), []);
        assert_eq!(held.take(line(2), now), []);
        let handed: Vec<u64> = held.take(line(1), now).iter().map(|line| line.at).collect();
        assert_eq!((handed, held.bytes, held.due()), (vec![1, 2, 3], 0, None));
    }
}
