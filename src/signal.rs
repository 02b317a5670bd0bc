//! Ctrl-C in two stages: the first interrupt asks the command to stop in order, the second ends it at once. Also turns a
//! signal (SIGXFSZ) into an error.

use std::thread;

use nix::sys::signal::{SigHandler, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::Kind;

/// Returns a token that the first SIGINT, SIGTERM or SIGHUP cancels. The second one ends the process with 130; children die
/// with it (see `process::supervised`) and the next command removes their leftovers. A separate thread waits for the
/// signals, so that the second one is handled while other threads are busy with files. `before_exit` is called at the second
/// one.
///
/// # Errors
/// When a signal handler cannot be installed, or no thread can be created.
pub fn interruption(before_exit: fn()) -> std::io::Result<CancellationToken> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    drop(entered);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    let listen = async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            if cancelled.is_cancelled() {
                before_exit();
                std::process::exit(i32::from(Kind::Interrupted.exit_code()));
            }
            cancelled.cancel();
        }
    };
    thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(listen))?;
    Ok(token)
}

/// Turns a write beyond the limit on the size of files into an error (`EFBIG`) instead of a fatal signal, in this process
/// and in its children, which inherit it.
#[expect(unsafe_code, reason = "nix cannot know that nothing else handles it")]
pub fn ignore_file_size() {
    // SAFETY: no handler is installed or replaced. It cannot fail: the signal exists and may be ignored.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}
