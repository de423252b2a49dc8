//! The words as given: flags and the `--config` file share one shape, every field optional.
//! `cli` fills it from clap and from TOML and merges the two; `validate` judges it.
//! It decides nothing and holds no default.

use super::{AccelChoice, ClusterSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// All that `up` and `plan` can be told. Each field is the flag of the same name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "ktcw-vm cluster file")]
pub struct RawSpec {
    /// Cluster name: `[a-z][a-z0-9-]{0,30}`. Default `ktcw`.
    pub cluster: Option<String>,
    /// etcd members (and controller machines): 1, 3, 5 or 7. Default 3.
    pub etcd: Option<u64>,
    /// Controllers that run the control plane: 1 to `etcd`. Default: all.
    pub control_planes: Option<u64>,
    /// Worker machines: 0 to 50. Default 2.
    pub workers: Option<u64>,
    /// Machine network, an IPv4 /24. Default: a free one is chosen.
    pub subnet: Option<String>,
    /// No NAT: machines reach each other and this host only.
    pub isolated: Option<bool>,
    /// Pod addresses, an IPv4 /16. Default 10.244.0.0/16.
    pub pod_cidr: Option<String>,
    /// Service addresses, an IPv4 /12 to /24. Default 10.96.0.0/16.
    pub service_cidr: Option<String>,
    /// Memory of a controller in MiB, 768 to 65536.
    pub controller_mem: Option<u64>,
    /// Memory of a worker in MiB, 512 to 65536.
    pub worker_mem: Option<u64>,
    /// Virtual CPUs of each machine, 1 to 16. Default 1.
    pub cpus: Option<u64>,
    /// Virtual size of the etcd disk in GiB, 1 to 64. Default 2.
    pub etcd_disk: Option<u64>,
    /// Virtual size of the root disk in GiB, 10 (the image's own) to 512. Default 10; what is more is given to the file system at boot.
    pub root_disk: Option<u64>,
    /// `auto` (default), `kvm` or `tcg`.
    pub accel: Option<AccelChoice>,
    /// Boot this kernel (ELF vmlinux or bzImage) instead of the image's own.
    pub kernel: Option<PathBuf>,
    /// Initial ramdisk for `kernel`; none unless given.
    pub initrd: Option<PathBuf>,
    /// Appended to the kernel command line.
    pub kernel_args: Option<String>,
}

impl RawSpec {
    /// Flags win over the file, field by field.
    pub fn over(self, file: RawSpec) -> RawSpec {
        RawSpec {
            cluster: self.cluster.or(file.cluster),
            etcd: self.etcd.or(file.etcd),
            control_planes: self.control_planes.or(file.control_planes),
            workers: self.workers.or(file.workers),
            subnet: self.subnet.or(file.subnet),
            isolated: self.isolated.or(file.isolated),
            pod_cidr: self.pod_cidr.or(file.pod_cidr),
            service_cidr: self.service_cidr.or(file.service_cidr),
            controller_mem: self.controller_mem.or(file.controller_mem),
            worker_mem: self.worker_mem.or(file.worker_mem),
            cpus: self.cpus.or(file.cpus),
            etcd_disk: self.etcd_disk.or(file.etcd_disk),
            root_disk: self.root_disk.or(file.root_disk),
            accel: self.accel.or(file.accel),
            kernel: self.kernel.or(file.kernel),
            initrd: self.initrd.or(file.initrd),
            kernel_args: self.kernel_args.or(file.kernel_args),
        }
    }
}

/// The words that give this spec: what an existing cluster was made with, for the flags that were not given again.
impl From<&ClusterSpec> for RawSpec {
    fn from(spec: &ClusterSpec) -> RawSpec {
        let ClusterSpec { name, etcd, control_planes, workers, network, machines, accel, kernel, lineage: _ } = spec;
        RawSpec {
            cluster: Some(name.to_string()),
            etcd: Some((*etcd).into()),
            // All of them: also of those that come.
            control_planes: (control_planes != etcd).then_some((*control_planes).into()),
            workers: Some((*workers).into()),
            subnet: network.subnet.map(|subnet| subnet.to_string()),
            isolated: Some(network.isolated),
            pod_cidr: Some(network.pod_cidr.to_string()),
            service_cidr: Some(network.service_cidr.to_string()),
            controller_mem: Some(machines.controller_mem_mib.into()),
            worker_mem: Some(machines.worker_mem_mib.into()),
            cpus: Some(machines.cpus.into()),
            etcd_disk: Some(machines.etcd_disk_gib.into()),
            root_disk: Some(machines.root_disk_gib.into()),
            accel: Some(*accel),
            kernel: kernel.as_ref().map(|kernel| kernel.path.clone()),
            initrd: kernel.as_ref().and_then(|kernel| kernel.initrd.clone()),
            kernel_args: kernel.as_ref().and_then(|kernel| kernel.args.clone()),
        }
    }
}

/// A `--config` file that cannot be read as one: the message names the line.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {message}")]
pub struct ConfigError {
    /// 1-based; 0 when the parser gave no place.
    pub line: usize,
    pub message: String,
}

/// Reads `cluster.toml`: what could be read of it, and everything that could not, each with its line. Unknown keys and wrong
/// types are errors; after one of syntax nothing more can be said.
pub fn parse_config(text: &str) -> (RawSpec, Vec<ConfigError>) {
    let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let of = |error: &toml::de::Error, line: usize| {
        // The library's word for what has no sign and no point.
        let message = error.message().replace("expected u64", "expected a whole number, as in 3");
        ConfigError { line, message }
    };
    let table: BTreeMap<toml::Spanned<String>, toml::Value> = match toml::from_str(text) {
        Ok(table) => table,
        Err(error) => return (RawSpec::default(), vec![of(&error, error.span().map_or(0, |span| line(span.start)))]),
    };
    let mut errors = Vec::new();
    let mut good = toml::Table::new();
    for (key, value) in table {
        let one = toml::Table::from_iter([(key.get_ref().clone(), value)]);
        match one.clone().try_into::<RawSpec>() {
            Ok(_) => good.extend(one),
            Err(error) => errors.push(of(&error, line(key.span().start))),
        }
    }
    errors.sort_by_key(|error| error.line);
    (good.try_into().unwrap_or_default(), errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_error(text: &str) -> ConfigError {
        match parse_config(text) {
            (_, errors) if errors.len() == 1 => errors[0].clone(),
            other => panic!("one error is wanted: {other:?}"),
        }
    }

    #[test]
    fn everything_wrong_in_a_file_comes_at_once_and_the_rest_is_read() {
        let (read, errors) = parse_config("etcd = 5\n# no\nworkerz = 1\nworkers = -1\ncpus = \"two\"\naccel = \"tcg\"\n");
        assert_eq!((read.etcd, read.workers, read.accel), (Some(5), None, Some(AccelChoice::Tcg)));
        assert_eq!(errors.iter().map(|error| error.line).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(only_error("etcd = 3\nworkers = = 2\n").line, 2);
    }

    #[test]
    fn an_unknown_key_names_its_line_and_what_is_known() {
        let error = only_error("etcd = 3\nworkers = 2\nworkerz = 1\n");
        assert_eq!(error.line, 3);
        assert!(error.message.contains("workerz") && error.message.contains("control-planes"), "{}", error.message);
    }

    #[test]
    fn a_wrong_type_names_its_line() {
        let error = only_error("etcd = 3\naccel = \"fast\"\n");
        assert_eq!(error.line, 2, "{error}");
    }

    #[test]
    fn a_spec_in_words_is_the_same_spec() {
        for text in [
            "",
            "etcd = 5\ncontrol-planes = 2\nworkers = 1\nsubnet = \"192.168.9.0/24\"\nisolated = true",
            "accel = \"tcg\"\nkernel = \"/k\"\ninitrd = \"/i\"\nkernel-args = \"a=b\"\ncpus = 2\netcd-disk = 4\nroot-disk = 20",
        ] {
            let spec = crate::spec::validate(&parse_config(text).0).expect("a spec");
            assert_eq!(crate::spec::validate(&RawSpec::from(&spec)), Ok(spec), "{text}");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = parse_config("etcd = 5\nworkers = 1\ncontrol-planes = 2").0;
        let flags = RawSpec { workers: Some(4), ..RawSpec::default() };
        let both = flags.over(file);
        assert_eq!((both.etcd, both.workers, both.control_planes), (Some(5), Some(4), Some(2)));
    }
}
