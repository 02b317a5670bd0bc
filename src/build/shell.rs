//! A person in the guest: as it stood before a step, or where a step failed. What is done there is thrown away.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::error::{Failure, Fault, Kind};
use crate::event::Event;
use crate::machine::Fate;
use crate::plan::Plan;
use crate::session::exec::SHELL;
use crate::session::{Exec, Exit, GuestError, Line};
use crate::specfile::Action;

use super::boot::Guest;
use super::limits::Limits;
use super::{Build, Surroundings, provision, require_qemu};

/// The person's own shell, as at a login: `SHELL` is what the guest's passwd says.
const LOGIN: &str = "exec \"${SHELL:-/bin/sh}\" -l";
/// What a shell adds to the number of the signal that ended a command.
const SIGNALLED: u8 = 128;

/// Takes a terminal over. Called when the guest is ready and not before, since it changes how the terminal behaves.
pub type Attach = fn() -> io::Result<Attached>;

/// A terminal that was taken over. Dropped, it first closes the line and then gives the terminal back.
pub struct Attached {
    /// What is typed and shown.
    pub line: Line,
    /// The kind of terminal, as in `TERM`.
    pub term: String,
    /// Gives the terminal back when it is dropped.
    pub restore: Box<dyn Any + Send>,
}

/// There is no shell.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The terminal cannot be used.
    #[error("cannot use this terminal")]
    Terminal(#[source] io::Error),
    /// The guest cannot start one.
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

/// A shell in the guest as it stands after so many steps, in the surroundings of the step that comes next. What was not
/// done before is done now, and kept in the cache as a build would. Returns the shell's exit code.
///
/// # Errors
/// Whatever went wrong first, up to the shell's start or with the guest.
pub async fn shell(plan: &Plan, steps: usize, around: &Surroundings) -> Result<u8, Failure> {
    let next = plan.steps.get(steps).map(|planned| planned.step.action.clone());
    let plan = plan.until(steps);
    let limits = Limits::new(around.cancel.clone(), plan.spec.build.timeout);
    require_qemu(&plan).await?;
    let build = Build::open(&plan, around, limits)?;
    let mut layers = build.layers(around);
    let fetched = build.work.join("fetched");
    let visit = async {
        let (mut guest, _) = build.provisioned(&mut layers, &fetched, around).await?;
        let why = Event::ShellStarted { failure: None, tail: Vec::new() };
        let left = build.visit(&mut guest, next.as_ref(), why, around.attach).await;
        guest.machine.abort().await;
        left
    };
    let left = visit.await;
    layers.finish(left.as_ref().err()).await;
    left.map_err(|failure| build.give_up(failure, around))
}

impl Build<'_> {
    /// Lets a person talk to a shell in the guest, where a step of this kind would run. Returns its exit code.
    pub(crate) async fn visit(
        &self,
        guest: &mut Guest,
        at: Option<&Action>,
        why: Event,
        attach: Attach,
    ) -> Result<u8, Failure> {
        let mut exec = self.login(at);
        self.events.emit(&why);
        let mut attached = attach().map_err(ShellError::Terminal)?;
        exec.env.insert("TERM".into(), attached.term.clone());
        // The build's time is for the build.
        let limits = self.limits.without_timeout();
        let late = || GuestError::Overdue(Duration::MAX).into();
        let work = guest.session.shell(&exec, &mut attached.line);
        let exit = limits.hold_guest(&guest.machine, Duration::MAX, late, work).await;
        drop(attached);
        let code = match exit {
            Ok(Exit::Code(code)) => code,
            Ok(Exit::Signal(number)) => SIGNALLED.saturating_add(number),
            Ok(Exit::NotStarted(why)) => return Err(ShellError::NotStarted(why).into()),
            Ok(Exit::TimedOut) => return Err(late()),
            // `poweroff` is one more way to leave.
            Err(failure) if failure.fault::<Fate>() == Some(&Fate::PoweredOff) => 0,
            Err(failure) => return Err(failure),
        };
        self.events.emit(&Event::ShellFinished { code });
        Ok(code)
    }

    /// Root, whoever the step is: with what the step sees, but its secrets.
    fn login(&self, at: Option<&Action>) -> Exec {
        let context = match at {
            Some(Action::Run { context, .. } | Action::Script { context, .. }) => Some(context),
            _ => None,
        };
        let mut env: BTreeMap<_, _> = self.plan.spec.vars.clone();
        env.extend(context.into_iter().flat_map(|context| context.env.clone()));
        let dir = context.map_or_else(|| "/".to_owned(), |context| context.dir.clone());
        Exec { env, dir, login: true, ..Exec::new([SHELL, "-c", LOGIN]) }
    }

    /// After a step that failed in a guest that lives: a shell there, for who asked for one. The step's failure stays
    /// what it was.
    pub(crate) async fn look_around(&self, guest: &mut Guest, failure: &mut Failure, attach: Attach) {
        let Some(error) = failure.fault::<provision::StepError>() else { return };
        if matches!(error.how, provision::How::Machine(_)) {
            return;
        }
        let at = self.plan.steps.get(error.number - 1).map(|planned| planned.step.action.clone());
        let why = Event::ShellStarted { failure: Some(failure.to_string()), tail: error.tail.clone() };
        if let Err(trouble) = self.visit(guest, at.as_ref(), why, attach).await {
            failure.attach(format!("the shell: {trouble}"));
        }
    }
}
