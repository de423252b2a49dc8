//! How a secret may be met in what is written or printed: for tests that look for all of them.
//! Bundles and the tests of `apply` look with it; it knows keys' formats and nothing of who has them.

use super::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// The bytes that make a secret one, apart from what frames it and from the public half that some formats repeat: of a PEM the
/// middle of what is in it, of another file its long words.
pub(crate) fn cores(secret: &Secret) -> Vec<Vec<u8>> {
    let text = secret.expose();
    if text.contains("-----BEGIN") {
        let body: String = text.lines().filter(|line| !line.contains("-----")).collect();
        let der = STANDARD.decode(&body).expect("PEM");
        // PKCS#8 of a P-256 key: the scalar; of RSA: some of its primes; of OpenSSH: the seed stands before the comment.
        let scalar = if text.contains("OPENSSH") { der[der.len() - 90..der.len() - 58].to_vec() } else { der[36..68].to_vec() };
        return vec![scalar];
    }
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "+/=".contains(c)));
    words
        .filter(|word| word.len() >= 40)
        .filter_map(|word| STANDARD.decode(word).ok())
        .flat_map(|inner| {
            let text = String::from_utf8_lossy(&inner).into_owned();
            match (text.contains("CERTIFICATE"), text.contains("PRIVATE KEY")) {
                (true, _) => Vec::new(),
                (_, true) => cores(&Secret::new(text)),
                _ => vec![inner],
            }
        })
        .collect()
}

/// How bytes may be met inside of a longer text: as they are, in hex, in base64 at each alignment; twice encoded, too.
pub(crate) fn shapes(core: &[u8]) -> Vec<Vec<u8>> {
    let mut shapes = vec![core.to_vec()];
    let hex: String = core.iter().map(|byte| format!("{byte:02x}")).collect();
    shapes.push(hex.to_uppercase().into_bytes());
    shapes.push(hex.into_bytes());
    let mut once = Vec::new();
    for shift in 0..3usize {
        let shifted = [&vec![0; shift][..], core].concat();
        for text in [STANDARD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)] {
            let text = text.trim_end_matches('=');
            once.push(text.as_bytes()[4.min(shift * 4)..text.len() - 2].to_vec());
        }
    }
    for text in &once {
        for shift in 0..3usize {
            let shifted = [&vec![0; shift][..], text].concat();
            let twice = STANDARD.encode(&shifted);
            let twice = twice.trim_end_matches('=');
            shapes.push(twice.as_bytes()[4.min(shift * 4)..twice.len() - 4].to_vec());
        }
    }
    shapes.extend(once);
    shapes
}
