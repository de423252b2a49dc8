//! `ktcw-vm proxy`: a local address that is the API, so that the classic first request works:
//! `curl --cacert ca.pem https://127.0.0.1:6443/`. Bytes are passed to the virtual address, TLS and all.
//! Where this computer cannot reach the cluster's network, they go through a controller's SSH connection.

use super::args::{Global, Proxy};
use super::error::CliError;
use super::session::Session;
use super::{exit, render, signals};
use crate::guest::quote;
use crate::guest::ssh::SshGuests;
use crate::netns;
use crate::plan::{Ca, PkiItem, Plan};
use crate::store::files;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

pub async fn run(global: &Global, args: &Proxy) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let ca = super::session::item(&session.keyring, &PkiItem::CaCert { ca: Ca::Kubernetes })?;
    let ca_path = session.dir.path().join("ca.pem");
    files::write_atomic(&ca_path, ca.expose().as_bytes(), 0o644).map_err(CliError::failed)?;
    // The cluster's network may be in a namespace: libvirt's, a fork's. Its proxy is where the user is.
    let bound = netns::at_the_user(|| std::net::TcpListener::bind(args.listen)).and_then(|bound| bound);
    let listener = bound.and_then(|bound| bound.set_nonblocking(true).and_then(|()| TcpListener::from_std(bound)));
    let listener = listener.map_err(|error| {
        CliError::failed(format!("--listen {}: {error}", args.listen)).hint("another address: --listen 127.0.0.1:16443")
    })?;
    let at = listener.local_addr().map_err(CliError::failed)?;
    let (us, typed_by) = (nix::unistd::geteuid().as_raw(), std::env::var("SUDO_UID").ok());
    let request = first_request(at, &ca_path, us, typed_by.and_then(|uid| uid.parse().ok()));
    render::print_line(&format!("the API is at https://{at}/ until Ctrl-C\n{request}"));
    let guests = session.guests()?;
    let mut stop = signals::interrupted();
    loop {
        let (client, _) = tokio::select! {
            accepted = listener.accept() => accepted.map_err(CliError::failed)?,
            _ = stop.changed() => return Ok(exit::OK),
        };
        let (plan, guests) = (session.plan.clone(), guests.clone());
        tokio::spawn(async move {
            if let Err(reason) = serve(client, &plan, &guests).await {
                render::status(&reason);
            }
        });
    }
}

/// What to type for the first request. A cluster's directory is closed to all but who runs this (`us`): through sudo that is not
/// who types it (`typed_by`), and curl would only say that the authority's file is bad. What sudo may read it may hand on.
fn first_request(at: SocketAddr, ca: &Path, us: u32, typed_by: Option<u32>) -> String {
    let ca = quote(&ca.display().to_string());
    if typed_by.is_none_or(|user| user == us) {
        return format!("  curl --cacert {ca} https://{at}/");
    }
    format!("  sudo cat {ca} > ca.pem\n  curl --cacert ca.pem https://{at}/")
}

async fn serve(client: TcpStream, plan: &Plan, guests: &Arc<SshGuests>) -> Result<(), String> {
    let direct = tokio::time::timeout(Duration::from_secs(3), TcpStream::connect((plan.network.vip, 6443))).await;
    if let Ok(Ok(api)) = direct {
        return pump(client, api).await;
    }
    let mut reasons = Vec::new();
    for node in plan.control_planes() {
        match guests.direct_tcpip(&node.name, &plan.network.vip.to_string(), 6443).await {
            Ok(tunnel) => return pump(client, tunnel).await,
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(format!("the API at {} cannot be reached: {}", plan.network.vip, reasons.join("; ")))
}

async fn pump(mut client: TcpStream, mut api: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), String> {
    // An end that goes away in the middle is the client's business.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut api).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn through_sudo_the_request_names_a_file_that_who_typed_it_can_read() {
        let at = SocketAddr::from(([127, 0, 0, 1], 6443));
        let said = |ca: &str, us, typed_by| first_request(at, Path::new(ca), us, typed_by);
        let ca = "/home/me/.local/state/ktcw-vm/lab/ca.pem";
        let own = format!("  curl --cacert {ca} https://127.0.0.1:6443/");
        // Without sudo, as root who became root, and where sudo made one user another who was the same.
        for (us, typed_by) in [(1000, None), (0, None), (0, Some(0)), (1000, Some(1000))] {
            assert_eq!(said(ca, us, typed_by), own, "{us} {typed_by:?}");
        }
        let handed_on = format!("  sudo cat {ca} > ca.pem\n  curl --cacert ca.pem https://127.0.0.1:6443/");
        assert_eq!(said(ca, 0, Some(1000)), handed_on);
        let spaced = said("/my state/ca.pem", 0, Some(1000));
        assert!(spaced.starts_with("  sudo cat '/my state/ca.pem' > ca.pem\n"), "{spaced}");
    }
}
