//! Runs the tools an image is built with: output to a log, notable lines to the
//! caller, the last lines into the error. Tools that unpack or mount run in
//! namespaces of their own, so that nothing they mount outlives them; and all of
//! them die with this program. It does not know what the tools are for.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::ImageError;

/// How many of the last lines of its output a failed tool's error carries.
const TAIL: usize = 15;

/// One run of a tool.
pub struct Tool {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    namespaces: Option<Namespaces>,
}

impl Tool {
    pub fn new(program: impl Into<OsString>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), environment: Vec::new(), directory: None, namespaces: None }
    }

    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// As root of mount and PID namespaces that end with the tool.
    pub fn inside(mut self, namespaces: Namespaces) -> Self {
        self.namespaces = Some(namespaces);
        self
    }

    /// Runs it to its end. Everything it says goes to `log`; `notable` gets what
    /// [`notable_line`] finds worth showing.
    ///
    /// # Errors
    /// [`ImageError::Tool`] when it cannot be started or does not succeed.
    pub fn run(self, step: &str, log: &Path, notable: &mut dyn FnMut(&str)) -> Result<(), ImageError> {
        let shown = self.shown();
        let failed = |how: String, last: VecDeque<String>| ImageError::Tool {
            step: step.to_owned(),
            command: shown.clone(),
            how,
            log: log.to_owned(),
            last: last.into(),
        };
        let mut to_log = File::options().create(true).append(true).open(log).map_err(ImageError::io("opening", log))?;
        writeln!(to_log, "$ {shown}").map_err(ImageError::io("writing", log))?;

        let (output, writer) = std::io::pipe().map_err(ImageError::io("making a pipe for", log))?;
        let errors = writer.try_clone().map_err(ImageError::io("making a pipe for", log))?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(writer).stderr(errors);
        let mut child = command.spawn().map_err(|error| failed(format!("could not be started: {error}"), VecDeque::new()))?;
        drop(command); // and with it our ends of the pipe: the output must end with the tool

        let mut last = VecDeque::with_capacity(TAIL + 1);
        let mut lines = BufReader::new(output);
        let mut line = Vec::new();
        loop {
            line.clear();
            // A line without end is cut: a tool must not fill our memory.
            let read = (&mut lines).take(64 * 1024).read_until(b'\n', &mut line);
            if read.map_err(ImageError::io("reading the output for", log))? == 0 {
                break;
            }
            to_log.write_all(&line).map_err(ImageError::io("writing", log))?;
            let text = String::from_utf8_lossy(&line);
            // Progress bars redraw their line: what counts is what it says in the end.
            let text = text.trim_end().rsplit('\r').next().unwrap_or("");
            if text.is_empty() {
                continue;
            }
            if let Some(shown) = notable_line(text) {
                notable(shown);
            }
            last.push_back(text.to_owned());
            if last.len() > TAIL {
                last.pop_front();
            }
        }
        let status = child.wait().map_err(ImageError::io("waiting for", log))?;
        if status.success() { Ok(()) } else { Err(failed(how_it_ended(status), last)) }
    }

    /// Runs it and returns what it printed, for tools that answer in a line or two.
    ///
    /// # Errors
    /// What it said, when it cannot be started or does not succeed.
    pub fn answer(self) -> Result<String, String> {
        let output = self.command().stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().lines().last().unwrap_or("").to_owned();
        Err(if said.is_empty() { how_it_ended(output.status) } else { said })
    }

    fn command(&self) -> Command {
        // The kernel ends the tool when this program ends, however that happens.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(namespaces) = self.namespaces {
            command.arg("unshare").args(namespaces.arguments()).arg("--");
        }
        command.arg(&self.program).args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    fn shown(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.arguments);
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// In which namespaces a tool becomes root of a file system of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespaces {
    /// We are root: mount and PID namespaces.
    Root,
    /// We are not: a user namespace too, in which we are root, and the ids that
    /// /etc/subuid lends us are everybody else.
    User,
}

impl Namespaces {
    pub fn of_this_user() -> Self {
        if nix::unistd::geteuid().is_root() { Self::Root } else { Self::User }
    }

    /// Makes the namespaces once and mounts something in them.
    ///
    /// # Errors
    /// [`ImageError::Namespaces`] with what the kernel or the tool said.
    pub fn check(self) -> Result<(), ImageError> {
        let tool = Tool::new("sh").args(["-c", "mount -t tmpfs tmpfs /mnt && chown 1:1 /mnt"]).inside(self);
        tool.answer().map(drop).map_err(|said| {
            let program = std::env::current_exe().unwrap_or_else(|_| "ktcw-vm".into());
            let by_sudo = by_sudo(&program, |name| std::env::var_os(name).is_some());
            ImageError::Namespaces { root: self == Self::Root, said, by_sudo }
        })
    }

    /// Removes a directory in which files may belong to ids lent to us.
    pub fn remove(self, directory: &Path) -> Result<(), String> {
        Tool::new("rm").args(["-rf", "--"]).arg(directory).inside(self).answer().map(drop)
    }

    fn arguments(self) -> &'static [&'static str] {
        const OWN: &[&str] = &["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
        const OWN_USER: &[&str] =
            &["--user", "--map-root-user", "--map-auto", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
        match self {
            Self::Root => OWN,
            Self::User => OWN_USER,
        }
    }
}

/// What to type so that root builds the image where this user looks for it: under sudo home and path are others, and no path has us.
fn by_sudo(program: &Path, is_set: impl Fn(&str) -> bool) -> String {
    let kept = ["HOME", "PATH", "XDG_CACHE_HOME", "KTCW_CACHE_DIR"].into_iter().filter(|name| is_set(name));
    let kept: String = kept.map(|name| format!("{name}=\"${name}\" ")).collect();
    format!("sudo env {kept}'{}' image build", program.display().to_string().replace('\'', r"'\''"))
}

/// Whether a program can be found: on the path, or beside it where root's are kept (`/usr/sbin` for `/usr/bin`).
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .flat_map(|directory| [directory.with_file_name("sbin"), directory])
        .any(|directory| directory.join(program).is_file())
}

/// What to show of a line of output while a tool runs, if anything: our scripts'
/// headings, mmdebstrap's stages, and what Go downloads.
fn notable_line(line: &str) -> Option<&str> {
    // A stage of mmdebstrap's that names a path tells only where, not what.
    let stage = || line.strip_prefix("I: ").filter(|said| !said.contains('/'));
    let heading = line.strip_prefix("==> ").or_else(stage);
    heading.or_else(|| line.starts_with("go: downloading ").then(|| &line[4..]))
}

fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "did not end well".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tool {
        Tool::new("sh").args(["-c", script])
    }

    #[test]
    fn output_is_logged_and_headings_are_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let mut seen = Vec::new();
        shell("echo '==> one'; echo quiet >&2; echo 'I: two'; echo 'I: in /tmp/x'; printf 'half\\r==> three'")
            .run("step", &log, &mut |line| seen.push(line.to_owned()))
            .unwrap();
        assert_eq!(seen, ["one", "two", "three"]);
        let logged = std::fs::read_to_string(&log).unwrap();
        assert!(logged.starts_with("$ sh -c"), "{logged}");
        assert!(logged.contains("\nquiet\n"), "{logged}");
    }

    #[test]
    fn a_failure_names_step_command_and_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let error = shell("seq 1 100; echo no space left >&2; exit 7").run("guest disk", &log, &mut |_| {}).unwrap_err();
        let ImageError::Tool { step, how, last, .. } = &error else { panic!("{error}") };
        assert_eq!(step, "guest disk");
        assert_eq!(how, "ended with exit code 7");
        assert_eq!(last.len(), TAIL);
        assert_eq!(last.last().unwrap(), "no space left");
        assert!(error.to_string().contains("no space left"));
    }

    #[test]
    fn a_signal_is_not_taken_for_an_exit_code() {
        let directory = tempfile::tempdir().unwrap();
        let error = shell("kill -9 $$").run("step", &directory.path().join("log"), &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("signal 9"), "{error}");
    }

    #[test]
    fn an_answer_is_trimmed_and_an_error_is_the_last_line() {
        assert_eq!(shell("echo ' go1.26 '").answer().unwrap(), "go1.26");
        assert_eq!(shell("echo first >&2; echo why >&2; exit 1").answer().unwrap_err(), "why");
    }

    #[test]
    fn who_may_make_no_namespaces_is_told_what_finds_home_program_and_cache_through_sudo() {
        let program = Path::new("/home/one's own/target/release/ktcw-vm");
        assert_eq!(
            by_sudo(program, |name| ["HOME", "PATH"].contains(&name)),
            r#"sudo env HOME="$HOME" PATH="$PATH" '/home/one'\''s own/target/release/ktcw-vm' image build"#
        );
        let by_sudo = by_sudo(program, |_| true);
        for name in ["XDG_CACHE_HOME", "KTCW_CACHE_DIR"] {
            assert!(by_sudo.contains(&format!("{name}=\"${name}\"")), "{by_sudo}");
        }
        let error = ImageError::Namespaces { root: false, said: String::new(), by_sudo: by_sudo.clone() };
        assert!(error.hint().unwrap().contains(&by_sudo));
    }

    #[test]
    fn programs_are_found_on_the_path() {
        assert!(installed("sh"));
        assert!(!installed("no-such-program-as-this"));
    }
}
