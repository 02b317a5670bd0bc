//! Limits of waits: the user's interruption, the end of the machine, the build's deadline, and the deadline of each wait.
//! Every wait for the guest races them all.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::error::{Failure, Fault, Kind};
use crate::machine::RunningMachine;
use crate::plan::with_grace;
use crate::session::GuestError;
use crate::size::format_duration;

/// How long to wait for the end of QEMU after a connection broke: the connection to a dying QEMU breaks before QEMU is
/// gone, and the end of QEMU is the better explanation.
const EXPLANATION: Duration = Duration::from_secs(2);

/// The limits of one build.
#[derive(Debug, Clone)]
pub struct Deadline {
    cancel: CancellationToken,
    timeout: Duration,
    ends_at: Instant,
}

/// A limit was reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeadlineError {
    /// The user interrupted the command, by Ctrl-C or a signal.
    #[error("interrupted")]
    Interrupted,
    /// The build took longer than `build.timeout`.
    #[error("the build took longer than {} (`build.timeout`)", format_duration(*.0))]
    BuildTimeout(Duration),
}

impl Fault for DeadlineError {
    fn kind(&self) -> Kind {
        match self {
            DeadlineError::Interrupted => Kind::Interrupted,
            DeadlineError::BuildTimeout(_) => Kind::Step,
        }
    }
}

impl Deadline {
    /// Creates the limits of a build that begins now.
    #[must_use]
    pub fn new(cancel: CancellationToken, timeout: Duration) -> Self {
        // Far enough in the future to be never, near enough not to overflow.
        let ends_at = Instant::now() + timeout.min(Duration::from_secs(u32::MAX.into()));
        Self { cancel, timeout, ends_at }
    }

    /// Returns the same limits without the build's deadline.
    #[must_use]
    pub fn without_timeout(&self) -> Self {
        Self::new(self.cancel.clone(), Duration::MAX)
    }

    /// Returns the token by which the user interrupts the command: for work on other threads, which cannot be dropped.
    #[must_use]
    pub fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Runs work on the host, unless a limit is reached first.
    ///
    /// # Errors
    /// The limit, or the work's own error.
    pub async fn hold<T, E: Into<Failure>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(DeadlineError::Interrupted.into()),
            () = sleep_until(self.ends_at) => Err(DeadlineError::BuildTimeout(self.timeout).into()),
            done = work => done.map_err(Into::into),
        }
    }

    /// Pauses for a time, unless a limit is reached first.
    ///
    /// # Errors
    /// The limit that is reached first.
    pub async fn pause(&self, pause: Duration) -> Result<(), Failure> {
        let waiting = async {
            sleep(pause).await;
            Ok::<(), Failure>(())
        };
        self.hold(waiting).await
    }

    /// Runs work with the guest, unless a limit is reached, the machine ends or `patience` is over. The first of these is
    /// the error, or the work's own error; `too_late` creates the error for the end of `patience`.
    pub(crate) async fn hold_guest<T, E: Into<Failure>>(
        &self,
        machine: &RunningMachine,
        patience: Duration,
        too_late: impl FnOnce() -> Failure,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        let guarded = async {
            tokio::select! {
                biased;
                fate = machine.trouble() => Err(fate.into()),
                done = work => match done {
                    Ok(done) => Ok(done),
                    Err(error) => Err(machine.fate_within(EXPLANATION).await.map_or_else(|| error.into(), Into::into)),
                },
                () = sleep(patience) => Err(too_late()),
            }
        };
        self.hold(guarded).await
    }

    /// Sends a request to the guest's agent, as [`Deadline::hold_guest`] does; it is overdue when `patience` is over.
    pub(crate) async fn call<T>(
        &self,
        machine: &RunningMachine,
        patience: Duration,
        request: impl Future<Output = Result<T, GuestError>>,
    ) -> Result<T, Failure> {
        self.hold_guest(machine, patience, || GuestError::Overdue(patience).into(), request).await
    }

    /// Sends a request as [`Deadline::call`] does, for work that the agent itself ends after `timeout`; waits a little longer
    /// than that for its answer.
    pub(crate) async fn call_with_grace<T>(
        &self,
        machine: &RunningMachine,
        timeout: Duration,
        request: impl Future<Output = Result<T, GuestError>>,
    ) -> Result<T, Failure> {
        self.hold_guest(machine, with_grace(timeout), || GuestError::Overdue(timeout).into(), request).await
    }
}

/// Sends a request to the guest's agent, unless the agent ends first, as a step may end it.
pub(crate) async fn unless_agent_ends<T>(
    machine: &RunningMachine,
    request: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    tokio::select! {
        biased;
        done = request => done,
        () = machine.agent_end() => Err(GuestError::AgentEnded),
    }
}
