//! The Debian archive that packages come from: the one the user named, else the one this machine's apt is configured with.
//! `preflight` and `build` ask it; other distributions' machines have none configured and must name one.
//! It asks apt and nobody else: whether the archive answers is found out when packages are fetched.

use super::ImageError;
use super::command::Tool;

/// Whether a name can be an archive's address.
///
/// # Errors
/// [`ImageError::BadMirror`] for anything but a plain http or https address.
pub(super) fn check(name: &str) -> Result<(), ImageError> {
    let known = ["http://", "https://"].iter().any(|scheme| name.len() > scheme.len() && name.starts_with(scheme));
    let plain = !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == ']' || c == '[');
    if known && plain { Ok(()) } else { Err(ImageError::BadMirror { name: name.to_owned() }) }
}

/// The archive named by the user, else the one this machine's apt uses for Debian.
///
/// # Errors
/// [`ImageError::BadMirror`] as `check`; [`ImageError::NoMirror`] when none was named and apt has none of Debian's.
pub(super) fn find(named: Option<&str>) -> Result<String, ImageError> {
    if let Some(name) = named {
        return check(name).map(|()| name.to_owned());
    }
    let said = Tool::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(ORIGIN)", "Created-By: Packages"])
        .answer()
        .unwrap_or_default();
    debian_archive(&said).ok_or(ImageError::NoMirror)
}

/// The main archive among apt's targets, one `URI RELEASE ORIGIN` a line: Debian's own
/// origin when apt has seen its index, and never the security archive.
fn debian_archive(targets: &str) -> Option<String> {
    let archives = || {
        targets.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (uri, release) = (words.next()?, words.next()?);
            let main = !release.contains('-') && !uri.trim_end_matches('/').ends_with("-security");
            main.then(|| (uri.trim_end_matches('/').to_owned(), words.next()))
        })
    };
    let ours = archives().find(|(_, origin)| *origin == Some("Debian"));
    let named = || archives().find(|(uri, origin)| origin.is_none() && uri.ends_with("/debian"));
    ours.or_else(named).map(|(uri, _)| uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_main_archive_is_found_among_apts_targets() {
        let seen = "http://a.example/debian-security/ bookworm-security Debian\nhttp://a.example/debian/ bookworm-updates Debian\n\
                    http://b.example/other/ stable Other\nhttp://a.example/debian/ bookworm Debian\n";
        assert_eq!(debian_archive(seen).as_deref(), Some("http://a.example/debian"));
        let unseen = "http://b.example/other/ stable\nhttp://a.example/debian/ trixie\n";
        assert_eq!(debian_archive(unseen).as_deref(), Some("http://a.example/debian"), "by its path, before apt-get update");
        assert_eq!(debian_archive("http://c.example/ubuntu/ noble Ubuntu\n"), None, "Ubuntu's is none of Debian's");
        assert_eq!(debian_archive(""), None);
    }

    #[test]
    fn a_mirror_is_a_plain_address() {
        for good in ["http://a.example/debian", "https://10.0.0.1:8080/d"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "http://", "ftp://a.example", "a.example/debian", "http://a b", "http://a]", "http://a\n/debian"] {
            assert!(matches!(check(bad), Err(ImageError::BadMirror { .. })), "{bad:?}");
        }
    }
}
