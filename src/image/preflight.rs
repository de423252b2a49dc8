//! Whether this machine can build an image: the tools it needs, all named at once
//! with the packages that bring them, and the namespaces it builds in. `build` asks
//! before it does anything; `doctor` shows the same answer. It installs nothing.

use std::fmt;
use std::path::Path;

use super::command::{self, Namespaces};
use super::{ImageError, mirror};

/// A program that is not there, and the Debian package that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingTool {
    pub program: String,
    pub package: String,
}

impl fmt::Display for MissingTool {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} (package {})", self.program, self.package)
    }
}

/// Program and package, on Debian and Ubuntu alike. Sorted by package.
const TOOLS: &[(&str, &str)] = &[
    ("apt-get", "apt"),
    ("sha256sum", "coreutils"),
    ("mke2fs", "e2fsprogs"),
    ("go", "golang-go, or a newer one from go.dev"),
    ("mmdebstrap", "mmdebstrap"),
    ("qemu-img", "qemu-utils"),
    ("tar", "tar"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
];

/// What an ordinary user needs besides.
const TOOLS_WITHOUT_ROOT: &[(&str, &str)] = &[("newuidmap", "uidmap")];

/// The archive keyring that Debian's packages are checked with, as a file.
const KEYRINGS: &[&str] = &["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// Checks tools, keyring, namespaces, and that there is a Debian archive to take packages from: the one `named`, or apt's.
///
/// # Errors
/// [`ImageError::BadMirror`] for a name that is none, [`ImageError::MissingTools`] with all that is missing, then
/// [`ImageError::Namespaces`], then [`ImageError::NoMirror`].
pub fn preflight(named: Option<&str>) -> Result<(), ImageError> {
    if let Some(name) = named {
        mirror::check(name)?;
    }
    let namespaces = Namespaces::of_this_user();
    let missing = missing(namespaces == Namespaces::Root, command::installed, |path| Path::new(path).exists());
    if !missing.is_empty() {
        return Err(ImageError::MissingTools { missing });
    }
    namespaces.check()?;
    mirror::find(named).map(drop)
}

/// The keyring file, when there is one.
pub(super) fn keyring() -> Option<&'static str> {
    KEYRINGS.iter().copied().find(|path| Path::new(path).exists())
}

fn missing(root: bool, installed: impl Fn(&str) -> bool, exists: impl Fn(&str) -> bool) -> Vec<MissingTool> {
    let extra = if root { &[] } else { TOOLS_WITHOUT_ROOT };
    let mut missing: Vec<_> = TOOLS
        .iter()
        .chain(extra)
        .filter(|(program, _)| !installed(program))
        .map(|(program, package)| MissingTool { program: (*program).to_owned(), package: (*package).to_owned() })
        .collect();
    if !KEYRINGS.iter().any(|path| exists(path)) {
        missing.push(MissingTool { program: KEYRINGS[0].to_owned(), package: "debian-archive-keyring".to_owned() });
    }
    missing
}

/// One line to type that installs everything that is missing.
pub(super) fn install_hint(missing: &[MissingTool]) -> String {
    let mut packages: Vec<_> = missing.iter().map(|tool| tool.package.split(',').next().unwrap_or(&tool.package)).collect();
    packages.sort_unstable();
    packages.dedup();
    format!("on Debian or Ubuntu: sudo apt-get install {}", packages.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_missing_is_named_at_once() {
        let missing = missing(false, |_| false, |_| false);
        assert_eq!(missing.len(), TOOLS.len() + TOOLS_WITHOUT_ROOT.len() + 1);
        let error = ImageError::MissingTools { missing };
        let said = error.to_string();
        for (program, _) in TOOLS.iter().chain(TOOLS_WITHOUT_ROOT) {
            assert!(said.contains(program), "{program} is not in: {said}");
        }
        let hint = error.hint().unwrap();
        assert_eq!(
            hint,
            "on Debian or Ubuntu: sudo apt-get install apt coreutils debian-archive-keyring \
             e2fsprogs golang-go mmdebstrap qemu-utils tar uidmap util-linux"
        );
    }

    #[test]
    fn root_needs_no_uid_maps() {
        let missing = missing(true, |program| program != "newuidmap", |_| true);
        assert_eq!(missing, []);
    }

    #[test]
    fn one_missing_tool_reads_as_one() {
        let missing = missing(true, |program| program != "mmdebstrap", |_| true);
        assert_eq!(
            ImageError::MissingTools { missing }.to_string(),
            "a tool needed to build the image is missing: mmdebstrap (package mmdebstrap)"
        );
    }

    #[test]
    fn either_name_of_the_keyring_will_do() {
        for keyring in KEYRINGS {
            assert_eq!(missing(true, |_| true, |path| path == *keyring), []);
        }
        assert_eq!(missing(true, |_| true, |_| false)[0].package, "debian-archive-keyring");
    }
}
