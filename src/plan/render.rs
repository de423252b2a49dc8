//! A plan as text for people: every machine, address, disk, certificate, file, unit and stage.
//! `cli plan` prints it; golden tests keep it.
//! It reads the value and nothing else.

use super::{Accel, Content, DiskKind, NodePlan, Plan};
use crate::apply::Step;
use crate::event::Stage;
use std::fmt::Write;

/// The whole plan. `steps` are those of a host where nothing is yet.
pub fn text(plan: &Plan, steps: &[Step]) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write(plan, steps, &mut out);
    out
}

fn write(plan: &Plan, steps: &[Step], out: &mut String) -> std::fmt::Result {
    let (spec, versions, network) = (&plan.spec, &plan.resolved.image.versions, &plan.network);
    writeln!(
        out,
        "cluster {}: {} etcd, {} control planes, {} workers",
        plan.cluster, spec.etcd, spec.control_planes, spec.workers
    )?;
    writeln!(
        out,
        "  versions  Kubernetes {}, etcd {}, containerd {}, CoreDNS {}, Debian {}",
        versions.kubernetes, versions.etcd, versions.containerd, versions.coredns, versions.debian
    )?;
    writeln!(out, "  image     {}", plan.storage.base_volume)?;
    let own = plan.resolved.kernel.as_ref().map_or("of the image", |_| "given with --kernel");
    writeln!(out, "  kernel    {} ({own})", plan.storage.kernel_volume)?;
    let accel = match &plan.resolved.accel {
        Accel::Kvm { cpu } => format!("KVM, CPU {}", cpu.as_str()),
        Accel::Tcg => "TCG (emulation): control planes start one after the other, timers are longer".to_owned(),
    };
    writeln!(out, "  runs on   {accel}")?;
    let timers = &plan.timers;
    writeln!(
        out,
        "  timers    etcd heartbeat {} ms, election {} ms; leases {}/{}/{} s",
        timers.etcd_heartbeat_ms,
        timers.etcd_election_ms,
        timers.lease_duration_s,
        timers.renew_deadline_s,
        timers.retry_period_s
    )?;
    let way_out = if network.isolated { "isolated" } else { "NAT" };
    writeln!(out, "\nnetwork {} (bridge {}, {way_out})", network.name, network.bridge)?;
    writeln!(out, "  machines  {}, gateway {}", network.subnet, network.gateway)?;
    writeln!(out, "  API       https://{}:6443 (virtual address, moved by keepalived)", network.vip)?;
    writeln!(out, "  pods      {}", network.pod_cidr)?;
    writeln!(out, "  services  {} (API {}, DNS {})", network.service_cidr, network.kubernetes_service, network.dns_service)?;

    writeln!(out, "\nmachines")?;
    for node in &plan.nodes {
        let domain = &node.domain;
        writeln!(
            out,
            "  {:<13} {:<15} {} {} CPU {} MiB  {}",
            node.name,
            node.ip,
            node.mac,
            domain.cpus,
            domain.memory_mib,
            roles(node)
        )?;
        for disk in &domain.disks {
            let kind = match disk.kind {
                DiskKind::Root { size_gib } => format!("overlay on the image, {size_gib} GiB"),
                DiskKind::Seed => "cloud-init".to_owned(),
                DiskKind::Etcd { size_gib } => format!("etcd data, {size_gib} GiB"),
            };
            writeln!(out, "    {} {:<24} {kind}", disk.target, disk.volume)?;
        }
    }

    writeln!(out, "\ncertificates")?;
    for cert in &plan.certs {
        let usages: Vec<_> = cert.usages.iter().map(|usage| format!("{usage:?}").to_lowercase()).collect();
        let sans: Vec<_> = cert.dns_names.iter().cloned().chain(cert.ips.iter().map(ToString::to_string)).collect();
        let organizations =
            if cert.organizations.is_empty() { String::new() } else { format!(" O={}", cert.organizations.join(",")) };
        let sans = if sans.is_empty() { String::new() } else { format!(" for {}", sans.join(" ")) };
        writeln!(
            out,
            "  {:<38} {:<15} {:<13} CN={}{organizations}{sans}",
            cert.id,
            cert.ca.common_name(),
            usages.join("+"),
            cert.common_name
        )?;
    }

    writeln!(out, "\nfiles and units (show one: ktcw-vm plan --show NODE:PATH)")?;
    for node in &plan.nodes {
        writeln!(out, "  {}", node.name)?;
        for file in &node.files {
            let secret = match &file.content {
                Content::Pki { item } if item.is_secret() => "  (secret)",
                _ => "",
            };
            writeln!(out, "    {:04o} {}{secret}", file.mode, file.path)?;
        }
        writeln!(out, "    units {}", node.units.join(" "))?;
    }

    writeln!(out, "\nstages")?;
    for stage in Stage::ALL {
        let own: Vec<&Step> = steps.iter().filter(|step| step.stage == stage).collect();
        if own.is_empty() {
            writeln!(out, "  {}", stage.title())?;
            continue;
        }
        writeln!(out, "  {} ({} steps)", stage.title(), own.len())?;
        for step in own {
            let after = if step.after.is_empty() { String::new() } else { format!("  after {}", step.after.join(", ")) };
            writeln!(out, "    {}{after}", step.id)?;
        }
    }
    Ok(())
}

fn roles(node: &NodePlan) -> &'static str {
    match (node.role, node.control_plane) {
        (crate::spec::Role::Controller, true) => "etcd, control plane",
        (crate::spec::Role::Controller, false) => "etcd",
        (crate::spec::Role::Worker, _) => "worker",
    }
}
