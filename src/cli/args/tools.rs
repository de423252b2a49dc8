//! Verbs that look, or hand over to another program; and the images and bundles on this computer.
//! Nothing is decided here but what is optional.

use super::Format;
use super::values::{address, within};
use crate::spec::NodeName;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Clone, Args)]
pub struct Output {
    /// Same as --format
    #[arg(short, value_enum)]
    pub output: Option<Format>,
}

#[derive(Debug, Clone, Args)]
pub struct Ssh {
    #[arg(value_parser = NodeName::parse)]
    pub node: NodeName,
    /// The command; quoted as given, run by the node's shell
    #[arg(last = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct Logs {
    /// A node (worker-0) or a component on all nodes (etcd, kube-apiserver, kubelet, …)
    pub what: String,
    /// The other of the two: that component of that node only
    pub other: Option<String>,
    /// Go on as new lines come
    #[arg(long, short)]
    pub follow: bool,
    /// Last lines of each node
    #[arg(long, short = 'n', default_value_t = 200, value_parser = |text: &str| within::<u32>(text, 0..=1_000_000))]
    pub lines: u32,
    /// Since when, as journalctl takes it ("5 min ago")
    #[arg(long)]
    pub since: Option<String>,
}

/// Arguments for another program.
#[derive(Debug, Clone, Args)]
pub struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct Kubeconfig {
    /// Merge it into $KUBECONFIG or ~/.kube/config and make it current
    #[arg(long)]
    pub merge: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Certs {
    #[command(subcommand)]
    pub what: Option<CertsWhat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum CertsWhat {
    /// All certificates, with names and days left
    List,
    /// Compare what is here and on the nodes with the plan, the CAs and the clock
    Check,
    /// New certificates for the keys there are, taken to the nodes one after the other and put into use
    Renew {
        /// Only those that end within so many days [default: all]
        #[arg(long, value_name = "DAYS", value_parser = |text: &str| within::<u16>(text, 0..=36_500))]
        within: Option<u16>,
        /// Show where the time went, by stage and node
        #[arg(long)]
        timings: bool,
        /// Leave out the final verify
        #[arg(long)]
        no_verify: bool,
    },
    /// Print a CA certificate as PEM: `ktcw-vm certs ca > ca.pem`
    Ca {
        #[arg(value_enum, default_value = "kubernetes")]
        which: CaName,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CaName {
    Kubernetes,
    Etcd,
    FrontProxy,
}

#[derive(Debug, Clone, Args)]
pub struct Proxy {
    /// Local address
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDR:PORT", value_parser = address)]
    pub listen: std::net::SocketAddr,
}

#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub what: ImageWhat,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ImageWhat {
    /// Build the guest image (does nothing when it is there)
    Build {
        /// Build again
        #[arg(long)]
        force: bool,
        /// Debian mirror [default: the one this machine uses]
        #[arg(long, value_name = "URL")]
        mirror: Option<String>,
    },
    /// Images here, with sizes and versions
    List {
        /// Every package and module in the guest image
        #[arg(long)]
        sbom: bool,
    },
    /// Remove images that neither this version nor a cluster kept here uses
    Prune,
}

#[derive(Debug, Clone, Args)]
pub struct SupportArgs {
    #[command(subcommand)]
    pub what: SupportWhat,
}

#[derive(Debug, Clone, Subcommand)]
pub enum SupportWhat {
    /// Versions, plan, journal, reports, libvirt's definitions, consoles and the nodes' logs as a .tar.gz; keys and tokens are taken out
    Bundle {
        /// Where to write it [default: ./ktcw-support-<cluster>.tar.gz]
        file: Option<PathBuf>,
    },
}
