//! Gathers the facts that a plan needs: the host, the base image, what the steps bring. Reads, and changes nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::digest::{FileStamp, Sha256Digest};
use crate::digest_cache::DigestCache;
use crate::disk::inspect::BaseImage;
use crate::error::{Failure, Fault, FileError, Kind};
use crate::event::{Events, NoticeLevel};
use crate::machine::host;
use crate::network_record::NetworkRecord;
use crate::plan::host::Host;
use crate::plan::host_paths::PathOwner;
use crate::plan::kernel::KernelFacts;
use crate::plan::{BaseFacts, Facts, FirmwareDigests, InputFacts, Plan};
use crate::session;
use crate::specfile::hardcoded_secrets::giveaways;
use crate::specfile::{self, Action, NetworkBackend, Spec, SpecFile};

use super::base::{BaseResolver, DigestOrigin, LocatedBase, is_yet_to_come};
use super::conditions::SelectedSteps;
use super::ignore_file::IgnoreFile;
use super::inputs::{InputError, check_script, digest_file, examine};
use super::kernel::{examine_files, examine_kernel};
use super::lockfile::{LockFile, PinError};
use super::path_policy::{self, ReachError, ReachPolicy, RefusedPath};
use super::source_errors::{SourceErrors, SourceProblem};
use super::{agent_support, host_variables, secrets};

/// The reason why the facts for a plan cannot be gathered.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The base image does not have the expected digest.
    #[error("base image {}: its sha256 is {found}, the {origin} says {expected}", path.display())]
    WrongBase {
        path: PathBuf,
        /// The digest that the file has.
        found: Sha256Digest,
        /// The digest that was expected.
        expected: Sha256Digest,
        /// The origin of the expected digest.
        origin: DigestOrigin,
    },
    /// `SOURCE_DATE_EPOCH` is not a number.
    #[error("SOURCE_DATE_EPOCH is `{0}`, which is not a number of seconds")]
    BadEpoch(String),
}

impl Fault for SurveyError {
    fn kind(&self) -> Kind {
        match self {
            SurveyError::WrongBase { .. } => Kind::Base,
            SurveyError::BadEpoch(_) => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            SurveyError::WrongBase { origin: DigestOrigin::Lockfile, .. } => {
                vec!["if the base was updated on purpose, `kiln lock` writes down its new digest".into()]
            }
            SurveyError::WrongBase { .. } => {
                vec!["if the base was updated on purpose, write its new digest into `base.sha256`".into()]
            }
            SurveyError::BadEpoch(_) => Vec::new(),
        }
    }
}

/// Gathers everything that can be known about a spec without booting it, and plans its build.
///
/// # Errors
/// When the base image, an input or the host is not usable.
///
/// # Panics
/// Only if hashing panics.
pub async fn plan(
    spec: Spec,
    base: &LocatedBase,
    reach: ReachPolicy,
    memo: &Arc<DigestCache>,
    events: &Events,
) -> Result<Plan, Failure> {
    let refused = check_reach(&spec, reach, events)?;
    warn_of_giveaways(&spec, reach, events);
    let host = host::survey_for_plan();
    let described = spec.clone();
    let located = base.clone();
    let known = Arc::clone(memo);
    // Hashing half a gigabyte takes a second; the host's programs are examined meanwhile.
    let inputs = spawn_blocking(move || {
        let base = examine_base(&located, &known);
        let selected = match &base {
            Ok(_) => SelectedSteps::for_base(&described, (&located.file, located.format.into())),
            Err(_) => SelectedSteps::without_base(&described),
        };
        let (base, inputs) = examine_sources(&selected, reach, &refused, base, &known)?;
        Ok::<_, Failure>((base, inputs, selected))
    });
    let (host, inputs) = tokio::join!(host, inputs);
    let ((base, warnings), inputs, selected) = inputs.expect("examining neither panics nor is cancelled")?;
    let SelectedSteps { spec, skipped, .. } = selected;
    if let Err(error) = memo.save() {
        events.notice(NoticeLevel::Debug, format!("digests cannot be remembered: {error}"));
    }
    for warning in warnings {
        events.notice(NoticeLevel::Warning, format!("base image: {warning}"));
    }
    warn(&inputs, events);
    let source_date_epoch = source_date_epoch()?;
    let host = host?;
    let facts = Facts {
        firmware: examine_firmware(&spec, &host, memo)?,
        host,
        base,
        inputs: inputs.facts,
        network: recorded_network(&spec)?,
        agent_build: session::BUILD.to_owned(),
        seal_build: session::SEAL_BUILD.to_owned(),
        source_date_epoch,
    };
    match Plan::new(spec.clone(), &facts) {
        Ok(plan) => Ok(plan.with_skipped(skipped)),
        Err(error) => {
            SourceErrors::check(&spec, reach.files, vec![SourceProblem::from(&error)])?;
            Err(error.into())
        }
    }
}

/// Checks what a spec brings from this host, without its base image: its inputs, and the kernel that it names.
///
/// # Errors
/// When an input is not usable.
pub fn inputs(spec: &Spec, reach: ReachPolicy, memo: &DigestCache, events: &Events) -> Result<(), Failure> {
    let refused = check_reach(spec, reach, events)?;
    warn_of_giveaways(spec, reach, events);
    let kernel = spec.base.kernel.as_ref().map(|kernel| examine_files(kernel, memo)).transpose();
    let selected = SelectedSteps::without_base(spec);
    let (_, examined) = examine_sources(&selected, reach, &refused, kernel.map_err(Failure::from), memo)?;
    warn(&examined, events);
    Ok(())
}

fn warn(inputs: &ExaminedInputs, events: &Events) {
    for warning in &inputs.warnings {
        events.notice(NoticeLevel::Warning, warning.as_str());
    }
}

/// Adds the errors of the inputs to a failure to locate the base image.
pub(crate) fn explain_missing_base(spec: &Spec, reach: ReachPolicy, failure: Failure, bases: &BaseResolver) -> Failure {
    let is_of_the_base = failure.kind() == Kind::Base || failure.fault::<ReachError>().is_some();
    if !is_of_the_base || is_yet_to_come(&failure) {
        return failure;
    }
    let Ok(refused) = path_policy::check_inputs(spec, reach.files, &bases.events) else { return failure };
    let selected = SelectedSteps::without_base(spec);
    match examine_sources::<Infallible>(&selected, reach, &refused, Err(failure), &bases.memo) {
        Err(failure) => failure,
        Ok((never, _)) => match never {},
    }
}

/// Examines the inputs as well, whatever the result for the base image, so that all errors are reported at once.
fn examine_sources<T>(
    SelectedSteps { spec, errors, variables, .. }: &SelectedSteps,
    reach: ReachPolicy,
    refused: &[RefusedPath],
    base: Result<T, Failure>,
    memo: &DigestCache,
) -> Result<(T, ExaminedInputs), Failure> {
    let inputs = examine_inputs(spec, refused, memo);
    let of_base = base.as_ref().err().map(SourceProblem::of_base);
    let of_inputs = inputs.errors.iter().map(SourceProblem::from);
    let of_conditions = errors.iter().map(SourceProblem::from);
    let of_paths = refused.iter().map(SourceProblem::from);
    let mut problems: Vec<_> = of_base.into_iter().chain(of_paths).chain(of_conditions).chain(of_inputs).collect();
    problems.extend(variables.iter().map(SourceProblem::from));
    // Without other problems the plan can be made, and an image that is up to date needs no secrets.
    if !problems.is_empty() {
        problems.extend(secrets::find_errors(spec, refused).iter().map(SourceProblem::from));
    }
    SourceErrors::check(spec, reach.files, problems)?;
    Ok((base?, inputs))
}

/// Returns the inputs that must not be read.
fn check_reach(spec: &Spec, reach: ReachPolicy, events: &Events) -> Result<Vec<RefusedPath>, Failure> {
    let refused = path_policy::check_inputs(spec, reach.files, events)?;
    path_policy::check_network(&spec.network.private, reach.network, events)?;
    Ok(refused)
}

fn warn_of_giveaways(spec: &Spec, reach: ReachPolicy, events: &Events) {
    for warning in host_variables::find_suspicious(spec) {
        events.notice(NoticeLevel::Warning, warning);
    }
    // The spec was read a moment ago; if it is gone now, there is nothing to warn of.
    let Ok(file) = SpecFile::read(&spec.path, reach.files) else { return };
    for (line, what) in giveaways(file.text()) {
        let place = format!("{}:{line}", spec.path.display());
        events.notice(
            NoticeLevel::Warning,
            format!("{place}: this looks like {what}; give it to steps by [secrets] instead"),
        );
    }
}

/// Inspects the base image before anything else reads it, then hashes it, unless its digest is known.
fn examine_base(base: &LocatedBase, memo: &DigestCache) -> Result<(BaseFacts, Vec<String>), Failure> {
    let image = BaseImage::open(&base.file, base.format)?;
    let unreadable = unreadable_base(&base.file);
    let stamp = image.file.metadata().map(|metadata| FileStamp::from(&metadata)).map_err(&unreadable)?;
    let sha256 = base_sha256(&base.file, memo).map_err(&unreadable)?;
    if stamp_of(&base.file).map_err(&unreadable)? != stamp {
        return Err(unreadable(io::Error::other("it changed meanwhile")).into());
    }
    if let Some((expected, origin)) = base.expected.filter(|(expected, _)| *expected != sha256) {
        return Err(SurveyError::WrongBase { path: base.file.clone(), found: sha256, expected, origin }.into());
    }
    let place = (base.file.as_path(), base.format.into());
    let kernel = base.kernel.as_ref().map(|kernel| examine_kernel(kernel, place, memo)).transpose()?;
    let facts = BaseFacts {
        file: base.file.clone(),
        format: base.format,
        sha256,
        virtual_size: image.facts.virtual_size,
        source: base.source.clone(),
        pinned: base.expected.is_some() || base.image.is_some(),
        image: base.image.clone(),
        agent_obstacle: agent_support::find_obstacle(&base.file, base.format.into()),
        stamp,
        kernel,
    };
    Ok((facts, image.facts.warnings))
}

/// Returns what `kiln.lock` records for a spec with a locked network.
///
/// # Errors
/// When the lock file cannot be read.
pub(crate) fn recorded_network(spec: &Spec) -> Result<Option<NetworkRecord>, PinError> {
    match spec.machine.network {
        NetworkBackend::Locked => Ok(LockFile::beside(spec)?.network(spec)),
        NetworkBackend::None | NetworkBackend::User => Ok(None),
    }
}

/// Hashes the UEFI firmware that a spec's machine starts with.
fn examine_firmware(spec: &Spec, host: &Host, memo: &DigestCache) -> Result<Option<FirmwareDigests>, FileError> {
    let is_wanted = spec.machine.firmware == specfile::FirmwareKind::Uefi && host.qemu.is_usable();
    let Some(uefi) = host.firmware.first().filter(|_| is_wanted) else {
        return Ok(None);
    };
    let code = firmware_sha256(&uefi.code, memo)?;
    Ok(Some(FirmwareDigests { code, vars: firmware_sha256(&uefi.vars_template, memo)? }))
}

fn firmware_sha256(path: &Path, memo: &DigestCache) -> Result<Sha256Digest, FileError> {
    base_sha256(path, memo).map_err(FileError::of(Kind::Host, "read the UEFI firmware", path))
}

/// Returns the digest of a base image's file.
///
/// # Errors
/// When the file cannot be read.
pub fn base_sha256(file: &Path, memo: &DigestCache) -> io::Result<Sha256Digest> {
    // The file is opened again: a digest is remembered for the file at the path, whichever file was inspected.
    let found = memo.digest("file", file, || digest_file(&File::open(file)?));
    found.map(|found| found.sha256)
}

fn stamp_of(file: &Path) -> io::Result<FileStamp> {
    Ok(FileStamp::from(&std::fs::metadata(file)?))
}

/// Returns a constructor of errors for a base image that cannot be read completely.
pub(crate) fn unreadable_base(path: &Path) -> impl Fn(io::Error) -> FileError {
    FileError::of(Kind::Base, "read the base image", path)
}

/// Checks that the base image, and the kernel beside it, are the files that were hashed for the plan. Everything that lies on it
/// is named after their digests, so nothing may be kept of a build whose base has changed under it, neither layers nor an image.
/// Hashing it again would miss a change that QEMU has seen and that was reverted.
///
/// # Errors
/// When a file is no longer the planned one.
pub(crate) fn check_base(plan: &Plan) -> Result<(), FileError> {
    let base = &plan.base;
    check_stamp(&base.file, base.stamp, unreadable_base(&base.file))?;
    for file in base.kernel.iter().flat_map(KernelFacts::files) {
        check_stamp(&file.path, file.stamp, unreadable_kernel(&file.path))?;
    }
    Ok(())
}

fn check_stamp(path: &Path, stamp: FileStamp, unreadable: impl Fn(io::Error) -> FileError) -> Result<(), FileError> {
    if stamp_of(path).map_err(&unreadable)? == stamp {
        return Ok(());
    }
    Err(unreadable(io::Error::other("it changed during the build; new hard links, names and modes count as well")))
}

/// Returns a constructor of errors for a kernel or an initrd that cannot be read completely.
pub(crate) fn unreadable_kernel(path: &Path) -> impl Fn(io::Error) -> FileError {
    FileError::of(Kind::Base, "read the kernel or initrd beside the base image", path)
}

/// Remembers the digest of a base image whose file was too recent for the digest cache when the build began. Without that,
/// the next build hashes it again.
pub(crate) fn remember_base(plan: &Plan, memo: &DigestCache) {
    let _ = base_sha256(&plan.base.file, memo).map(|_| memo.save());
}

/// The inputs that a spec brings from this host, examined.
#[derive(Debug, Default)]
pub(crate) struct ExaminedInputs {
    /// Facts by the index of the step.
    pub(crate) facts: BTreeMap<usize, InputFacts>,
    /// Warnings about what may fail in the guest.
    warnings: Vec<String>,
    /// Errors: inputs that cannot be read or copied, or that no guest can run.
    pub(crate) errors: Vec<InputError>,
}

/// Examines the inputs of a spec, except those that must not be read, and whether a guest can run its scripts. An error in
/// one input does not hide the others.
pub(crate) fn examine_inputs(spec: &Spec, refused: &[RefusedPath], memo: &DigestCache) -> ExaminedInputs {
    let mut examined = ExaminedInputs::default();
    let ignored = IgnoreFile::beside(spec).unwrap_or_else(|error| {
        let first = spec.steps.iter().find(|step| matches!(step.action, Action::Copy(_)));
        examined.errors.push(InputError::Ignore { line: first.map_or(0, |step| step.line), error });
        IgnoreFile::default()
    });
    for (index, step) in spec.steps.iter().enumerate() {
        if refused.iter().any(|(owner, _)| *owner == PathOwner::Step(step.line)) {
            continue;
        }
        match examine(step, &ignored, memo) {
            Ok(facts) => examined.facts.extend(facts.map(|facts| (index, facts))),
            Err(error) => examined.errors.push(error),
        }
        match check_script(step) {
            Ok(warning) => examined.warnings.extend(warning.map(|text| format!("{}, {text}", spec.path.display()))),
            Err(error) => examined.errors.push(error),
        }
    }
    examined
}

/// Returns the time in `SOURCE_DATE_EPOCH` (reproducible-builds.org/specs/source-date-epoch).
fn source_date_epoch() -> Result<Option<i64>, SurveyError> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => Ok(None),
        Ok(text) => text.parse().map(Some).map_err(|_| SurveyError::BadEpoch(text)),
    }
}
