//! How a secret may be met in what is written or printed: for tests that look for all of them.
//! Tests of bundles and of `apply` look with it, and the VM suite; it knows keys' formats and nothing of who has them.

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
        // PKCS#8 of a P-256 key: the scalar.
        return vec![if text.contains("OPENSSH") { seed(&der) } else { der[36..68].to_vec() }];
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

/// The half of an Ed25519 key that OpenSSH keeps secret: it stands before the last of the places where the public one does.
fn seed(openssh: &[u8]) -> Vec<u8> {
    let at = |needle: &[u8]| openssh.windows(needle.len()).position(|window| window == needle);
    let public = at(b"ssh-ed25519").expect("its kind") + b"ssh-ed25519".len() + 4;
    let public = &openssh[public..public + 32];
    let last = openssh.windows(32).rposition(|window| window == public).expect("the key itself");
    openssh[last - 32..last].to_vec()
}

/// All that it may be met as in text: each of its cores in every shape, and, because a PEM is broken into lines, so much of a core as
/// stands in one line.
pub(crate) fn words(secret: &Secret) -> Vec<String> {
    let text = secret.expose();
    let width = text.lines().filter(|line| !line.contains("-----")).map(str::len).max().unwrap_or(64);
    let mut all = Vec::new();
    for core in cores(secret) {
        let body: String = text.lines().filter(|line| !line.contains("-----")).collect();
        for shape in shapes(&core).into_iter().filter_map(|shape| String::from_utf8(shape).ok()) {
            if let Some(at) = body.find(&shape).filter(|_| text.contains("-----BEGIN")) {
                let cut = (width - at % width).min(shape.len());
                for piece in [&shape[..cut], &shape[cut..]].into_iter().filter(|piece| piece.len() >= 14) {
                    all.extend(shapes(piece.as_bytes()));
                }
            }
            all.push(shape.into_bytes());
        }
    }
    let mut all: Vec<String> = all.into_iter().filter_map(|word| String::from_utf8(word).ok()).collect();
    all.retain(|word| word.len() >= 14 && word.bytes().all(|byte| byte.is_ascii_graphic()));
    all.sort();
    all.dedup();
    all
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
