//! Our SSH client against the server that runs on the nodes: OpenSSH's sshd, on a loopback port of its own, as the user
//! who runs the tests. Needs `/usr/sbin/sshd` (Debian: openssh-server; it need not be running). Without it these tests say
//! so and pass, except under CI.
#![expect(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test may fail loudly, says what it leaves out, and waits for real processes"
)]

use ktcw_vm::guest::ssh::{SshGuests, Target, Timing};
use ktcw_vm::guest::{Cmd, Exit, Guest, GuestError, keys, put, run_ok};
use ktcw_vm::secret::Secret;
use ktcw_vm::spec::NodeName;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    addr: SocketAddr,
    host_key: String,
    client_key: Secret,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn user() -> String {
    let out = Command::new("id").arg("-un").output().expect("id runs");
    String::from_utf8(out.stdout).expect("a name").trim().to_owned()
}

fn private(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode");
}

impl Sshd {
    /// `None` where there is no sshd and nobody insists.
    fn start(more: &str) -> Option<Self> {
        if !Path::new("/usr/sbin/sshd").exists() {
            assert!(std::env::var_os("CI").is_none(), "CI needs /usr/sbin/sshd (package openssh-server)");
            eprintln!("not run: there is no /usr/sbin/sshd (package openssh-server)");
            return None;
        }
        let dir = tempfile::tempdir().expect("dir");
        let (host_private, host_key) = keys::generate("host").expect("made");
        let (client_key, client) = keys::generate("client").expect("made");
        private(&dir.path().join("host"), host_private.expose());
        private(&dir.path().join("authorized"), &client);
        if user() == "root" {
            // Where Debian's unit file makes it.
            std::fs::create_dir_all("/run/sshd").expect("privilege separation directory");
        }
        // Bound and let go again: another process could take it in between, and then the wait below says so.
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback").local_addr().expect("bound");
        let at = dir.path().display();
        // SHLVL keeps bash from reading the tester's own .bashrc, whatever that takes.
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nPidFile none\n\
             PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             SetEnv SHLVL=9\n{more}",
            addr.port()
        );
        private(&dir.path().join("config"), &config);
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(dir.path().join("config"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).expect("log"))
            .spawn()
            .expect("sshd starts");
        let sshd = Self { child, dir, addr, host_key, client_key };
        let end = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(addr).is_err() {
            let log = std::fs::read_to_string(sshd.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "sshd does not answer: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(sshd)
    }

    fn guests(&self, timing: Timing) -> SshGuests {
        let target = Target { node: node(), addr: self.addr, host_key: self.host_key.clone() };
        SshGuests::with_timing(vec![target], &user(), &self.client_key, timing).expect("keys")
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("utf-8").to_owned()
    }
}

fn node() -> NodeName {
    NodeName::worker(0)
}

fn cmd(line: &str) -> Cmd {
    Cmd::new(line, Duration::from_secs(60))
}

#[tokio::test]
async fn commands_exits_and_large_streams() {
    let Some(sshd) = Sshd::start("") else { return };
    let guests = sshd.guests(Timing::default());
    let run = async |line: &str| guests.run(&node(), cmd(line)).await.expect("ran");
    let output = run("echo out; echo err >&2; exit 7").await;
    assert_eq!((output.exit, output.stdout_text(), output.stderr_text()), (Exit::Code(7), "out\n".into(), "err\n".into()));
    assert_eq!(run("kill -9 $$").await.exit, Exit::Signal);
    // The child outlives the shell: its words come after the exit status.
    let late = run("(sleep 0.3; echo late) & echo early; exit 3").await;
    assert_eq!((late.exit, late.stdout_text()), (Exit::Code(3), "early\nlate\n".into()));
    let script = Cmd::script("set -e\nread -r x </dev/null || x=\"it's $((40 + 2))\"\necho \"$x\"\n", Duration::from_secs(30));
    assert_eq!(guests.run(&node(), script).await.expect("ran").stdout_text(), "it's 42\n");
    let typed: Vec<u8> = (0..20_u32 << 20).map(|i| (i % 249) as u8).collect();
    let back = guests.run(&node(), Cmd { stdin: Some(typed.clone()), limit: 32 << 20, ..cmd("cat") }).await.expect("ran");
    assert!(back.ok() && back.stdout == typed);
    let flood = guests.run(&node(), Cmd { limit: 1 << 20, ..cmd("head -c 100000000 /dev/zero") }).await.expect("ran");
    assert_eq!((flood.stdout.len(), flood.truncated), (1 << 20, true));
    // None of these ends before eight of them run.
    let (name, meet) = (node(), sshd.path("meet"));
    run_ok(&guests, &name, cmd(&format!("mkdir {meet}"))).await.expect("made");
    let line = format!(
        "mktemp -q {meet}/XXXXXX; for i in $(seq 200); do [ $(ls {meet} | wc -l) -ge 8 ] && exit 0; sleep 0.1; done; exit 1"
    );
    let all = futures::future::join_all((0..8).map(|_| guests.run(&name, cmd(&line)))).await;
    assert!(all.iter().all(|output| output.as_ref().is_ok_and(|output| output.ok())), "{all:?}");
}

#[tokio::test]
async fn a_file_arrives_whole() {
    let Some(sshd) = Sshd::start("") else { return };
    let guests = sshd.guests(Timing::default());
    let path = sshd.path("it's here");
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 241) as u8).collect();
    for bytes in [&content[..], b"short"] {
        put(&guests, &node(), &path, bytes, 0o640, Duration::from_secs(30)).await.expect("put");
        assert!(std::fs::read(&path).expect("there") == bytes);
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o640);
    }
    let error = put(&guests, &node(), "/nowhere/at/all", b"x", 0o600, Duration::from_secs(30)).await.expect_err("no directory");
    assert!(matches!(error, GuestError::Failed { .. }), "{error}");
}

#[tokio::test]
async fn what_is_given_up_is_ended_in_the_guest_too() {
    let Some(sshd) = Sshd::start("") else { return };
    let guests = sshd.guests(Timing::default());
    let mark = sshd.path("mark");
    let line = format!("echo $$ > {mark}; exec sleep 300");
    let error = guests.run(&node(), Cmd::new(line, Duration::from_secs(3))).await.expect_err("late");
    assert!(matches!(error, GuestError::Deadline { .. }), "{error}");
    let pid = std::fs::read_to_string(&mark).expect("it ran");
    let gone = format!("for i in $(seq 100); do kill -0 {} 2>/dev/null || exit 0; sleep 0.1; done; exit 1", pid.trim());
    run_ok(&guests, &node(), cmd(&gone)).await.expect("its process has ended");
}

/// sshd counts a session until its process is gone, whatever we closed.
#[tokio::test]
async fn sessions_used_up_by_processes_that_will_not_end_do_not_lock_us_out() {
    let Some(sshd) = Sshd::start("MaxSessions 2\n") else { return };
    let guests = sshd.guests(Timing::default());
    for _ in 0..3 {
        // Long enough for the login, which is a part of it, also on a busy computer.
        let stubborn = Cmd::new("trap '' TERM; for i in 1 2 3 4 5 6 7 8; do sleep 1; done", Duration::from_secs(2));
        let error = guests.run(&node(), stubborn).await.expect_err("late");
        assert!(matches!(error, GuestError::Deadline { .. }), "{error}");
    }
    assert!(guests.run(&node(), cmd("true")).await.expect("ran").ok());
}

#[tokio::test]
async fn a_stopped_server_is_noticed_and_a_new_one_is_used() {
    let Some(mut sshd) = Sshd::start("") else { return };
    let timing = Timing { keepalive: Duration::from_secs(1), keepalive_max: 2, ..Timing::default() };
    let guests = sshd.guests(timing);
    let parent = run_ok(&guests, &node(), cmd("ps -o ppid= -p $PPID")).await.expect("ran").stdout_text();
    let (mark, name) = (sshd.path("ran"), node());
    let line = format!("echo x >> {mark}; sleep 20");
    let signal = |signal: &str| Command::new("kill").args([signal, parent.trim()]).status().expect("kill runs");
    let stop = async {
        while !Path::new(&mark).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(signal("-STOP").success());
    };
    let (result, ()) = tokio::join!(guests.run(&name, cmd(&line)), stop);
    assert!(signal("-CONT").success());
    assert!(matches!(result, Err(GuestError::Lost { .. })), "{result:?}");
    assert!(guests.run(&node(), cmd("true")).await.expect("ran").ok());
    assert_eq!(std::fs::read_to_string(&mark).expect("there"), "x\n", "it was not run again");

    sshd.child.kill().expect("killed");
    sshd.child.wait().expect("gone");
    guests.forget(&node()).await;
    let error = guests.run(&node(), cmd("true")).await.expect_err("nobody");
    assert!(matches!(error, GuestError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn another_machine_is_not_talked_to() {
    let Some(sshd) = Sshd::start("") else { return };
    let (_, other) = keys::generate("other").expect("made");
    let target = Target { node: node(), addr: sshd.addr, host_key: other };
    let guests = SshGuests::new(vec![target], &user(), &sshd.client_key).expect("keys");
    let error = guests.run(&node(), cmd("true")).await.expect_err("refused");
    assert!(matches!(error, GuestError::HostKey { .. }), "{error}");
}

#[tokio::test]
async fn streams_and_tunnels() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Some(sshd) = Sshd::start("") else { return };
    let guests = sshd.guests(Timing::default());
    let mut out = Vec::new();
    let line = "read -r x; echo \"$x\"; echo no >&2; exit 4";
    let mut err = Vec::new();
    let exit = guests.exec_stream(&node(), line, &b"typed\n"[..], &mut out, &mut err).await.expect("ran");
    assert_eq!((exit, &out[..], &err[..]), (Exit::Code(4), &b"typed\n"[..], &b"no\n"[..]));
    // What follows a log ends when its reader goes away.
    let (name, (reader, writer)) = (node(), tokio::io::duplex(64));
    let follow = guests.exec_stream(&name, "while echo line; do sleep 0.05; done", tokio::io::empty(), writer, tokio::io::sink());
    let read = async move {
        let mut reader = reader;
        let mut some = [0; 12];
        reader.read_exact(&mut some).await.expect("lines");
    };
    let (end, ()) = tokio::join!(follow, read);
    assert!(matches!(end, Err(GuestError::Unread { .. })), "{end:?}");

    // The SSH server's own greeting, through itself.
    let mut tunnel = guests.direct_tcpip(&node(), "127.0.0.1", sshd.addr.port()).await.expect("open");
    let mut greeting = [0; 8];
    tunnel.read_exact(&mut greeting).await.expect("greeted");
    assert_eq!(&greeting, b"SSH-2.0-");
    tunnel.write_all(b"SSH-2.0-nobody\r\n").await.expect("sent");
    tunnel.shutdown().await.expect("shut down");
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(30), tunnel.read_to_end(&mut rest)).await.expect("hung up").expect("in order");
    let error = guests.direct_tcpip(&node(), "127.0.0.1", 1).await.err().expect("nobody there");
    assert!(matches!(error, GuestError::Connect { .. }), "{error}");
}
