//! The connection itself: opening it with an error people can use, and opening it again when the daemon was restarted.
//! Every call of `LibvirtHost` goes through `run`; all of them are idempotent, which is what makes a retry right. A daemon that
//! is there and says nothing is given up: on opening after a deadline, later by libvirt's own keepalives.
//! It knows nothing of domains, networks or storage.

use crate::host::HostError;
use std::sync::{Mutex, Once, PoisonError, mpsc};
use std::time::Duration;
use virt::connect::Connect;
use virt::error::{Error, ErrorNumber};

/// How long a restarting daemon is waited for, in growing steps: 3 s in all.
const RECONNECT_WAITS: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1500),
];

/// How long a daemon may take to greet. Across a network somebody may have to type a passphrase first.
const GREETING: Duration = Duration::from_secs(20);
const REMOTE_GREETING: Duration = Duration::from_secs(120);

/// A connection is lost when so many keepalives, so many seconds apart, had no answer. A daemon's main loop answers them, so work
/// that takes long does not count as silence.
const KEEPALIVE_S: i32 = 5;
const KEEPALIVES: u32 = 6;

/// How long another client's first check of XML is waited for: 0.6 s in all, for tables that are filled in milliseconds.
const SCHEMA_WAITS: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(60), Duration::from_millis(120), Duration::from_millis(400)];

pub struct Connection {
    /// As the user gave it.
    wanted: Option<String>,
    /// As libvirt resolved it.
    uri: String,
    current: Mutex<Connect>,
}

impl Connection {
    pub fn open(wanted: Option<&str>) -> Result<Connection, HostError> {
        // Without this, libvirt prints every error on stderr as well.
        virt::error::clear_error_callback();
        let conn = connect(wanted)?;
        let uri = conn.uri().map_err(|error| unreachable(wanted, &error))?;
        Ok(Connection { wanted: wanted.map(str::to_owned), uri, current: Mutex::new(conn) })
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Runs `effect`; if it failed because the connection was lost, connects again and runs it once more.
    pub fn run<T>(&self, mut effect: impl FnMut(&Connect) -> Result<T, HostError>) -> Result<T, HostError> {
        let conn = self.live()?;
        match effect(&conn) {
            Err(_) if !alive(&conn) => effect(&self.live()?),
            done => done,
        }
    }

    /// The current connection, or a new one in its place.
    fn live(&self) -> Result<Connect, HostError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waits = RECONNECT_WAITS.iter();
        while !alive(&current) {
            match connect(self.wanted.as_deref()) {
                Ok(conn) => *current = conn,
                // One that hangs has had its time already.
                Err(HostError::Unreachable { uri, reason }) if reason.starts_with(SILENT) => {
                    return Err(HostError::Unreachable { uri, reason });
                }
                Err(error) => match waits.next() {
                    Some(wait) => pause(*wait),
                    None => return Err(error),
                },
            }
        }
        Ok(current.clone())
    }
}

/// Between two looks at something that libvirt changes by itself. Callers keep the deadline.
#[expect(clippy::disallowed_methods, reason = "libvirt is blocking C: there is no runtime here to wait with")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Defines something whose XML libvirt checks first, again where it could not read its own schema.
///
/// A process fills libxml2's table of types with the first schema it reads, and until 2.14 without a lock: of two threads that both
/// find it empty (`xmlSchemaInitTypes`), one reads what the other has only begun. A libvirtd that has just started therefore
/// refuses one of two definitions made at once with "Unable to parse RNG"; nothing was changed, and soon the table is whole.
pub fn checked<T>(mut define: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for wait in SCHEMA_WAITS {
        match define() {
            Err(error) if is_unread_schema(&error) => pause(wait),
            done => return done,
        }
    }
    define()
}

/// Not the XML was wrong: the schema itself could not be read.
fn is_unread_schema(error: &Error) -> bool {
    error.code().is(ErrorNumber::InternalError) && error.message().contains("Unable to parse RNG")
}

fn alive(conn: &Connect) -> bool {
    conn.is_alive().unwrap_or(false)
}

/// libvirt's own call waits for ever for a daemon that hangs: it waits in a thread of its own, which ends with the answer or the process.
fn connect(uri: Option<&str>) -> Result<Connect, HostError> {
    run_events();
    let patience = if uri.is_none_or(is_local) { GREETING } else { REMOTE_GREETING };
    let wanted = uri.map(str::to_owned);
    let opened = within(patience, move || Connect::open(wanted.as_deref()));
    let conn = opened
        .ok_or_else(|| HostError::Unreachable {
            uri: uri.unwrap_or("the default URI").to_owned(),
            reason: format!("{SILENT} for {} s", patience.as_secs()),
        })?
        .map_err(|error| unreachable(uri, &error))?;
    // Drivers within this process have none, and need none.
    let _ = conn.set_keep_alive(KEEPALIVE_S, KEEPALIVES);
    Ok(conn)
}

/// Beginning of the reason when something takes connections and does not greet.
pub const SILENT: &str = "it has not answered";

/// The result, or `None` when it takes longer; then the work goes on unobserved.
fn within<T: Send + 'static>(patience: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(patience).ok()
}

/// libvirt's event loop, which its keepalives need, in a thread of its own, once a process and before the first connection.
fn run_events() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if virt::event::event_register_default_impl().is_ok() {
            std::thread::spawn(|| while virt::event::event_run_default_impl().is_ok() {});
        }
    });
}

fn unreachable(uri: Option<&str>, error: &Error) -> HostError {
    HostError::Unreachable { uri: uri.unwrap_or("the default URI").to_owned(), reason: error.message().to_owned() }
}

/// No host in the URI, or this very machine's: `qemu:///system`, `qemu+unix:///session`, `test:///default`.
pub fn is_local(uri: &str) -> bool {
    let host = uri.split_once("://").and_then(|(_, rest)| rest.split(['/', '?']).next()).unwrap_or_default();
    host.is_empty()
}

/// libvirt refused.
pub fn refused(action: &'static str, kind: &'static str, name: &str, error: &Error) -> HostError {
    HostError::Libvirt { action, kind, name: name.to_owned(), reason: error.message().to_owned() }
}

/// libvirt's XML was not what we know.
pub fn unreadable(kind: &'static str, name: &str, reason: String) -> HostError {
    HostError::Libvirt { action: "describe", kind, name: name.to_owned(), reason }
}

/// The thing went away, or never was.
pub fn is_absent(error: &Error) -> bool {
    [
        ErrorNumber::NoDomain,
        ErrorNumber::NoDomainSnapshot,
        ErrorNumber::NoNetwork,
        ErrorNumber::NoStoragePool,
        ErrorNumber::NoStorageVolume,
    ]
    .into_iter()
    .any(|absent| error.code().is(absent))
}

/// `None` for what is not there, whatever kind of lookup it was.
pub fn present<T>(found: Result<T, Error>, kind: &'static str, name: &str) -> Result<Option<T>, HostError> {
    match found {
        Ok(thing) => Ok(Some(thing)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(refused("find", kind, name, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_is_a_uri_without_a_host() {
        for local in ["qemu:///system", "qemu:///session", "qemu+unix:///system?socket=/x", "test:///default"] {
            assert!(is_local(local), "{local}");
        }
        for remote in ["qemu+ssh://root@lab.example/system", "qemu+tls://lab/system", "qemu+ssh://lab:22/system?keyfile=/a"] {
            assert!(!is_local(remote), "{remote}");
        }
    }

    #[test]
    fn what_takes_too_long_is_not_waited_for() {
        assert_eq!(within(Duration::from_secs(60), || 7), Some(7));
        let (_never, waits) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(20), move || waits.recv().is_ok()), None);
    }

    #[test]
    fn a_missing_socket_is_unreachable_with_a_way_out() {
        let error = Connection::open(Some("qemu+unix:///system?socket=/nonexistent/libvirt-sock")).err().expect("no such socket");
        assert!(matches!(&error, HostError::Unreachable { reason, .. } if reason.contains("No such file")), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("systemctl start")), "{error}");
    }
}
