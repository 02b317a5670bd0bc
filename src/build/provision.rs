//! The steps, in order.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::spawn_blocking;

use crate::digest::hex;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Channel, Event, Level, Stage};
use crate::layer::Span;
use crate::machine::Fate;
use crate::plan::{InputDigest, PlannedStep, with_grace};
use crate::process::describe_signal;
use crate::session::receive::receive;
use crate::session::{
    Exec, Exit, FetchLimits, FetchOutcome, FetchRequest, FetchedTree, GuestError, PackedTree, Source, Staged, What,
    stage,
};
use crate::size::format_duration;
use crate::specfile::{Action, Command, Context, Copy, Network, Owner};
use crate::wire::SCRIPT_FOLDER;

use super::boot::Guest;
use super::inputs::{check_sent, read_script};
use super::layers::Layers;
use super::limits::LimitReached;
use super::output::Lines;
use super::{Build, ScratchError, aftermath, cloud_init, hints};

/// Copies larger than this go over a hot-plugged disk; below it plugging costs more than the port's lower rate.
const PORT_LIMIT: u64 = 8 << 20;
/// A fetched tree may be this large, bytes.
const FETCH_LIMIT: u64 = 16 << 30;
/// The kernel's clock for files ticks as rarely as this (`CONFIG_HZ=100`).
const TICK: Duration = Duration::from_millis(10);

/// A step that is done.
#[derive(Debug, Clone)]
pub struct Done {
    /// Wall time; none for a cached one.
    pub took: Duration,
    /// It did not run: what it did was in the cache.
    pub cached: bool,
    /// When it began and ended, by the guest's clock: what was written meanwhile is the step's.
    pub during: Option<Span>,
    /// What was brought back, by paths in the version's folder.
    pub fetched: FetchedTree,
}

/// A step failed.
#[derive(Debug, thiserror::Error)]
#[error("step {number} `{name}` ({}:{line}) {how}", spec.display())]
pub struct StepError {
    /// Position in the spec, from 1.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// The spec file.
    pub spec: PathBuf,
    /// Its line.
    pub line: usize,
    /// What happened.
    pub how: How,
    /// The last lines it wrote.
    pub tail: Vec<String>,
    /// What to do about it, as far as its output tells.
    pub hint: Option<String>,
}

/// How a step failed.
#[derive(Debug, thiserror::Error)]
pub enum How {
    /// Its command returned something else than 0.
    #[error("failed with exit status {0}")]
    Status(u8),
    /// Its command was killed.
    #[error("was killed by {}", describe_signal((*.0).into()))]
    Signal(u8),
    /// Its command could not be started.
    #[error("could not be started: {0}")]
    NotStarted(String),
    /// It took too long.
    #[error("took longer than {} (`timeout`)", format_duration(*.0))]
    TimedOut(Duration),
    /// The machine ended under it.
    #[error("ended with the machine: {0}")]
    Machine(Fate),
    /// A copy, write or fetch failed.
    #[error("failed: {0}")]
    Transfer(Failure),
    /// The kernel ended processes of it, or of the guest meanwhile, for want of memory.
    #[error("{}", describe_oom(*exit, killed))]
    OutOfMemory {
        /// The exit status, or none where its own process was killed.
        exit: Option<u8>,
        /// The processes that the kernel chose.
        killed: Vec<String>,
    },
    /// The guest would be out of reach after a reboot.
    #[error("cannot be done: {0}, so kiln's agent would not start again")]
    NoWayBack(String),
    /// The agent ended while the guest went on.
    #[error("ended kiln's agent, which runs the steps")]
    AgentEnded,
    /// It asked the guest to reboot or to power off, and did not wait for that.
    #[error("asked for a reboot or power-off of the guest{}", describe_later(during.as_deref()))]
    PowerRequest {
        /// What was going on when it came, where that was something else.
        during: Option<String>,
    },
}

fn describe_oom(exit: Option<u8>, killed: &[String]) -> String {
    let names = killed.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match exit {
        None => format!("was killed by the kernel's OOM killer, which chose {names}"),
        Some(code) => format!("failed with exit status {code}: {names} was killed by the kernel's OOM killer"),
    }
}

fn describe_later(during: Option<&str>) -> String {
    during.map_or(String::new(), |during| format!(", as far as its text tells; it came during {during}"))
}

impl StepError {
    /// Describes how this step of a build failed.
    pub(crate) fn new(build: &Build<'_>, index: usize, how: How, tail: Vec<String>) -> Self {
        let step = &build.plan.steps[index].step;
        let spec = build.plan.spec.path.clone();
        Self { number: index + 1, name: step.name.clone(), spec, line: step.line, how, tail, hint: None }
    }

    /// Adds what to do about it, if these lines of its output tell.
    fn with_hint(self, lines: &[String], network: Network) -> Self {
        Self { hint: hints::hint(lines, network), ..self }
    }
}

impl Fault for StepError {
    fn kind(&self) -> Kind {
        match &self.how {
            How::Machine(Fate::PoweredOff | Fate::Panicked | Fate::Rebooted) => Kind::Step,
            How::Machine(fate) => fate.kind(),
            How::Transfer(failure) => failure.kind(),
            _ => Kind::Step,
        }
    }

    fn hints(&self) -> Vec<String> {
        match &self.how {
            How::Machine(fate) => fate.hints(),
            How::Transfer(failure) => failure.hints(),
            How::NoWayBack(_) => vec!["reboot before that step, or leave the reboot to the image's users".into()],
            How::TimedOut(_) => {
                self.hint.iter().cloned().chain(["give the step a larger `timeout`".to_owned()]).collect()
            }
            How::OutOfMemory { .. } => vec!["give the guest more memory: set `machine.memory`".into()],
            How::PowerRequest { .. } => vec![
                "write `reboot = true` as a step of its own where a reboot is wanted".into(),
                "a build turns the guest off by itself at its end".into(),
            ],
            How::AgentEnded => vec![
                "no step may end all processes (`kill -9 -1`), stop `kiln-agent.service` or shut the guest down: end \
                 processes by their name or user, and write `reboot = true` as a step of its own where a reboot is wanted"
                    .into(),
            ],
            How::Status(_) | How::Signal(_) | How::NotStarted(_) => self.hint.iter().cloned().collect(),
        }
    }

    fn evidence(&self) -> Vec<String> {
        self.tail.clone()
    }
}

/// Runs every step that is not `done` by the layer the build began with.
pub(crate) async fn provision(
    build: &Build<'_>,
    guest: &mut Guest,
    layers: &mut Layers<'_>,
    mut done: Vec<Done>,
    fetched: &Path,
) -> Result<Vec<Done>, Failure> {
    let cached = done.len();
    let steps = build.plan.steps.len();
    build.finished.set(cached);
    let mut limits = FetchLimits::new(FETCH_LIMIT);
    for (index, planned) in build.plan.steps.iter().enumerate().take(cached) {
        let (name, verb) = (planned.step.name.clone(), verb(&planned.step.action));
        build.events.emit(&Event::StepCached { index, name, verb, steps });
        if let (Action::Fetch { from, to }, Some(stream)) = (&planned.step.action, layers.fetched(index)) {
            let request = FetchRequest { from: from.clone(), root: fetched.to_owned(), to: to.clone(), limits };
            done[index].fetched = fetch_again(build, stream, request).await?;
            limits = limits.besides(&done[index].fetched);
            warn_of_left_out(build, index, &done[index].fetched);
        }
    }
    if cached > 0 {
        cloud_init::watch(build, guest, None).await;
    }
    for (index, planned) in build.plan.steps.iter().enumerate().skip(cached) {
        let step = &planned.step;
        let verb = verb(&step.action);
        build.events.emit(&Event::StepStarted { index, name: step.name.clone(), verb, steps });
        // Files tell ticks of the guest's clock, so that one has to lie between two steps.
        build.limits.pause(TICK).await?;
        let start = guest.clock(build.site()).await;
        let began = Instant::now();
        let stream = build.work.join(format!("fetched-{}.tree", index + 1));
        let fetching = Fetching { folder: fetched, limits, keep: layers.keeps().then(|| stream.clone()) };
        let lines = Lines::new(build.secrets.mask());
        let mut running = Running { build, guest, index, planned, lines, fetching };
        let result = running.run().await;
        let took = began.elapsed();
        build.events.emit(&Event::StepFinished { index, ok: result.is_ok(), seconds: took.as_secs_f64() });
        let brought = result?;
        if cloud_init::may_change(&step.action) {
            cloud_init::watch(build, guest, Some(index)).await;
        }
        if guest.is_doomed {
            let why = "nothing is kept from here on: this step left something running that may turn the guest off";
            build.events.notice(Level::Debug, why);
            layers.stop_keeping();
        }
        let end = guest.clock(build.site()).await;
        // A file's time may be a tick behind.
        let during = start.zip(end).map(|(start, end)| Span { start: start - TICK.as_secs_f64(), end });
        limits = limits.besides(&brought);
        warn_of_left_out(build, index, &brought);
        let step = Done { took, cached: false, during, fetched: brought };
        let kept = layers.after_step(build, guest, index, &step, stream.exists().then_some(stream)).await;
        let during = format!("the checkpoint after step {}", index + 1);
        kept.map_err(|failure| aftermath::blame_earlier(build, &guest.suspects, &during, failure))?;
        done.push(step);
        build.finished.set(done.len());
    }
    Ok(done)
}

/// Writes what a cached step has fetched, as when it came from the guest.
async fn fetch_again(build: &Build<'_>, stream: PathBuf, request: FetchRequest) -> Result<FetchedTree, Failure> {
    let receiving = spawn_blocking(move || {
        let file = std::fs::File::open(&stream).map_err(ScratchError::at("a fetched tree", &stream))?;
        Ok::<_, Failure>(receive(std::io::BufReader::with_capacity(1 << 20, file), &request)?.0)
    });
    build.limits.hold(async { receiving.await.expect("receiving does not panic") }).await
}

fn warn_of_left_out(build: &Build<'_>, index: usize, tree: &FetchedTree) {
    let named = tree.left_out.len() as u64;
    let step = index + 1;
    for note in &tree.notes {
        build.events.notice(Level::Warning, format!("step {step}: {note}"));
    }
    for what in &tree.left_out {
        build.events.notice(Level::Warning, format!("step {step}: not fetched: {what}"));
    }
    if tree.left_out_count > named {
        let more = tree.left_out_count - named;
        build.events.notice(Level::Warning, format!("step {step}: not fetched: {more} more"));
    }
}

/// The name of a step's verb.
#[must_use]
pub fn verb(action: &Action) -> &'static str {
    match action {
        Action::Run { .. } => "run",
        Action::Script { .. } => "script",
        Action::Copy(_) => "copy",
        Action::Write { .. } => "write",
        Action::Fetch { .. } => "fetch",
        Action::Reboot => "reboot",
    }
}

/// Returns what a command of the spec becomes in the guest, where a shell's text has this name.
pub(crate) fn exec(command: &Command, name: &str) -> Exec {
    match command {
        Command::Shell(text) => Exec::shell(name, text),
        Command::Argv(argv) => Exec::new(argv.iter().cloned()),
    }
}

/// Where a fetched tree goes.
struct Fetching<'a> {
    folder: &'a Path,
    limits: FetchLimits,
    /// Where the stream is kept for the step cache.
    keep: Option<PathBuf>,
}

struct Running<'a, 'b> {
    build: &'a Build<'b>,
    guest: &'a mut Guest,
    index: usize,
    planned: &'a PlannedStep,
    lines: Lines,
    fetching: Fetching<'a>,
}

impl Running<'_, '_> {
    async fn run(&mut self) -> Result<FetchedTree, Failure> {
        let done = match &self.planned.step.action {
            Action::Run { command, context } => {
                self.command(exec(command, &format!("step-{}", self.index + 1)), context).await
            }
            Action::Script { file, args, context } => self.script(file, args, context).await,
            Action::Copy(copy) => self.copy(copy).await,
            Action::Write { content, to, owner, mode } => {
                self.send(&self.text(content.clone().into(), to, owner, *mode)).await.map(|_| ())
            }
            Action::Fetch { from, to } => return self.fetch(from, to).await,
            Action::Reboot => {
                cloud_init::check_reboot(self.build, self.guest).map_err(|how| self.failed(how))?;
                let rebooted = self.guest.reboot(self.build.site()).await;
                self.guest.suspects.clear();
                self.guest.is_doomed = false;
                self.blame(rebooted)
            }
        };
        done.map(|()| FetchedTree::default())
    }

    fn failed(&self, how: How) -> Failure {
        let mut lines = self.lines.recent();
        if let How::NotStarted(why) = &how {
            lines.push(why.clone());
        }
        let network = self.build.plan.machine.network;
        StepError::new(self.build, self.index, how, self.lines.tail()).with_hint(&lines, network).into()
    }

    /// Describes a reboot or power-off, which may be the doing of an earlier step.
    fn went_down(&self, how: How) -> Failure {
        let culprit = self.guest.suspects.culprit(self.index, self.planned);
        if culprit == self.index {
            return self.failed(how);
        }
        let during = Some(format!("step {} `{}`", self.index + 1, self.planned.step.name));
        StepError::new(self.build, culprit, How::PowerRequest { during }, self.lines.tail()).into()
    }

    async fn command(&mut self, exec: Exec, context: &Context) -> Result<(), Failure> {
        let timeout = self.planned.step.timeout;
        let mut env = self.build.plan.spec.vars.clone();
        env.extend(context.env.clone());
        let exec = Exec {
            env,
            dir: context.dir.clone(),
            user: context.user.clone(),
            timeout: Some(timeout),
            secrets: self.build.secrets.pick(&context.secrets),
            step: u32::try_from(self.index + 1).ok(),
            login: true,
            ..exec
        };
        let (index, events, lines) = (self.index, &self.build.events, &mut self.lines);
        let mut emit = |channel, line| events.emit(&Event::StepOutput { index, channel, line });
        let mut output = |channel: Channel, bytes: &[u8]| lines.feed(channel, bytes, &mut emit);
        let work = self.guest.session.exec(&exec, &mut output);
        let late = || GuestError::Overdue(timeout).into();
        let exit = self.build.limits.hold_agent(&self.guest.machine, with_grace(timeout), late, work).await;
        self.lines.finish(&mut |channel, line| events.emit(&Event::StepOutput { index, channel, line }));
        let exit = self.blame(exit)?;
        let found = self.guest.session.take_aftermath();
        aftermath::report(self.build, &found);
        if found.is_stopping {
            return Err(self.went_down(How::PowerRequest { during: None }));
        }
        self.guest.is_doomed = self.guest.suspects.note(self.index, self.planned, &found);
        let killed = found.oom_killed;
        match exit {
            Exit::Code(0) => Ok(()),
            Exit::Code(code) if !killed.is_empty() => Err(self.failed(How::OutOfMemory { exit: Some(code), killed })),
            Exit::Signal(_) if !killed.is_empty() => Err(self.failed(How::OutOfMemory { exit: None, killed })),
            Exit::Code(code) => Err(self.failed(How::Status(code))),
            Exit::Signal(number) => Err(self.failed(How::Signal(number))),
            Exit::TimedOut => Err(self.failed(How::TimedOut(timeout))),
            Exit::NotStarted(why) => Err(self.failed(How::NotStarted(why))),
        }
    }

    /// Says which step was running when the machine or the conversation failed. An interruption is nobody's fault.
    fn blame<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        result.map_err(|failure| match failure.fault::<Fate>() {
            Some(fate @ (Fate::Rebooted | Fate::PoweredOff)) => self.went_down(How::Machine(fate.clone())),
            Some(fate) => self.failed(How::Machine(fate.clone())),
            None if failure.fault::<LimitReached>().is_some() => failure,
            None if matches!(failure.fault(), Some(GuestError::AgentEnded)) => self.failed(How::AgentEnded),
            None => self.failed(How::Transfer(failure)),
        })
    }

    async fn script(&mut self, file: &Path, args: &[String], context: &Context) -> Result<(), Failure> {
        let content = read_script(self.planned, file)?;
        let target = format!("{SCRIPT_FOLDER}/{}", self.index + 1);
        let owner = Owner { user: context.user.clone(), group: None };
        self.send(&self.text(content, &target, &owner, 0o500)).await?;
        let argv = std::iter::once(target).chain(args.iter().cloned());
        self.command(Exec::new(argv), context).await
    }

    fn text(&self, content: Vec<u8>, to: &str, owner: &Owner, mode: u32) -> Source {
        let epoch = self.build.plan.source_date_epoch.and_then(|epoch| u64::try_from(epoch).ok());
        let mtime = epoch.map_or_else(SystemTime::now, |epoch| SystemTime::UNIX_EPOCH + Duration::from_secs(epoch));
        Source {
            what: What::Text { content, mtime },
            to: to.to_owned(),
            into: false,
            owner: owner.clone(),
            mode: Some(mode),
        }
    }

    async fn copy(&mut self, copy: &Copy) -> Result<(), Failure> {
        let source = Source::from(copy);
        if self.input_bytes() > PORT_LIMIT {
            return self.send_by_disk(&source, &copy.from).await;
        }
        let sent = self.send(&source).await?;
        self.check_tree(sent.sha256, &copy.from)
    }

    fn check_tree(&self, sent: [u8; 32], path: &Path) -> Result<(), Failure> {
        Ok(check_sent(self.planned, &InputDigest::Tree(hex(&sent)), path)?)
    }

    fn input_bytes(&self) -> u64 {
        self.planned.input.as_ref().map_or(0, |input| input.bytes)
    }

    async fn send(&mut self, source: &Source) -> Result<PackedTree, Failure> {
        let timeout = self.planned.step.timeout;
        let (events, total) = (&self.build.events, self.input_bytes());
        let mut progress = |done| events.emit(&Event::Progress { stage: Stage::Provision, done, total });
        let work = self.guest.session.upload(source, &mut progress);
        let late = || GuestError::Overdue(timeout).into();
        let sent = self.build.limits.hold_agent(&self.guest.machine, timeout, late, work).await;
        self.blame(sent)
    }

    /// Writes the tree into a scratch file, plugs that in as a read-only disk, and has the guest unpack it: several times
    /// the rate of the port.
    async fn send_by_disk(&mut self, source: &Source, from: &Path) -> Result<(), Failure> {
        let path = self.build.work.join(format!("copy-{}", self.index + 1));
        let serial = format!("kiln-copy-{}", self.index + 1);
        let staged = self.stage(source.clone(), path.clone()).await;
        self.check_tree(self.blame(staged)?.sha256, from)?;
        let timeout = self.planned.step.timeout;
        let late = || GuestError::Overdue(timeout).into();
        let disk = self.guest.machine.plug(&path, &serial).await?;
        let (events, total) = (&self.build.events, self.input_bytes());
        let mut progress = |done| events.emit(&Event::Progress { stage: Stage::Provision, done, total });
        let work = self.guest.session.unpack_device(&serial, &mut progress);
        let unpacked = self.build.limits.hold_agent(&self.guest.machine, timeout, late, work).await;
        self.blame(unpacked)?;
        let unplugged = self.build.limits.hold(self.guest.machine.unplug(disk)).await;
        self.blame(unplugged)?;
        // Only room: the scratch folder goes anyway.
        let _ = std::fs::remove_file(path);
        Ok(())
    }

    async fn stage(&self, source: Source, path: PathBuf) -> Result<Staged, Failure> {
        let staging = spawn_blocking(move || {
            let file = std::fs::File::create_new(&path).map_err(ScratchError::at("the disk of a copy", &path))?;
            Ok::<_, Failure>(stage(&source, &file, &mut |_| {})?)
        });
        self.build.limits.hold(async { staging.await.expect("staging does not panic") }).await
    }

    async fn fetch(&mut self, from: &str, to: &Path) -> Result<FetchedTree, Failure> {
        let timeout = self.planned.step.timeout;
        let events = &self.build.events;
        let mut progress = |done| events.emit(&Event::Progress { stage: Stage::Provision, done, total: 0 });
        let Fetching { folder, limits, keep } = &self.fetching;
        let request =
            FetchRequest { from: from.to_owned(), root: folder.to_path_buf(), to: to.to_owned(), limits: *limits };
        let work = self.guest.session.fetch(request, keep.clone(), &mut progress);
        let late = || GuestError::Overdue(timeout).into();
        let outcome = self.build.limits.hold_agent(&self.guest.machine, timeout, late, work).await;
        let FetchOutcome { tree, unkept } = self.blame(outcome)?;
        if let Some(error) = unkept {
            events.notice(Level::Warning, format!("nothing more is kept in the cache: a fetched tree: {error}"));
        }
        let searched = self.search_fetched(to).await;
        self.blame(searched)?;
        Ok(tree)
    }

    /// Searches what was fetched, and is going to be published and kept in the cache, for secrets.
    async fn search_fetched(&self, to: &Path) -> Result<(), Failure> {
        let Some(searched) = self.build.secrets.searched().cloned() else { return Ok(()) };
        let folder = self.fetching.folder.to_owned();
        let to = to.to_owned();
        let search = spawn_blocking(move || {
            let findings = searched.scan_folder(&folder, &|path| !path.starts_with(&to));
            findings.map_err(ScratchError::at("what was fetched", &folder))
        });
        let findings = self.build.limits.hold(async { search.await.expect("searching does not panic") }).await?;
        Ok(findings.leaks.into_result()?)
    }
}
