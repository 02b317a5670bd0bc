//! Tests of an image that is in the store already: those it was built with, or those of a spec.

use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::address::AddressRangeError;
use crate::context::ScratchError;
use crate::deadline::Deadline;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Events, NoticeLevel};
use crate::guest::boot::MachineSite;
use crate::guest::run::{CloneError, DiskImage, WantedMachine, bootable, machine};
use crate::masking::SecretMask;
use crate::output::kept_logs::{self, keep_logs};
use crate::plan::agent::RecordedPlanting;
use crate::plan::machine::{PlannedMachine, PrivateNetworkAccess};
use crate::plan::scaled;
use crate::resolve::agent_support;
use crate::resolve::path_policy::{NetworkReach, check_network};
use crate::size::ByteSize;
use crate::specfile::{AgentChoice, NetworkBackend, PrivateDestination, Test};
use crate::store::Artifact;
use crate::workdir::Workdir;

use super::{Bench, Coverage, Outcome, TestsFailed, test};

/// The boot timeout of machines whose spec is not available, before it is scaled.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);

/// The reason why an image cannot be tested again.
#[derive(Debug, thiserror::Error)]
pub enum RetestError {
    /// The image has no tests.
    #[error("{0} has no tests")]
    NoTests(String),

    /// The manifest was written by a newer version of kiln.
    #[error("the manifest of {image} has {what} that this version of kiln does not know: {why}")]
    Unknown {
        /// Name and version of the image.
        image: String,
        /// The kind of entry that is unknown.
        what: &'static str,
        /// The error in parsing it.
        why: String,
    },
}

impl Fault for RetestError {
    fn kind(&self) -> Kind {
        match self {
            RetestError::NoTests(_) => Kind::Usage,
            RetestError::Unknown { .. } => Kind::Output,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            RetestError::NoTests(_) => vec!["write some as `[[test]]` into the spec".into()],
            RetestError::Unknown { .. } => Vec::new(),
        }
    }
}

/// Returns the tests that an image was built with.
///
/// # Errors
/// When this version of kiln does not know them.
pub fn recorded(artifact: &Artifact) -> Result<Vec<Test>, RetestError> {
    let mut tests: Vec<Test> = Vec::new();
    let all = &artifact.manifest().tests;
    // Other formats have the same tests, or were booted without tests.
    let first = all.first().map(|first| &first.format);
    for recorded in all.iter().filter(|recorded| Some(&recorded.format) == first) {
        let test = serde_json::from_value(recorded.definition.clone());
        tests.push(test.map_err(|why| unknown(artifact, "a test", &why))?);
    }
    Ok(tests)
}

/// Creates the error for an entry of the manifest that cannot be parsed.
fn unknown(artifact: &Artifact, what: &'static str, why: &impl ToString) -> RetestError {
    RetestError::Unknown { image: artifact.id().to_string(), what, why: why.to_string() }
}

/// Returns the destinations that the guest could reach when the image was built, besides public addresses.
fn private_destinations(artifact: &Artifact) -> Result<Vec<PrivateDestination>, RetestError> {
    let written = artifact.manifest().machine.private_network.iter();
    let parsed = written
        .map(|written| written.parse().map_err(|why: AddressRangeError| unknown(artifact, "a private network", &why)));
    parsed.collect()
}

/// Returns the start of the agent that the tests of an image ask for, by how the agent was started in the build.
fn agent_choice(artifact: &Artifact) -> Result<AgentChoice, RetestError> {
    let Some(name) = &artifact.manifest().machine.agent else { return Ok(AgentChoice::Auto) };
    let planting = RecordedPlanting::named(name).ok_or_else(|| unknown(artifact, "a start of the agent", name))?;
    Ok(planting.choice())
}

/// The result of testing an image.
pub struct Tested {
    /// The outcome of each test, on each format.
    pub outcomes: Vec<Outcome>,
    /// The failure that the command ends with, if a test failed.
    pub failed: Option<Failure>,
}

/// Tests an image. The evidence of failed tests is kept in the cache.
///
/// # Errors
/// When the image does not boot, or the host is not usable.
pub async fn retest(
    artifact: &Artifact,
    (tests, coverage): (&[Test], Coverage),
    source: &Path,
    cache: &Path,
    reach: NetworkReach,
    events: &Events,
    cancel: CancellationToken,
) -> Result<Tested, Failure> {
    let id = artifact.id();
    if tests.is_empty() {
        return Err(RetestError::NoTests(id.to_string()).into());
    }
    let clones = machine_of_clones(artifact, reach, events).await?;
    let CloneMachine { machine, images, disk_size } = &clones;
    let work = Workdir::create(&cache.join("work")).map_err(ScratchError::at("a scratch folder", cache))?;
    // An image of the store was searched for its secrets before it was published.
    let limits = Deadline::new(cancel, Duration::MAX);
    let mask = SecretMask::default();
    let site = MachineSite { machine, folder: work.path(), limits: &limits, events, mask: &mask, proxy: None };
    let bench = Bench { site, disk_size: *disk_size, tests };
    let logs = cache.join(kept_logs::FAILED).join(format!("{}-{}", id.name(), id.version()));
    let mut outcomes = Vec::new();
    let tested = test(&bench, images, coverage, &mut outcomes).await;
    let failed = match tested {
        Ok(()) => TestsFailed::check(&outcomes, id.to_string(), source, work.path(), &logs).err().map(Failure::from),
        Err(failure) => Some(failure),
    };
    let Some(failure) = failed else { return Ok(Tested { outcomes, failed }) };
    keep_logs(work.path(), &logs, None).map_err(ScratchError::at("the logs of the tests", &logs))?;
    // A report has to show that the image does not boot; an older report must not be mistaken for the new one.
    outcomes.extend(failure.fault().map(Outcome::of));
    if failure.kind() == Kind::Test { Ok(Tested { outcomes, failed: Some(failure) }) } else { Err(failure) }
}

/// The machine in which clones of an image are booted with kiln's agent.
pub(super) struct CloneMachine {
    pub(super) machine: PlannedMachine,
    /// The files of the image that QEMU boots; never empty.
    pub(super) images: Vec<DiskImage>,
    /// Virtual size of the disk, bytes.
    pub(super) disk_size: u64,
}

/// Returns the machine of an image's clones: the one that the image was built in, with what starts the agent in them.
pub(super) async fn machine_of_clones(
    artifact: &Artifact,
    reach: NetworkReach,
    events: &Events,
) -> Result<CloneMachine, Failure> {
    let images = bootable(artifact);
    let (Some(output), Some(image)) = (artifact.manifest().outputs.first(), images.first().cloned()) else {
        return Err(CloneError::NotBootable(artifact.id().to_string()).into());
    };
    let made = &artifact.manifest().machine;
    let choice = agent_choice(artifact)?;
    let agent = agent_support::choose_for_image(choice, image.path, image.format).await?;
    let private = private_destinations(artifact)?;
    check_network(&private, reach, events)?;
    let wanted = WantedMachine {
        cpus: None,
        memory: ByteSize(made.memory),
        network: if made.network == "user" { NetworkBackend::User } else { NetworkBackend::None },
        private_network: PrivateNetworkAccess::Listed(private),
    };
    let mut machine = machine(artifact, wanted).await?.started_by(agent);
    machine.boot_timeout = scaled(BOOT_TIMEOUT, machine.accelerator);
    if let Some(reason) = &machine.accel_reason {
        events.notice(NoticeLevel::Info, format!("software emulation (tcg): {reason}"));
    }
    Ok(CloneMachine { machine, images, disk_size: output.virtual_bytes })
}
