//! Kubeconfigs: rendered from a plan, merged into somebody's file, taken out of it again.
//! `keyring` renders those of the nodes and keeps the host's; `kubeconfig --merge` and `down` change the user's own file.
//! It sees text only; everything in a file that is not ours comes back as it was, except comments, which kubectl does not keep either.

use super::tree::{self, Tree};
use crate::plan::KubeconfigPlan;
use crate::secret::Secret;
use crate::spec::ClusterName;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What a kubeconfig embeds, PEM.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// Certificate of the authority that signed the API server's.
    pub ca: &'a str,
    pub cert: &'a str,
    pub key: &'a Secret,
}

/// Why a file was left alone. Never quotes the file: it holds other clusters' secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KubeconfigError {
    #[error("{0}")]
    Unreadable(String),
    #[error("not a kubeconfig: {0}")]
    Shape(String),
}

/// Names under which our entries stand in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub cluster: String,
    pub user: String,
    pub context: String,
}

impl Names {
    pub fn planned(plan: &KubeconfigPlan) -> Names {
        Names { cluster: plan.cluster.clone(), user: plan.user.clone(), context: plan.cluster.clone() }
    }
    /// In a file that others use too: one name that says whose it is.
    fn merged(cluster: &str) -> Names {
        let name = format!("ktcw-{cluster}");
        Names { cluster: name.clone(), user: name.clone(), context: name }
    }
}

/// A kubeconfig of its own, current context set.
pub fn render(plan: &KubeconfigPlan, credentials: Credentials<'_>) -> Result<Secret, KubeconfigError> {
    put("", &Names::planned(plan), &plan.server, credentials, true)
}

/// Adds the cluster to `existing` as `ktcw-<cluster>` (cluster, user and context), or replaces it there.
/// `make_current` makes it the current context.
pub fn merge(
    existing: &str,
    plan: &KubeconfigPlan,
    credentials: Credentials<'_>,
    make_current: bool,
) -> Result<Secret, KubeconfigError> {
    put(existing, &Names::merged(&plan.cluster), &plan.server, credentials, make_current)
}

/// Takes `ktcw-<cluster>` out, where it is the one whose authority has this certificate: another directory may have a cluster of the
/// same name. `None`: there is nothing of ours in it, so it need not be written.
pub fn remove(existing: &str, cluster: &ClusterName, ca: &str) -> Result<Option<Secret>, KubeconfigError> {
    let names = Names::merged(cluster.as_str());
    let mut config = Config::read(existing)?;
    if !existing.contains(&STANDARD.encode(ca)) {
        return Ok(None);
    }
    let mut found = config.take("clusters", &names.cluster)?;
    found |= config.take("users", &names.user)?;
    found |= config.take("contexts", &names.context)?;
    if config.get("current-context").and_then(Tree::as_text) == Some(&names.context) {
        config.set("current-context", Tree::text(""));
        found = true;
    }
    if found { config.write().map(Some) } else { Ok(None) }
}

pub(super) fn put(
    existing: &str,
    names: &Names,
    server: &str,
    credentials: Credentials<'_>,
    make_current: bool,
) -> Result<Secret, KubeconfigError> {
    let data = |pem: &str| Tree::text(STANDARD.encode(pem));
    let mut config = Config::read(existing)?;
    let cluster = Tree::map([("certificate-authority-data", data(credentials.ca)), ("server", Tree::text(server))]);
    config.put("clusters", &names.cluster, "cluster", cluster)?;
    let user =
        Tree::map([("client-certificate-data", data(credentials.cert)), ("client-key-data", data(credentials.key.expose()))]);
    config.put("users", &names.user, "user", user)?;
    // A context may carry what its owner chose, such as a namespace: only the two names are ours.
    let mut context = match config.find("contexts", &names.context)?.and_then(|entry| entry.get("context")) {
        Some(Tree::Map(entries)) => entries.clone(),
        _ => Vec::new(),
    };
    set(&mut context, "cluster", Tree::text(&names.cluster));
    set(&mut context, "user", Tree::text(&names.user));
    config.put("contexts", &names.context, "context", Tree::Map(context))?;
    if make_current {
        config.set("current-context", Tree::text(&names.context));
    }
    config.write()
}

/// The top level of a kubeconfig.
struct Config(Vec<(String, Tree)>);

impl Config {
    /// An empty text is an empty kubeconfig, as kubectl takes it.
    fn read(text: &str) -> Result<Config, KubeconfigError> {
        let tree = if text.trim().is_empty() { Tree::Null } else { tree::read(text).map_err(KubeconfigError::Unreadable)? };
        let mut config = match tree {
            Tree::Map(entries) => Config(entries),
            Tree::Null => Config(Vec::new()),
            _ => return Err(KubeconfigError::Shape("its top level is not a map".to_owned())),
        };
        for (key, wanted) in [("apiVersion", "v1"), ("kind", "Config")] {
            match config.get(key) {
                None => config.0.push((key.to_owned(), Tree::text(wanted))),
                Some(Tree::Text(found)) if found == wanted => {}
                Some(_) => return Err(KubeconfigError::Shape(format!("{key} is not {wanted}"))),
            }
        }
        for list in ["clusters", "users", "contexts"] {
            match config.get(list) {
                None | Some(Tree::Null) => config.set(list, Tree::List(Vec::new())),
                Some(Tree::List(items)) if items.iter().all(|item| item.get("name").is_some()) => {}
                Some(Tree::List(_)) => return Err(KubeconfigError::Shape(format!("an entry of {list} has no name"))),
                Some(_) => return Err(KubeconfigError::Shape(format!("{list} is not a list"))),
            }
        }
        Ok(config)
    }

    fn write(self) -> Result<Secret, KubeconfigError> {
        tree::write(&Tree::Map(self.0)).map(Secret::from).map_err(KubeconfigError::Unreadable)
    }

    fn get(&self, key: &str) -> Option<&Tree> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn set(&mut self, key: &str, value: Tree) {
        set(&mut self.0, key, value);
    }

    fn list(&mut self, key: &str) -> Result<&mut Vec<Tree>, KubeconfigError> {
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, Tree::List(items))) => Ok(items),
            _ => Err(KubeconfigError::Shape(format!("{key} is not a list"))),
        }
    }

    fn find(&mut self, list: &str, name: &str) -> Result<Option<&Tree>, KubeconfigError> {
        Ok(self.list(list)?.iter().find(|item| named(item, name)))
    }

    /// In the place of the entry of that name, or at the end.
    fn put(&mut self, list: &str, name: &str, kind: &str, value: Tree) -> Result<(), KubeconfigError> {
        let items = self.list(list)?;
        let entry = Tree::map([(kind, value), ("name", Tree::text(name))]);
        match items.iter().position(|item| named(item, name)) {
            Some(at) => items[at] = entry,
            None => items.push(entry),
        }
        Ok(())
    }

    fn take(&mut self, list: &str, name: &str) -> Result<bool, KubeconfigError> {
        let items = self.list(list)?;
        let before = items.len();
        items.retain(|item| !named(item, name));
        Ok(items.len() < before)
    }
}

/// In the place of the entry of that key, or at the end.
fn set(entries: &mut Vec<(String, Tree)>, key: &str, value: Tree) {
    match entries.iter_mut().find(|(name, _)| name == key) {
        Some((_, old)) => *old = value,
        None => entries.push((key.to_owned(), value)),
    }
}

fn named(item: &Tree, name: &str) -> bool {
    item.get("name").and_then(Tree::as_text) == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> KubeconfigPlan {
        KubeconfigPlan {
            id: "admin".to_owned(),
            server: "https://192.168.77.10:6443".to_owned(),
            cluster: "lab".to_owned(),
            user: "kubernetes-admin".to_owned(),
            cert: "admin".to_owned(),
            node: None,
            at: None,
        }
    }
    fn with<T>(cert: &str, then: impl FnOnce(Credentials<'_>) -> T) -> T {
        then(Credentials { ca: CA, cert, key: &Secret::new("KEY\n") })
    }
    fn merged(existing: &str, cert: &str, make_current: bool) -> Result<String, KubeconfigError> {
        with(cert, |credentials| merge(existing, &plan(), credentials, make_current)).map(|secret| secret.expose().to_owned())
    }
    fn lab() -> ClusterName {
        ClusterName::parse("lab").expect("valid")
    }

    const CA: &str = "CA\n";
    const OTHERS: &str = "\
# mine
apiVersion: v1
clusters:
- cluster: {server: 'https://10.0.0.1:6443', insecure-skip-tls-verify: yes, proxy-url: 'socks5://x'}
  name: work
contexts:
- context:
    cluster: work
    namespace: 'on'
    user: me
  name: work
current-context: work
kind: Config
preferences: {}
users:
- name: me
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      args: [token, '0123', \"yes\", 12:30]
      command: login
      env: null
      interactiveMode: IfAvailable
extensions:
- name: client-info
  extension: {last-update: \"Mon, 01 Jan 2029\", version: v1.38}
";

    #[test]
    fn a_rendered_one_is_complete_and_names_the_planned_things() {
        let text = with("CERT\n", |credentials| render(&plan(), credentials)).expect("rendered");
        let expected = "\
apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority-data: Q0EK
    server: https://192.168.77.10:6443
  name: lab
users:
- user:
    client-certificate-data: Q0VSVAo=
    client-key-data: S0VZCg==
  name: kubernetes-admin
contexts:
- context:
    cluster: lab
    user: kubernetes-admin
  name: lab
current-context: lab
";
        assert_eq!(text.expose(), expected);
    }

    #[test]
    fn merging_and_removing_gives_back_everything_that_was_there() {
        let before = tree::read(OTHERS).expect("YAML");
        let text = merged(OTHERS, "CERT", true).expect("merged");
        let after = tree::read(&text).expect("YAML");
        assert_eq!(after.get("current-context").and_then(Tree::as_text), Some("ktcw-lab"));
        for list in ["clusters", "users", "contexts"] {
            let (Some(Tree::List(before)), Some(Tree::List(after))) = (before.get(list), after.get(list)) else {
                panic!("{list}")
            };
            assert_eq!((&after[..1], after.len()), (&before[..], 2), "{list}");
            assert!(named(&after[1], "ktcw-lab"));
        }
        assert!(
            text.contains("namespace: \"on\"") || text.contains("namespace: 'on'"),
            "a YAML 1.1 reader must not see true: {text}"
        );
        let removed = remove(&text, &lab(), CA).expect("removed").expect("it was there");
        let mut expected = before.clone();
        if let Tree::Map(entries) = &mut expected {
            entries.iter_mut().filter(|(key, _)| key == "current-context").for_each(|(_, value)| *value = Tree::text(""));
        }
        assert_eq!(tree::read(removed.expose()).expect("YAML"), expected);
        assert_eq!(remove(removed.expose(), &lab(), CA).expect("fine"), None, "nothing of ours any more");
        assert_eq!(remove(OTHERS, &lab(), CA).expect("fine"), None);
        assert_eq!(remove("", &lab(), CA).expect("fine"), None);
    }

    #[test]
    fn merging_again_replaces_in_place_keeps_the_users_namespace_and_is_stable() {
        let once = merged(OTHERS, "OLD", false).expect("merged");
        assert!(once.contains("current-context: work"));
        assert_eq!(merged(&once, "OLD", false).expect("merged"), once, "byte for byte");
        let theirs = once.replace("cluster: ktcw-lab\n", "cluster: ktcw-lab\n    namespace: web\n");
        let twice = merged(&theirs, "NEW", false).expect("merged");
        assert!(
            twice.contains("namespace: web")
                && twice.contains(&STANDARD.encode("NEW"))
                && !twice.contains(&STANDARD.encode("OLD"))
        );
        assert_eq!(twice.matches("name: ktcw-lab").count(), 3);
    }

    #[test]
    fn what_is_not_a_kubeconfig_is_left_alone_with_a_reason() {
        for (text, says) in [
            ("just text", "top level"),
            ("- a\n- b\n", "top level"),
            ("kind: Pod\napiVersion: v1\n", "kind is not Config"),
            ("apiVersion: v2\n", "apiVersion is not v1"),
            ("clusters: none\n", "clusters is not a list"),
            ("users:\n- user: {token: hunter2}\n", "an entry of users has no name"),
            ("contexts: {a: b}\n", "contexts is not a list"),
            ("clusters: [\n", "line 1"),
            ("a: b\n---\nc: d\n", "written back"),
            ("\0\u{1}", "written back"),
        ] {
            let error = merged(text, "CERT", true).expect_err(text);
            assert!(error.to_string().contains(says), "{text:?}: {error}");
            assert!(remove(text, &lab(), CA).is_err());
            assert!(!error.to_string().contains("hunter2"));
        }
        for empty in ["", "\n\n", "apiVersion: v1\nkind: Config\nclusters: null\n"] {
            assert!(merged(empty, "CERT", true).expect("empty is fine").contains("current-context: ktcw-lab"));
        }
    }
}
