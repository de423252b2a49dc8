//! `ktcw-vm proxy`: a local address that is the API, so that the classic first request works:
//! `curl --cacert ca.pem https://127.0.0.1:6443/`. Bytes are passed to the virtual address, TLS and all.
//! Where this computer cannot reach the cluster's network, they go through a controller's SSH connection.

use super::args::{Global, Proxy};
use super::error::CliError;
use super::session::Session;
use super::{exit, render, signals};
use crate::guest::ssh::SshGuests;
use crate::netns;
use crate::plan::{Ca, PkiItem, Plan};
use crate::store::files;
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
    render::print_line(&format!("the API is at https://{at}/ until Ctrl-C\n  curl --cacert {} https://{at}/", ca_path.display()));
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
