//! SSH keys: Ed25519 pairs in OpenSSH's own text formats, and their fingerprints.
//! `apply` makes a client pair per cluster and a host pair per node, which user-data installs and `SshGuests` pins.
//! It stores nothing and knows no paths.

use super::KeyError;
use super::link::fingerprint as of_key;
use crate::secret::Secret;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};

/// A new pair: `-----BEGIN OPENSSH PRIVATE KEY-----…` and `ssh-ed25519 AAAA… comment`, the latter without a line end.
pub fn generate(comment: &str) -> Result<(Secret, String), KeyError> {
    let failed = |error: russh::keys::ssh_key::Error| KeyError::Generate { reason: error.to_string() };
    let mut key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).map_err(failed)?;
    key.set_comment(comment);
    let private = Secret::new(key.to_openssh(LineEnding::LF).map_err(failed)?.as_str());
    let public = key.public_key().to_openssh().map_err(failed)?;
    Ok((private, public))
}

/// `SHA256:…` of a line of OpenSSH public key text.
pub fn fingerprint(public: &str) -> Result<String, KeyError> {
    match PublicKey::from_openssh(public) {
        Ok(key) => Ok(of_key(&key)),
        Err(error) => Err(KeyError::Unreadable { whose: "an SSH public key".to_owned(), reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    #[test]
    fn openssh_reads_our_keys_and_agrees_on_the_public_half_and_the_fingerprint() {
        let (private, public) = generate("ktcw test").expect("made");
        assert!(public.starts_with("ssh-ed25519 ") && public.ends_with(" ktcw test"), "{public}");
        let mut file = tempfile::NamedTempFile::new().expect("temp file");
        file.write_all(private.expose().as_bytes()).expect("written");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).expect("mode");
        let keygen = |args: &[&str]| {
            let out = Command::new("ssh-keygen")
                .args(args)
                .arg("-f")
                .arg(file.path())
                .output()
                .expect("ssh-keygen (openssh-client) runs");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).expect("text")
        };
        assert_eq!(keygen(&["-y"]).trim_end(), public);
        assert!(keygen(&["-l"]).contains(&fingerprint(&public).expect("readable")));
    }

    #[test]
    fn two_keys_differ_and_a_broken_one_is_named() {
        let (first, second) = (generate("a").expect("made"), generate("a").expect("made"));
        assert!(first.0 != second.0 && first.1 != second.1);
        let error = fingerprint("ssh-ed25519 AAAA").expect_err("broken");
        assert!(error.to_string().starts_with("an SSH public key cannot be read: "), "{error}");
    }
}
