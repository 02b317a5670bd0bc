//! The context of a build: its plan, its folders, its limits and its listeners.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::deadline::Deadline;
use crate::digest::Sha256Digest;
use crate::digest_cache::DigestCache;
use crate::download::NetworkMode;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Event, EventSink, Events, Stage};
use crate::network_record::{RecordedAnswer, StepAnswers, digest_of};
use crate::plan::Plan;
use crate::proxy::{self, Proxy};
use crate::resolve::base::LockfileMode;
use crate::resolve::secrets::SecretValues;
use crate::session::Attach;
use crate::sign::Signer;
use crate::store::Store;
use crate::workdir::Workdir;

/// Handling of the guest when a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnFailure {
    /// Delete it.
    #[default]
    Clean,
    /// Keep its disk, console and log, and print where they are.
    Keep,
    /// Open a shell in it, on this terminal, then delete it.
    Shell,
}

/// The places and options of a build.
#[derive(Clone)]
pub struct BuildOptions {
    /// The store that it publishes to.
    pub store: Store,
    /// Path of the folder for caches and scratch disks.
    pub cache: PathBuf,
    /// The digest cache, for unchanged inputs.
    pub memo: Arc<DigestCache>,
    /// Receives the events of the build.
    pub events: Events,
    /// Creates the listener that writes a build's log to this file.
    pub open_log: fn(&Path) -> io::Result<Arc<dyn EventSink>>,
    /// Cancelled by the first Ctrl-C.
    pub cancel: CancellationToken,
    /// Whether to replace a version that was built from other inputs.
    pub replace: bool,
    /// How `kiln.lock` is used.
    pub locking: LockfileMode,
    /// Whether to bypass the step cache: nothing is taken from it or added to it.
    pub no_cache: bool,
    /// Signs what is published, and what is up to date.
    pub signer: Option<Arc<Signer>>,
    /// Whether to skip the spec's tests.
    pub skip_tests: bool,
    /// What happens to the scratch folder of a failed build.
    pub on_failure: OnFailure,
    /// Attaches the terminal to a shell in the guest.
    pub attach: Attach,
    /// Whether the locked network may ask servers.
    pub reach: NetworkMode,
}

/// A build in progress.
pub(crate) struct BuildContext<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) memo: Arc<DigestCache>,
    pub(crate) events: Events,
    pub(crate) limits: Deadline,
    pub(crate) secrets: SecretValues,
    pub(crate) work: Workdir,
    pub(crate) started: Timestamp,
    /// The number of steps that the guest has finished.
    pub(crate) finished: Cell<usize>,
    /// What the steps that ran were answered with over a locked network.
    pub(crate) answers: RefCell<StepAnswers>,
    /// The plan with what the steps downloaded, once that is recorded.
    pub(crate) recorded: OnceCell<Plan>,
    /// The proxy of the locked network.
    pub(crate) proxy: Option<Proxy>,
}

impl BuildContext<'_> {
    /// Records what a step that succeeded was answered with over a locked network, also if that is nothing. Returns the digest for
    /// [`StepCache::rekey`](crate::cache::step_cache::StepCache::rekey).
    pub(crate) fn record_step(&self, index: usize, answers: Vec<RecordedAnswer>) -> Sha256Digest {
        let digest = digest_of(&answers);
        self.answers.borrow_mut().insert(self.plan.steps[index].step.name.clone(), answers);
        digest
    }

    /// Returns the plan whose keys are those of the version that is built: with what the steps downloaded, once that is
    /// recorded.
    pub(crate) fn recorded_plan(&self) -> &Plan {
        self.recorded.get().unwrap_or(self.plan)
    }

    /// Returns the time that the guest's clock shows unless it is set: the present, or what the plan gives the machine for it.
    pub(crate) fn present(&self) -> Timestamp {
        let now = Timestamp::now();
        let shown = self.plan.machine.clock.map(|clock| clock + self.started.duration_until(now));
        shown.unwrap_or(now)
    }

    /// Returns the environment variables by which a command uses the locked network; none without it.
    pub(crate) fn proxy_environment(&self) -> BTreeMap<String, String> {
        self.proxy.as_ref().map(|_| proxy::environment()).unwrap_or_default()
    }
}

/// A file in the scratch folder cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {what} ({})", path.display())]
pub struct ScratchError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl ScratchError {
    pub(crate) fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self { what, path, source }
    }
}

impl Fault for ScratchError {
    fn kind(&self) -> Kind {
        Kind::Host
    }

    fn hints(&self) -> Vec<String> {
        vec!["choose another folder with --cache or KILN_CACHE, or free some space there".into()]
    }
}

/// Runs the work of a stage, with events at its begin and its successful end.
pub(crate) async fn in_stage<T>(
    events: &Events,
    stage: Stage,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let began = Instant::now();
    events.emit(&Event::StageStarted { stage });
    let done = work.await?;
    events.emit(&Event::StageFinished { stage, seconds: began.elapsed().as_secs_f64() });
    Ok(done)
}
