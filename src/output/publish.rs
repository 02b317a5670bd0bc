//! Publication: the evidence beside the image, and the moment at which it becomes a version of the store.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::task::spawn_blocking;

use crate::context::{BuildContext, BuildOptions, ScratchError};
use crate::digest::{Sha256Digest, sha256_file};
use crate::error::Failure;
use crate::event::{Event, Events, NoticeLevel, Stage};
use crate::guest::step_record::StepRecord;
use crate::plan::agent::RecordedPlanting;
use crate::plan::kernel::{HashedFile, KernelFacts};
use crate::plan::machine::format_name;
use crate::plan::output::Outputs;
use crate::plan::{Plan, PlannedStep, StoredBase};
use crate::progress::Progress;
use crate::resolve::facts::unreadable_kernel;
use crate::secret_scan::LeakPlace;
use crate::sign::Signer;
use crate::store::{Artifact, Documents, Evidence, ImageId, Manifest, Staging, manifest};

use super::contents::Contents;
use super::convert::Converted;
use super::evidence;

/// Name of the build's log in the version's folder.
pub const BUILD_LOG: &str = "build.log";
/// Name of the console's log.
pub const CONSOLE_LOG: &str = "console.log";
/// Name of the folder with the logs of tests, in the scratch folder.
pub(crate) const TESTS: &str = "tests";

/// Data that a build collects for the manifest.
#[derive(Default)]
pub(crate) struct BuildRecord {
    pub(crate) steps: Vec<StepRecord>,
    pub(crate) tests: Vec<manifest::ManifestTest>,
    /// Whether the agent was planted on the disk when the guest was sealed.
    pub(crate) had_agent: bool,
}

/// Returns the version that a plan makes.
pub(crate) fn image_id(plan: &Plan) -> Result<ImageId, Failure> {
    Ok(ImageId::new(&*plan.spec.image.name, &*plan.spec.image.version)?)
}

/// Publishes the version in the store. The logs are written last, so that they are as complete as possible.
pub(crate) async fn publish(
    build: &BuildContext<'_>,
    record: BuildRecord,
    converted: Converted,
    (staging, signer): (Staging, Option<Arc<Signer>>),
) -> Result<Artifact, Failure> {
    let contents = async { converted.contents.await.expect("reading the tree does not panic") };
    let contents = build.limits.hold(contents).await?;
    stage_kernel(build.plan, staging.path()).await?;
    let manifest = manifest(build, record, converted.disk_chunks_sha256, contents);
    for log in [BUILD_LOG, CONSOLE_LOG] {
        let copied = fs::copy(build.work.join(log), staging.path().join(log));
        copied.map_err(ScratchError::at(log, staging.path()))?;
    }
    let manifest = search_for_secrets(build, manifest, staging.path()).await?;
    let evidence = Evidence { documents: Documents::new(evidence::documents(build.recorded_plan())), signer };
    let events = build.events.clone();
    let progress = Progress::new(build.limits.cancel(), move |done, total| {
        events.emit(&Event::Progress { stage: Stage::Publish, done, total });
    });
    let finish = spawn_blocking(move || staging.finish(manifest, &evidence, &progress));
    // Not raced with an interruption: that stops it by itself, and the store is left as it was or with the whole version.
    Ok(finish.await.expect("publishing does not panic")?)
}

/// Searches everything that is about to be published for secrets, except the image files: their disk has been searched.
async fn search_for_secrets(build: &BuildContext<'_>, manifest: Manifest, staging: &Path) -> Result<Manifest, Failure> {
    let Some(searched) = build.secrets.searched().cloned() else { return Ok(manifest) };
    let images: BTreeSet<PathBuf> = manifest.outputs.iter().map(|output| PathBuf::from(&output.file)).collect();
    let documents = evidence::documents(build.recorded_plan())(&manifest);
    let staging = staging.to_owned();
    let search = spawn_blocking(move || {
        let findings = searched.scan_folder(&staging, &|path| images.contains(path));
        let mut findings = findings.map_err(ScratchError::at("the files of the version", &staging))?;
        let json = manifest.to_json();
        let texts = documents.iter().map(|(name, text)| (*name, text.as_str()));
        for (name, text) in texts.chain([(manifest::FILE, json.as_str())]) {
            findings.leaks.extend(searched.scan_text(text.as_bytes(), |at| LeakPlace::File(name.into(), at)));
        }
        findings.leaks.into_result()?;
        Ok::<_, Failure>((manifest, findings.unsearched.warning()))
    });
    let searched = build.limits.hold(async { search.await.expect("searching does not panic") });
    let (manifest, warning) = searched.await?;
    if let Some(warning) = warning {
        build.events.notice(NoticeLevel::Warning, warning);
    }
    Ok(manifest)
}

fn manifest(
    build: &BuildContext<'_>,
    record: BuildRecord,
    disk_chunks_sha256: Sha256Digest,
    contents: Contents,
) -> Manifest {
    let plan = build.recorded_plan();
    let spec = &plan.spec;
    let trees = record.steps.iter().map(|done| &done.fetched);
    let fetched = trees.clone().flat_map(|tree| &tree.files).map(manifest::StoredFile::staged).collect();
    let fetched_links = trees.flat_map(|tree| tree.links.clone()).collect();
    Manifest {
        schema: manifest::SCHEMA,
        sequence: 0,
        kiln: env!("CARGO_PKG_VERSION").to_owned(),
        image: manifest::ManifestImage {
            name: spec.image.name.clone(),
            version: spec.image.version.clone(),
            description: spec.image.description.clone(),
            labels: spec.image.labels.clone(),
        },
        build_key: plan.build_key.to_string(),
        base: manifest::ManifestBase {
            source: plan.base.source.clone(),
            sha256: plan.base.sha256,
            format: format_name(plan.base.format).to_owned(),
            image: plan.base.image.as_ref().map(base_image),
        },
        kernel: plan.base.kernel.as_ref().map(|kernel| staged_kernel(plan, kernel)),
        machine: machine(plan, record.had_agent),
        steps: plan.steps.iter().zip(&record.steps).map(step).collect(),
        outputs: staged_outputs(&plan.outputs, plan.disk_size()),
        // The store fills it in, if an output is the disk itself.
        disk_sha256: None,
        disk_chunks_sha256: Some(disk_chunks_sha256),
        disk_bytes: Some(plan.disk_size()),
        contents: Some(contents.listed),
        content_sha256: contents.content_sha256,
        os: contents.os,
        package_type: contents.package_type,
        packages: contents.packages,
        tests: record.tests,
        fetched,
        fetched_links,
        // The store determines them.
        fetched_folders: BTreeSet::new(),
        downloads: plan
            .network
            .iter()
            .flat_map(|record| &record.answers)
            .map(manifest::ManifestDownload::from)
            .collect(),
        started: build.started,
        finished: Timestamp::now(),
        source_date_epoch: plan.source_date_epoch,
    }
}

/// Returns the names of the kernel and the initrd in the version's folder.
fn kernel_names(plan: &Plan) -> [String; 2] {
    let image = &plan.spec.image;
    ["kernel", "initrd"].map(|ending| format!("{}-{}.{ending}", image.name, image.version))
}

/// Returns the kernel as the manifest lists it, not digested yet.
fn staged_kernel(plan: &Plan, kernel: &KernelFacts) -> manifest::ManifestKernel {
    let [image, initrd] = kernel_names(plan).map(manifest::StoredFile::staged);
    manifest::ManifestKernel {
        image,
        initrd: kernel.initrd.is_some().then_some(initrd),
        cmdline: kernel.cmdline.clone(),
    }
}

/// Copies the kernel beside the base image, and its initrd, to the staging folder.
async fn stage_kernel(plan: &Plan, staging: &Path) -> Result<(), Failure> {
    let Some(kernel) = plan.base.kernel.clone() else { return Ok(()) };
    let targets = kernel_names(plan).map(|name| staging.join(name));
    let copied = spawn_blocking(move || kernel.files().zip(targets).try_for_each(|(file, to)| copy_planned(file, &to)));
    copied.await.expect("copying does not panic")
}

/// Copies a file, and checks that it is the planned one.
fn copy_planned(file: &HashedFile, to: &Path) -> Result<(), Failure> {
    fs::copy(&file.path, to).map_err(ScratchError::at("the kernel of the version", to))?;
    let sha256 = File::open(to).and_then(|copy| sha256_file(&copy));
    if sha256.map_err(ScratchError::at("the kernel of the version", to))? == file.sha256 {
        return Ok(());
    }
    Err(unreadable_kernel(&file.path)(io::Error::other("it changed during the build")).into())
}

fn base_image(base: &StoredBase) -> manifest::ManifestBaseImage {
    let StoredBase { name, version, build_key, disk_sha256, disk_chunks_sha256, kiln: _ } = base.clone();
    manifest::ManifestBaseImage { name, version, build_key, disk_sha256, disk_chunks_sha256 }
}

fn machine(plan: &Plan, had_agent: bool) -> manifest::ManifestMachine {
    let machine = &plan.machine;
    manifest::ManifestMachine {
        accel: machine.accelerator.name().to_owned(),
        accel_reason: machine.accel_reason.clone().unwrap_or_default(),
        qemu: machine.qemu_version.clone(),
        machine_type: machine.machine_type.clone(),
        cpu: machine.accelerator.cpu_model().to_owned(),
        cpus: machine.cpus,
        memory: machine.memory.bytes(),
        firmware: machine.firmware.name().to_owned(),
        firmware_sha256: plan.firmware.as_ref().map(|firmware| firmware.code),
        boot: machine.boots_directly().then(|| "direct".to_owned()),
        agent: RecordedPlanting::of_build(&machine.agent, had_agent).map(|planting| planting.name().to_owned()),
        network: machine.network.name().to_owned(),
        private_network: plan.spec.network.private.iter().map(ToString::to_string).collect(),
    }
}

fn step((planned, done): (&PlannedStep, &StepRecord)) -> manifest::ManifestStep {
    manifest::ManifestStep {
        name: planned.step.name.clone(),
        verb: planned.step.action.key().to_owned(),
        key: planned.key.to_string(),
        cached: done.cached,
        seconds: done.took.as_secs_f64(),
    }
}

/// Returns the published files of outputs as the manifest lists them, not digested yet.
pub(super) fn staged_outputs(outputs: &Outputs, disk_size: u64) -> Vec<manifest::ManifestOutput> {
    let published = outputs.published(disk_size).into_iter();
    published.map(|file| manifest::ManifestOutput::staged(file.file, file.format, file.virtual_bytes)).collect()
}

/// Returns the events of one build, with its log as an additional listener.
pub(crate) fn with_log(around: &BuildOptions, folder: &Path) -> io::Result<Events> {
    Ok(around.events.with((around.open_log)(&folder.join(BUILD_LOG))?))
}
