//! Which certificate a server really uses: the one it shows in a handshake.
//! `certs renew` asks after it has taken new ones to the nodes.
//! What the server answers after the handshake does not matter here.

use super::{Api, ApiError, chain};
use crate::secret::Secret;
use std::net::Ipv4Addr;
use std::time::Duration;

/// The certificate (DER) that the server at that port shows, verified against `ca` (PEM). `identity`: certificate and key, PEM.
pub async fn presented(
    ca: &str,
    identity: &Secret,
    address: Ipv4Addr,
    port: u16,
    deadline: Duration,
) -> Result<Vec<u8>, ApiError> {
    // A connection of its own: an old one would have been shown the old certificate.
    let client = Api::unpooled(ca, identity)?.client;
    let no_answer = |error: reqwest::Error| ApiError::NoAnswer { address, reason: chain(&error) };
    let asked = client.get(format!("https://{address}:{port}/healthz")).timeout(deadline).send().await.map_err(no_answer)?;
    let shown = asked.extensions().get::<reqwest::tls::TlsInfo>().and_then(|info| info.peer_certificate());
    let none = || ApiError::Invalid { what: format!("the handshake with {address}:{port}"), reason: "no certificate".to_owned() };
    shown.map(<[u8]>::to_vec).ok_or_else(none)
}

/// Whether the first certificate of a PEM text is this one.
pub fn is_certificate(pem: &str, der: &[u8]) -> bool {
    use base64::Engine as _;
    let body = pem.split("-----BEGIN CERTIFICATE-----").nth(1).and_then(|rest| rest.split("-----END CERTIFICATE-----").next());
    let text: String = body.unwrap_or_default().split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(text).is_ok_and(|own| !own.is_empty() && own == der)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_compared_by_its_bytes() {
        let pem = "-----BEGIN CERTIFICATE-----\nAQID\nBA==\n-----END CERTIFICATE-----\n";
        assert!(is_certificate(pem, &[1, 2, 3, 4]));
        for (pem, der) in [(pem, &[1, 2, 3][..]), ("", &[]), ("-----BEGIN CERTIFICATE-----\n?\n", &[]), ("AQID", &[1, 2, 3])] {
            assert!(!is_certificate(pem, der), "{pem}");
        }
    }
}
