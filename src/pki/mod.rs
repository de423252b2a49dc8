//! The key edge: authorities, certificates, kubeconfigs and the other secrets of a cluster.
//! `up` makes what the plan lists through `Keyring`; `certs` and `verify` judge what is there, on this computer or on a node.
//! It is the only user of `rcgen`; it decides no name, address or usage: all of them come from the plan.

pub mod check;
mod keyring;
pub mod kubeconfig;
mod make;
mod tree;

pub use keyring::{Ensured, Keyring};
pub use make::{KeyCert, Lifetimes};

use crate::plan::Ca;
use crate::store::files::FileError;
use check::{Finding, Problem};
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(transparent)]
    File(#[from] FileError),
    /// Files there that are not what the plan wants; none was touched.
    #[error("{}", .0.iter().map(|wrong| format!("{}: {}", wrong.path.display(), wrong.finding.problem)).collect::<Vec<_>>().join("\n"))]
    Mismatch(Vec<Wrong>),
    /// Something that cannot be made again is gone.
    #[error("{} is missing and {} was made with it", .path.display(), .needed_by.display())]
    Lost { path: PathBuf, needed_by: PathBuf },
    #[error("{}: {what}", .path.display())]
    Unusable { path: PathBuf, what: String },
    #[error("failed to make {what}: {reason}")]
    Make { what: String, reason: String },
    #[error("the plan's {id} cannot be made: {why}")]
    Plan { id: String, why: String },
}

/// A file and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub path: PathBuf,
    pub finding: Finding,
}

impl Wrong {
    /// Good but for its age, and no authority.
    fn is_an_old_leaf(&self) -> bool {
        let authority = Ca::ALL.iter().any(|ca| ca.common_name() == self.finding.cert);
        matches!(self.finding.problem, Problem::Expired { .. }) && !authority
    }
}

impl PkiError {
    /// What to do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            PkiError::File(error) => error.hint(),
            PkiError::Mismatch(wrong) if wrong.iter().all(Wrong::is_an_old_leaf) => Some(
                "nothing was changed; `ktcw-vm certs renew` makes new ones for the same keys, and switches on what is off"
                    .to_owned(),
            ),
            PkiError::Mismatch(_) => Some(
                "nothing was changed; move a named certificate away and `ktcw-vm up` makes a new one for the same key, \
                 or take the cluster down and up again for new authorities"
                    .to_owned(),
            ),
            PkiError::Lost { path, .. } => {
                Some(format!("restore {} from a backup, or take the cluster down and up again", path.display()))
            }
            PkiError::Unusable { path, .. } => {
                Some(format!("restore {} from a backup, or move it away if nothing depends on it yet", path.display()))
            }
            PkiError::Make { .. } | PkiError::Plan { .. } => None,
        }
    }
}
