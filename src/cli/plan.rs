//! `kiln plan`: prints exactly what a build would do.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cache::history;
use crate::cache::step_cache::{CacheView, view_cache};
use crate::error::Failure;
use crate::guest::build_boot::backing;
use crate::layer::LayerCache;
use crate::machine::argv::{Start, argv};
use crate::network_record::RecordedAnswer;
use crate::plan::kernel::KernelFacts;
use crate::plan::trace::{ChangedInput, RunReason, Trace, list_inputs};
use crate::plan::{InputFacts, Plan, PlannedStep};
use crate::process::quote_argument;
use crate::report::quote::TextPage;
use crate::resolve::lockfile;
use crate::resolve::secrets::SecretValues;
use crate::scheduler;
use crate::size::{ByteSize, format_duration};
use crate::specfile::{NetworkBackend, Spec};

use super::args::{SourceArgs, SpecArgs};
use super::configuration::allowed_variables;
use super::{CommandContext, specs};

/// Schema version of the JSON output.
const SCHEMA: u32 = 1;
/// The age in days from which a cached result of a step with `network = "user"` is reported: by then, what it downloaded has
/// most likely changed.
const STALE_DAYS: i64 = 7;

/// Arguments of `kiln plan`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln plan images/nginx --json | jq .steps")]
pub struct PlanArgs {
    /// Spec file, or folder with a kiln.toml [default: the current folder]
    #[arg(value_name = "SPEC")]
    pub spec: Option<PathBuf>,
    /// Version to build [default: the spec's]
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Options for where base images may come from.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints the plan of a spec.
pub(super) async fn run(args: PlanArgs, context: CommandContext<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let reach = args.reading.reach();
    let named = args.spec.map_or_else(specs::here, Ok)?;
    let spec = Spec::load(&named, reach.files, &args.reading.overrides(args.version.as_ref()))?;
    allowed_variables(&args.reading)?.check(&spec)?;
    let events = context.events();
    let sources = SourceArgs { offline: true, ..args.sources };
    let bases = context.bases(sources, reach.files, &events)?;
    let (plan, _held) = scheduler::plan(spec, &bases, reach).await?;
    SecretValues::load(&plan.spec)?;
    let cache = context.folders.cache()?;
    let view = view_cache(&plan, &LayerCache::peek(&cache, Arc::clone(&bases.memo)), &events);
    let fates = StepReasons::new(&plan, &view, history::recall(&cache, &plan).as_ref());
    if args.json {
        return super::print_json(out, &format!("{:#}\n", as_json(&plan, &fates)));
    }
    super::print(out, &as_text(&plan, &fates))
}

/// Cache hits and misses of the steps, and the reasons.
struct StepReasons {
    /// Changes of the machine and its base since the last build.
    base: Vec<ChangedInput>,
    /// The reason why a step runs; `None` for a cached one.
    steps: Vec<Option<RunReason>>,
    /// The ages of cached results that depend on a network, in days, where these are old.
    stale_days: Vec<Option<i64>>,
}

impl StepReasons {
    fn new(plan: &Plan, view: &CacheView, last: Option<&Trace>) -> Self {
        let now = Trace::of(plan);
        let base = last.map(|last| now.base_changes(last)).unwrap_or_default();
        let stale_days = plan.steps.iter().enumerate();
        let stale_days =
            stale_days.map(|(index, planned)| stale_days_of(plan, planned, view.ended.get(index).copied()?));
        Self { base, steps: now.reasons(plan, view.cached, &view.unused, last), stale_days: stale_days.collect() }
    }
}

/// Returns the age in days of a cached result, where the step could use a network that records nothing and the result is
/// old.
fn stale_days_of(plan: &Plan, planned: &PlannedStep, ended: Option<Timestamp>) -> Option<i64> {
    let days = Timestamp::now().duration_since(ended?).as_hours() / 24;
    let may_download = plan.spec.machine.network == NetworkBackend::User && planned.step.action.is_command();
    let is_stale = may_download && days >= STALE_DAYS;
    is_stale.then_some(days)
}

fn as_json(plan: &Plan, fates: &StepReasons) -> Value {
    let steps: Vec<_> = plan
        .steps
        .iter()
        .zip(&fates.steps)
        .zip(&fates.stale_days)
        .map(|((planned, reason), stale_days)| {
            json!({
                "name": planned.step.name, "verb": planned.step.action.key(), "line": planned.step.line,
                "key": planned.key, "cached": reason.is_none(), "reason": reason.as_ref().map(RunReason::to_string),
                "timeout": planned.step.timeout.as_secs(), "retry": planned.step.retries,
                "input_digest": planned.input.as_ref().map(digest_set),
                "input_bytes": planned.input.as_ref().map(|input| input.bytes),
                "downloads": LockedDownloads::of_step(plan, planned), "stale_days": stale_days,
            })
        })
        .collect();
    let skipped = plan.skipped.iter().map(|skipped| {
        json!({
            "name": skipped.name, "verb": skipped.verb, "line": skipped.line, "when": skipped.when.to_string(),
            "position": skipped.position,
        })
    });
    let skipped: Vec<_> = skipped.collect();
    let outputs: Vec<_> = plan
        .outputs
        .all
        .iter()
        .map(|output| {
            let files = plan.outputs.files(output);
            json!({
                "file": files[0], "files": files, "format": output.format.name(),
                "compression": output.compression.name(),
            })
        })
        .collect();
    json!({
        "schema": SCHEMA,
        "image": { "name": plan.spec.image.name, "version": plan.spec.image.version },
        "build_key": plan.build_key,
        "changed": fates.base,
        "base": {
            "file": plan.base.file, "sha256": plan.base.sha256, "virtual_bytes": plan.base.virtual_size,
            "kernel": plan.base.kernel.as_ref().map(kernel_as_json),
        },
        "machine": {
            "accel": plan.machine.accelerator, "accel_reason": plan.machine.accel_reason,
            "cpus": plan.machine.cpus, "memory": plan.machine.memory, "disk": plan.disk_size(),
            "firmware": plan.machine.firmware.name(), "agent": plan.machine.agent.name(), "boot_timeout": plan.machine.boot_timeout.as_secs(),
            "qemu": plan.machine.qemu_version, "argv": command_line(plan),
        },
        "network": LockedDownloads::of_plan(plan),
        "steps": steps,
        "skipped": skipped,
        "outputs": outputs,
        "tests": plan.spec.tests.iter().map(|test| &test.name).collect::<Vec<_>>(),
    })
}

fn kernel_as_json(kernel: &KernelFacts) -> Value {
    json!({
        "file": kernel.image.path, "sha256": kernel.image.sha256, "cmdline": kernel.cmdline,
        "initrd": kernel.initrd.as_ref().map(|initrd| json!({ "file": initrd.path, "sha256": initrd.sha256 })),
    })
}

/// Returns a digest as an in-toto `DigestSet`.
fn digest_set(input: &InputFacts) -> Value {
    json!({ input.digest.algorithm(): input.digest.sha256() })
}

fn command_line(plan: &Plan) -> Vec<String> {
    let program = plan.machine.qemu.display().to_string();
    std::iter::once(program).chain(argv(&plan.machine, &backing(plan, None), Start::Boot)).collect()
}

fn as_text(plan: &Plan, fates: &StepReasons) -> String {
    let mut page = TextPage::default();
    page.line("image    ", &format!("{}@{}", plan.spec.image.name, plan.spec.image.version));
    page.line("base     ", &format!("{} (sha256 {:.12})", plan.base.file.display(), plan.base.sha256));
    if let Some(kernel) = &plan.base.kernel {
        for (label, file) in ["kernel   ", "initrd   "].into_iter().zip(kernel.files()) {
            page.line(label, &format!("{} (sha256 {:.12})", file.path.display(), file.sha256));
        }
        page.line("cmdline  ", &kernel.cmdline);
    }
    page.line("machine  ", &machine(plan));
    if let Some(downloads) = LockedDownloads::of_plan(plan) {
        page.line("network  ", &downloads.describe());
    }
    for note in plan.notes() {
        page.line("note     ", &note);
    }
    if !fates.base.is_empty() {
        page.line("changed  ", &list_inputs(&fates.base));
    }
    for (number, (planned, reason)) in plan.steps.iter().zip(&fates.steps).enumerate() {
        list_skipped(plan, number, &mut page);
        page.line("step ", &format!("{:<3} {}", number + 1, step(plan, planned, reason.as_ref())));
        if let Some(days) = fates.stale_days[number] {
            let text = format!(
                "step {} is cached from {days} days ago, and what it downloaded may have changed since: `--no-cache` runs it again, \
                 and `network = \"locked\"` records downloads",
                number + 1
            );
            page.line("note     ", &text);
        }
    }
    list_skipped(plan, plan.steps.len(), &mut page);
    for test in &plan.spec.tests {
        page.line("test     ", &test.name);
    }
    for output in &plan.outputs.all {
        let files = plan.outputs.files(output).join(", ");
        page.line("output   ", &format!("{files} ({})", output.compression.name()));
    }
    page.line("key      ", &plan.build_key.to_string());
    page.line("qemu     ", &command_line(plan).iter().map(|arg| quote_argument(arg)).collect::<Vec<_>>().join(" "));
    page.into_text()
}

/// Adds a line for each step that is skipped before the step of this index.
fn list_skipped(plan: &Plan, index: usize, page: &mut TextPage) {
    for skipped in plan.skipped.iter().filter(|skipped| skipped.position == index) {
        page.line("step ", &format!("-   {:12}  skipped {}: not {}", "", skipped.name, skipped.when));
    }
}

fn machine(plan: &Plan) -> String {
    let machine = &plan.machine;
    format!(
        "{} {}, {} CPUs, {} memory, {} disk, {}, boot within {}",
        machine.machine_type,
        machine.accelerator.name(),
        machine.cpus,
        machine.memory,
        ByteSize(plan.disk_size()),
        machine.firmware.name(),
        format_duration(machine.boot_timeout),
    )
}

/// The downloads that `kiln.lock` holds for a spec or one of its steps.
#[derive(Debug, Serialize)]
struct LockedDownloads {
    count: usize,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    recorded: Option<String>,
}

impl LockedDownloads {
    /// Counts the downloads of a spec; `None` if its network is not locked.
    fn of_plan(plan: &Plan) -> Option<Self> {
        let is_locked = plan.spec.machine.network == NetworkBackend::Locked;
        let recorded = plan.network.as_ref().map(|record| record.recorded.to_string());
        let answers = plan.network.iter().flat_map(|record| &record.answers);
        is_locked.then(|| Self { recorded, ..Self::count(answers) })
    }

    /// Counts the downloads of a step; `None` if it cannot download.
    fn of_step(plan: &Plan, planned: &PlannedStep) -> Option<Self> {
        planned.downloads?;
        Some(Self::count(plan.network.iter().flat_map(|record| record.of_step(&planned.step.name))))
    }

    fn count<'a>(answers: impl Iterator<Item = &'a RecordedAnswer>) -> Self {
        let sizes: Vec<u64> = answers.map(|answer| answer.bytes).collect();
        let bytes = sizes.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        Self { count: sizes.len(), bytes, recorded: None }
    }

    fn describe(&self) -> String {
        match &self.recorded {
            Some(recorded) => format!("locked: {self}, recorded {recorded}"),
            None => format!("locked: no downloads are recorded yet; the build records them in {}", lockfile::FILE),
        }
    }
}

impl fmt::Display for LockedDownloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.count == 1 { "download" } else { "downloads" };
        write!(f, "{} {unit}, {}", self.count, ByteSize(self.bytes))
    }
}

fn step(plan: &Plan, planned: &PlannedStep, reason: Option<&RunReason>) -> String {
    let downloads = LockedDownloads::of_step(plan, planned).filter(|downloads| downloads.count > 0);
    let downloads = downloads.map(|downloads| format!(" ({downloads})")).unwrap_or_default();
    let input = planned.input.as_ref().map(|input| format!(" ({})", ByteSize(input.bytes))).unwrap_or_default();
    let key = &planned.key.to_string()[..12];
    let fate = if reason.is_none() { "cached" } else { "runs" };
    let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{key}  {fate:<6}  {}{input}{downloads}{why}", planned.step.name)
}
