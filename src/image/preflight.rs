//! Whether this machine can build an image: the tools it needs, all named at once
//! with the packages that bring them, and the namespaces it builds in. `build` asks
//! before it does anything; `doctor` shows the same answer. It installs nothing.

use std::fmt;
use std::path::{Path, PathBuf};

use super::command::{self, Namespaces};
use super::{ImageError, mirror};
use crate::distro::{self, Family};

/// A program (or file) that is not there, and the package of this distribution that has it, when one is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingTool {
    pub program: &'static str,
    pub package: Option<&'static str>,
}

impl fmt::Display for MissingTool {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.package {
            Some(package) if package != self.program => write!(to, "{} (package {package})", self.program),
            _ => write!(to, "{}", self.program),
        }
    }
}

/// What a build runs.
const TOOLS: &[&str] = &["apt-get", "mke2fs", "go", "mmdebstrap", "qemu-img", "tar", "unshare", "setpriv"];

/// What an ordinary user needs besides.
const TOOLS_WITHOUT_ROOT: &[&str] = &["newuidmap"];

/// The archive keyring that Debian's packages are checked with, as a file.
const KEYRINGS: &[&str] = &[distro::KEYRING, "/usr/share/keyrings/debian-archive-keyring.pgp"];

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
    let family = distro::here();
    let missing = missing(family, as_root(namespaces), command::installed, keyring().is_some());
    if !missing.is_empty() {
        return Err(ImageError::MissingTools { missing, family });
    }
    namespaces.check()?;
    mirror::find(named).map(drop)
}

/// The keyring file, when there is one (`KTCW_KEYRING` names another one).
pub(super) fn keyring() -> Option<PathBuf> {
    keyring_of(std::env::var_os("KTCW_KEYRING").map(PathBuf::from), Path::exists)
}

fn keyring_of(named: Option<PathBuf>, exists: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let known = || KEYRINGS.iter().map(PathBuf::from).collect();
    named.map_or_else(known, |named| vec![named]).into_iter().find(|path| exists(path))
}

/// Whether the tools that root needs will do (`KTCW_AS_ROOT`: 1 for root, 0 for an ordinary user, whoever asks).
fn as_root(namespaces: Namespaces) -> bool {
    std::env::var_os("KTCW_AS_ROOT").map_or(namespaces == Namespaces::Root, |said| said == "1")
}

fn missing(family: Family, root: bool, installed: impl Fn(&str) -> bool, keyring: bool) -> Vec<MissingTool> {
    let extra = if root { &[] } else { TOOLS_WITHOUT_ROOT };
    let keyring = (!keyring).then_some(distro::KEYRING);
    let tools = TOOLS.iter().chain(extra).copied().filter(|program| !installed(program));
    tools.chain(keyring).map(|program| MissingTool { program, package: family.package(program) }).collect()
}

/// One line to type that installs everything that is missing, and what there is to do where packages are not all.
pub(super) fn install_hint(missing: &[MissingTool], family: Family) -> String {
    let programs: Vec<&str> = missing.iter().map(|tool| tool.program).collect();
    let mut hint = family.install(&programs);
    if family != Family::Other && missing.iter().any(|tool| tool.package.is_none()) {
        hint.push_str(": build the image on Debian or Ubuntu, and copy ~/.cache/ktcw-vm/images from there");
    } else if programs.contains(&"go") {
        hint.push_str(" (Go: or a newer one from go.dev)");
    }
    hint
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_missing_is_named_at_once() {
        let family = Family::Debian;
        let missing = missing(family, false, |_| false, false);
        assert_eq!(missing.len(), TOOLS.len() + TOOLS_WITHOUT_ROOT.len() + 1);
        let error = ImageError::MissingTools { missing, family };
        let said = error.to_string();
        for program in TOOLS.iter().chain(TOOLS_WITHOUT_ROOT) {
            assert!(said.contains(program), "{program} is not in: {said}");
        }
        let hint = error.hint().unwrap();
        assert_eq!(
            hint,
            "sudo apt-get install apt debian-archive-keyring e2fsprogs \
             golang-go mmdebstrap qemu-utils tar uidmap util-linux (Go: or a newer one from go.dev)"
        );
    }

    #[test]
    fn elsewhere_packages_have_that_distributions_names_and_what_has_none_has_a_way_out() {
        let hint = |family, lacking: &[&str]| {
            let missing = missing(family, true, |program| !lacking.contains(&program), true);
            install_hint(&missing, family)
        };
        assert_eq!(hint(Family::Fedora, &["mmdebstrap", "qemu-img"]), "sudo dnf install mmdebstrap qemu-img");
        assert_eq!(
            hint(Family::Arch, &["mmdebstrap", "setpriv"]),
            "sudo pacman -S util-linux; no package of this distribution is known to have mmdebstrap: \
             build the image on Debian or Ubuntu, and copy ~/.cache/ktcw-vm/images from there"
        );
        assert_eq!(hint(Family::Other, &["tar"]), "install with this system's package manager what has: tar");
    }

    #[test]
    fn root_needs_no_uid_maps() {
        let missing = missing(Family::Debian, true, |program| program != "newuidmap", true);
        assert_eq!(missing, []);
    }

    #[test]
    fn one_missing_tool_reads_as_one() {
        let said = |family, program: &str| {
            let missing = missing(family, true, |other| program != other, true);
            ImageError::MissingTools { missing, family }.to_string()
        };
        assert_eq!(said(Family::Debian, "mmdebstrap"), "a tool needed to build the image is missing: mmdebstrap");
        assert_eq!(said(Family::Debian, "mke2fs"), "a tool needed to build the image is missing: mke2fs (package e2fsprogs)");
    }

    #[test]
    fn either_name_of_the_keyring_will_do() {
        for keyring in KEYRINGS {
            assert_eq!(keyring_of(None, |path| path == Path::new(keyring)), Some(keyring.into()));
        }
        assert_eq!(keyring_of(None, |_| false), None);
        assert_eq!(missing(Family::Debian, true, |_| true, true), []);
        let lacking = missing(Family::Debian, true, |_| true, false);
        assert_eq!(lacking[0].package, Some("debian-archive-keyring"));
    }

    #[test]
    fn a_keyring_that_was_named_is_the_only_one() {
        let named = PathBuf::from("/elsewhere/keyring.gpg");
        assert_eq!(keyring_of(Some(named.clone()), |_| true), Some(named.clone()));
        assert_eq!(keyring_of(Some(named.clone()), |path| path != named), None);
    }
}
