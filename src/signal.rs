//! Ctrl-C in two stages: the first interrupt asks the command to stop in order, the second ends it at once. And a signal
//! that is to be an error.

use nix::sys::signal::{SigHandler, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::Kind;

/// A token that the first SIGINT, SIGTERM or SIGHUP cancels. The second one ends the process with 130; children die with
/// it (see `process::supervised`) and the next command sweeps up what was left behind.
///
/// Must be called within a tokio runtime.
///
/// # Errors
/// When a signal handler cannot be installed.
pub fn interruption() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut stream = signal(kind)?;
        let token = token.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if token.is_cancelled() {
                    std::process::exit(i32::from(Kind::Interrupted.exit_code()));
                }
                token.cancel();
            }
        });
    }
    Ok(token)
}

/// Makes a write beyond the limit on the size of files an error (`EFBIG`) instead of the end: of this process, and of its
/// children, which inherit it.
#[expect(unsafe_code, reason = "nix cannot know that nothing else handles it")]
pub fn ignore_file_size() {
    // SAFETY: no handler is installed or replaced. It cannot fail: the signal exists and may be ignored.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}
