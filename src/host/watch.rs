//! Calls to libvirt off the runtime, each with a time after which it is given up.
//! A `Host` says in its thread which call is under way (`under_way`); all who call one wait through `blocking`.
//! libvirt's keepalives find a daemon that is silent; one that answers them while a single worker hangs is found here only.

use super::HostError;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most calls take milliseconds; a machine on a busy computer takes half a minute to start, a busy pool is waited for two.
pub const CALL: Duration = Duration::from_secs(300);
/// Uploads, copies of disks, memory of machines written and read; and a pool that is emptied, which may be busy several times.
pub const LONG_CALL: Duration = Duration::from_secs(3600);
/// How often somebody who waits looks.
const LOOK: Duration = Duration::from_millis(500);

/// One call in a thread.
#[derive(Debug, Clone)]
struct Call {
    what: &'static str,
    uri: String,
    began: Instant,
    most: Duration,
}

type Slot = Arc<Mutex<Option<Call>>>;

thread_local! {
    /// What this thread tells whoever waits for it.
    static TOLD: RefCell<Option<Slot>> = const { RefCell::new(None) };
}

/// Does `work` as the call of that name to the libvirt there.
pub fn under_way<T>(what: &'static str, uri: &str, most: Duration, work: impl FnOnce() -> T) -> T {
    let Some(slot) = TOLD.with_borrow(Clone::clone) else { return work() };
    let tell = |call| *slot.lock().unwrap_or_else(PoisonError::into_inner) = call;
    tell(Some(Call { what, uri: uri.to_owned(), began: Instant::now(), most }));
    let done = work();
    tell(None);
    done
}

/// Runs a blocking call to libvirt off the runtime; a panic there becomes an error here. One that takes longer than it may is given
/// up: its thread ends with its answer or the process, and what it was doing may still be done. So it is where whoever waits is gone.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, HostError> + Send + 'static) -> Result<T, HostError> {
    let slot = Slot::default();
    let told = slot.clone();
    let mut working = tokio::task::spawn_blocking(move || {
        TOLD.set(Some(told));
        let done = work();
        // The thread is used again.
        TOLD.set(None);
        done
    });
    loop {
        match tokio::time::timeout(LOOK, &mut working).await {
            Ok(Ok(done)) => return done,
            Ok(Err(error)) => {
                let reason = error.to_string();
                return Err(HostError::Libvirt { action: "finish", kind: "call", name: "to libvirt".to_owned(), reason });
            }
            Err(_) => {
                let call = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(Call { what, uri, most, .. }) = call.filter(|call| call.began.elapsed() > call.most) {
                    let reason = format!("{what} has been under way for {} s", most.as_secs());
                    return Err(HostError::Unreachable { uri, reason });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_call_that_hangs_is_given_up_by_its_name_and_a_slow_one_is_waited_for() {
        let (_never, waits) = mpsc::channel::<()>();
        let begin = Instant::now();
        let hangs = move || under_way("suspend", "qemu:///system", Duration::from_secs(1), move || Ok(waits.recv().is_ok()));
        let error = blocking(hangs).await.expect_err("given up");
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        assert_eq!(error.to_string(), "libvirt at qemu:///system cannot be reached: suspend has been under way for 1 s");
        assert!(error.hint().is_some_and(|hint| hint.contains("systemctl restart")), "{:?}", error.hint());
        let slow = || under_way("revert", "qemu:///system", LONG_CALL, || std::thread::sleep(LOOK * 3));
        let slow = move || {
            slow();
            Ok(())
        };
        blocking(slow).await.expect("its time was not over");
    }

    /// Two calls one after the other have a time each, and what is done between them has none.
    #[tokio::test]
    async fn a_time_is_a_calls_and_not_a_threads() {
        let short = Duration::from_millis(1500);
        let call = move || under_way("observe", "u", short, || std::thread::sleep(Duration::from_secs(1)));
        let several = move || {
            call();
            std::thread::sleep(Duration::from_secs(1));
            call();
            Ok(())
        };
        blocking(several).await.expect("none of them took too long");
    }
}
