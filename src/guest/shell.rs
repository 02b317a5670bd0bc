//! A shell in the guest for a person. Changes made there are thrown away.

use std::io;
use std::time::Duration;

use crate::context::BuildContext;
use crate::error::{Failure, Fault, Kind};
use crate::event::Event;
use crate::machine::MachineExit;
use crate::proxy::Proxy;
use crate::session::exec::SHELL;
use crate::session::{Attach, Exec, Exit, GuestError};
use crate::specfile::Action;

use super::boot::{Guest, MachineSite};
use super::step_error::{StepError, StepFailure};

/// Starts the user's own shell, as at a login: `SHELL` is taken from the guest's passwd.
const LOGIN: &str = "exec \"${SHELL:-/bin/sh}\" -l";
/// The offset that a shell adds to the number of the signal that ended a command.
const SIGNALLED: u8 = 128;

/// The reason why there is no shell.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The terminal cannot be used.
    #[error("cannot use this terminal")]
    Terminal(#[source] io::Error),
    /// The guest cannot start a shell.
    #[error("the guest cannot start a shell: {0}")]
    NotStarted(String),
}

impl Fault for ShellError {
    fn kind(&self) -> Kind {
        match self {
            ShellError::Terminal(_) => Kind::Host,
            ShellError::NotStarted(_) => Kind::Boot,
        }
    }
}

/// Returns the command that starts a shell as root in a guest that nothing is built in.
pub(crate) fn login() -> Exec {
    Exec { dir: "/".into(), login: true, ..Exec::new([SHELL, "-c", LOGIN]) }
}

impl MachineSite<'_> {
    /// Connects a person to a shell in the guest that this command starts. Returns its exit code.
    pub(crate) async fn visit(
        self,
        guest: &mut Guest,
        mut exec: Exec,
        why: Event,
        attach: Attach,
    ) -> Result<u8, Failure> {
        self.events.emit(&why);
        let mut attached = attach().map_err(ShellError::Terminal)?;
        exec.env.insert("TERM".into(), attached.term.clone());
        // The build's deadline does not apply while a person works.
        let limits = self.limits.without_timeout();
        let exit = limits.call(&guest.machine, Duration::MAX, guest.session.shell(&exec, &mut attached.line)).await;
        drop(attached);
        let code = match exit {
            Ok(Exit::Code(code)) => code,
            Ok(Exit::Signal(number)) => SIGNALLED.saturating_add(number),
            Ok(Exit::NotStarted(why)) => return Err(ShellError::NotStarted(why).into()),
            Ok(Exit::TimedOut) => return Err(GuestError::Overdue(Duration::MAX).into()),
            // `poweroff` is another way to leave the shell.
            Err(failure) if failure.fault::<MachineExit>() == Some(&MachineExit::PoweredOff) => 0,
            Err(failure) => return Err(failure),
        };
        self.events.emit(&Event::ShellFinished { code });
        Ok(code)
    }
}

impl BuildContext<'_> {
    /// Connects a person to a shell in the guest, where a step of this kind would run. Returns its exit code.
    pub(crate) async fn visit(
        &self,
        guest: &mut Guest,
        at: Option<&Action>,
        why: Event,
        attach: Attach,
    ) -> Result<u8, Failure> {
        self.site().visit(guest, self.login(at), why, attach).await
    }

    /// Returns the command that starts the shell: as root, whoever runs the step, with what the step sees, except its
    /// secrets.
    fn login(&self, at: Option<&Action>) -> Exec {
        let context = at.and_then(Action::context);
        let mut env = self.proxy_environment();
        env.extend(self.plan.spec.vars.clone());
        env.extend(context.into_iter().flat_map(|context| context.env.clone()));
        let dir = context.map_or_else(|| "/".to_owned(), |context| context.dir.clone());
        let network = self.proxy.as_ref().map(Proxy::access);
        Exec { env, dir, network, ..login() }
    }

    /// Opens a shell after a step that failed in a guest that is still running, if the user asked for one. The step's
    /// failure is still the result.
    pub(crate) async fn look_around(&self, guest: &mut Guest, failure: &mut Failure, attach: Attach) {
        let Some(error) = failure.fault::<StepError>() else { return };
        if matches!(error.how, StepFailure::Machine(_)) {
            return;
        }
        let at = self.plan.steps.get(error.number - 1).map(|planned| planned.step.action.clone());
        let why = Event::ShellStarted { failure: Some(failure.to_string()), tail: error.tail.clone() };
        if let Err(trouble) = self.visit(guest, at.as_ref(), why, attach).await {
            failure.attach(format!("the shell: {trouble}"));
        }
    }
}
