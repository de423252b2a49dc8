//! Whether members can be given their store back out of a snapshot: the room that takes on their disks, and the time.
//! `before` asks it ahead of a drill that takes the store away, a restore ahead of its first change; `inject` has its deadlines from it.
//! Pure arithmetic: what a disk has free, others look at.

use super::target::NoTarget;
use std::time::Duration;

/// What is made beside the snapshot and the store that comes out of it: two files of etcd's log, 64 MiB each and as long as that from
/// the beginning, and what the store grows by while its revisions are raised.
const BESIDE: u64 = 192 << 20;
/// Bytes a second that the slowest way to a member and its disk are trusted with.
const PACE: u64 = 4 << 20;
const MIB: u64 = 1 << 20;

/// A store that could be taken away and not be put back. All in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "to restore a store of {store} MiB takes {needs} MiB on etcd's disk, and a member has {room}; accepted: a store of up to {most} MiB"
)]
pub struct NoRoom {
    pub store: u64,
    pub needs: u64,
    pub room: u64,
    pub most: u64,
}

/// Whether a store of so many bytes finds the room for its restore among as many as a member's disk has for it.
pub fn restorable(store: u64, room: u64) -> Result<(), NoRoom> {
    let needs = store.saturating_mul(2).saturating_add(BESIDE);
    if needs <= room {
        return Ok(());
    }
    let most = room.saturating_sub(BESIDE) / 2 / MIB;
    Err(NoRoom { store: store.div_ceil(MIB), needs: needs.div_ceil(MIB), room: room / MIB, most })
}

/// The same for a drill of that name; where nobody knows the room there is no disk of its own to be filled.
pub fn may_be_taken(drill: &str, store: i64, room: Option<u64>) -> Result<(), NoTarget> {
    let store = u64::try_from(store).unwrap_or(0);
    let judged = room.map_or(Ok(()), |room| restorable(store, room));
    judged.map_err(|why| NoTarget::NoWayBack { drill: drill.to_owned(), why })
}

/// How long it may take to pass so many bytes on, where the same of a few bytes may take `least`.
pub fn patience(least: Duration, bytes: u64) -> Duration {
    least + Duration::from_secs(bytes / PACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_needs_twice_its_room_and_what_etcd_makes_beside_it() {
        let told = |store: u64, room: u64| restorable(store * MIB, room * MIB).map_err(|error| error.to_string());
        // A disk of 2 GiB, as a member has it without being asked.
        assert_eq!(told(20, 1900), Ok(()));
        assert_eq!(told(854, 1900), Ok(()));
        let expected = "to restore a store of 855 MiB takes 1902 MiB on etcd's disk, and a member has 1900; accepted: a store of up \
                        to 854 MiB";
        assert_eq!(told(855, 1900), Err(expected.to_owned()));
        // On a larger disk also what its quota allows at most.
        assert_eq!(told(2048, 9000), Ok(()));
        assert!(told(1, 100).expect_err("full").ends_with("accepted: a store of up to 0 MiB"));
        assert!(restorable(u64::MAX, u64::MAX - 1).is_err());
    }

    #[test]
    fn where_nobody_knows_the_room_nothing_is_refused() {
        assert_eq!(may_be_taken("disaster-restore", 900 << 20, None), Ok(()));
        assert_eq!(may_be_taken("disaster-restore", 900 << 20, Some(3 << 30)), Ok(()));
        let error = may_be_taken("disaster-restore", 900 << 20, Some(1 << 30)).expect_err("no room").to_string();
        assert!(error.starts_with("disaster-restore: to restore a store of 900 MiB takes 1992 MiB"), "{error}");
    }

    #[test]
    fn a_large_store_has_more_time() {
        let least = Duration::from_secs(30);
        assert_eq!(patience(least, 7), least);
        assert_eq!(patience(least, 800 << 20), Duration::from_secs(230));
    }
}
