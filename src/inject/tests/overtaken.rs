//! Machines whose state changes after it was looked at: by a call to libvirt that nobody waits for any more, or by themselves.
//! A heal that was begun too early would be content with a machine that is about to go off.
//! The host is a fake that stands still when told; nothing here waits for long.

use super::*;

/// Ctrl-C while libvirt takes a machine's power away: the call goes on without anybody who waits for it, and the heal must not find the
/// machine running, be content, and have it go off afterwards.
#[tokio::test]
async fn a_machine_is_switched_on_after_the_cut_that_nobody_waits_for_any_more() {
    let (machines, before) = machines(FakeGuests::new().on("", ""));
    let node = NodeName::controller(1);
    let domain = machines.plan.node(&node).expect("planned").domain.name.clone();
    let (let_go, stopped) = std::sync::mpsc::channel::<()>();
    let (stopped, begun) = (Mutex::new(stopped), Arc::new(tokio::sync::Notify::new()));
    let tell = begun.clone();
    let slow = FakeHost::restored(
        Some(&before.saved()),
        Box::new(move |call: &str, over: bool, _: &FakeHost| {
            if call.starts_with("power_off") && !over {
                tell.notify_one();
                stopped.lock().expect("free").recv().expect("let go");
            }
        }),
    );
    let host = Arc::new(slow.expect("as it was"));
    let machines = Machines { host: host.clone(), ..machines };
    let (off, on) = (Act::PowerOff { node: node.clone() }, Act::PowerOn { node });
    tokio::select! {
        _ = machines.perform(&off) => panic!("it stands still"),
        () = begun.notified() => (),
    }
    let mut switched = machines.perform(&on);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut switched).await;
    assert!(early.is_err(), "the cut is still under way: {early:?}");
    let_go.send(()).expect("it waits");
    switched.await.expect("on");
    let seen = host.observe().expect("seen");
    let state = seen.domains.iter().find(|seen| seen.name == domain).map(|seen| seen.state);
    assert_eq!(state, Some(DomainState::Running));
}

/// It ran when states were looked at, and answers nobody: it is not asked for as long as a machine may take to boot.
#[tokio::test(start_paused = true)]
async fn a_machine_that_goes_off_under_the_question_is_seen_to_be_off() {
    let dying = NodeName::controller(1);
    let domain = ha3().node(&dying).expect("planned").domain.name.clone();
    let its_host: Arc<Mutex<Option<Arc<FakeHost>>>> = Arc::default();
    let host_of = its_host.clone();
    let guests = FakeGuests::new().with("echo end", move |node, _| {
        if *node != dying {
            return Reply::ok("end\n");
        }
        let host = host_of.lock().expect("host").clone().expect("set");
        host.set_state(&domain, DomainState::ShutOff).expect("off");
        Reply::unreachable(node)
    });
    let (machines, host) = machines(guests);
    *its_host.lock().expect("host") = Some(host);
    let begin = tokio::time::Instant::now();
    let found: Vec<String> = machines.leftovers().await.expect("a look").iter().map(ToString::to_string).collect();
    assert_eq!(found, ["a machine without power on controller-1"]);
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}
