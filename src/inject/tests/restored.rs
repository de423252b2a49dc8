//! Members given their data back: the room that it needs on their disks, and the time.
//! What a restore does, in which order, is beside it; here it is what a large store asks for.
//! Guests answer by rule: no byte is restored.

use super::*;

/// The least that a member has is what counts; of one that does not answer nobody can say that it has any.
#[tokio::test(start_paused = true)]
async fn room_for_a_restore_is_that_of_the_member_that_has_least() {
    let guests = || FakeGuests::new().on_node(&NodeName::controller(2), "df ", "room 700\n");
    let members: Vec<NodeName> = (0..3).map(NodeName::controller).collect();
    let (machines, _) = machines(guests().on("df ", "room 900\n"));
    assert_eq!(machines.store_room(&members).await, Ok(Some(700)));
    assert_eq!(machines.store_room(&members[..2]).await, Ok(Some(900)));
    for answer in [Reply::ok("room\n"), Reply::ok(""), Reply::unreachable(&members[0])] {
        let (machines, _) = self::machines(guests().on("df ", answer));
        let error = machines.store_room(&members).await.expect_err("not told").to_string();
        assert!(error.contains("room for a restore") && error.contains("controller-0"), "{error}");
    }
}

/// A large store is long under way, and as long restored from.
#[tokio::test(start_paused = true)]
async fn a_restore_has_the_time_that_its_snapshot_takes() {
    let deadlines = Arc::new(Mutex::new(Vec::new()));
    let noted = deadlines.clone();
    let guests = FakeGuests::new().with("", move |_, cmd| {
        noted.lock().expect("deadlines").push(cmd.deadline.as_secs());
        Reply::ok("")
    });
    let (machines, _) = machines(guests);
    let (plain, dir) = (u64::from(machines.plan.timers.probe_deadline_s), tempfile::tempdir().expect("dir"));
    let snapshot = dir.path().join("snapshot.db");
    std::fs::write(&snapshot, vec![0; 8 << 20]).expect("written");
    let act = Act::RestoreData { nodes: vec![NodeName::controller(0)], snapshot: snapshot.display().to_string() };
    machines.perform(&act).await.expect("restored");
    // Looked at, emptied, given the snapshot, restored from it: 8 MiB are worth two seconds.
    assert_eq!(*deadlines.lock().expect("deadlines"), [plain, plain, plain * 4 + 2, plain + 2]);
}
