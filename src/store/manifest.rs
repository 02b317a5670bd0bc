//! `manifest.json`, schema 1: describes a version, its base image and its build. Documented in `docs/store.md`.
//!
//! Fields are only ever added within a schema, so unknown ones are ignored when reading; a newer schema is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;
use crate::network_record::{RecordedAnswer, RequestKind};
use crate::rfc3339;

use super::digest::Digest;
use super::error::StoreError;
use super::folder::Folder;

/// The schema version that this kiln writes, and the newest it reads.
pub const SCHEMA: u32 = 1;
/// Name of the manifest inside a version folder.
pub const FILE: &str = "manifest.json";
/// Name of the format whose files are the disk itself.
const RAW: &str = "raw";
/// Size limit of a manifest that is read, bytes.
pub const LARGEST: u64 = 64 << 20;
/// Stands for a digest until the store fills it in.
const UNKNOWN: Sha256Digest = Sha256Digest::new([0; 32]);

/// One version of one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always [`SCHEMA`] in memory.
    pub schema: u32,
    /// Order of the image's versions by a counter, since clocks jump. The store assigns it when it publishes; 0 before.
    pub sequence: u64,
    /// Version of kiln that built it.
    pub kiln: String,
    /// Name, version, description and labels of the image.
    pub image: ManifestImage,
    /// Digest of every input: the same key means the same build.
    pub build_key: String,
    /// The base image that it was built from.
    pub base: ManifestBase,
    /// The kernel that starts its disk in place of a boot loader, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<ManifestKernel>,
    /// The virtual machine that it was built in.
    pub machine: ManifestMachine,
    /// The steps, in order.
    pub steps: Vec<ManifestStep>,
    /// The image files.
    pub outputs: Vec<ManifestOutput>,
    /// SHA-256 of the disk as the guest sees it: the same for every format. `None` if no output is the disk itself, so that
    /// nothing but `disk_chunks_sha256` was computed.
    #[serde(default)]
    pub disk_sha256: Option<Sha256Digest>,
    /// SHA-256 of the list of the digests of that disk's chunks, `disk.chunks`. `None` in manifests of older versions of
    /// kiln.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_chunks_sha256: Option<Sha256Digest>,
    /// Bytes of that disk: formats of whole MiB may add zeros. `None` in manifests of older versions of kiln.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// What the lists of files and packages lack. `None` in manifests of older versions of kiln.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<ListedContents>,
    /// SHA-256 over the sorted file tree; `None` if not all files are known.
    #[serde(default)]
    pub content_sha256: Option<Sha256Digest>,
    /// The distribution, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<ManifestOs>,
    /// The type of `packages`, as in package URLs: `deb`, `apk` or `rpm`. Packages of another database have a type of their
    /// own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package_type: Option<String>,
    /// Packages in the guest's package database.
    #[serde(default)]
    pub packages: Vec<ManifestPackage>,
    /// The tests that the sealed image passed, or that did not run.
    #[serde(default)]
    pub tests: Vec<ManifestTest>,
    /// Files that steps fetched from the guest.
    #[serde(default)]
    pub fetched: Vec<StoredFile>,
    /// Symbolic links among the fetched files, with their targets. They are not in `SHA256SUMS`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fetched_links: BTreeMap<String, String>,
    /// Folders among the fetched files that contain no file and no link. They are not in `SHA256SUMS`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub fetched_folders: BTreeSet<String>,
    /// What steps were answered with over a locked network, sorted by URL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub downloads: Vec<ManifestDownload>,
    /// Start time of the build.
    #[serde(with = "rfc3339")]
    pub started: Timestamp,
    /// Time of the publication.
    #[serde(with = "rfc3339")]
    pub finished: Timestamp,
    /// The clock of the guest during the build, seconds since 1970; `None` if the build followed the host's clock.
    #[serde(default)]
    pub source_date_epoch: Option<i64>,
}

/// Section `image` of the manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestImage {
    /// Name of the image.
    pub name: String,
    /// Version of the image.
    pub version: String,
    /// One-line description for people; may be empty.
    #[serde(default)]
    pub description: String,
    /// Labels of the spec.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Section `base` of the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestBase {
    /// Source of the base image, as written in the spec.
    pub source: String,
    /// SHA-256 of the file.
    pub sha256: Sha256Digest,
    /// Format of the file.
    pub format: String,
    /// The image of the store that it was, if any.
    #[serde(default)]
    pub image: Option<ManifestBaseImage>,
}

/// Section `base.image` of the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestBaseImage {
    /// Name of the image.
    pub name: String,
    /// Version of the image.
    pub version: String,
    /// `build_key` of the image.
    pub build_key: String,
    /// `disk_sha256` of the image.
    #[serde(default)]
    pub disk_sha256: Option<Sha256Digest>,
    /// `disk_chunks_sha256` of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_chunks_sha256: Option<Sha256Digest>,
}

/// Section `kernel` of the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestKernel {
    /// The kernel, a file of the version.
    #[serde(flatten)]
    pub image: StoredFile,
    /// Its initrd, a file of the version, if it has one.
    #[serde(default)]
    pub initrd: Option<StoredFile>,
    /// Its whole command line.
    pub cmdline: String,
}

impl ManifestKernel {
    /// Returns the files, the kernel first.
    pub fn files(&self) -> impl Iterator<Item = &StoredFile> {
        iter::once(&self.image).chain(&self.initrd)
    }
}

/// Section `machine` of the manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestMachine {
    /// The accelerator that was used: `kvm` or `tcg`.
    pub accel: String,
    /// Reason for the choice of the accelerator.
    #[serde(default)]
    pub accel_reason: String,
    /// Version of QEMU.
    pub qemu: String,
    /// QEMU's versioned machine type.
    #[serde(default)]
    pub machine_type: String,
    /// Name of the CPU model.
    #[serde(default)]
    pub cpu: String,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Guest memory, bytes.
    pub memory: u64,
    /// Firmware: `bios` or `uefi`.
    pub firmware: String,
    /// SHA-256 of the UEFI firmware's code; `None` for `bios`, whose firmware is a part of QEMU.
    #[serde(default)]
    pub firmware_sha256: Option<Sha256Digest>,
    /// `direct` where QEMU started the image's kernel with kiln's agent as its first process; `None` for a full boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// `planted` where kiln's agent was planted on the disk before the guest booted, since cloud-init did not start it;
    /// `planted-later` where it was before a reboot, after a step had disabled cloud-init; `None` otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Network: `none` or `user`.
    #[serde(default)]
    pub network: String,
    /// Private addresses that the guest could reach, as in the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private_network: Vec<String>,
}

/// An entry of `steps`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ManifestStep {
    /// Name of the step in the spec.
    pub name: String,
    /// Action of the step.
    pub verb: String,
    /// Digest of everything that the step depends on.
    pub key: String,
    /// Whether its result came from the cache.
    pub cached: bool,
    /// Wall time; 0 for a cached step.
    pub seconds: f64,
}

/// An entry of `downloads`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestDownload {
    /// The URL, without credentials.
    pub url: String,
    /// Kind of the request; absent for a `GET`.
    #[serde(default, skip_serializing_if = "RequestKind::is_get")]
    pub kind: RequestKind,
    /// SHA-256 of the answer's body.
    pub sha256: Sha256Digest,
    /// Size of the answer's body.
    pub bytes: u64,
    /// HTTP status of the answer.
    pub status: u16,
    /// Names of the steps that made the request.
    pub steps: BTreeSet<String>,
}

impl From<&RecordedAnswer> for ManifestDownload {
    fn from(answer: &RecordedAnswer) -> Self {
        let RecordedAnswer { request, status, sha256, bytes, headers: _, steps } = answer;
        Self {
            url: request.url.clone(),
            kind: request.kind,
            sha256: *sha256,
            bytes: *bytes,
            status: *status,
            steps: steps.clone(),
        }
    }
}

/// An entry of `outputs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestOutput {
    /// File name inside the version folder.
    pub file: String,
    /// Format of the file.
    pub format: String,
    /// Length of the file. The store fills it in when it publishes.
    pub bytes: u64,
    /// Size of the disk that the guest sees, bytes.
    pub virtual_bytes: u64,
    /// SHA-256 of the file. The store fills it in when it publishes.
    pub sha256: Sha256Digest,
}

impl ManifestOutput {
    /// Creates the entry of an output that is staged but not digested yet.
    #[must_use]
    pub fn staged(file: impl Into<String>, format: impl Into<String>, virtual_bytes: u64) -> Self {
        Self { file: file.into(), format: format.into(), bytes: 0, virtual_bytes, sha256: UNKNOWN }
    }
}

/// Section `contents` of the manifest: what the list of files and the list of packages lack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedContents {
    /// Whether every file on the guest's disk is listed.
    pub complete: bool,
    /// Files that are not listed, a sentence for each reason. Empty if the list is complete.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Package databases that could not be read, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages_missing: Vec<String>,
}

/// Section `os` of the manifest, from os-release(5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestOs {
    /// `debian`, `ubuntu`, `alpine`, ...; `linux` if the file has no id.
    pub id: String,
    /// Version of the distribution; may be empty.
    #[serde(default)]
    pub version: String,
    /// Name of the distribution for people; may be empty.
    #[serde(default)]
    pub name: String,
}

/// An entry of `packages`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ManifestPackage {
    /// Name of the package.
    pub name: String,
    /// Version of the package, as its package format writes it.
    pub version: String,
    /// Architecture of the package, as its package format writes it.
    pub arch: String,
    /// Type of the package, if it differs from the manifest's `package_type`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// An entry of `tests`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ManifestTest {
    /// Name of the test in the spec.
    pub name: String,
    /// Whether the test passed.
    pub ok: bool,
    /// Wall time over all attempts; 0 if it did not run.
    pub seconds: f64,
    /// Whether it was skipped: the image was built with `--no-test`.
    #[serde(default)]
    pub skipped: bool,
    /// The format of the image file that was tested.
    #[serde(default)]
    pub format: String,
    /// Definition of the test, so that it can be run again.
    #[serde(default)]
    pub definition: serde_json::Value,
}

/// A file of the version besides its outputs: an entry of `fetched`, or a part of `kernel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Path inside the version folder.
    pub file: String,
    /// Length of the file. The store fills it in when it publishes.
    pub bytes: u64,
    /// SHA-256 of the file. The store fills it in when it publishes.
    pub sha256: Sha256Digest,
}

impl StoredFile {
    /// Creates the entry of a file that is staged but not digested yet.
    #[must_use]
    pub fn staged(file: impl Into<String>) -> Self {
        Self { file: file.into(), bytes: 0, sha256: UNKNOWN }
    }
}

/// The two fields that are parsed before the rest.
#[derive(Deserialize)]
struct ManifestHead {
    schema: u64,
    #[serde(default)]
    sequence: u64,
}

/// Reads the sequence number only, and refuses a newer schema.
pub(super) fn parse_sequence(text: &[u8], path: &Path) -> Result<u64, StoreError> {
    let head: ManifestHead = serde_json::from_slice(text).map_err(StoreError::malformed(path))?;
    if head.schema > u64::from(SCHEMA) {
        return Err(StoreError::NewerSchema { path: path.to_owned(), found: head.schema, known: SCHEMA });
    }
    Ok(head.sequence)
}

/// Refuses a newer schema, whatever else the file contains.
pub(super) fn check_schema(text: &[u8], path: &Path) -> Result<(), StoreError> {
    parse_sequence(text, path).map(drop)
}

impl Manifest {
    /// Returns the known gaps in the lists of files and packages.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        let contents = self.contents.iter();
        contents.flat_map(|contents| contents.missing.iter().chain(&contents.packages_missing)).map(String::as_str)
    }

    /// Returns the digests of the disk, with the names of their fields.
    pub fn disk_digests(&self) -> impl Iterator<Item = (&'static str, Sha256Digest)> {
        let all = [("disk_sha256", self.disk_sha256), ("disk_chunks_sha256", self.disk_chunks_sha256)];
        all.into_iter().filter_map(|(name, digest)| Some((name, digest?)))
    }

    /// Returns the type of a package, as in package URLs; `None` if it is not known.
    #[must_use]
    pub fn type_of<'a>(&'a self, package: &'a ManifestPackage) -> Option<&'a str> {
        package.kind.as_deref().or(self.package_type.as_deref())
    }

    /// Parses a manifest; `path` is for messages.
    ///
    /// # Errors
    /// A newer schema, or not a manifest.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self, StoreError> {
        check_schema(text, path)?;
        serde_json::from_slice(text).map_err(StoreError::malformed(path))
    }

    /// Reads the manifest in a version's folder.
    pub(super) fn read(folder: &Folder) -> Result<Self, StoreError> {
        Self::parse(&folder.read(FILE, LARGEST)?, &folder.path().join(FILE))
    }

    /// Serialises the manifest: indented, with a newline at the end, the same bytes for the same manifest.
    ///
    /// # Panics
    /// Never: the type contains neither maps with keys that are not strings nor serialisers that fail.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a manifest is plain data");
        text.push('\n');
        text
    }

    /// Fills in the size and digest of every file that the manifest lists, and the digest of the disk if one of them is that.
    pub(super) fn fill(&mut self, digests: &BTreeMap<String, Digest>) -> Result<(), StoreError> {
        let outputs = self.outputs.iter_mut().map(|output| (&output.file, &mut output.bytes, &mut output.sha256));
        let kernel = self.kernel.iter_mut().flat_map(|kernel| iter::once(&mut kernel.image).chain(&mut kernel.initrd));
        let others = self.fetched.iter_mut().chain(kernel);
        let others = others.map(|file| (&file.file, &mut file.bytes, &mut file.sha256));
        for (file, bytes, sha256) in outputs.chain(others) {
            let digest = digests.get(file).ok_or_else(|| StoreError::NotStaged(file.clone()))?;
            *bytes = digest.bytes;
            *sha256 = digest.sha256;
        }
        // Such a file is the disk itself.
        let raw =
            self.outputs.iter().find(|output| output.format == RAW && Some(output.virtual_bytes) == self.disk_bytes);
        self.disk_sha256 = self.disk_sha256.or_else(|| raw.map(|output| output.sha256));
        Ok(())
    }

    /// Returns file, length and digest of everything whose digest is in the manifest.
    pub(super) fn vouched(&self) -> impl Iterator<Item = (&str, u64, Sha256Digest)> {
        let outputs = self.outputs.iter().map(|o| (o.file.as_str(), o.bytes, o.sha256));
        let kernel = self.kernel.iter().flat_map(ManifestKernel::files);
        outputs.chain(self.fetched.iter().chain(kernel).map(|f| (f.file.as_str(), f.bytes, f.sha256)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::digest::of_bytes;

    /// Returns a manifest that is not published yet, with one qcow2 output.
    pub(crate) fn sample(name: &str, version: &str, build_key: &str) -> Manifest {
        Manifest {
            schema: SCHEMA,
            sequence: 0,
            kiln: "0.1.0".into(),
            image: ManifestImage { name: name.into(), version: version.into(), ..ManifestImage::default() },
            build_key: build_key.into(),
            base: ManifestBase {
                source: "debian-12.qcow2".into(),
                sha256: Sha256Digest::of("debian-12.qcow2"),
                format: "qcow2".into(),
                image: None,
            },
            kernel: None,
            machine: ManifestMachine {
                accel: "tcg".into(),
                qemu: "10.0.2".into(),
                cpus: 2,
                memory: 1 << 30,
                firmware: "bios".into(),
                ..ManifestMachine::default()
            },
            steps: vec![ManifestStep {
                name: "install".into(),
                verb: "run".into(),
                seconds: 1.5,
                ..ManifestStep::default()
            }],
            outputs: vec![ManifestOutput::staged(format!("{name}-{version}.qcow2"), "qcow2", 8 << 30)],
            disk_sha256: Some(Sha256Digest::of("disk")),
            disk_chunks_sha256: Some(Sha256Digest::of("chunks")),
            disk_bytes: Some(8 << 30),
            contents: None,
            content_sha256: None,
            os: None,
            package_type: None,
            packages: Vec::new(),
            tests: Vec::new(),
            fetched: Vec::new(),
            fetched_links: BTreeMap::new(),
            fetched_folders: BTreeSet::new(),
            downloads: Vec::new(),
            started: "2026-01-02T03:04:05Z".parse().unwrap(),
            finished: "2026-01-02T03:05:05Z".parse().unwrap(),
            source_date_epoch: Some(1_767_323_045),
        }
    }

    fn parse(text: &str) -> Result<Manifest, StoreError> {
        Manifest::parse(text.as_bytes(), Path::new("manifest.json"))
    }

    #[test]
    fn a_manifest_survives_a_round_trip() {
        let manifest = sample("web", "1.4.0", "k");
        assert_eq!(parse(&manifest.to_json()).unwrap(), manifest);
    }

    #[test]
    fn the_files_of_a_kernel_are_vouched_for() {
        let [image, initrd] = ["web-1.kernel", "web-1.initrd"].map(StoredFile::staged);
        let kernel = ManifestKernel { image, initrd: Some(initrd), cmdline: "quiet".into() };
        let mut manifest = Manifest { kernel: Some(kernel), ..sample("web", "1", "k") };
        let names = ["web-1.qcow2", "web-1.kernel", "web-1.initrd"];
        let digests = BTreeMap::from(names.map(|file| (file.to_owned(), of_bytes(file.as_bytes()))));
        manifest.fill(&digests).unwrap();
        assert_eq!(parse(&manifest.to_json()).unwrap(), manifest);
        let vouched: Vec<_> = manifest.vouched().map(|(file, _, sha256)| (file, sha256)).collect();
        assert_eq!(vouched, names.map(|file| (file, digests[file].sha256)));
    }

    #[test]
    fn times_are_written_in_utc_to_the_second() {
        let mut manifest = sample("web", "1", "k");
        manifest.started = "2026-01-02T03:04:05.987+01:00".parse().unwrap();
        assert!(manifest.to_json().contains(r#""started": "2026-01-02T02:04:05Z""#));
    }

    #[test]
    fn unknown_fields_of_the_same_schema_are_tolerated() {
        let text = sample("web", "1", "k").to_json().replacen('{', r#"{"signature": {"by": "me"},"#, 1);
        assert_eq!(parse(&text).unwrap(), sample("web", "1", "k"));
    }

    /// Covers fault row D2. A newer schema may have any shape, so it is refused by its number before the rest is read.
    #[test]
    fn d2_a_newer_schema_is_refused_whatever_else_it_holds() {
        let error = parse(r#"{"schema": 2, "sequence": 7, "image": []}"#).unwrap_err();
        assert!(matches!(error, StoreError::NewerSchema { found: 2, known: 1, .. }), "{error:?}");
        assert!(matches!(parse("{}"), Err(StoreError::Malformed { .. })));
        assert!(matches!(parse(""), Err(StoreError::Malformed { .. })));
    }

    #[test]
    fn a_raw_file_has_the_digest_of_the_disk() {
        let digests = ["web-1.qcow2", "web-1.raw"].map(|file| (file.to_owned(), of_bytes(file.as_bytes())));
        let digests = BTreeMap::from(digests);
        let mut manifest = Manifest { disk_sha256: None, ..sample("web", "1", "k") };
        manifest.fill(&digests).unwrap();
        assert_eq!(manifest.disk_sha256, None);
        let chunks = [("disk_chunks_sha256", Sha256Digest::of("chunks"))];
        assert_eq!(manifest.disk_digests().collect::<Vec<_>>(), chunks);
        manifest.outputs.push(ManifestOutput::staged("web-1.raw", "raw", 8 << 30));
        manifest.fill(&digests).unwrap();
        assert_eq!(manifest.disk_sha256, Some(digests["web-1.raw"].sha256));
        assert_eq!(parse(&manifest.to_json()).unwrap(), manifest);
    }

    #[test]
    fn a_manifest_without_digests_of_chunks_is_read() {
        let mut manifest = sample("web", "1", "k");
        manifest.disk_chunks_sha256 = None;
        let text = manifest.to_json();
        assert!(
            !text.contains("chunks") && text.contains(&format!(r#""disk_sha256": "{}""#, Sha256Digest::of("disk")))
        );
        assert_eq!(parse(&text).unwrap(), manifest);
    }

    #[test]
    fn a_malformed_digest_is_refused_with_its_value() {
        let manifest = sample("web", "1", "k");
        let digest = manifest.disk_sha256.unwrap().to_string();
        let text = manifest.to_json();
        let upper = parse(&text.replace(&digest, &digest.to_uppercase())).unwrap();
        assert_eq!(upper.to_json(), text);
        let error = parse(&text.replace(&digest, "../../etc")).unwrap_err();
        let StoreError::Malformed { source, .. } = error else { panic!("{error}") };
        let expected = "\"../../etc\" is not a SHA-256 digest, which has 64 hex digits";
        assert!(source.to_string().starts_with(expected), "{source}");
    }

    #[test]
    fn a_listed_file_must_have_been_staged() {
        let error = sample("web", "1", "k").fill(&BTreeMap::new()).unwrap_err();
        assert!(matches!(error, StoreError::NotStaged(file) if file == "web-1.qcow2"));
    }
}
