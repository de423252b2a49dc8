//! SHA-256 of whatever can be read, as the lower-case hexadecimal digits that plans, caches and images keep of their files.
//! `accel`, `image` and `cli` ask it for kernels, disks and images; it opens nothing itself.
//! It knows no path, so whoever asks says in the error which file it was.

use sha2::{Digest, Sha256};
use std::io::{self, Read};

/// Of all that is left to be read.
///
/// # Errors
/// What the reader says.
pub fn of(mut from: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    // Disks of a gigabyte are read.
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            got => hash.update(buffer.get(..got).unwrap_or_default()),
        }
    }
}

/// Two digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2's own example, and one of more than a buffer.
    #[test]
    fn known_texts_have_their_known_digests() {
        let digest = |bytes: &[u8]| of(bytes).expect("readable");
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let million_a = vec![b'a'; 1_000_000];
        assert_eq!(digest(&million_a), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
        let halves = million_a[..300_000].chain(&million_a[300_000..]);
        assert_eq!(of(halves).expect("readable"), digest(&million_a), "however it comes");
    }
}
