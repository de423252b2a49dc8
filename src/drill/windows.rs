//! Lengths and moments computed from what was seen: gaps between acknowledgements, who led when, when a member was away.
//! Judges compare them with bounds, reports draw them.
//! All of it is pure arithmetic on samples and times; no bound is known here.

use super::checker::Lives;
use super::clock::At;
use super::history::Member;
use super::record::Sample;
use super::target::Id;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A time without something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    pub from: At,
    pub to: At,
}

impl Gap {
    pub fn length(self) -> Duration {
        self.to.since(self.from)
    }
}

/// All times without an acknowledgement that touch `[from, to]`; `acks` sorted. The first began with the last acknowledgement
/// before it: what a fault cuts off began before the fault. What is still open at `to` counts.
fn gaps(acks: &[At], from: At, to: At) -> Vec<Gap> {
    let before = acks.iter().copied().take_while(|ack| *ack <= from).last().unwrap_or(from);
    let inside = acks.iter().copied().filter(|ack| *ack > from && *ack < to);
    let times: Vec<At> = std::iter::once(before).chain(inside).chain([to]).collect();
    let gap = |pair: &[At]| if let [from, to] = pair { Some(Gap { from: *from, to: *to }) } else { None };
    times.windows(2).filter_map(gap).collect()
}

/// The longest of those gaps. Resolution: the pace of the load and one normal latency.
pub fn longest(acks: &[At], from: At, to: At) -> Gap {
    let longer = |longest: Gap, gap: Gap| if gap.length() > longest.length() { gap } else { longest };
    gaps(acks, from, to).into_iter().fold(Gap { from, to: from }, longer)
}

/// The longest that is left of any of them without the times in which the observer itself stood still.
pub fn longest_awake(acks: &[At], from: At, to: At, stalls: &[Gap]) -> Duration {
    let awake = |gap: Gap| gap.length().saturating_sub(covered(gap, stalls));
    gaps(acks, from, to).into_iter().map(awake).max().unwrap_or_default()
}

/// How much of a gap others cover, of which no two overlap.
pub fn covered(gap: Gap, others: &[Gap]) -> Duration {
    others.iter().map(|other| other.to.min(gap.to).since(other.from.max(gap.from))).sum()
}

/// Number of those gaps that are longer than `limit`.
pub fn count_longer(acks: &[At], from: At, to: At, limit: Duration) -> usize {
    gaps(acks, from, to).into_iter().filter(|gap| gap.length() > limit).count()
}

/// The value below which `percent` of the values lie; zero of none. Sorts.
pub fn percentile(values: &mut [Duration], percent: f64) -> Duration {
    values.sort_unstable();
    let rank = (percent / 100.0 * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Who leads, in which term of which cluster: one that is restored is another cluster, and counts its terms anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    pub member: Member,
    pub cluster: Id,
    pub term: u64,
}

impl Leader {
    /// Who says of itself that it leads.
    pub fn of(sample: &Sample) -> Option<Leader> {
        let status = sample.status.as_ref().filter(|status| status.leads())?;
        Some(Leader { member: sample.member, cluster: status.cluster, term: status.term })
    }

    /// Whether it came after another: another member, the same in a later term, or any of another cluster.
    pub fn is_after(&self, other: &Leader) -> bool {
        self.member != other.member || self.cluster != other.cluster || self.term > other.term
    }
}

/// A time during which a member said of itself that it leads, without interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Leadership {
    pub member: Member,
    pub cluster: Id,
    pub term: u64,
    pub from: At,
    pub to: At,
    /// The member had followed another in this term and has committed nothing since, or just now, so the term it showed must be
    /// behind the one it leads in: etcd reports the term of the last entry applied, and a new leader has applied none of its own
    /// yet. One that commits, and goes on to say that it leads in a term in which it followed, does lead in it.
    pub term_behind: bool,
}

impl Leadership {
    pub fn leader(&self) -> Leader {
        Leader { member: self.member, cluster: self.cluster, term: self.term }
    }
}

/// Who led when, by the members' own accounts, in order of time.
pub fn leaderships(samples: &[Sample], silence: Duration) -> Vec<Leadership> {
    /// A leadership that may go on; the index that the member showed first, and when it had gone beyond.
    struct Open {
        led: Leadership,
        index: u64,
        committed: Option<At>,
    }
    let mut all: Vec<Open> = Vec::new();
    let mut open: BTreeMap<Member, Open> = BTreeMap::new();
    let mut followed: BTreeMap<(Member, Id, u64), At> = BTreeMap::new();
    for sample in samples {
        let Some(status) = &sample.status else { continue };
        if let Some(Open { led, index, committed }) = open.get_mut(&sample.member) {
            if status.leads() && status.cluster == led.cluster && sample.at.since(led.to) <= silence {
                led.to = sample.at;
                led.term = led.term.max(status.term);
                if status.index > *index {
                    committed.get_or_insert(sample.at);
                }
                continue;
            }
            all.extend(open.remove(&sample.member));
        }
        if status.leads() {
            let led = Leadership {
                member: sample.member,
                cluster: status.cluster,
                term: status.term,
                from: sample.at,
                to: sample.at,
                term_behind: false,
            };
            open.insert(sample.member, Open { led, index: status.index, committed: None });
        } else if status.leader != Id(0) {
            followed.entry((sample.member, status.cluster, status.term)).or_insert(sample.at);
        }
    }
    all.extend(open.into_values());
    let judged = |Open { led, committed, .. }: Open| {
        let before = followed.get(&(led.member, led.cluster, led.term)).is_some_and(|at| *at < led.from);
        let lags = committed.is_none_or(|at| led.to.since(at) <= silence);
        Leadership { term_behind: before && lags, ..led }
    };
    let mut all: Vec<Leadership> = all.into_iter().map(judged).collect();
    all.sort_by_key(|leadership| leadership.from);
    all
}

/// First moment after `since` at which a leader leads that came after the old one.
pub fn new_leader(samples: &[Sample], old: Option<Leader>, since: At) -> Option<(At, Member)> {
    let differs = |sample: &&Sample| Leader::of(sample).is_some_and(|leader| old.is_none_or(|old| leader.is_after(&old)));
    samples.iter().filter(|sample| sample.sent >= since).find(differs).map(|sample| (sample.at, sample.member))
}

/// First moment after `since` from which on every member answered and followed the leader that led at the end.
pub fn full_membership(samples: &[Sample], members: usize, since: At) -> Option<At> {
    let after: Vec<&Sample> = samples.iter().filter(|sample| sample.sent >= since).collect();
    let leader =
        after.iter().rev().find_map(|sample| sample.status.as_ref().map(|status| status.leader)).filter(|id| *id != Id(0))?;
    let good = |sample: &Sample| sample.status.as_ref().is_some_and(|status| status.leader == leader && !status.learner);
    let back = (0..members).map(|member| {
        let own: Vec<&&Sample> = after.iter().filter(|sample| sample.member == member).collect();
        let first = own.iter().rposition(|sample| !good(sample)).map_or(0, |bad| bad + 1);
        own.get(first).map(|sample| sample.at)
    });
    back.collect::<Option<Vec<At>>>()?.into_iter().max()
}

/// What a member was, for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    Leader,
    Follower,
    Learner,
    /// It answers and knows no leader.
    Leaderless,
    /// It does not answer.
    Away,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lane {
    pub condition: Condition,
    pub term: u64,
    pub from: At,
    pub to: At,
}

/// A member's life as adjoining stretches; a silence longer than `silence` is absence.
pub fn lanes(samples: &[Sample], member: Member, start: At, end: At, silence: Duration) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Vec::new();
    let mut push = |condition, term, from: At, to: At| {
        if to <= from {
            return;
        }
        match lanes.last_mut() {
            Some(last) if last.condition == condition && last.term == term => last.to = to,
            _ => lanes.push(Lane { condition, term, from, to }),
        }
    };
    let mut last: Option<(At, Condition, u64)> = None;
    for sample in samples.iter().filter(|sample| sample.member == member && sample.at >= start && sample.at <= end) {
        let Some(status) = &sample.status else { continue };
        let condition = match status {
            s if s.learner => Condition::Learner,
            s if s.leads() => Condition::Leader,
            s if s.leader == Id(0) => Condition::Leaderless,
            _ => Condition::Follower,
        };
        let (from, was, term) = last.unwrap_or((start, condition, status.term));
        if sample.at.since(from) > silence {
            push(Condition::Away, 0, from, sample.at);
        } else {
            push(was, term, from, sample.at);
        }
        last = Some((sample.at, condition, status.term));
    }
    match last {
        Some((at, condition, term)) if end.since(at) <= silence => push(condition, term, at, end),
        Some((at, ..)) => push(Condition::Away, 0, at, end),
        None => push(Condition::Away, 0, start, end),
    }
    lanes
}

/// Moments at which each member came back from not answering: it may have been started anew.
pub fn lives(samples: &[Sample], members: usize, silence: Duration) -> Lives {
    let mut lives = Lives::default();
    for member in 0..members {
        let mut last: Option<At> = None;
        let mut refused = false;
        let mut starts = Vec::new();
        for sample in samples.iter().filter(|sample| sample.member == member) {
            if sample.status.is_none() {
                refused = true;
                continue;
            }
            if let Some(last) = last
                && (refused || sample.sent.since(last) > silence)
            {
                // Anywhere between the two answers; what lies between belongs to neither life.
                starts.extend([last.plus(Duration::from_micros(1)), sample.sent]);
            }
            refused = false;
            last = Some(sample.at);
        }
        lives.0.insert(member, starts);
    }
    lives
}

#[cfg(test)]
mod tests {
    use super::super::etcd::Status;
    use super::*;

    fn ms(n: u64) -> At {
        At(n * 1000)
    }

    fn sample(member: Member, at: u64, leader: u64, term: u64) -> Sample {
        let status = Status {
            id: Id(member as u64 + 1),
            cluster: Id(9),
            leader: Id(leader),
            term,
            index: 0,
            revision: 1,
            learner: false,
            db_bytes: 0,
            version: "3.6.16".to_owned(),
            errors: vec![],
        };
        Sample { member, sent: ms(at - 1), at: ms(at), status: Some(status), error: None }
    }

    fn silent(member: Member, at: u64) -> Sample {
        Sample { status: None, error: Some("refused".to_owned()), ..sample(member, at, 0, 0) }
    }

    const SILENCE: Duration = Duration::from_millis(400);

    #[test]
    fn the_longest_gap_counts_from_the_last_ack_before_and_to_the_end() {
        let acks = [ms(0), ms(100), ms(200), ms(1400), ms(1500)];
        assert_eq!(longest(&acks, ms(250), ms(1500)), Gap { from: ms(200), to: ms(1400) });
        // Nothing more was acknowledged: the gap is open until the end.
        assert_eq!(longest(&acks, ms(1450), ms(9000)).length(), Duration::from_millis(7500));
        assert_eq!(longest(&[], ms(10), ms(20)).length(), Duration::from_millis(10));
        let gaps = |from, to| count_longer(&acks, ms(from), ms(to), Duration::from_millis(500));
        assert_eq!((gaps(0, 1500), gaps(250, 1500), gaps(1400, 1500)), (1, 1, 0), "from within a gap it is the same gap");
        assert_eq!(gaps(250, 9000), 2, "and one that is open at the end");
        assert_eq!(count_longer(&[], ms(10), ms(900), Duration::from_millis(500)), 1);
    }

    #[test]
    fn what_the_observer_slept_through_is_no_part_of_a_gap() {
        let (acks, stall) = ([ms(0), ms(100), ms(700), ms(1000)], |from, to| Gap { from: ms(from), to: ms(to) });
        let awake = |stalls: &[Gap]| longest_awake(&acks, ms(50), ms(1000), stalls);
        assert_eq!(awake(&[]), Duration::from_millis(600));
        assert_eq!(awake(&[stall(50, 250), stall(300, 400)]), Duration::from_millis(350), "of the first, what lies inside");
        // One gap is explained, and the next is the longest that is not.
        assert_eq!(awake(&[stall(150, 650)]), Duration::from_millis(300));
        assert_eq!(awake(&[stall(0, 2000)]), Duration::ZERO);
        assert_eq!(covered(stall(100, 200), &[stall(200, 300), stall(0, 100)]), Duration::ZERO);
    }

    #[test]
    fn percentiles() {
        let mut values: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut values, 50.0), Duration::from_millis(50));
        assert_eq!(percentile(&mut values, 99.0), Duration::from_millis(99));
        assert_eq!(percentile(&mut [], 99.0), Duration::ZERO);
    }

    #[test]
    fn a_term_that_lags_is_known_as_such() {
        // Member 1 follows member 0 in term 2, is elected (term still shown as 2), then shows 3.
        let samples =
            [sample(0, 100, 1, 2), sample(1, 110, 1, 2), sample(1, 300, 2, 2), sample(1, 400, 2, 3), sample(0, 410, 2, 2)];
        let led = leaderships(&samples, SILENCE);
        let brief: Vec<(Member, u64, bool)> = led.iter().map(|l| (l.member, l.term, l.term_behind)).collect();
        assert_eq!(brief, [(0, 2, false), (1, 3, false)]);
        let never = leaderships(&samples[..3], SILENCE);
        assert!(never.iter().any(|l| l.member == 1 && l.term_behind));
    }

    fn in_cluster(cluster: u64, mut sample: Sample) -> Sample {
        sample.status.iter_mut().for_each(|status| status.cluster = Id(cluster));
        sample
    }

    #[test]
    fn a_new_leader_is_another_or_the_same_in_a_later_term() {
        let old = |term| Some(Leader { member: 0, cluster: Id(9), term });
        let samples = [sample(0, 100, 1, 2), sample(0, 700, 1, 2), sample(1, 1500, 2, 3)];
        assert_eq!(new_leader(&samples, old(2), ms(200)), Some((ms(1500), 1)));
        assert_eq!(new_leader(&[sample(0, 900, 1, 3)], old(2), ms(200)), Some((ms(900), 0)));
        assert_eq!(new_leader(&samples[..2], old(2), ms(200)), None);
        // A restored cluster begins again at a low term, and whoever leads it has not led it before.
        let restored = [sample(0, 300, 1, 7), in_cluster(10, sample(0, 900, 1, 2))];
        assert_eq!(new_leader(&restored, old(7), ms(200)), Some((ms(900), 0)));
    }

    #[test]
    fn a_leadership_ends_with_its_cluster_and_terms_are_of_their_own() {
        let samples = [
            sample(0, 100, 1, 5),
            sample(1, 100, 1, 5),
            in_cluster(10, sample(0, 300, 2, 5)),
            in_cluster(10, sample(1, 300, 2, 5)),
            in_cluster(10, sample(0, 400, 2, 5)),
        ];
        let led = leaderships(&samples, SILENCE);
        let brief: Vec<(Member, Id, At, bool)> = led.iter().map(|l| (l.member, l.cluster, l.to, l.term_behind)).collect();
        // That it followed in a term of the old cluster is no sign that the new one's is behind.
        assert_eq!(brief, [(0, Id(9), ms(100), false), (1, Id(10), ms(300), false)]);
        let both = [sample(0, 100, 1, 5), in_cluster(10, sample(0, 300, 1, 2))];
        assert_eq!(leaderships(&both, SILENCE).iter().map(|l| l.term).collect::<Vec<_>>(), [5, 2]);
    }

    #[test]
    fn membership_is_full_when_the_last_one_follows_for_good() {
        let mut samples = vec![sample(0, 100, 1, 2), silent(1, 100), sample(0, 200, 1, 2), sample(1, 250, 0, 2)];
        assert_eq!(full_membership(&samples, 2, ms(0)), None);
        samples.extend([sample(1, 300, 1, 2), sample(1, 350, 1, 2)]);
        assert_eq!(full_membership(&samples, 2, ms(0)), Some(ms(300)));
    }

    #[test]
    fn lanes_adjoin_and_absence_is_silence() {
        let samples = [
            sample(0, 100, 1, 2),
            sample(0, 200, 1, 2),
            silent(0, 500),
            sample(0, 2000, 2, 3),
            sample(0, 2100, 2, 3),
            sample(0, 2200, 0, 3),
        ];
        let lanes = lanes(&samples, 0, ms(0), ms(2250), SILENCE);
        let conditions: Vec<Condition> = lanes.iter().map(|lane| lane.condition).collect();
        assert_eq!(conditions, [Condition::Leader, Condition::Away, Condition::Follower, Condition::Leaderless]);
        assert!(lanes.windows(2).all(|pair| pair[0].to == pair[1].from));
        assert_eq!((lanes[0].from, lanes[3].to), (ms(0), ms(2250)));
    }

    #[test]
    fn a_member_that_came_back_lives_again() {
        let samples = [sample(0, 100, 1, 2), silent(0, 200), sample(0, 300, 2, 3)];
        let lives = lives(&samples, 1, SILENCE);
        assert!(lives.of(0, ms(100)) < lives.of(0, ms(300)));
    }
}
