//! `up` of another cluster than the one that was taken down to its golden snapshot: disks, keys and snapshot go, all is made anew.
//! `up` asks here before anything goes: what is to come must be possible on this host, its image must be there, and it must be wanted.
//! Nothing is removed here, and nothing is made but the image.

use super::refuse;
use crate::cli::error::CliError;
use crate::cli::{render, resolve};
use crate::event::{Event, Events};
use crate::host::{HostFacts, HostSeen, Mark};
use crate::image;
use crate::plan::{Resolved, plan};
use crate::preflight::{self, Refusal};
use crate::spec::ClusterSpec;

/// What is asked for, and the host as it is with the old cluster on it.
#[derive(Clone)]
pub struct Anew {
    pub spec: ClusterSpec,
    /// What else goes with the old cluster's directory, as words of the question.
    pub stores: String,
    pub facts: HostFacts,
    /// As `once_gone` has it.
    pub seen: HostSeen,
    /// The old cluster's.
    pub mark: Mark,
    pub free_disk_mib: Option<u64>,
}

impl Anew {
    /// Ready to be made once the old one is gone, and wanted: or an error, and everything is as it was.
    pub async fn allowed(self, why: &str, yes: bool, events: &Events) -> Result<(), CliError> {
        let name = self.spec.name.clone();
        let kept = |error: CliError| error.left(format!("cluster {name} down, its golden snapshot as it was"));
        let there = image::find(&image::cache_dir()).ok().flatten();
        let (draft, mut refusals) = resolve::draft(&self.spec, &self.facts, &self.seen, there.as_ref());
        refusals.extend(self.refusals(&draft, resolve::base_mib(there.as_ref())));
        refuse(&refusals).map_err(kept)?;
        let question =
            format!("give up cluster {name} with its golden snapshot, disks{} and keys, and make another? ({why})", self.stores);
        if !yes && !render::confirm(&question).map_err(kept)? {
            return Err(kept(CliError::failed("not made anew"))
                .hint(format!("ktcw-vm up -c {name} with the flags it was made with brings it back; --yes answers yes")));
        }
        let told = events.clone();
        let settled = move || {
            let image = resolve::ensure_image(&told)?;
            let resolved = resolve::fresh(&self.spec, &self.facts, &self.seen, &image, &told)?;
            refuse(&self.refusals(&resolved, image.size_bytes >> 20))
        };
        tokio::task::spawn_blocking(settled).await.map_err(CliError::failed).and_then(|settled| settled).map_err(kept)?;
        events.send(Event::Note { text: format!("the golden snapshot is given up, everything is made anew: {why}") });
        Ok(())
    }

    fn refusals(&self, resolved: &Resolved, base_mib: u64) -> Vec<Refusal> {
        let plan = plan(&self.spec, resolved);
        preflight::judge(&plan, &self.facts, &self.seen, Some(&self.mark), base_mib, self.free_disk_mib)
    }
}

/// What the host will show when a cluster is gone: none of its machines and volumes, and the room that these took.
pub fn once_gone(mut seen: HostSeen, mark: &Mark) -> HostSeen {
    let ours = |theirs: &Option<Mark>| theirs.as_ref().is_some_and(|theirs| mark.owns(theirs));
    seen.domains.retain(|domain| !ours(&domain.mark));
    for pool in seen.pools.iter_mut().filter(|pool| ours(&pool.mark)) {
        let freed: u64 = std::mem::take(&mut pool.volumes).iter().map(|volume| volume.allocation).sum();
        pool.available = pool.available.map(|available| available.saturating_add(freed));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Events;
    use crate::host::Host;
    use crate::host::fake::FakeHost;
    use crate::plan::{Accel, samples};
    use crate::spec::{AccelChoice, RawSpec, validate};

    /// A host with the disks of a cluster of one, which is off, and what is asked for now.
    fn asked(wanted: RawSpec) -> Anew {
        asked_after(wanted, |_| ())
    }

    /// The same, after that has happened to the host.
    fn asked_after(wanted: RawSpec, happened: impl FnOnce(&FakeHost)) -> Anew {
        let old = samples::plan("ktcw", 1, 0, Accel::Tcg);
        let host = FakeHost::new();
        let mark = Mark { cluster: old.spec.name.clone(), instance: uuid::Uuid::from_u128(7), state_dir: "/state".into() };
        host.ensure_pools(&old.storage, &mark).expect("made");
        for disk in &old.nodes[0].domain.disks {
            host.ensure_blank(&old.storage, &disk.volume, 3 << 30, &mark).expect("made");
        }
        let node = &old.nodes[0];
        host.ensure_domain(&node.domain, &old.storage, &node.name, &mark).expect("made");
        happened(&host);
        let facts = host.facts().expect("facts");
        let seen = once_gone(host.observe().expect("observed"), &mark);
        let spec = validate(&RawSpec { accel: Some(AccelChoice::Tcg), ..wanted }).expect("valid");
        Anew { spec, stores: String::new(), facts, seen, mark, free_disk_mib: None }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
    }

    #[test]
    fn what_is_not_possible_is_refused_before_anything_goes() {
        let mut anew = asked(RawSpec { etcd: Some(7), ..RawSpec::default() });
        anew.facts.free_memory_mib = 4096;
        let (events, _receiver) = Events::channel();
        let error = block_on(anew.allowed("another", true, &events)).expect_err("too small");
        assert!(error.message.contains("memory: 9 machines to start"), "{}", error.message);
        assert_eq!(error.left.as_deref(), Some("cluster ktcw down, its golden snapshot as it was"));
    }

    /// Tests have no terminal: without one the answer must have been given.
    #[test]
    fn what_is_possible_must_be_wanted_too() {
        let anew = asked(RawSpec { etcd: Some(1), workers: Some(0), ..RawSpec::default() });
        let (events, _receiver) = Events::channel();
        let error = block_on(anew.allowed("another cluster is asked for", false, &events)).expect_err("nobody said yes");
        assert!(error.message.starts_with("give up cluster ktcw with its golden snapshot"), "{}", error.message);
        assert!(error.message.contains("another cluster is asked for") && error.left.is_some(), "{error:?}");
        assert_eq!(error.hint.as_deref(), Some("--yes answers yes"));
    }

    #[test]
    fn the_room_of_the_old_disks_counts_for_the_new_ones() {
        let anew = asked(RawSpec { etcd: Some(1), workers: Some(0), ..RawSpec::default() });
        let own = anew.seen.pools.iter().find(|pool| pool.mark.is_some()).expect("its pool");
        assert!(own.volumes.is_empty());
        assert_eq!(own.available, Some((100 << 30) + 3 * (3 << 30)), "a root disk, a seed, a disk for etcd");
    }

    /// The machines that are there now, and will not be, say nothing of the disks that are to be made.
    #[test]
    fn new_disks_are_counted_also_where_a_reboot_hides_the_old_ones() {
        let mut anew = asked_after(RawSpec { etcd: Some(1), workers: Some(0), ..RawSpec::default() }, FakeHost::reboot);
        anew.free_disk_mib = Some(1);
        let (events, _receiver) = Events::channel();
        let error = block_on(anew.allowed("another", true, &events)).expect_err("no room");
        assert!(error.message.contains("disk: the disks will take up to"), "{}", error.message);
    }
}
