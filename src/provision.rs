//! Runs the steps, in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::spawn_blocking;

use crate::cache::step_cache::StepCache;
use crate::context::{BuildContext, ScratchError};
use crate::deadline::{DeadlineError, unless_agent_ends};
use crate::digest::Sha256Digest;
use crate::error::Failure;
use crate::event::{Channel, Event, Events, NoticeLevel, Stage};
use crate::guest::boot::Guest;
use crate::guest::step_error::{StepError, StepFailure, step_title};
use crate::guest::step_output::LineSplitter;
use crate::guest::step_record::{StepRecord, continue_clock};
use crate::guest::{cloud_init, leftovers, planting};
use crate::layer::GuestInterval;
use crate::machine::MachineExit;
use crate::plan::agent::AgentStart;
use crate::plan::{InputDigest, PlannedStep};
use crate::progress::run_blocking;
use crate::proxy::Proxy;
use crate::resolve::inputs::{check_sent, read_script};
use crate::session::receive::receive;
use crate::session::{
    Exec, Exit, FetchLimits, FetchOutcome, FetchRequest, FetchedTree, GuestError, PackedTree, StageContent,
    StageSource, StagedStream, stage,
};
use crate::specfile::{Action, Command, Context, Copy, FileOwner};
use crate::wire::SCRIPT_FOLDER;

/// The size from which a copy is sent by a hot-plugged disk, bytes; for less, plugging costs more than the port's lower
/// rate.
const PORT_LIMIT: u64 = 8 << 20;
/// The size of the largest tree that can be fetched, bytes.
const FETCH_LIMIT: u64 = 16 << 30;
/// The pause before the first retry of a step.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two tries of a step.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The interval at which the kernel's clock for files advances, at its slowest (`CONFIG_HZ=100`).
const TICK: Duration = Duration::from_millis(10);

/// Runs every step that is not `done` by the layer with which the build began.
pub(crate) async fn provision(
    build: &BuildContext<'_>,
    guest: &mut Guest,
    layers: &mut StepCache<'_>,
    mut done: Vec<StepRecord>,
    fetched: &Path,
) -> Result<Vec<StepRecord>, Failure> {
    let cached = done.len();
    let steps = build.plan.steps.len();
    build.finished.set(cached);
    let mut limits = FetchLimits::new(FETCH_LIMIT);
    for (index, planned) in build.plan.steps.iter().enumerate().take(cached) {
        let name = planned.step.name.clone();
        let verb = planned.step.action.key();
        emit_skipped(build, index);
        build.events.emit(&Event::StepCached { index, name, verb, steps });
        if let (Action::Fetch { from, to }, Some(stream)) = (&planned.step.action, layers.fetched(index)) {
            let request = FetchRequest { from: from.clone(), root: fetched.to_owned(), to: to.clone(), limits };
            done[index].fetched = fetch_again(build, stream, request).await?;
            limits = limits.besides(&done[index].fetched);
            warn_of_left_out(build, index, &done[index].fetched);
        }
    }
    // Of other guests the base image has shown that there is no obstacle.
    if cached > 0 || build.plan.machine.agent != AgentStart::CloudInit {
        cloud_init::watch(build, guest, None).await;
    }
    for (index, planned) in build.plan.steps.iter().enumerate().skip(cached) {
        let step = &planned.step;
        let verb = step.action.key();
        emit_skipped(build, index);
        build.events.emit(&Event::StepStarted { index, name: step.name.clone(), verb, steps });
        begin_traffic(build, guest, index, &done).await?;
        // Files have the time of the last tick of the guest's clock, so one tick has to lie between two steps.
        build.limits.pause(TICK).await?;
        let start = guest.clock(build.site()).await;
        let began = Instant::now();
        let stream = build.work.join(format!("fetched-{}.tree", index + 1));
        let fetching = FetchContext { folder: fetched, limits, keep: layers.keeps().then(|| stream.clone()) };
        let lines = LineSplitter::new(build.secrets.mask());
        let mut running = RunningStep { build, guest, index, planned, lines, fetching };
        let result = running.run_with_retries().await;
        let took = began.elapsed();
        build.events.emit(&Event::StepFinished { index, ok: result.is_ok(), seconds: took.as_secs_f64() });
        let result = end_traffic(build, layers, index, result).await;
        let brought = result?;
        if cloud_init::may_change(&step.action) {
            cloud_init::watch(build, guest, Some(index)).await;
        }
        if guest.is_doomed {
            let why = "nothing is kept from here on: this step left something running that may turn the guest off";
            build.events.notice(NoticeLevel::Debug, why);
            layers.stop_keeping();
        }
        let end = guest.clock(build.site()).await;
        // The time of a file may be one tick behind.
        let during = start.zip(end).map(|(start, end)| GuestInterval { start: start - TICK.as_secs_f64(), end });
        limits = limits.besides(&brought);
        warn_of_left_out(build, index, &brought);
        let step = StepRecord { took, cached: false, during, fetched: brought };
        let kept = layers.after_step(build, guest, index, &step, stream.exists().then_some(stream)).await;
        let during = format!("the checkpoint after step {}", index + 1);
        kept.map_err(|failure| leftovers::blame_earlier(build, &guest.suspects, &during, failure))?;
        done.push(step);
        build.finished.set(done.len());
    }
    emit_skipped(build, steps);
    Ok(done)
}

/// Emits the steps that are skipped between a step and the one before it.
fn emit_skipped(build: &BuildContext<'_>, index: usize) {
    for skipped in build.plan.skipped.iter().filter(|skipped| skipped.position == index) {
        let name = skipped.name.clone();
        build.events.emit(&Event::StepSkipped { name, verb: skipped.verb, when: skipped.when.to_string() });
    }
}

/// Begins a step's use of the locked network. The guest's clock is that of the recording, so that what has expired since is
/// accepted again; a step that was not recorded sees the present.
async fn begin_traffic(
    build: &BuildContext<'_>,
    guest: &mut Guest,
    index: usize,
    done: &[StepRecord],
) -> Result<(), Failure> {
    let Some(proxy) = &build.proxy else { return Ok(()) };
    proxy.begin_step();
    // Without answers everything is recorded anew, and no step before has set the clock.
    let record = build.plan.network.as_ref().filter(|record| !record.answers.is_empty());
    let Some(record) = record else { return Ok(()) };
    let clock = match record.time_of_step(&build.plan.steps[index].step.name) {
        Some(recorded) => continue_clock(recorded, done),
        None => build.present().into(),
    };
    guest.set_clock(build.site(), clock).await
}

/// Ends a step's use of the locked network: records what it got, and reports what it did not get.
async fn end_traffic<T>(
    build: &BuildContext<'_>,
    layers: &mut StepCache<'_>,
    index: usize,
    result: Result<T, Failure>,
) -> Result<T, Failure> {
    let Some(proxy) = build.proxy.clone() else { return result };
    let ended = spawn_blocking(move || proxy.end_step());
    let traffic = build.limits.hold(async { Ok::<_, Failure>(ended.await.expect("recording does not panic")) }).await?;
    if let Some(error) = traffic.unanswered.into_iter().next() {
        return Err(error.into());
    }
    match result {
        Ok(done) => {
            for refusal in traffic.refusals {
                build.events.notice(NoticeLevel::Warning, format!("step {}: the locked network: {refusal}", index + 1));
            }
            if traffic.has_gaps {
                // Its key would say that it got everything it asked for.
                layers.stop_keeping();
            }
            if build.plan.steps[index].downloads.is_some() {
                layers.rekey(index, build.record_step(index, traffic.answers));
            }
            Ok(done)
        }
        Err(mut failure) => {
            for refusal in traffic.refusals {
                failure.attach(format!("the locked network: {refusal}"));
            }
            Err(failure)
        }
    }
}

/// Writes the tree that a cached step has fetched, as when it came from the guest.
async fn fetch_again(build: &BuildContext<'_>, stream: PathBuf, request: FetchRequest) -> Result<FetchedTree, Failure> {
    let receiving = spawn_blocking(move || {
        let file = std::fs::File::open(&stream).map_err(ScratchError::at("a fetched tree", &stream))?;
        Ok::<_, Failure>(receive(std::io::BufReader::with_capacity(1 << 20, file), &request)?.0)
    });
    build.limits.hold(async { receiving.await.expect("receiving does not panic") }).await
}

fn warn_of_left_out(build: &BuildContext<'_>, index: usize, tree: &FetchedTree) {
    let named = tree.left_out.len() as u64;
    let step = index + 1;
    for note in &tree.notes {
        build.events.notice(NoticeLevel::Warning, format!("step {step}: {note}"));
    }
    for what in &tree.left_out {
        build.events.notice(NoticeLevel::Warning, format!("step {step}: not fetched: {what}"));
    }
    if tree.left_out_count > named {
        let more = tree.left_out_count - named;
        build.events.notice(NoticeLevel::Warning, format!("step {step}: not fetched: {more} more"));
    }
}

/// Returns the guest's form of a command of the spec; a script for a shell gets this name in the guest.
pub(crate) fn exec(command: &Command, name: &str) -> Exec {
    match command {
        Command::Shell(text) => Exec::shell(name, text),
        Command::Argv(argv) => Exec::new(argv.iter().cloned()),
    }
}

/// Returns the variables that every command of a step has unless the spec sets them. Debian's packages would ask questions, and
/// nobody answers.
fn default_environment() -> BTreeMap<String, String> {
    [("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned())].into()
}

/// Returns a listener that emits the lines of a step's output.
fn emit_output(events: &Events, index: usize) -> impl FnMut(Channel, String) {
    move |channel, line| events.emit(&Event::StepOutput { index, channel, line })
}

/// Returns a listener that emits how many of the bytes of a copy or fetch are done; `total` is 0 where it is not known.
fn emit_progress(events: &Events, total: u64) -> impl FnMut(u64) {
    move |done| events.emit(&Event::Progress { stage: Stage::Provision, done, total })
}

/// Returns how a try of a step failed, if another try may succeed: the guest runs, and its agent has ended the command.
fn retry_reason(failure: &Failure) -> Option<String> {
    let how = &failure.fault::<StepError>()?.how;
    match how {
        StepFailure::Status(_)
        | StepFailure::Signal(_)
        | StepFailure::TimedOut(_)
        | StepFailure::OutOfMemory { .. } => Some(how.to_string()),
        StepFailure::NotStarted(_)
        | StepFailure::Machine(_)
        | StepFailure::Transfer(_)
        | StepFailure::NoWayBack(_)
        | StepFailure::AgentEnded
        | StepFailure::PowerRequest { .. } => None,
    }
}

/// Returns the pause after a try that failed, given its number, from 1: each pause is twice as long as the one before.
fn pause_after(attempt: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(attempt - 1)).min(LONGEST_PAUSE)
}

/// The destination of a fetched tree.
struct FetchContext<'a> {
    folder: &'a Path,
    limits: FetchLimits,
    /// Path of the stream that is kept for the step cache.
    keep: Option<PathBuf>,
}

struct RunningStep<'a, 'b> {
    build: &'a BuildContext<'b>,
    guest: &'a mut Guest,
    index: usize,
    planned: &'a PlannedStep,
    lines: LineSplitter,
    fetching: FetchContext<'a>,
}

impl RunningStep<'_, '_> {
    /// Runs the step, and again while it fails and has retries left.
    async fn run_with_retries(&mut self) -> Result<FetchedTree, Failure> {
        let attempts = u32::from(self.planned.step.retries) + 1;
        for attempt in 1..attempts {
            let result = self.run().await;
            let reason = result.as_ref().err().and_then(retry_reason);
            let Some(reason) = reason else { return result };
            let pause = pause_after(attempt);
            let event = Event::StepRetried { index: self.index, attempt, attempts, reason, pause: pause.as_secs_f64() };
            self.build.events.emit(&event);
            self.build.limits.pause(pause).await?;
            // Errors show the output of the last try alone.
            self.lines = LineSplitter::new(self.build.secrets.mask());
        }
        self.run().await.map_err(|mut failure| {
            if attempts > 1 && retry_reason(&failure).is_some() {
                failure.attach(format!("this was the last of {attempts} tries (`retry`)"));
            }
            failure
        })
    }

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
                self.prepare_reboot().await?;
                let rebooted = self.guest.reboot(self.build.site()).await;
                self.guest.suspects.clear();
                self.guest.is_doomed = false;
                self.blame(rebooted)
            }
        };
        done.map(|()| FetchedTree::default())
    }

    fn failed(&self, how: StepFailure) -> Failure {
        let mut lines = self.lines.recent();
        if let StepFailure::NotStarted(why) = &how {
            lines.push(why.clone());
        }
        let error = StepError::new(self.build, self.index, how, self.lines.tail());
        error.with_hint(&lines, &self.build.plan.machine).into()
    }

    /// Creates the failure for a reboot or power-off, which an earlier step may have asked for.
    fn went_down(&self, how: StepFailure) -> Failure {
        let culprit = self.guest.suspects.culprit(self.index, self.planned);
        if culprit == self.index {
            return self.failed(how);
        }
        let during = step_title(self.build.plan, self.index);
        StepError::new(self.build, culprit, StepFailure::PowerRequest { during }, self.lines.tail()).into()
    }

    async fn command(&mut self, exec: Exec, context: &Context) -> Result<(), Failure> {
        let timeout = self.planned.step.timeout;
        let mut env = default_environment();
        env.extend(self.build.proxy_environment());
        env.extend(self.build.plan.spec.vars.clone());
        env.extend(context.env.clone());
        let exec = Exec {
            env,
            dir: context.dir.clone(),
            user: context.user.clone(),
            timeout: Some(timeout),
            secrets: self.build.secrets.pick(&context.secrets),
            step: u32::try_from(self.index + 1).ok(),
            login: true,
            network: self.build.proxy.as_ref().map(Proxy::access),
            ..exec
        };
        let mut emit = emit_output(&self.build.events, self.index);
        let mut output = |channel: Channel, bytes: &[u8]| self.lines.feed(channel, bytes, &mut emit);
        let request = unless_agent_ends(&self.guest.machine, self.guest.session.exec(&exec, &mut output));
        let exit = self.build.limits.call_with_grace(&self.guest.machine, timeout, request).await;
        self.lines.finish(&mut emit);
        let exit = self.blame(exit)?;
        let found = self.guest.session.take_aftermath();
        leftovers::report(self.build, &found);
        if found.is_stopping {
            return Err(self.went_down(StepFailure::PowerRequest { during: None }));
        }
        self.guest.is_doomed = self.guest.suspects.note(self.index, self.planned, &found);
        let killed = found.oom_killed;
        match exit {
            Exit::Code(0) => Ok(()),
            Exit::Code(code) if !killed.is_empty() => {
                Err(self.failed(StepFailure::OutOfMemory { exit: Some(code), killed }))
            }
            Exit::Signal(_) if !killed.is_empty() => Err(self.failed(StepFailure::OutOfMemory { exit: None, killed })),
            Exit::Code(code) => Err(self.failed(StepFailure::Status(code))),
            Exit::Signal(number) => Err(self.failed(StepFailure::Signal(number))),
            Exit::TimedOut => Err(self.failed(StepFailure::TimedOut(timeout))),
            Exit::NotStarted(why) => Err(self.failed(StepFailure::NotStarted(why))),
        }
    }

    /// Adds the step that was running to a failure of the machine or of the connection. An interruption is not attributed
    /// to a step.
    fn blame<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        result.map_err(|failure| match failure.fault::<MachineExit>() {
            Some(fate @ (MachineExit::Rebooted | MachineExit::PoweredOff)) => {
                self.went_down(StepFailure::Machine(fate.clone()))
            }
            Some(fate) => self.failed(StepFailure::Machine(fate.clone())),
            None if failure.fault::<DeadlineError>().is_some() => failure,
            None if matches!(failure.fault(), Some(GuestError::AgentEnded)) => self.failed(StepFailure::AgentEnded),
            None => self.failed(StepFailure::Transfer(failure)),
        })
    }

    async fn prepare_reboot(&mut self) -> Result<(), Failure> {
        if !cloud_init::needs_planting(self.build, self.guest).map_err(|how| self.failed(how))? {
            return Ok(());
        }
        let planted = planting::plant_in(self.guest, self.build.site()).await;
        self.blame(planted)
    }

    async fn script(&mut self, file: &Path, args: &[String], context: &Context) -> Result<(), Failure> {
        let content = read_script(self.planned, file)?;
        let target = format!("{SCRIPT_FOLDER}/{}", self.index + 1);
        let owner = FileOwner { user: context.user.clone(), group: None };
        self.send(&self.text(content, &target, &owner, 0o500)).await?;
        let argv = std::iter::once(target).chain(args.iter().cloned());
        self.command(Exec::new(argv), context).await
    }

    fn text(&self, content: Vec<u8>, to: &str, owner: &FileOwner, mode: u32) -> StageSource {
        let epoch = self.build.plan.source_date_epoch.and_then(|epoch| u64::try_from(epoch).ok());
        let mtime = epoch.map_or_else(SystemTime::now, |epoch| SystemTime::UNIX_EPOCH + Duration::from_secs(epoch));
        StageSource {
            what: StageContent::Text { content, mtime },
            to: to.to_owned(),
            into: false,
            owner: owner.clone(),
            mode: Some(mode),
        }
    }

    async fn copy(&mut self, copy: &Copy) -> Result<(), Failure> {
        let filter = self.planned.input.as_ref().map(|input| input.filter.clone()).unwrap_or_default();
        let source = StageSource::of_copy(copy, filter);
        if self.input_bytes() > PORT_LIMIT {
            return self.send_by_disk(&source, &copy.from).await;
        }
        let sent = self.send(&source).await?;
        self.check_tree(sent.sha256, &copy.from)
    }

    fn check_tree(&self, sent: Sha256Digest, path: &Path) -> Result<(), Failure> {
        Ok(check_sent(self.planned, &InputDigest::Tree(sent), path)?)
    }

    fn input_bytes(&self) -> u64 {
        self.planned.input.as_ref().map_or(0, |input| input.bytes)
    }

    async fn send(&mut self, source: &StageSource) -> Result<PackedTree, Failure> {
        let timeout = self.planned.step.timeout;
        let mut progress = emit_progress(&self.build.events, self.input_bytes());
        let request = unless_agent_ends(&self.guest.machine, self.guest.session.upload(source, &mut progress));
        let sent = self.build.limits.call(&self.guest.machine, timeout, request).await;
        self.blame(sent)
    }

    /// Writes the tree into a scratch file, attaches that as a read-only disk, and has the guest unpack it: this has
    /// several times the rate of the port.
    async fn send_by_disk(&mut self, source: &StageSource, from: &Path) -> Result<(), Failure> {
        let path = self.build.work.join(format!("copy-{}", self.index + 1));
        let serial = format!("kiln-copy-{}", self.index + 1);
        let staged = self.stage(source.clone(), path.clone()).await;
        self.check_tree(self.blame(staged)?.sha256, from)?;
        let timeout = self.planned.step.timeout;
        let disk = self.guest.machine.plug(&path, &serial).await?;
        let mut progress = emit_progress(&self.build.events, self.input_bytes());
        let request = self.guest.session.unpack_device(&serial, &mut progress);
        let request = unless_agent_ends(&self.guest.machine, request);
        let unpacked = self.build.limits.call(&self.guest.machine, timeout, request).await;
        self.blame(unpacked)?;
        let unplugged = self.build.limits.hold(self.guest.machine.unplug(disk)).await;
        self.blame(unplugged)?;
        // Only frees space: the scratch folder is removed in any case.
        let _ = std::fs::remove_file(path);
        Ok(())
    }

    async fn stage(&self, source: StageSource, path: PathBuf) -> Result<StagedStream, Failure> {
        let staging = run_blocking(move |progress| {
            let file = std::fs::File::create_new(&path).map_err(ScratchError::at("the disk of a copy", &path))?;
            Ok::<_, Failure>(stage(&source, &file, progress)?)
        });
        self.build.limits.hold(staging).await
    }

    async fn fetch(&mut self, from: &str, to: &Path) -> Result<FetchedTree, Failure> {
        let timeout = self.planned.step.timeout;
        let events = &self.build.events;
        let mut progress = emit_progress(events, 0);
        let FetchContext { folder, limits, keep } = &self.fetching;
        let request =
            FetchRequest { from: from.to_owned(), root: folder.to_path_buf(), to: to.to_owned(), limits: *limits };
        let request = self.guest.session.fetch(request, keep.clone(), &mut progress);
        let request = unless_agent_ends(&self.guest.machine, request);
        let outcome = self.build.limits.call(&self.guest.machine, timeout, request).await;
        let FetchOutcome { tree, unkept } = self.blame(outcome)?;
        if let Some(error) = unkept {
            events.notice(NoticeLevel::Warning, format!("nothing more is kept in the cache: a fetched tree: {error}"));
        }
        let searched = self.search_fetched(to).await;
        self.blame(searched)?;
        Ok(tree)
    }

    /// Searches fetched files for secrets, since they will be published and kept in the cache.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_between_tries_double_up_to_a_limit() {
        let pauses = [1, 2, 3, 5, 6, 7, 40, u32::MAX].map(|attempt| pause_after(attempt).as_secs());
        assert_eq!(pauses, [1, 2, 4, 16, 30, 30, 30, 30]);
    }
}
