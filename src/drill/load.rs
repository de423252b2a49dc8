//! Load: writers and readers that never wait for their previous request, each request a task, each value unique, nothing retried.
//! `run` starts it before the fault and ends it after the heal; what comes out is a history and nothing else.
//! It knows no fault: it asks members, notes what they said, and goes on.

use super::catalogue::Keys;
use super::clock::{At, Clock};
use super::etcd::{EtcdError, Link, Site};
use super::history::{Answer, Kind, Member, Op, Outcome, Session, classify};
use etcd_client::GetOptions;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How the load is to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Keys live below it; it ends with '/'.
    pub prefix: String,
    /// Between two writes of one session, until `Load::ease` makes it longer.
    pub interval: Duration,
    pub keys: Keys,
    /// How long a client waits: longer than etcd itself does (5 s and two elections), to hear its final word.
    pub timeout: Duration,
    /// After this long without an answer the fail-over writer turns to the next member.
    pub impatience: Duration,
    /// The member that the fail-over writer asks first.
    pub first: Member,
}

/// Requests of one session that may be open at once; a session that reaches it skips a beat.
const OPEN_MOST: usize = 512;
/// Readers ask once for so many writes of a writer.
const READ_EVERY: u32 = 4;

/// The requests so far. A request is entered when it begins, as unknown, and completed when it ends.
#[derive(Default)]
pub struct Recorder {
    ops: Mutex<Vec<Op>>,
}

impl Recorder {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Op>> {
        // Each change is one assignment, so a panic elsewhere leaves the list whole.
        self.ops.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    fn begin(&self, op: Op) -> usize {
        let mut ops = self.lock();
        ops.push(op);
        ops.len() - 1
    }
    fn end(&self, index: usize, ret: At, result: Result<(Answer, Option<u64>), EtcdError>) {
        if let Some(op) = self.lock().get_mut(index) {
            op.ret = ret;
            match result {
                Ok((answer, value)) => {
                    op.outcome = Outcome::Ok;
                    op.answer = Some(answer);
                    if op.kind != Kind::Write {
                        op.value = value;
                    }
                }
                Err(error) => {
                    op.outcome = classify(error.code());
                    op.error = Some(error.to_string());
                }
            }
        }
    }
    /// Members through which no write begun after a moment has been acknowledged.
    pub fn silent(&self, after: At, members: usize) -> Vec<Member> {
        let ops = self.lock();
        let heard = |member: &Member| {
            ops.iter().rev().take_while(|op| op.inv >= after).any(|op| op.session == Session::Pinned(*member) && op.acked())
        };
        (0..members).filter(|member| !heard(member)).collect()
    }
    /// A copy of what there is; requests still open look as if they ended now, unknown.
    pub fn so_far(&self, now: At) -> Vec<Op> {
        let mut ops = self.lock().clone();
        for op in ops.iter_mut().filter(|op| op.ret == At(u64::MAX)) {
            op.ret = now;
            op.error = Some("not answered when the run ended".to_owned());
        }
        ops
    }
}

/// A load in progress.
pub struct Load {
    pub recorder: Arc<Recorder>,
    current: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    interval: watch::Sender<Duration>,
    tasks: JoinSet<()>,
}

struct Shared {
    site: Site,
    plan: Plan,
    clock: Clock,
    recorder: Arc<Recorder>,
    /// Unique values, from 1.
    next: AtomicU64,
    /// Whom the fail-over writer asks.
    current: Arc<AtomicUsize>,
    /// Members whose last answered request failed, whoever asked: a client's balancer has no ready connection to them.
    failing: Vec<AtomicBool>,
    /// Last value that was acknowledged: what readers of single keys look for.
    acked: AtomicU64,
}

impl Load {
    /// Starts one fail-over writer, and a pinned writer and two readers per member. Connections are their own:
    /// a member that hangs must not hold up another session's requests.
    pub fn start(site: &Site, plan: Plan, clock: Clock) -> Load {
        let recorder = Arc::new(Recorder::default());
        let (stop, stopped) = watch::channel(false);
        let (interval, pace) = watch::channel(plan.interval);
        let current = Arc::new(AtomicUsize::new(plan.first));
        let shared = Arc::new(Shared {
            site: site.clone(),
            plan,
            clock,
            recorder: recorder.clone(),
            next: AtomicU64::new(1),
            current: current.clone(),
            failing: site.members.iter().map(|_| AtomicBool::new(false)).collect(),
            acked: AtomicU64::new(0),
        });
        let mut sessions = vec![Session::Failover];
        for member in 0..site.members.len() {
            sessions.extend([Session::Pinned(member), Session::Reader(member), Session::Serial(member)]);
        }
        let mut tasks = JoinSet::new();
        let count = sessions.len() as u32;
        for (i, session) in sessions.into_iter().enumerate() {
            // Staggered, so that all sessions together sample more finely than each of them.
            let offset = shared.plan.interval * i as u32 / count;
            tasks.spawn(session_loop(shared.clone(), session, offset, pace.clone(), stopped.clone()));
        }
        Load { recorder, current, stop, interval, tasks }
    }

    /// From now on so long between two writes of one session.
    pub fn ease(&self, interval: Duration) {
        self.interval.send_replace(interval);
    }

    /// From now on the fail-over writer asks this member, until it has a reason to leave it.
    pub fn turn_to(&self, member: Member) {
        self.current.store(member, Ordering::Relaxed);
    }

    /// Ends it: no new requests, a last moment for open ones.
    pub async fn finish(mut self, clock: Clock, grace: Duration) -> Vec<Op> {
        let _ = self.stop.send(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(grace, all).await;
        self.tasks.abort_all();
        self.recorder.so_far(clock.now())
    }
}

async fn session_loop(
    shared: Arc<Shared>,
    session: Session,
    offset: Duration,
    mut pace: watch::Receiver<Duration>,
    mut stopped: watch::Receiver<bool>,
) {
    let links: Vec<Arc<Link>> = (0..shared.site.members.len()).filter_map(|i| shared.site.link(i)).collect();
    let beat = |interval: Duration| match session {
        Session::Failover | Session::Pinned(_) => interval,
        Session::Reader(_) | Session::Serial(_) => interval * READ_EVERY,
    };
    let every = |beat: Duration, first: Duration| {
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + first, beat);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick
    };
    let mut tick = every(beat(*pace.borrow_and_update()), offset);
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            // The sender lives as long as the load does.
            Ok(()) = pace.changed() => {
                let interval = *pace.borrow_and_update();
                // Staggered as before: each session's share of the beat grows with the beat.
                let first = offset.mul_f64(interval.as_secs_f64() / shared.plan.interval.as_secs_f64().max(0.001));
                tick = every(beat(interval), first);
                continue;
            }
            _ = tick.tick() => (),
        }
        while requests.try_join_next().is_some() {}
        if requests.len() >= OPEN_MOST {
            continue;
        }
        let member = match session {
            Session::Failover => shared.current.load(Ordering::Relaxed) % links.len().max(1),
            Session::Pinned(member) | Session::Reader(member) | Session::Serial(member) => member,
        };
        if let Some(link) = links.get(member) {
            requests.spawn(request(shared.clone(), session, member, link.clone()));
        }
    }
    while requests.join_next().await.is_some() {}
}

async fn request(shared: Arc<Shared>, session: Session, member: Member, link: Arc<Link>) {
    let kind = match session {
        Session::Failover | Session::Pinned(_) => Kind::Write,
        Session::Reader(_) => Kind::Read,
        Session::Serial(_) => Kind::SerialRead,
    };
    let value = (kind == Kind::Write).then(|| shared.next.fetch_add(1, Ordering::Relaxed));
    let key = key(&shared, session, value);
    let index = shared.recorder.begin(Op {
        session,
        kind,
        key: key.clone(),
        value,
        member,
        inv: shared.clock.now(),
        ret: At(u64::MAX),
        outcome: Outcome::Unknown,
        answer: None,
        error: None,
    });
    let path = format!("{}{key}", shared.plan.prefix);
    let asked = async {
        match value {
            Some(value) => put(&link, &path, value, shared.plan.timeout).await,
            None => get(&link, &path, kind == Kind::SerialRead, shared.plan.timeout).await,
        }
    };
    let result = if session == Session::Failover {
        tokio::pin!(asked);
        match tokio::time::timeout(shared.plan.impatience, &mut asked).await {
            Ok(result) => {
                if result.is_err() {
                    turn_away(&shared, member);
                }
                result
            }
            Err(_) => {
                turn_away(&shared, member);
                asked.await
            }
        }
    } else {
        asked.await
    };
    if let Some(failing) = shared.failing.get(member) {
        failing.store(result.is_err(), Ordering::Relaxed);
    }
    if let (Ok(_), Some(value)) = (&result, value) {
        shared.acked.fetch_max(value, Ordering::Relaxed);
    }
    shared.recorder.end(index, shared.clock.now(), result);
}

/// The fail-over writer leaves a member, unless another request of its has done so already, as etcd's own client would: for the
/// next one that answers.
fn turn_away(shared: &Shared, member: Member) {
    let failing: Vec<bool> = shared.failing.iter().map(|failing| failing.load(Ordering::Relaxed)).collect();
    let now = shared.current.load(Ordering::Relaxed);
    if now % failing.len().max(1) == member {
        let next = next(&failing, now);
        let _ = shared.current.compare_exchange(now, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The next in turn after `now` that is not failing; where all others are, simply the next.
fn next(failing: &[bool], now: usize) -> usize {
    let count = failing.len().max(1);
    let good = (now + 1..now + count).find(|turn| failing.get(turn % count) == Some(&false));
    good.unwrap_or(now + 1)
}

fn key(shared: &Shared, session: Session, value: Option<u64>) -> String {
    match (shared.plan.keys, session, value) {
        (Keys::Append, _, Some(value)) => format!("log/{value}"),
        (Keys::Append, _, None) => format!("log/{}", shared.acked.load(Ordering::Relaxed)),
        (Keys::Registers, Session::Failover, _) => "failover".to_owned(),
        // Readers follow the key with most writers.
        (Keys::Registers, ..) => "shared".to_owned(),
    }
}

async fn put(link: &Link, key: &str, value: u64, timeout: Duration) -> Result<(Answer, Option<u64>), EtcdError> {
    let response = link.ask(timeout, |mut client| async move { client.put(key, value.to_string(), None).await }).await?;
    let (revision, term) = response.header().map_or((0, 0), |header| (header.revision(), header.raft_term()));
    Ok((Answer { revision, mod_revision: revision, term }, Some(value)))
}

async fn get(link: &Link, key: &str, serial: bool, timeout: Duration) -> Result<(Answer, Option<u64>), EtcdError> {
    let options = serial.then(|| GetOptions::new().with_serializable());
    let response = link.ask(timeout, |mut client| async move { client.get(key, options).await }).await?;
    let (revision, term) = response.header().map_or((0, 0), |header| (header.revision(), header.raft_term()));
    let found = response.kvs().first();
    let value = found.and_then(|kv| std::str::from_utf8(kv.value()).ok()?.parse().ok());
    let mod_revision = found.map_or(0, |kv| kv.mod_revision());
    Ok((Answer { revision, mod_revision, term }, value))
}

/// Median latency of a few writes, one after the other: what the pace is made from.
pub async fn measure(site: &Site, key: &str) -> Result<Duration, EtcdError> {
    let link = site.link(0).ok_or_else(|| EtcdError::Other("there is no member".to_owned()))?;
    let mut taken = Vec::new();
    for i in 0..6u8 {
        let start = std::time::Instant::now();
        link.ask(site.ask_timeout() * 5, |mut client| async move { client.put(key, [b'0' + i], None).await }).await?;
        taken.push(start.elapsed());
    }
    // The first one paid for the connection.
    taken.remove(0);
    taken.sort_unstable();
    Ok(taken.get(taken.len() / 2).copied().unwrap_or_default())
}

/// The pace: as wished, but never so fast that a writer has more than a handful of requests open in good times.
pub fn pace(wished: Duration, median: Duration) -> Duration {
    wished.max(median * 2).min(Duration::from_secs(2)).max(wished)
}

/// Of an election: with 99 % of the writes within this, the load is borne.
const BORNE: f64 = 0.25;
/// Of an election: a pace slower than this would leave gaps that are the load's.
const PACE_MOST: f64 = 0.2;

/// A slower pace for a cluster that queues what this one brings it; none when it bears it, or when slower would measure nothing.
///
/// A single write says little about many: where three machines share two slow cores, one takes 20 ms and a hundred a second take
/// 200 ms each, and elections then happen without a fault.
pub fn eased(interval: Duration, p99: Duration, election: Duration) -> Option<Duration> {
    let slower = interval * 2;
    (p99 > election.mul_f64(BORNE) && slower <= election.mul_f64(PACE_MOST)).then_some(slower)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_cluster_slows_the_pace_and_a_fast_one_does_not_hasten_it() {
        let ms = Duration::from_millis;
        assert_eq!(pace(ms(25), ms(2)), ms(25));
        assert_eq!(pace(ms(25), ms(40)), ms(80));
        assert_eq!(pace(ms(25), ms(1700)), ms(2000));
    }

    #[test]
    fn a_load_that_queues_is_eased_as_long_as_it_still_measures() {
        let ms = Duration::from_millis;
        assert_eq!(eased(ms(25), ms(250), ms(1000)), None, "borne");
        assert_eq!(eased(ms(25), ms(251), ms(1000)), Some(ms(50)));
        assert_eq!(eased(ms(41), ms(600), ms(1000)), Some(ms(82)));
        assert_eq!(eased(ms(100), ms(600), ms(1000)), Some(ms(200)));
        assert_eq!(eased(ms(101), ms(600), ms(1000)), None, "a gap of an election would not be seen");
        assert_eq!(eased(ms(2000), ms(1700), ms(5000)), None, "emulated: as slow as it may be");
    }

    #[test]
    fn a_client_turns_to_a_member_that_answers() {
        assert_eq!(next(&[false, false, false], 0), 1);
        assert_eq!(next(&[false, false, true], 1), 3, "past the one that fails, to the first");
        assert_eq!(next(&[true, true, true], 4), 5);
        assert_eq!(next(&[true, false, true], 1), 2, "the one that it leaves does not count");
        assert_eq!(next(&[false], 0), 1);
    }

    #[test]
    fn a_request_still_open_at_the_end_is_unknown() {
        let recorder = Recorder::default();
        let op = Op {
            session: Session::Failover,
            kind: Kind::Write,
            key: "k".to_owned(),
            value: Some(1),
            member: 0,
            inv: At(5),
            ret: At(u64::MAX),
            outcome: Outcome::Unknown,
            answer: None,
            error: None,
        };
        let (first, _) = (recorder.begin(op.clone()), recorder.begin(op));
        recorder.end(first, At(7), Ok((Answer { revision: 3, mod_revision: 3, term: 1 }, Some(1))));
        let ops = recorder.so_far(At(9));
        assert_eq!((ops[0].outcome, ops[0].ret), (Outcome::Ok, At(7)));
        assert_eq!((ops[1].outcome, ops[1].ret), (Outcome::Unknown, At(9)));
        assert!(ops[1].error.is_some());
    }
}
