//! The serial console: the log that virtlogd keeps of it, and the console itself, both ways.
//! `LibvirtHost` calls it with a live connection; both work over any connection, however far the machine is.
//! It knows nothing of terminals: raw mode and escape keys are the command line's business.

use super::connection::{present, refused};
use super::{domains, pools, transfer, volumes};
use crate::host::{Console, HostError, Mark, xml};
use crate::plan::{DomainPlan, StoragePlan};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use virt::connect::Connect;
use virt::storage_pool::StoragePool;
use virt::stream::Stream;
use virt::sys;

/// Read of each file of the log; virtlogd starts a new one at 2 MiB.
const TAIL_BYTES: u64 = 256 * 1024;

/// The last `lines` lines. The log is a file in the cluster's pool, so it is read as a volume of it.
pub fn tail(conn: &Connect, plan: &StoragePlan, domain: &str, lines: usize) -> Result<String, HostError> {
    let pool = pools::by_plan(conn, &plan.pool, plan.pool_uuid)?;
    pools::when_idle(|| pool.refresh(0)).map_err(|error| refused("refresh", pools::KIND, &plan.pool, &error))?;
    let name = xml::console_volume(domain);
    // `<log>.0` is what virtlogd has put aside.
    let mut bytes = read_end(&pool, &name)?;
    if bytes.iter().filter(|byte| **byte == b'\n').count() < lines {
        let mut older = read_end(&pool, &format!("{name}.0"))?;
        older.append(&mut bytes);
        bytes = older;
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().map(|line| line.trim_end_matches('\r')).collect();
    Ok(all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n"))
}

fn read_end(pool: &StoragePool, name: &str) -> Result<Vec<u8>, HostError> {
    let Some(volume) = present(pool.lookup_storage_vol_by_name(name), volumes::KIND, name)? else { return Ok(Vec::new()) };
    let length = volume.info().map_err(|error| refused("measure", volumes::KIND, name, &error))?.capacity;
    // libvirt refuses to read nothing of nothing.
    if length == 0 {
        return Ok(Vec::new());
    }
    transfer::download(pool, &volume, length.saturating_sub(TAIL_BYTES), TAIL_BYTES)
        .map_err(|error| refused("read", volumes::KIND, name, &error))
}

pub fn open(conn: &Connect, plan: &DomainPlan, mark: &Mark) -> Result<Arc<dyn Console>, HostError> {
    let domain = domains::required(conn, plan, mark)?;
    let failed = |error| refused("open the console of", domains::KIND, &plan.name, &error);
    let stream = Stream::new(conn, 0).map_err(failed)?;
    // SAFE: a second reader is refused rather than given half of the bytes.
    domain.open_console(None, &stream, sys::VIR_DOMAIN_CONSOLE_SAFE).map_err(failed)?;
    Ok(Arc::new(OpenConsole { name: plan.name.clone(), stream, closed: AtomicBool::new(false) }))
}

struct OpenConsole {
    name: String,
    stream: Stream,
    closed: AtomicBool,
}

impl OpenConsole {
    fn failed(&self, action: &'static str, error: &virt::error::Error) -> HostError {
        refused(action, "the console of", &self.name, error)
    }
}

impl Console for OpenConsole {
    fn read(&self, buffer: &mut [u8]) -> Result<usize, HostError> {
        match self.stream.recv(buffer) {
            Ok(got) => Ok(usize::try_from(got).unwrap_or(0)),
            // Closing it ends a read with an error; that is the end and no failure.
            Err(_) if self.closed.load(Ordering::Acquire) => Ok(0),
            Err(error) => Err(self.failed("read", &error)),
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<(), HostError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.stream.send(rest).map_err(|error| self.failed("write to", &error))?;
            rest = rest.get(usize::try_from(sent).unwrap_or(0)..).unwrap_or_default();
        }
        Ok(())
    }

    fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            // There is nobody left to tell.
            let _ = self.stream.clone().abort();
        }
    }
}

impl Drop for OpenConsole {
    fn drop(&mut self) {
        self.close();
    }
}
