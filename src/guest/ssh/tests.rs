//! Our client against a server on loopback that misbehaves on request: the command line says how.

mod many;
mod server;

use super::*;
use crate::guest::{Exit, run_ok};
use server::Server;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn node() -> NodeName {
    NodeName::controller(0)
}

fn cmd(line: &str) -> Cmd {
    Cmd::new(line, Duration::from_secs(60))
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("resident");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("number")
}

#[tokio::test]
async fn another_host_key_is_refused_and_both_fingerprints_are_named() {
    let server = Server::start().await;
    let (_, other) = keys::generate("other").expect("made");
    let target = Target { node: node(), addr: server.addr, host_key: other.clone() };
    let guests = SshGuests::with_timing(vec![target], "root", &server.client_key, Timing::default()).expect("keys");
    let error = guests.run(&node(), cmd("echo hi")).await.expect_err("refused");
    let GuestError::HostKey { seen, pinned, .. } = &error else { panic!("{error}") };
    assert_eq!(*seen, keys::fingerprint(&server.host_key).expect("readable"));
    assert_eq!(*pinned, keys::fingerprint(&other).expect("readable"));
    assert!(server.commands().is_empty());
}

#[tokio::test]
async fn another_client_key_is_told_so() {
    let server = Server::start().await;
    let (other, public) = keys::generate("other").expect("made");
    let target = Target { node: node(), addr: server.addr, host_key: server.host_key.clone() };
    let guests = SshGuests::with_timing(vec![target], "root", &other, Timing::default()).expect("keys");
    let error = guests.run(&node(), cmd("echo hi")).await.expect_err("refused");
    assert!(error.to_string().contains(&keys::fingerprint(&public).expect("readable")), "{error}");
}

#[tokio::test]
async fn output_exit_and_signal_come_back_as_they_were() {
    let server = Server::start().await;
    let guests = server.guests();
    let run = async |line: &str| guests.run(&node(), cmd(line)).await.expect("ran");
    let fail = run("fail").await;
    assert_eq!((fail.exit, fail.stdout_text().as_str()), (Exit::Code(7), "some"));
    assert_eq!(fail.stderr_text(), "first line\nno such thing\n");
    assert_eq!(run("killed").await.exit, Exit::Signal);
    let late = run("late").await;
    assert_eq!((late.exit, late.stdout_text(), late.stderr_text()), (Exit::Code(5), "early late".into(), "after eof".into()));
    let half = run("half").await;
    assert_eq!((half.exit, half.stdout_text().as_str()), (Exit::Lost, "half of i"));
    let error = run_ok(&guests, &node(), cmd("fail")).await.expect_err("7 is not 0");
    assert_eq!(error.to_string(), "controller-0: \"fail\" failed (Code(7)): first line / no such thing");
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refused_command_is_not_a_result() {
    let server = Server::start().await;
    let error = server.guests().run(&node(), cmd("refuse")).await.expect_err("refused");
    assert!(error.to_string().contains("would not run it"), "{error}");
    assert_eq!(server.commands().len(), 1);
}

#[tokio::test]
async fn a_flood_is_cut_to_the_limit_in_bounded_memory() {
    let server = Server::start().await;
    let guests = server.guests();
    guests.run(&node(), cmd("echo warm up")).await.expect("ran");
    let before = resident_kib();
    let flood = Cmd { limit: 1 << 20, ..Cmd::new("flood 100", Duration::from_secs(60)) };
    let output = guests.run(&node(), flood).await.expect("ran");
    let grown = resident_kib().saturating_sub(before);
    assert_eq!((output.stdout.len(), output.truncated, output.exit), (1 << 20, true, Exit::Lost));
    assert!(grown < 48 << 10, "{grown} KiB more for 1 MiB of output");
    // Below the flood mark the command is heard to its end.
    let output = guests.run(&node(), Cmd { limit: 1000, ..cmd("flood 20") }).await.expect("ran");
    assert_eq!((output.stdout.len(), output.truncated, output.exit), (1000, true, Exit::Code(0)));
    let output = guests.run(&node(), cmd("flood 4")).await.expect("ran");
    assert_eq!((output.stdout.len(), output.truncated, output.exit), (4 << 20, false, Exit::Code(0)));
}

#[tokio::test]
async fn standard_input_larger_than_every_window_comes_back() {
    let server = Server::start().await;
    let typed: Vec<u8> = (0..6_000_000_u32).map(|i| (i % 251) as u8).collect();
    let output = server.guests().run(&node(), Cmd { stdin: Some(typed.clone()), limit: 8 << 20, ..cmd("cat") }).await;
    assert!(output.expect("ran").stdout == typed);
    // One that does not read it does not hold us up.
    let output = server.guests().run(&node(), Cmd { stdin: Some(typed), ..cmd("echo no thanks") }).await;
    assert_eq!(output.expect("ran").stdout_text(), "no thanks");
}

#[tokio::test]
async fn a_connection_lost_under_a_command_is_lost_and_the_command_is_not_sent_again() {
    let server = Server::start().await;
    let guests = server.guests();
    let error = guests.run(&node(), cmd("drop")).await.expect_err("lost");
    let GuestError::Lost { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("going down"), "{reason}");
    assert_eq!(server.commands(), ["drop"]);
    let task = async { guests.run(&node(), cmd("hang")).await };
    let pull = async {
        while server.commands().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.reset();
    };
    let (result, ()) = tokio::join!(task, pull);
    assert!(matches!(result, Err(GuestError::Lost { .. })), "{result:?}");
    assert_eq!(server.commands(), ["drop", "hang"]);
}

#[tokio::test]
async fn a_connection_that_died_between_commands_is_made_again() {
    let server = Server::start().await;
    let guests = server.guests();
    for round in 1..=4 {
        let output = guests.run(&node(), cmd("echo again")).await.expect("ran");
        assert_eq!((output.stdout_text().as_str(), server.seen.connections.load(Ordering::SeqCst)), ("again", round));
        server.reset();
        if round == 2 {
            // In the other rounds the loss may or may not have been noticed when the next command comes.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    guests.run(&node(), cmd("echo last")).await.expect("ran");
    guests.forget(&node()).await;
    guests.run(&node(), cmd("echo new")).await.expect("ran");
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 6);
    assert_eq!(server.commands().len(), 6);
}

#[tokio::test]
async fn a_command_that_never_answers_is_cut_off_and_gives_its_channel_back() {
    let server = Server::start().await;
    let guests = server.guests();
    assert!(guests.run(&node(), cmd("echo connect")).await.expect("ran").ok());
    let error = guests.run(&node(), Cmd::new("hang", Duration::from_millis(300))).await.expect_err("late");
    assert!(matches!(&error, GuestError::Deadline { after, .. } if *after == Duration::from_millis(300)), "{error}");
    let tidy = crate::wait::until(
        "closed",
        Duration::from_secs(30),
        Duration::from_millis(10),
        |_| (),
        || async {
            let closed = server.seen.closed.load(Ordering::SeqCst);
            if closed == 1 { crate::wait::Seen::Ready(()) } else { crate::wait::Seen::NotYet(closed.to_string()) }
        },
    );
    tidy.await.expect("the channel is closed");
    // More of them than there are channels: each gives its place back.
    let name = node();
    let many = (0..CHANNELS * 2).map(|_| guests.run(&name, Cmd::new("hang", Duration::from_millis(200))));
    assert!(futures::future::join_all(many).await.iter().all(|r| matches!(r, Err(GuestError::Deadline { .. }))));
    assert!(guests.run(&node(), cmd("echo free")).await.expect("ran").ok());
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn many_commands_share_one_connection_at_the_same_time() {
    let server = Server::start().await;
    let guests = server.guests();
    guests.run(&node(), cmd("echo connect")).await.expect("ran");
    // None of them ends before all of them run.
    let name = node();
    let outputs = futures::future::join_all((0..CHANNELS).map(|_| guests.run(&name, cmd("meet 16")))).await;
    assert!(outputs.iter().all(|output| output.as_ref().is_ok_and(Output::ok)));
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_port_that_takes_connections_and_says_nothing_is_given_up_in_time_by_all_who_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let (client_key, host_key) = keys::generate("any").expect("made");
    let target = Target { node: node(), addr: listener.local_addr().expect("bound"), host_key };
    let timing = Timing { connect: Duration::from_secs(1), ..Timing::default() };
    let guests = SshGuests::with_timing(vec![target], "root", &client_key, timing).expect("keys");
    let (start, name) = (Instant::now(), node());
    let accept = async {
        let (mut socket, _) = listener.accept().await.expect("accepted");
        let mut all = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(30), socket.read_to_end(&mut all)).await;
        read.expect("the client hangs up").expect("in order");
        all
    };
    let runs = futures::future::join_all((0..8).map(|_| guests.run(&name, cmd("echo hi"))));
    let (banner, results) = tokio::join!(accept, runs);
    assert!(banner.starts_with(b"SSH-2.0-"));
    for result in results {
        let error = result.expect_err("silent");
        assert!(matches!(error, GuestError::Connect { .. }) && error.to_string().contains("took the connection"), "{error}");
    }
    // One after the other would take 8 s.
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[tokio::test]
async fn nobody_listening_and_no_such_node_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let addr = listener.local_addr().expect("bound");
    drop(listener);
    let (client_key, host_key) = keys::generate("any").expect("made");
    let guests = SshGuests::new(vec![Target { node: node(), addr, host_key }], "root", &client_key).expect("keys");
    let error = guests.run(&node(), cmd("true")).await.expect_err("refused");
    assert!(error.to_string().contains("refused"), "{error}");
    let error = guests.run(&NodeName::worker(9), cmd("true")).await.expect_err("unknown");
    assert!(error.to_string().contains("no such node"), "{error}");
    let broken = vec![Target { node: node(), addr, host_key: "ssh-ed25519 AAAA".to_owned() }];
    let error = SshGuests::new(broken, "root", &client_key).err().expect("unreadable");
    assert!(error.to_string().starts_with("the SSH host key of controller-0"), "{error}");
}

#[tokio::test]
async fn streams_pass_both_ways_and_a_slow_reader_holds_up_nobody_else() {
    let server = Server::start().await;
    let guests = server.guests();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = guests.exec_stream(&node(), "fail", tokio::io::empty(), &mut out, &mut err).await.expect("ran");
    assert_eq!((exit, out.as_slice(), err.as_slice()), (Exit::Code(7), &b"some"[..], &b"first line\nno such thing\n"[..]));
    let mut out = Vec::new();
    let exit = guests.exec_stream(&node(), "cat", &b"typed"[..], &mut out, tokio::io::sink()).await.expect("ran");
    assert_eq!((exit, out.as_slice()), (Exit::Code(0), &b"typed"[..]));

    let (reader, writer) = tokio::io::duplex(1 << 10);
    let name = node();
    let stalled = guests.exec_stream(&name, "flood 50", tokio::io::empty(), writer, tokio::io::sink());
    let others = async {
        while !server.commands().iter().any(|line| line == "flood 50") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        guests.run(&node(), cmd("echo not held up")).await
    };
    tokio::select! {
        end = stalled => panic!("nobody read, yet it ended: {end:?}"),
        output = others => assert!(output.expect("ran").ok()),
    }
    drop(reader);

    let (reader, writer) = tokio::io::duplex(1 << 10);
    drop(reader);
    let error = guests.exec_stream(&node(), "flood 50", tokio::io::empty(), writer, tokio::io::sink()).await;
    assert!(matches!(error, Err(GuestError::Unread { .. })), "{error:?}");
}

#[tokio::test]
async fn a_tunnel_carries_both_ways_half_closes_and_says_when_nobody_is_there() {
    let server = Server::start().await;
    let guests = server.guests();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    // Reads to the end, then answers with what it read: needs the half-close to pass.
    let echo = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("accepted");
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.expect("read");
        socket.write_all(&all).await.expect("written");
        drop(socket);
        // The second is dropped by its owner: we hear it.
        let (mut socket, _) = listener.accept().await.expect("accepted");
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.expect("read");
        all
    });
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 253) as u8).collect();
    let mut tunnel = guests.direct_tcpip(&node(), "127.0.0.1", port).await.expect("open");
    tunnel.write_all(&sent).await.expect("sent");
    tunnel.shutdown().await.expect("half-closed");
    let mut back = Vec::new();
    tunnel.read_to_end(&mut back).await.expect("answered");
    assert!(back == sent);
    let mut tunnel = guests.direct_tcpip(&node(), "127.0.0.1", port).await.expect("open");
    tunnel.write_all(b"last words").await.expect("sent");
    drop(tunnel);
    let heard = tokio::time::timeout(Duration::from_secs(30), echo).await.expect("hung up").expect("in order");
    assert_eq!(heard, b"last words");
    let error = guests.direct_tcpip(&node(), "127.0.0.1", port).await.err().expect("nobody listens");
    assert!(error.to_string().contains(&format!("127.0.0.1:{port} from controller-0")), "{error}");
}

/// Everything to the server and back, until told to swallow it all: a machine that was paused, or a cable pulled.
async fn relay(to: SocketAddr) -> (SocketAddr, Arc<tokio::sync::Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let addr = listener.local_addr().expect("bound");
    let freeze = Arc::new(tokio::sync::Notify::new());
    let frozen = Arc::clone(&freeze);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = tokio::net::TcpStream::connect(to).await.expect("server");
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                () = frozen.notified() => kept.push((near, far)),
            }
        }
    });
    (addr, freeze)
}

#[tokio::test]
async fn a_machine_that_falls_silent_is_noticed_by_keepalives_and_connected_again_when_back() {
    let server = Server::start().await;
    let (addr, freeze) = relay(server.addr).await;
    let target = Target { node: node(), addr, host_key: server.host_key.clone() };
    let timing = Timing { keepalive: Duration::from_secs(1), keepalive_max: 2, ..Timing::default() };
    let guests = SshGuests::with_timing(vec![target], "root", &server.client_key, timing).expect("keys");
    // Quiet but alive is not dead.
    assert!(guests.run(&node(), cmd("sleep 1500")).await.expect("ran").ok());
    let stall = async {
        while server.commands().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        freeze.notify_one();
    };
    let name = node();
    let (result, ()) = tokio::join!(guests.run(&name, cmd("hang")), stall);
    let error = result.expect_err("silent");
    assert!(matches!(&error, GuestError::Lost { reason, .. } if reason.contains("eepalive")), "{error}");
    assert!(guests.run(&node(), cmd("echo back")).await.expect("ran").ok());
    assert_eq!(server.commands(), ["sleep 1500", "hang", "echo back"]);
}
