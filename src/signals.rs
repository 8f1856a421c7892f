//! What signals do to a node, and to `koltso local`.
//!
//! | signal | effect |
//! |---|---|
//! | SIGTERM, SIGINT, SIGHUP | a drain; the process ends with 0 |
//! | SIGHUP under `nohup` | none, as whoever started it so wants |
//! | SIGUSR1, SIGUSR2 | none |
//! | SIGPIPE, SIGXFSZ | none: the call that met the end of a pipe or the largest file size fails |
//! | SIGBUS in a mapped file | the page is lost (`koltso_storage`) |
//! | SIGPROF | a sample, while a profile is captured |
//! | SIGQUIT, SIGABRT and the others | what the system does by default |

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ignores what is to have no effect, and has what this process makes be its owner's alone,
/// whatever the mask was that it was started with. Both are inherited by the nodes of
/// `koltso local`.
#[allow(unsafe_code)]
pub fn prepare() {
    // SAFETY: plain system calls; no handler is installed.
    unsafe {
        for ignored in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGXFSZ] {
            libc::signal(ignored, libc::SIG_IGN);
        }
        libc::umask(0o077);
    }
}

/// Whether this process was started with SIGHUP ignored.
#[allow(unsafe_code)]
fn hangup_is_ignored() -> bool {
    // SAFETY: the call writes one structure, in which all zeros are valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// The signals that ask for an end.
pub struct Ends {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl Ends {
    /// Catches them from now on. Must be called on a runtime of tokio.
    ///
    /// # Errors
    /// What the system said.
    pub fn catch() -> io::Result<Self> {
        let hangup = if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())?, hangup })
    }

    /// Waits for one of them. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }
}
