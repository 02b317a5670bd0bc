//! A typed interface to `qemu-img`, which converts a finished chain to an output file.
//!
//! Every file is named with its driver, in a complete block graph, so nothing is probed and no name in a header is followed.
//! A guest that writes a qcow2 header into its raw disk gains nothing (CVE-2026-24708): a raw layer stays raw, and nothing
//! here ever resizes an image in place. The child is [`walled`]: it reaches the files of the graph and the target's folder,
//! and nothing else of this host. Dropping the future kills it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::error::{Fault, Kind};
use crate::process::{ProcessSandbox, SandboxPolicy, describe, stderr_tail, walled};
use crate::size::ByteSize;
use crate::specfile::{Compression, DiskFormat};

use super::chain::{Chain, ChainFile};

const PROGRAM: &str = "qemu-img";

/// The address space of `qemu-img` without its files, in bytes: ten times the observed size, for hosts with many more
/// processors.
const ADDRESS_SPACE: u64 = 8 << 30;
/// The address space for the tables of each file and their caches, in bytes.
const ADDRESS_SPACE_PER_FILE: u64 = 128 << 20;
/// The allowance for tables in bytes: more than those of an empty qcow2 file; those of a full one take less than a
/// thousandth of its clusters.
const LEAST_FILE: u64 = 16 << 20;

/// A file of a block graph, by name: `qemu-img` opens it itself.
#[derive(Debug, Clone, Copy)]
pub struct QemuImgSource<'a> {
    /// The path of the file.
    pub path: &'a Path,
    /// The format, as stated by the caller; it is never guessed.
    pub format: DiskFormat,
}

/// The output of [`convert`].
#[derive(Debug, Clone, Copy)]
pub struct QemuImgTarget<'a> {
    /// The path of the output; an existing file is overwritten.
    pub path: &'a Path,
    /// The format of the output.
    pub format: DiskFormat,
    /// The compression of its clusters; a raw file has none.
    pub compression: Compression,
    /// The size of the disk in bytes, whole sectors, if the chain is larger.
    pub size: Option<u64>,
}

/// The error of a `qemu-img` run.
#[derive(Debug, thiserror::Error)]
pub enum QemuImgError {
    /// `qemu-img` is missing, or cannot be started.
    #[error("cannot start {PROGRAM}")]
    Start(#[source] io::Error),
    /// Waiting for `qemu-img` failed.
    #[error("lost {PROGRAM}")]
    Wait(#[source] io::Error),
    /// A path is not valid UTF-8, so that it cannot be passed as JSON.
    #[error("the path {} is not UTF-8, which {PROGRAM} needs", .0.display())]
    Path(PathBuf),
    /// The disk of this host is full, or a limit or quota is reached.
    #[error("no space for {}: {stderr}{}", .path.display(), room(*.need, *.have))]
    NoSpace {
        /// The file that was being written.
        path: PathBuf,
        /// The space that it may need at most, if known.
        need: Option<ByteSize>,
        /// The space that is free now, if known.
        have: Option<ByteSize>,
        /// The output of `qemu-img`.
        stderr: String,
    },
    /// The file system does not allow files as large as the disk.
    #[error("a raw disk of {size} is larger than any file can be in {}", folder.display())]
    TooLarge {
        /// The folder of the file.
        folder: PathBuf,
        /// The size of the disk.
        size: ByteSize,
    },
    /// `qemu-img` failed for any other reason.
    #[error("{PROGRAM} {verb} ended with {status}: {stderr}")]
    Failed {
        /// The subcommand of `qemu-img`.
        verb: &'static str,
        /// How the process ended.
        status: String,
        /// The end of its output.
        stderr: String,
    },
}

fn room(need: Option<ByteSize>, have: Option<ByteSize>) -> String {
    let need = need.map(|need| format!("; needs at most {need}")).unwrap_or_default();
    let have = have.map(|have| format!("; {have} are free")).unwrap_or_default();
    need + &have
}

impl Fault for QemuImgError {
    fn kind(&self) -> Kind {
        match self {
            QemuImgError::Failed { .. } | QemuImgError::TooLarge { .. } => Kind::Output,
            _ => Kind::Host,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            QemuImgError::Start(error) if error.kind() == io::ErrorKind::NotFound => {
                vec![format!("install {PROGRAM}: Debian and Ubuntu have it in the package qemu-utils")]
            }
            QemuImgError::NoSpace { .. } => vec!["make room, or put the store elsewhere with --store".to_owned()],
            QemuImgError::TooLarge { .. } => {
                vec!["write qcow2, which takes only what the disk holds, or use another file system".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// Converts the disk of a chain, top first, to one file. `progress` is called with fractions from 0 to 1. Dropping the
/// future kills `qemu-img` and leaves an incomplete file behind; a failure leaves none.
///
/// The same disk gives the same bytes: that rules out `-W`, which writes clusters in the order in which they are ready.
///
/// # Errors
/// When `qemu-img` is missing or fails, or the disk is full.
pub async fn convert(
    chain: &[QemuImgSource<'_>],
    target: QemuImgTarget<'_>,
    progress: impl FnMut(f64),
) -> Result<(), QemuImgError> {
    let target = QemuImgTarget { path: &absolute(target.path)?, ..target };
    let folder = target.path.parent().unwrap_or(Path::new("/"));
    let size = disk_size(chain);
    if target.format == DiskFormat::Raw {
        check_fits(folder, size)?;
    }
    let mut command = walled(PROGRAM, wall(chain, folder, size).map_err(QemuImgError::Start)?);
    // -m allows 16 coroutines; each compresses in a thread of its own.
    command.args(["convert", "-p", "-m", "16", "-O"]).args(target_options(target.format, target.compression));
    let mut graph = graph(chain)?;
    if let Some(size) = target.size {
        graph = json!({ "driver": "raw", "size": size, "file": graph });
    }
    command.arg(format!("json:{graph}")).arg(target.path);
    let run = run(command, "convert", progress).await;
    if !run.as_ref().is_ok_and(|run| run.status.success()) {
        // The file is removed before the free space is determined. It may not even exist; only the first error matters.
        let _ = std::fs::remove_file(target.path);
    }
    run?.check(target.path, Some(ByteSize(chain.iter().map(|image| allocated(image.path)).sum())))
}

/// Creates the sandbox of a conversion of this disk.
fn wall(chain: &[QemuImgSource<'_>], folder: &Path, size: u64) -> io::Result<ProcessSandbox> {
    let allowed = SandboxPolicy {
        read: chain.iter().map(|image| image.path).collect(),
        write: folder,
        address_space: ADDRESS_SPACE + chain.len() as u64 * ADDRESS_SPACE_PER_FILE,
        file_size: LEAST_FILE + size + size / 1000,
    };
    ProcessSandbox::new(PROGRAM, &allowed)
}

/// Returns the size of the disk; 0 if the top does not have its declared format, for which `qemu-img` gives the better
/// error.
fn disk_size(chain: &[QemuImgSource<'_>]) -> u64 {
    let top = chain.first().and_then(|top| Some(ChainFile { file: File::open(top.path).ok()?, format: top.format }));
    top.and_then(|top| Chain::open(vec![top]).ok()).map_or(0, |disk| disk.virtual_size())
}

/// Refuses a raw disk that is larger than any file can be in this folder (4 GiB on FAT, 16 TiB on ext4). Nothing is written:
/// beyond that size a file cannot even be positioned. Other errors of the folder are reported when it is used.
///
/// # Errors
/// When the disk is too large.
pub fn check_fits(folder: &Path, size: u64) -> Result<(), QemuImgError> {
    match tempfile::tempfile_in(folder).and_then(|mut file| file.seek(SeekFrom::Start(size))) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            Err(QemuImgError::TooLarge { folder: folder.to_owned(), size: ByteSize(size) })
        }
        _ => Ok(()),
    }
}

fn target_options(format: DiskFormat, compression: Compression) -> &'static [&'static str] {
    match (format, compression) {
        (DiskFormat::Raw, _) => &["raw", "-S", "4k"],
        (DiskFormat::Qcow2, Compression::Zstd) => &["qcow2", "-c", "-o", "compression_type=zstd"],
        (DiskFormat::Qcow2, Compression::Zlib) => &["qcow2", "-c", "-o", "compression_type=zlib"],
        (DiskFormat::Qcow2, Compression::None) => &["qcow2"],
        (DiskFormat::Vmdk, _) => &["vmdk", "-o", "subformat=streamOptimized"],
        (DiskFormat::Vdi, _) => &["vdi"],
        (DiskFormat::Vhdx, _) => &["vhdx", "-o", "subformat=dynamic"],
        (DiskFormat::Vhd, _) => &["vpc", "-o", "subformat=fixed,force_size=on"],
    }
}

/// Builds the block graph of a chain: each file under its driver, the next one as its backing, `null` below the last.
fn graph(chain: &[QemuImgSource<'_>]) -> Result<Value, QemuImgError> {
    let mut below = Value::Null;
    for image in chain.iter().rev() {
        let path = absolute(image.path)?;
        let name = path.to_str().ok_or_else(|| QemuImgError::Path(path.clone()))?;
        let file = json!({ "driver": "file", "filename": name });
        below = match image.format {
            DiskFormat::Qcow2 => json!({ "driver": "qcow2", "file": file, "backing": below }),
            other => json!({ "driver": other.driver(), "file": file }),
        };
    }
    Ok(below)
}

/// Makes a path absolute. It then begins with a slash, so it is neither an option nor a protocol (`nbd:`, `json:`) to
/// `qemu-img`.
fn absolute(path: &Path) -> Result<PathBuf, QemuImgError> {
    std::path::absolute(path).map_err(|_| QemuImgError::Path(path.to_owned()))
}

/// The result of a child process.
struct QemuImgExit {
    verb: &'static str,
    status: ExitStatus,
    stderr: String,
}

impl QemuImgExit {
    fn check(self, path: &Path, need: Option<ByteSize>) -> Result<(), QemuImgError> {
        if self.status.success() {
            return Ok(());
        }
        let stderr = self.stderr;
        if is_full(&stderr) || self.status.signal() == Some(Signal::SIGXFSZ as i32) {
            let have = path.parent().and_then(free_space);
            return Err(QemuImgError::NoSpace { path: path.to_owned(), need, have, stderr });
        }
        Err(QemuImgError::Failed { verb: self.verb, status: describe(self.status), stderr })
    }
}

/// Returns whether the output contains the message of `ENOSPC`, `EDQUOT` or `EFBIG` under `LC_ALL=C`.
fn is_full(stderr: &str) -> bool {
    ["No space left on device", "Disk quota exceeded", "File too large"].iter().any(|text| stderr.contains(text))
}

fn free_space(folder: &Path) -> Option<ByteSize> {
    let facts = nix::sys::statvfs::statvfs(folder).ok()?;
    Some(ByteSize(facts.blocks_available().saturating_mul(facts.fragment_size())))
}

/// Returns how many bytes a file takes on its disk; 0 if that cannot be determined.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |facts| facts.blocks() * 512)
}

async fn run(mut command: Command, verb: &'static str, progress: impl FnMut(f64)) -> Result<QemuImgExit, QemuImgError> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(QemuImgError::Start)?;
    // Both streams are piped just above, so that neither `take` returns None; without a stream there would be nothing to
    // read.
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let watch = async {
        if let Some(stdout) = stdout {
            watch_progress(stdout, progress).await;
        }
    };
    let tail = async {
        match stderr {
            Some(stderr) => stderr_tail(stderr).await,
            None => String::new(),
        }
    };
    let ((), stderr, status) = tokio::join!(watch, tail, child.wait());
    Ok(QemuImgExit { verb, status: status.map_err(QemuImgError::Wait)?, stderr })
}

/// Reads `(12.34/100%)\r` repeatedly. A longer string is no progress and is dropped.
async fn watch_progress(mut stdout: impl AsyncRead + Unpin, mut progress: impl FnMut(f64)) {
    const LONGEST: usize = 64;
    let mut text = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(count @ 1..) = stdout.read(&mut buffer).await {
        for byte in &buffer[..count] {
            match byte {
                b'\r' | b'\n' => {
                    if let Some(fraction) = parse_progress(&text) {
                        progress(fraction);
                    }
                    text.clear();
                }
                _ if text.len() < LONGEST => text.push(*byte),
                _ => {}
            }
        }
    }
}

fn parse_progress(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    let (_, rest) = text.split_once('(')?;
    let (percent, _) = rest.split_once("/100%)")?;
    let percent: f64 = percent.trim().parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_and_nothing_else() {
        assert_eq!(parse_progress(b"    (12.50/100%)"), Some(0.125));
        for bad in ["", "(", "(x/100%)", "(-1/100%)", "(101/100%)", "(NaN/100%)", "100%"] {
            assert_eq!(parse_progress(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_graph_names_every_driver_and_ends_in_null() {
        let image = |path, format| QemuImgSource { path: Path::new(path), format };
        let qcow2 = graph(&[image("/a,b", DiskFormat::Qcow2), image("/\"c", DiskFormat::Qcow2)]).unwrap();
        let below = json!({"driver": "qcow2", "file": {"driver": "file", "filename": "/\"c"}, "backing": null});
        let top = json!({"driver": "qcow2", "file": {"driver": "file", "filename": "/a,b"}, "backing": below});
        assert_eq!(qcow2, top);
        let raw = graph(&[image("/r", DiskFormat::Raw)]).unwrap();
        assert_eq!(raw, json!({"driver": "raw", "file": {"driver": "file", "filename": "/r"}}));
    }

    #[test]
    fn a_full_disk_is_the_hosts_fault() {
        use std::os::unix::process::ExitStatusExt;
        let check = |stderr: &str| {
            let run = QemuImgExit { verb: "convert", status: ExitStatus::from_raw(256), stderr: stderr.to_owned() };
            run.check(Path::new("/tmp/out"), Some(ByteSize::gib(1))).unwrap_err()
        };
        let full = check("qemu-img: error while writing at byte 8323072: No space left on device");
        assert_eq!(full.kind(), Kind::Host);
        assert!(full.to_string().contains("needs at most 1GiB; "), "{full}");
        assert_eq!(check("qemu-img: Could not open '/x'").kind(), Kind::Output);
    }
}
