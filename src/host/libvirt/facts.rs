//! Facts about the host behind the connection: versions, emulator, memory, processors.
//! `LibvirtHost::facts` calls it; preflight, doctor and the acceleration probe read the result.
//! It judges none of them.

use super::connection::{is_local, refused, unreadable};
use crate::host::{HostError, HostFacts, xml};
use std::ffi::CStr;
use std::path::Path;
use virt::connect::Connect;
use virt::error::Error;
use virt::sys;

/// qboot, shipped with QEMU: a firmware for direct kernel boot that does nothing else. SeaBIOS looks for disks, screens
/// and network cards first: 20 s a machine where KVM interprets its real mode, and half a second elsewhere.
const FAST_FIRMWARE: [&str; 3] = ["/usr/share/qemu/qboot.rom", "/usr/share/qboot/bios.bin", "/usr/local/share/qemu/qboot.rom"];

pub fn facts(conn: &Connect, uri: &str) -> Result<HostFacts, HostError> {
    let failed = |error: Error| refused("describe", "the host of", uri, &error);
    let node = conn.node_info().map_err(failed)?;
    let capabilities = conn.capabilities().map_err(failed)?;
    let memory_mib = node.memory >> 10;
    Ok(HostFacts {
        uri: uri.to_owned(),
        libvirt_version: version(conn.lib_version().map_err(failed)?),
        qemu_version: version(conn.hyp_version().map_err(failed)?),
        emulator: emulator(conn).map_err(failed)?,
        kvm_listed: xml::kvm_listed(&capabilities).map_err(|reason| unreadable("the capabilities of", uri, reason))?,
        memory_mib,
        free_memory_mib: available_kib(conn, uri).map_err(failed)?.map_or(memory_mib, |kib| kib >> 10),
        cpus: node.cpus,
    })
}

/// A path on this machine.
pub fn fast_firmware() -> Option<String> {
    FAST_FIRMWARE.into_iter().find(|path| Path::new(path).is_file()).map(str::to_owned)
}

/// libvirt packs versions as major × 1 000 000 + minor × 1 000 + release.
fn version(packed: u32) -> String {
    format!("{}.{}.{}", packed / 1_000_000, packed / 1_000 % 1_000, packed % 1_000)
}

/// What libvirt would run for an x86_64 q35 machine: empty when the driver has no emulator (libvirt's `test:`).
fn emulator(conn: &Connect) -> Result<String, Error> {
    // Which of the two depends on the host; the path is the same.
    let ask = |domain_type| conn.domain_capabilities(None, Some("x86_64"), Some("q35"), Some(domain_type), 0);
    match ask("kvm").or_else(|_| ask("qemu")) {
        Ok(text) => Ok(xml::emulator(&text).map(|found| found.path).unwrap_or_default()),
        Err(error) if error.message().contains("not supported by the connection driver") => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// Memory that could be had now, in KiB. The kernel's own estimate where we can read it; else free pages, buffers and cache.
fn available_kib(conn: &Connect, uri: &str) -> Result<Option<u64>, Error> {
    if is_local(uri)
        && let Some(kib) = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_available(&text))
    {
        return Ok(Some(kib));
    }
    let stats = memory_stats(conn)?;
    let wanted = [sys::VIR_NODE_MEMORY_STATS_FREE, sys::VIR_NODE_MEMORY_STATS_BUFFERS, sys::VIR_NODE_MEMORY_STATS_CACHED];
    let found: Vec<u64> = stats
        .iter()
        .filter(|(field, _)| wanted.iter().any(|name| name.to_bytes() == field.as_slice()))
        .map(|(_, kib)| *kib)
        .collect();
    Ok((!found.is_empty()).then(|| found.iter().sum()))
}

fn meminfo_available(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.split_whitespace().next()?.parse().ok()
}

/// `virNodeGetMemoryStats`, which the crate does not wrap: field names and KiB.
#[expect(unsafe_code, reason = "a C call the crate does not wrap")]
fn memory_stats(conn: &Connect) -> Result<Vec<(Vec<u8>, u64)>, Error> {
    let cells = sys::VIR_NODE_MEMORY_STATS_ALL_CELLS;
    let mut count = 0;
    // SAFETY: with a count of 0 libvirt only writes the count; then it fills at most `count` records of the vector, each
    // with a NUL-terminated name within its array.
    unsafe {
        if sys::virNodeGetMemoryStats(conn.as_ptr(), cells, std::ptr::null_mut(), &mut count, 0) < 0 {
            return Err(Error::last_error());
        }
        let length = usize::try_from(count).unwrap_or(0);
        let mut records = vec![std::mem::zeroed::<sys::virNodeMemoryStats>(); length];
        if sys::virNodeGetMemoryStats(conn.as_ptr(), cells, records.as_mut_ptr(), &mut count, 0) < 0 {
            return Err(Error::last_error());
        }
        let name = |record: &sys::virNodeMemoryStats| CStr::from_ptr(record.field.as_ptr()).to_bytes().to_vec();
        Ok(records.iter().take(usize::try_from(count).unwrap_or(0)).map(|record| (name(record), record.value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_unpacked() {
        assert_eq!(version(10_000_002), "10.0.2");
        assert_eq!(version(9_000_000), "9.0.0");
        assert_eq!(version(7_002_022), "7.2.22");
    }

    #[test]
    fn the_kernels_estimate_is_read() {
        let text = "MemTotal:       24684096 kB\nMemFree:         1000000 kB\nMemAvailable:   22000000 kB\n";
        assert_eq!(meminfo_available(text), Some(22_000_000));
        assert_eq!(meminfo_available("MemTotal: 1 kB\n"), None);
    }
}
