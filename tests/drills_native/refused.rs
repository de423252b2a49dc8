//! What cannot be drilled, or not now: refused by name, with nothing injected and nothing recorded.
//! The engine is asked on a healthy cluster, on a sick one, and while another fault is in force.
//! It looks at the processes themselves to see that nobody touched them.

use crate::cluster::Cluster;
use crate::injector::Native;
use crate::runs::{drill, options};
use ktcw_vm::drill::act::Act;
use ktcw_vm::drill::admin::await_healthy;
use ktcw_vm::drill::heal::heal;
use ktcw_vm::drill::injector::{FaultLog, Injector, MemoryLog, Pending};
use ktcw_vm::drill::run::run;
use std::sync::Arc;
use std::time::Duration;

/// What cannot be drilled is refused by name, with nothing injected and nothing recorded.
#[test]
fn refusals_touch_nothing() {
    let cluster = Arc::new(Cluster::start(3));
    let native = Native::new(cluster.clone());
    let site = cluster.site();
    cluster.block_on(async {
        await_healthy(&site, Duration::from_secs(30)).await.expect("healthy");
        let processes = || (0..3).map(|i| cluster.process(i).map(|process| process.who())).collect::<Vec<_>>();
        let before = processes();
        let log = MemoryLog::default();
        let refused = async |name: &str, log: &MemoryLog| {
            run(&drill(name), &site, &native, log, &options(&cluster)).await.expect_err("refused").to_string()
        };
        assert_eq!(refused("kubelet-stop", &log).await, "nothing was injected: kubelet-stop needs 1 worker, the cluster has 0");
        assert!(refused("apiserver-kill", &log).await.contains("needs 2 control planes, the cluster has 0"));
        let other = Pending { run: "earlier".to_owned(), drill: "bridge".to_owned(), heal: vec![], tidy: vec![] };
        let active = MemoryLog::default();
        active.record(&other).expect("recorded");
        let error = refused("leader-kill", &active).await;
        assert!(error.contains("bridge (run earlier)") && error.contains("drill heal"), "{error}");
        assert_eq!(processes(), before);
        assert!(log.pending().expect("a list").is_empty());

        // A sick cluster: the figures would mean nothing. A stopped member is an earlier fault's leftover, and healed as such.
        native
            .perform(&Act::Down {
                node: site.members[2].node.clone(),
                process: ktcw_vm::drill::catalogue::Process::Etcd,
                graceful: true,
            })
            .await
            .expect("down");
        let error = refused("leader-kill", &log).await;
        assert!(error.contains("stopped etcd on controller-2"), "{error}");
        let done = heal(&site, &native, &log).await.expect("healed");
        assert_eq!(done, ["a stopped etcd on controller-2"]);
        assert_eq!(heal(&site, &native, &log).await.expect("healed again"), Vec::<String>::new());
    });
}
