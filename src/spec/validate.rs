//! From `RawSpec` to `ClusterSpec`: every rule in one list, every broken rule reported.
//! Called once at the door; a spec that passed is never checked again.
//! It looks at the words only: whether the host can carry the cluster is preflight's question.

use super::{
    AccelChoice, BASE_DISK_GIB, ClusterName, ClusterSpec, KernelSpec, Lineage, MAX_ETCD, MAX_WORKERS, MachineSpec, NetworkSpec,
    RawSpec,
};
use ipnet::Ipv4Net;
use std::fmt;
use std::net::Ipv4Addr;

/// One thing that cannot be accepted, and what would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The flag without its dashes, which is also the key of the config file.
    pub field: &'static str,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}: {}", self.field, self.message)
    }
}

/// The range of a number, and what it is when nobody says.
pub(super) struct Bound {
    field: &'static str,
    default: u64,
    pub low: u64,
    pub high: u64,
    unit: &'static str,
}

const fn bound(field: &'static str, default: u64, low: u64, high: u64, unit: &'static str) -> Bound {
    Bound { field, default, low, high, unit }
}

// The schema of the config file has the same.
const WORKERS: Bound = bound("workers", 2, 0, MAX_WORKERS as u64, "");
pub(super) const MEMORY_OF_A_CONTROLLER: Bound = bound("controller-mem", 1280, 768, 65536, " MiB");
pub(super) const MEMORY_OF_A_WORKER: Bound = bound("worker-mem", 1024, 512, 65536, " MiB");
pub(super) const CPUS: Bound = bound("cpus", 1, 1, 16, "");
pub(super) const ETCD_DISK: Bound = bound("etcd-disk", 2, 1, 64, " GiB");
pub(super) const ROOT_DISK: Bound = bound("root-disk", BASE_DISK_GIB, BASE_DISK_GIB, 512, " GiB");

/// Accepts the words or returns all problems, in the order of the fields.
pub fn validate(raw: &RawSpec) -> Result<ClusterSpec, Vec<Problem>> {
    validate_kept(raw, None)
}

/// The same for a cluster that is there: an even number of members that it has already is accepted, and nodes keep their names.
pub fn validate_kept(raw: &RawSpec, kept: Option<&ClusterSpec>) -> Result<ClusterSpec, Vec<Problem>> {
    let mut problems = Vec::new();
    let name = ClusterName::parse(raw.cluster.as_deref().unwrap_or("ktcw"))
        .map_err(|message| problems.push(Problem { field: "cluster", message }))
        .ok();
    let etcd = raw.etcd.unwrap_or(3);
    let has = kept.is_some_and(|kept| u64::from(kept.etcd) == etcd);
    if etcd.is_multiple_of(2) && !has || etcd == 0 || etcd > u64::from(MAX_ETCD) {
        problems.push(Problem {
            field: "etcd",
            message: format!(
                "{etcd} members cannot be had; accepted: 1, 3, 5 or 7 (an even number tolerates no more failures than one fewer)"
            ),
        });
    }
    // Judged against --etcd only where that is a number one could have: one mistake, one complaint.
    let possible = etcd.clamp(1, u64::from(MAX_ETCD));
    let control_planes = raw.control_planes.unwrap_or(possible);
    if control_planes == 0 || control_planes > possible {
        problems.push(Problem {
            field: "control-planes",
            message: format!("{control_planes} of {possible} controllers; accepted: 1 to {possible} (the control plane runs on the first of the etcd machines)"),
        });
    }
    let mut within = |bound: &Bound, value: Option<u64>| {
        let &Bound { field, default, low, high, unit } = bound;
        let value = value.unwrap_or(default);
        if value < low || value > high {
            problems.push(Problem { field, message: format!("{value}{unit} is out of range; accepted: {low} to {high}{unit}") });
        }
        value
    };
    let workers = within(&WORKERS, raw.workers);
    let controller_mem = within(&MEMORY_OF_A_CONTROLLER, raw.controller_mem);
    let worker_mem = within(&MEMORY_OF_A_WORKER, raw.worker_mem);
    let cpus = within(&CPUS, raw.cpus);
    let etcd_disk = within(&ETCD_DISK, raw.etcd_disk);
    let root_disk = within(&ROOT_DISK, raw.root_disk);

    let subnet = raw.subnet.as_deref().and_then(|text| cidr("subnet", text, 24, 24, &mut problems));
    let pod_cidr = cidr("pod-cidr", raw.pod_cidr.as_deref().unwrap_or("10.244.0.0/16"), 16, 16, &mut problems);
    let service_cidr = cidr("service-cidr", raw.service_cidr.as_deref().unwrap_or("10.96.0.0/16"), 12, 24, &mut problems);
    let named = [("subnet", subnet), ("pod-cidr", pod_cidr), ("service-cidr", service_cidr)];
    for (i, (field, a)) in named.iter().enumerate() {
        for (other, b) in &named[..i] {
            if let (Some(a), Some(b)) = (a, b)
                && (a.contains(b) || b.contains(a))
            {
                problems.push(Problem {
                    field,
                    message: format!("{a} overlaps --{other} {b}; accepted: ranges that share no address"),
                });
            }
        }
    }
    if raw.kernel.is_none() && raw.initrd.is_some() {
        problems
            .push(Problem { field: "initrd", message: "needs --kernel; the image's own kernel has its own initrd".to_owned() });
    }
    if raw.kernel.is_none() && raw.kernel_args.is_some() {
        let message = "needs --kernel; the image's own kernel has its own command line".to_owned();
        problems.push(Problem { field: "kernel-args", message });
    }
    if let Some(args) = &raw.kernel_args
        && (args.len() > 1024 || args.chars().any(|c| c.is_control() || !c.is_ascii()))
    {
        problems.push(Problem {
            field: "kernel-args",
            message: "accepted: up to 1024 printable ASCII characters on one line".to_owned(),
        });
    }

    let (Some(name), Some(pod_cidr), Some(service_cidr), true) = (name, pod_cidr, service_cidr, problems.is_empty()) else {
        return Err(problems);
    };
    // Every number was checked against a range that fits its type.
    let small = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    let spec = ClusterSpec {
        name,
        etcd: small(etcd),
        control_planes: small(control_planes),
        workers: small(workers),
        network: NetworkSpec { subnet, isolated: raw.isolated.unwrap_or(false), pod_cidr, service_cidr },
        machines: MachineSpec {
            controller_mem_mib: u32::try_from(controller_mem).unwrap_or(u32::MAX),
            worker_mem_mib: u32::try_from(worker_mem).unwrap_or(u32::MAX),
            cpus: small(cpus),
            etcd_disk_gib: u16::try_from(etcd_disk).unwrap_or(u16::MAX),
            root_disk_gib: u16::try_from(root_disk).unwrap_or(u16::MAX),
        },
        accel: raw.accel.unwrap_or(AccelChoice::Auto),
        kernel: raw.kernel.clone().map(|path| KernelSpec { path, initrd: raw.initrd.clone(), args: raw.kernel_args.clone() }),
        lineage: Lineage::default(),
    };
    let Some(kept) = kept else { return Ok(spec) };
    let wrong = |field, message| vec![Problem { field, message }];
    let spec = kept.resized(&spec).map_err(|message| wrong("etcd", message))?;
    match spec.lineage_problem() {
        Some(problem) if spec.lineage == kept.lineage => Err(wrong("cluster", format!("its nodes: {problem}"))),
        _ => Ok(spec),
    }
}

/// A private IPv4 network in canonical form, with a prefix between `low` and `high`.
fn cidr(field: &'static str, text: &str, low: u8, high: u8, problems: &mut Vec<Problem>) -> Option<Ipv4Net> {
    let prefixes = if low == high { format!("a /{low}") } else { format!("a /{low} to /{high}") };
    let accepted = format!("accepted: {prefixes} inside 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16");
    let shown: String = text.chars().take(40).collect();
    let mut refuse = |why: String| {
        problems.push(Problem { field, message: format!("{why}; {accepted}") });
        None
    };
    let Ok(net) = text.parse::<Ipv4Net>() else { return refuse(format!("{shown:?} is not an IPv4 network")) };
    // Leading zeros are octal to some programs and nothing to others.
    if net.to_string() != text {
        return refuse(format!("{shown:?} is not how a network is written (did you mean {net}?)"));
    }
    if net.trunc() != net {
        return refuse(format!("{net} has host bits set (did you mean {}?)", net.trunc()));
    }
    if !(low..=high).contains(&net.prefix_len()) {
        return refuse(format!("{net} has the wrong size"));
    }
    let private = [(Ipv4Addr::new(10, 0, 0, 0), 8), (Ipv4Addr::new(172, 16, 0, 0), 12), (Ipv4Addr::new(192, 168, 0, 0), 16)];
    if !private.iter().any(|(base, len)| Ipv4Net::new_assert(*base, *len).contains(&net)) {
        return refuse(format!("{net} is not a private range"));
    }
    Some(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(raw: &RawSpec) -> Vec<&'static str> {
        validate(raw).expect_err("must be refused").iter().map(|p| p.field).collect()
    }

    #[test]
    fn the_default_is_three_plus_two() {
        let spec = validate(&RawSpec::default()).expect("defaults are valid");
        assert_eq!((spec.name.as_str(), spec.etcd, spec.control_planes, spec.workers), ("ktcw", 3, 3, 2));
    }

    #[test]
    fn every_bad_number_names_its_flag_and_what_is_accepted() {
        let n = |etcd, control_planes, workers| RawSpec { etcd, control_planes, workers, ..RawSpec::default() };
        for (raw, field) in [
            (n(Some(0), Some(1), None), "etcd"),
            (n(Some(2), Some(1), None), "etcd"),
            (n(Some(9), None, None), "etcd"),
            (n(Some(3), Some(4), None), "control-planes"),
            (n(Some(3), Some(0), None), "control-planes"),
            (n(None, None, Some(51)), "workers"),
            (RawSpec { controller_mem: Some(10), ..RawSpec::default() }, "controller-mem"),
            (RawSpec { worker_mem: Some(u64::MAX), ..RawSpec::default() }, "worker-mem"),
            (RawSpec { cpus: Some(0), ..RawSpec::default() }, "cpus"),
            (RawSpec { etcd_disk: Some(0), ..RawSpec::default() }, "etcd-disk"),
            (RawSpec { cluster: Some("a/b".into()), ..RawSpec::default() }, "cluster"),
            (RawSpec { subnet: Some("8.8.8.0/24".into()), ..RawSpec::default() }, "subnet"),
            (RawSpec { subnet: Some("192.168.5.7/24".into()), ..RawSpec::default() }, "subnet"),
            (RawSpec { subnet: Some("192.168.4.0/22".into()), ..RawSpec::default() }, "subnet"),
            (RawSpec { subnet: Some("192.168.04.0/24".into()), ..RawSpec::default() }, "subnet"),
            (RawSpec { pod_cidr: Some("x'; DROP".into()), ..RawSpec::default() }, "pod-cidr"),
            (RawSpec { initrd: Some("/x".into()), ..RawSpec::default() }, "initrd"),
            (RawSpec { kernel_args: Some("a\nb".into()), ..RawSpec::default() }, "kernel-args"),
            (RawSpec { kernel_args: Some("quiet".into()), ..RawSpec::default() }, "kernel-args"),
            (RawSpec { root_disk: Some(9), ..RawSpec::default() }, "root-disk"),
        ] {
            let problems = validate(&raw).expect_err(field);
            assert!(problems.iter().any(|p| p.field == field), "{field}: {problems:?}");
            assert!(problems.iter().all(|p| p.message.contains("accepted") || p.message.contains("needs")), "{problems:?}");
        }
    }

    #[test]
    fn all_problems_come_at_once() {
        let raw = RawSpec { etcd: Some(4), workers: Some(99), cpus: Some(0), cluster: Some("Ä".into()), ..RawSpec::default() };
        assert_eq!(fields(&raw), ["cluster", "etcd", "workers", "cpus"]);
        for etcd in [0, 2, 8, u64::MAX] {
            assert_eq!(fields(&RawSpec { etcd: Some(etcd), ..RawSpec::default() }), ["etcd"], "one mistake, one complaint");
        }
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let raw = RawSpec { subnet: Some("10.96.7.0/24".into()), ..RawSpec::default() };
        assert_eq!(fields(&raw), ["service-cidr"]);
        let raw = RawSpec { service_cidr: Some("10.244.0.0/20".into()), ..RawSpec::default() };
        assert_eq!(fields(&raw), ["service-cidr"]);
    }
}
