//! The command line: parse, dispatch to one file per verb, print, exit code.
//! `main` calls it; it is the only module that prints and the only one that reads arguments, the environment and the clock.
//! What it knows of the work is which functions to call.

mod args;
mod certs;
mod change;
mod doctor;
mod down;
mod drill;
mod error;
mod etcd_only;
pub mod exit;
mod fork;
mod golden;
mod image;
mod lab;
mod life;
mod logs;
mod node;
mod opened;
mod plan;
mod proxy;
mod render;
mod resolve;
mod session;
mod signals;
mod snapshot;
mod ssh;
mod start;
mod status;
mod support;
mod terminal;
mod tools;
mod top;
mod tour;
mod up;
mod verify;
mod way;
mod words;

#[cfg(test)]
#[path = "../../tests/fixtures/kept.rs"]
mod kept;
#[cfg(test)]
pub(crate) use down::remove as remove_cluster;

use crate::spec::{ClusterName, ClusterSpec, RawSpec};
use crate::store::ClusterDir;
use args::{Cli, Global, SpecArgs, Verb};
use clap::{CommandFactory, Parser};
use error::CliError;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Parses, runs, prints what went wrong.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    match Cli::try_parse_from(&words) {
        Ok(cli) => run(&cli).unwrap_or_else(|error| failed(&error, cli.json())),
        Err(error) => unparsed(&words, &error),
    }
}

fn run(cli: &Cli) -> Result<ExitCode, CliError> {
    log(cli.global.verbose);
    // Before there is a second thread: a namespace is a thread's, and others take over their maker's.
    if asks_machines(&cli.verb) {
        fork::enter(&cli.global)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(CliError::failed)?;
    let result = runtime.block_on(dispatch(cli));
    // Reads of a terminal cannot be cancelled: do not wait for their threads.
    runtime.shutdown_background();
    result.map(ExitCode::from)
}

/// Whether a verb speaks to machines of one cluster: for a fork's it has to be in that fork's network. In this computer's own the first
/// cluster's machines answer, at the same addresses and with the same keys.
fn asks_machines(verb: &Verb) -> bool {
    match verb {
        Verb::Down(_) | Verb::Plan(_) | Verb::Image(_) | Verb::Completions { .. } | Verb::List(_) => false,
        Verb::Doctor(args) => args.running,
        _ => true,
    }
}

/// Says why, to people and, on the last line of its standard output, to the program that reads.
fn failed(error: &CliError, json: bool) -> ExitCode {
    render::error(error);
    if json {
        render::print_line(&error.json());
    }
    ExitCode::from(error.code)
}

/// Words that are no command: all bad values at once, and anything else, also help, as clap says it.
fn unparsed(words: &[OsString], error: &clap::Error) -> ExitCode {
    let json = asks_for_json(words);
    if let Some(refused) = words::refused(words, error, |global, spec| {
        judged(global, spec).map_or_else(|_| Vec::new(), |judged| judged.spec.err().unwrap_or_default())
    }) {
        return failed(&refused, json);
    }
    let _ = error.print();
    let code = u8::try_from(error.exit_code()).unwrap_or(exit::USAGE);
    if json && code != exit::OK {
        let said = error.to_string();
        let said = said.trim().strip_prefix("error: ").unwrap_or(said.trim());
        render::print_line(&CliError::new(code, said).json());
    }
    ExitCode::from(code)
}

/// Of words that could not be understood as a whole.
fn asks_for_json(words: &[OsString]) -> bool {
    let words: Vec<&str> = words.iter().map_while(|word| word.to_str().filter(|word| *word != "--")).collect();
    let pair = |pair: &[&str]| matches!(pair, ["--format" | "-o", "json"]);
    words.windows(2).any(pair) || words.iter().any(|word| ["--format=json", "-ojson", "-o=json"].contains(word))
}

async fn dispatch(cli: &Cli) -> Result<u8, CliError> {
    let global = &cli.global;
    match &cli.verb {
        Verb::Up(args) => up::run(global, args).await,
        Verb::Plan(args) => plan::run(global, args),
        Verb::Verify => verify::run(global).await,
        Verb::Down(down) => down::run(global, down).await,
        Verb::Stop(args) => life::stop(global, args).await,
        Verb::Start(args) => start::run(global, args).await,
        Verb::Pause(args) => life::pause(global, args).await,
        Verb::Resume(args) => life::resume(global, args).await,
        Verb::Node(args) => node::run(global, &args.what).await,
        Verb::Snapshot(args) => snapshot::run(global, &args.what).await,
        Verb::Drill(args) => drill::run(global, &args.what).await,
        Verb::Top(args) => top::run(global, args).await,
        Verb::Tour(args) => tour::run(global, args).await,
        Verb::Lab(args) => lab::run(global, args).await,
        Verb::Image(args) => image::run(global, &args.what),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "ktcw-vm", &mut script);
            render::print(&String::from_utf8_lossy(&script));
            Ok(exit::OK)
        }
        Verb::Status(output) => status::status(global, output).await,
        Verb::List(output) => status::list(global, output).await,
        Verb::Ssh(args) => ssh::ssh(global, args).await,
        Verb::Logs(args) => logs::run(global, args).await,
        Verb::Console { node } => ssh::console(global, node).await,
        Verb::Kubectl(args) => tools::kubectl(global, args),
        Verb::Etcdctl(args) => tools::etcdctl(global, args),
        Verb::Kubeconfig(args) => tools::show_kubeconfig(global, args),
        Verb::Certs(args) => certs::run(global, args.what).await,
        Verb::Proxy(args) => proxy::run(global, args).await,
        Verb::Doctor(args) if args.running => doctor::running(global).await,
        Verb::Doctor(args) => doctor::run(global, &args.spec),
        Verb::Support(args) => support::run(global, &args.what).await,
    }
}

/// `-v` shows our own debug lines, `-vv` those of libraries too; never a secret (their types print `<redacted>`).
fn log(verbose: u8) {
    let filter = match verbose {
        0 => "warn,russh=error",
        1 => "info,ktcw_vm=debug,russh=warn",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("KTCW_LOG").unwrap_or_else(|_| filter.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// More than anybody writes into a file of settings.
const CONFIG_LIMIT: u64 = 1 << 20;

/// Flags over config file over what an existing cluster of the name was made with, validated; all problems in one message. With that
/// cluster, as it was read for this: whoever locks it is told when it is another one by then.
fn spec_of(global: &Global, args: &SpecArgs) -> Result<(ClusterSpec, Option<ClusterDir>), CliError> {
    let Judged { spec, kept } = judged(global, args)?;
    let spec = spec.map_err(|problems| {
        let look = if args.config.is_some() { "ktcw-vm plan --config-schema" } else { "ktcw-vm up --help" };
        CliError::usage(problems.join("\n       ")).hint(format!("{look}; nothing was made"))
    })?;
    Ok((spec, kept))
}

/// A specification or its problems one by one, and the cluster that is there.
struct Judged {
    spec: Result<ClusterSpec, Vec<String>>,
    kept: Option<ClusterDir>,
}

/// An error is not about words: a cluster that is there cannot be read.
fn judged(global: &Global, args: &SpecArgs) -> Result<Judged, CliError> {
    let mut raw = args.raw(global.cluster.clone());
    let mut problems = Vec::new();
    if let Some(path) = &args.config {
        let (file, wrong) = config(path);
        problems.extend(wrong);
        raw = raw.over(file);
    }
    problems.extend(resolve::kernel_problems(raw.kernel.as_deref(), raw.initrd.as_deref()));
    let mut kept = None;
    // A name that is none is said by `validate`, with all else.
    if let Ok(name) = ClusterName::parse(raw.cluster.as_deref().unwrap_or("ktcw")) {
        let parent = session::parent(global)?;
        if ClusterDir::exists(&parent, &name) {
            let dir = ClusterDir::open(&parent, &name)?;
            raw = raw.over(RawSpec::from(dir.spec()));
            kept = Some(dir);
        }
    }
    let spec = match crate::spec::validate_kept(&raw, kept.as_ref().map(ClusterDir::spec)) {
        Ok(spec) if problems.is_empty() => Ok(spec),
        Ok(_) => Err(problems),
        Err(found) => {
            problems.extend(found.iter().map(ToString::to_string));
            Err(problems)
        }
    };
    Ok(Judged { spec, kept })
}

/// What a `--config` file says, and all that is wrong with it. Files that it names are beside it.
fn config(path: &Path) -> (RawSpec, Vec<String>) {
    let text = match crate::given::text(path, CONFIG_LIMIT) {
        Ok(text) => text,
        Err(error) => {
            return (RawSpec::default(), vec![format!("--config: {}: {error}; accepted: a TOML file", path.display())]);
        }
    };
    let (mut file, errors) = crate::spec::parse_config(&text);
    let beside =
        path.parent().and_then(|parent| std::path::absolute(if parent == Path::new("") { Path::new(".") } else { parent }).ok());
    for named in [&mut file.kernel, &mut file.initrd].into_iter().flatten() {
        *named = beside.as_ref().map_or_else(|| named.clone(), |beside| beside.join(&*named));
    }
    (file, errors.iter().map(|error| format!("--config: {}: {error}", path.display())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_that_ask_machines_do_it_in_the_network_of_a_fork() {
        let asks = |words: &str| {
            let cli = Cli::try_parse_from(words.split(' ')).unwrap_or_else(|error| panic!("{words}: {error}"));
            asks_machines(&cli.verb)
        };
        assert!(asks("ktcw-vm doctor --running -c lab2"), "it examines machines");
        assert!(!asks("ktcw-vm doctor -c lab2"), "it examines this computer");
        for words in ["verify", "status", "start", "top", "drill list", "snapshot save one", "node add", "etcdctl get x"] {
            assert!(asks(&format!("ktcw-vm {words}")), "{words}");
        }
        for words in ["down", "list", "plan", "image list"] {
            assert!(!asks(&format!("ktcw-vm {words}")), "{words}");
        }
    }
}
