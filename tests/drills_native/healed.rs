//! Faults that end by themselves: Ctrl-C heals, and the timer inside the target does when nobody else will.
//! Both are tried on a cut, which nothing else would take away.
//! What a killed process leaves is `crashes`' matter.

use crate::cluster::Cluster;
use crate::injector::Native;
use crate::runs::{drill, options};
use ktcw_vm::drill::act::Act;
use ktcw_vm::drill::admin::await_healthy;
use ktcw_vm::drill::injector::{FaultLog, Injector, MemoryLog};
use ktcw_vm::drill::run::{RunError, run};
use std::sync::Arc;
use std::time::Duration;

/// Ctrl-C heals; and when nobody heals at all, the timer inside the target does.
#[test]
fn interrupts_heal_and_so_do_dead_men() {
    let cluster = Arc::new(Cluster::start(3));
    let native = Native::new(cluster.clone());
    let site = cluster.site();
    cluster.block_on(async {
        await_healthy(&site, Duration::from_secs(30)).await.expect("healthy");
        let (log, options) = (MemoryLog::default(), options(&cluster));
        let cancel = options.cancel.clone();
        let mut long = drill("isolate-leader");
        long.hold = "60 s".parse().expect("a bound");
        let interrupter = async {
            while native.leftovers().await.expect("a look").is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            cancel.cancel();
        };
        let (ended, ()) = tokio::join!(run(&long, &site, &native, &log, &options), interrupter);
        assert!(matches!(ended, Err(RunError::Interrupted)), "{:?}", ended.map(|_| ()));
        assert_eq!(native.leftovers().await.expect("a look"), []);
        assert!(log.pending().expect("a list").is_empty());

        let node = site.members[0].node.clone();
        let undo = [Act::Uncut { node: node.clone() }];
        native.arm(&undo, Duration::from_secs(1)).await.expect("armed");
        let rules = match ktcw_vm::drill::script::script(
            &drill("isolate-leader").fault,
            std::slice::from_ref(&node),
            &site.nodes(),
            &site.environment.timing,
            "",
        )
        .inject
        .remove(0)
        {
            Act::Cut { rules, .. } => rules,
            other => panic!("{other}"),
        };
        native.perform(&Act::Cut { node, rules }).await.expect("cut");
        assert_eq!(native.leftovers().await.expect("a look").len(), 1);
        tokio::time::sleep(Duration::from_millis(1800)).await;
        assert_eq!(native.leftovers().await.expect("a look"), []);
    });
}
