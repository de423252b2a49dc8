//! What a distribution calls the packages that bring our tools, and how it installs them.
//! `doctor` and the image's preflight ask it for a line to type; which of the families this computer is, its os-release says, and whether
//! it has a systemd that starts daemons, the directory that systemd makes.
//! It looks for no program and installs nothing.

use std::fmt::Write as _;

/// Distributions that name and install packages alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Debian, Ubuntu and what is made of them.
    Debian,
    Fedora,
    /// Red Hat's and its rebuilds: Fedora's names, but not all of its packages.
    Rhel,
    Arch,
    Suse,
    /// None of these: programs are named, not packages.
    Other,
}

/// This computer's, by its os-release file (`KTCW_OS_RELEASE` names another one).
pub fn here() -> Family {
    let named = std::env::var_os("KTCW_OS_RELEASE").map(std::path::PathBuf::from);
    let read = |path: &std::path::Path| std::fs::read_to_string(path).ok();
    let text = match &named {
        Some(path) => read(path),
        None => ["/etc/os-release", "/usr/lib/os-release"].into_iter().find_map(|path| read(path.as_ref())),
    };
    Family::of(&text.unwrap_or_default())
}

/// Who starts daemons on this computer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    Systemd,
    /// Nobody, as in most containers: `make setup` starts a libvirt of its own.
    Nobody,
}

/// This computer's, by the directory that systemd makes when it runs (`KTCW_SYSTEMD_DIR` names another one).
pub fn init() -> Init {
    let named = std::env::var_os("KTCW_SYSTEMD_DIR").map(std::path::PathBuf::from);
    let there = named.unwrap_or_else(|| "/run/systemd/system".into()).is_dir();
    if there { Init::Systemd } else { Init::Nobody }
}

/// What we ask for, and the package that has it: on Debian, Fedora, RHEL, Arch, openSUSE. Empty: none that we know of.
#[rustfmt::skip]
const PACKAGES: &[(&str, [&str; 5])] = &[
    ("libvirtd",           ["libvirt-daemon-system",  "libvirt-daemon-kvm", "libvirt-daemon-kvm", "libvirt",                "libvirt-daemon-qemu"]),
    ("qemu-system-x86_64", ["qemu-system-x86",        "qemu-kvm",           "qemu-kvm",           "qemu-system-x86",        "qemu-x86"]),
    ("qemu-img",           ["qemu-utils",             "qemu-img",           "qemu-img",           "qemu-img",               "qemu-img"]),
    ("dnsmasq",            ["dnsmasq-base",           "dnsmasq",            "dnsmasq",            "dnsmasq",                "dnsmasq"]),
    ("iptables",           ["iptables",               "iptables-nft",       "iptables-nft",       "iptables",               "iptables"]),
    ("ip",                 ["iproute2",               "iproute",            "iproute",            "iproute2",               "iproute2"]),
    ("apt-get",            ["apt",                    "apt",                "",                   "apt",                    ""]),
    ("mmdebstrap",         ["mmdebstrap",             "mmdebstrap",         "",                   "",                       ""]),
    (KEYRING,              ["debian-archive-keyring", "debian-keyring",     "",                   "debian-archive-keyring", ""]),
    ("go",                 ["golang-go",              "golang",             "golang",             "go",                     "go"]),
    ("mke2fs",             ["e2fsprogs",              "e2fsprogs",          "e2fsprogs",          "e2fsprogs",              "e2fsprogs"]),
    ("tar",                ["tar",                    "tar",                "tar",                "tar",                    "tar"]),
    ("unshare",            ["util-linux",             "util-linux",         "util-linux",         "util-linux",             "util-linux"]),
    ("setpriv",            ["util-linux",             "util-linux",         "util-linux",         "util-linux",             "util-linux"]),
    ("newuidmap",          ["uidmap",                 "shadow-utils",       "shadow-utils",       "shadow",                 "shadow"]),
];

/// The file that Debian's packages are checked with.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Family {
    /// By `ID`, else by what it says it is like, the nearest first; the text of an os-release file.
    pub fn of(os_release: &str) -> Family {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_ascii_lowercase()
        };
        let words = format!("{} {}", value("ID"), value("ID_LIKE"));
        words.split_whitespace().find_map(Family::called).unwrap_or(Family::Other)
    }

    fn called(id: &str) -> Option<Family> {
        Some(match id {
            "debian" | "ubuntu" => Family::Debian,
            "fedora" => Family::Fedora,
            "rhel" | "centos" | "rocky" | "almalinux" | "ol" | "amzn" => Family::Rhel,
            "arch" | "archlinux" => Family::Arch,
            "suse" | "sles" => Family::Suse,
            other if other.starts_with("opensuse") => Family::Suse,
            _ => return None,
        })
    }

    /// The package that has the program. `None`: this distribution has none that we know of.
    pub fn package(self, program: &str) -> Option<&'static str> {
        let column = self.column()?;
        let (_, names) = PACKAGES.iter().find(|(name, _)| *name == program)?;
        names.get(column).copied().filter(|name| !name.is_empty())
    }

    /// What to type so that these programs are there, and which of them no package brings.
    pub fn install(self, programs: &[&str]) -> String {
        let Some(command) = self.command() else {
            return format!("install with this system's package manager what has: {}", programs.join(", "));
        };
        let mut packages: Vec<&str> = programs.iter().filter_map(|program| self.package(program)).collect();
        packages.sort_unstable();
        packages.dedup();
        let mut text = String::new();
        if !packages.is_empty() {
            let _ = write!(text, "{command} {}", packages.join(" "));
        }
        let without: Vec<&str> = programs.iter().copied().filter(|program| self.package(program).is_none()).collect();
        if !without.is_empty() {
            let and = if text.is_empty() { "" } else { "; " };
            let _ = write!(text, "{and}no package of this distribution is known to have {}", without.join(", "));
        }
        text
    }

    fn column(self) -> Option<usize> {
        match self {
            Family::Debian => Some(0),
            Family::Fedora => Some(1),
            Family::Rhel => Some(2),
            Family::Arch => Some(3),
            Family::Suse => Some(4),
            Family::Other => None,
        }
    }

    fn command(self) -> Option<&'static str> {
        match self {
            Family::Debian => Some("sudo apt-get install"),
            Family::Fedora | Family::Rhel => Some("sudo dnf install"),
            Family::Arch => Some("sudo pacman -S"),
            Family::Suse => Some("sudo zypper install"),
            Family::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Family; 6] = [Family::Debian, Family::Fedora, Family::Rhel, Family::Arch, Family::Suse, Family::Other];

    #[test]
    fn a_distribution_is_known_by_its_id_or_by_what_it_is_like() {
        for (text, family) in [
            ("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n", Family::Debian),
            ("ID=ubuntu\nID_LIKE=debian\n", Family::Debian),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Family::Debian),
            ("ID=fedora\nVERSION_ID=42\n", Family::Fedora),
            ("ID=nobara\nID_LIKE=\"fedora\"\n", Family::Fedora),
            ("ID=\"rhel\"\nID_LIKE=\"fedora\"\n", Family::Rhel),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Family::Rhel),
            ("ID='almalinux'\nID_LIKE='rhel centos fedora'\n", Family::Rhel),
            ("ID=\"eurolinux\"\nID_LIKE=\"rhel fedora centos\"\n", Family::Rhel),
            ("ID=arch\n", Family::Arch),
            ("ID_LIKE=arch\nID=manjaro\n", Family::Arch),
            ("ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n", Family::Suse),
            ("ID=\"sles\"\nID_LIKE=\"suse\"\n", Family::Suse),
            ("ID=nixos\n", Family::Other),
            ("BUG_REPORT=ID=debian\nVERSION_ID=debian\n", Family::Other),
            ("", Family::Other),
        ] {
            assert_eq!(Family::of(text), family, "{text}");
        }
    }

    #[test]
    fn each_family_has_a_line_to_type_with_names_of_its_own() {
        let programs = ["libvirtd", "qemu-system-x86_64", "qemu-img", "ip", "unshare", "setpriv"];
        let said = ALL.map(|family| family.install(&programs));
        let expected = [
            "sudo apt-get install iproute2 libvirt-daemon-system qemu-system-x86 qemu-utils util-linux",
            "sudo dnf install iproute libvirt-daemon-kvm qemu-img qemu-kvm util-linux",
            "sudo dnf install iproute libvirt-daemon-kvm qemu-img qemu-kvm util-linux",
            "sudo pacman -S iproute2 libvirt qemu-img qemu-system-x86 util-linux",
            "sudo zypper install iproute2 libvirt-daemon-qemu qemu-img qemu-x86 util-linux",
            "install with this system's package manager what has: libvirtd, qemu-system-x86_64, qemu-img, ip, unshare, setpriv",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn what_has_no_package_is_said() {
        assert_eq!(
            Family::Arch.install(&["mmdebstrap", "go"]),
            "sudo pacman -S go; no package of this distribution is known to have mmdebstrap"
        );
        assert_eq!(Family::Suse.install(&["mmdebstrap"]), "no package of this distribution is known to have mmdebstrap");
    }

    #[test]
    fn debian_has_all_of_it_and_everybody_what_runs_machines() {
        for (program, _) in PACKAGES {
            assert!(Family::Debian.package(program).is_some(), "{program}");
            assert_eq!(Family::Other.package(program), None);
        }
        for family in ALL.into_iter().filter(|family| *family != Family::Other) {
            for program in ["libvirtd", "qemu-system-x86_64", "qemu-img", "dnsmasq", "iptables", "ip"] {
                assert!(family.package(program).is_some(), "{family:?} {program}");
            }
        }
    }
}
