//! The serial console of a machine on the user's terminal, until Ctrl-].
//! `console` calls it; bytes go both ways as they are, the terminal is given back as it was found.
//! It knows libvirt's console only as something to read from and write to.

use super::error::CliError;
use crate::host::libvirt::LibvirtHost;
use crate::host::{Console, Host, Mark};
use crate::plan::DomainPlan;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{IsTerminal, Read, Write};
use std::sync::Arc;

/// Ctrl-]
const LEAVE: u8 = 0x1d;

/// Joins terminal and console; returns when one of them ends.
pub async fn attach(host: Arc<LibvirtHost>, domain: DomainPlan, mark: Mark) -> Result<(), CliError> {
    let console = tokio::task::spawn_blocking(move || host.open_console(&domain, &mark)).await.map_err(CliError::failed)??;
    let raw = if std::io::stdin().is_terminal() { Some(Raw::enter()?) } else { None };
    let _ = write!(std::io::stderr(), "connected; Ctrl-] leaves\r\n");
    let typed = console.clone();
    // A read of standard input cannot be cancelled: the thread is left behind when the machine ends first.
    std::thread::spawn(move || {
        let mut buffer = [0u8; 256];
        while let Ok(n) = std::io::stdin().read(&mut buffer) {
            let bytes = &buffer[..n];
            let end = bytes.iter().position(|&byte| byte == LEAVE).unwrap_or(n);
            if typed.write(&bytes[..end]).is_err() || end < n || n == 0 {
                break;
            }
        }
        typed.close();
    });
    let shown = tokio::task::spawn_blocking(move || show(&*console)).await.map_err(CliError::failed)?;
    drop(raw);
    let _ = write!(std::io::stderr(), "\nleft the console\n");
    shown
}

fn show(console: &dyn Console) -> Result<(), CliError> {
    let mut buffer = [0u8; 4096];
    let mut out = std::io::stdout().lock();
    loop {
        match console.read(&mut buffer) {
            Ok(0) | Err(_) => return Ok(()),
            Ok(n) => {
                if out.write_all(&buffer[..n]).and_then(|()| out.flush()).is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Raw mode, undone when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Raw, CliError> {
        let before = tcgetattr(std::io::stdin()).map_err(CliError::failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).map_err(CliError::failed)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
