//! Reads an untrusted base image's header before any QEMU tool may open it, and refuses images that refer to this host.
//!
//! QEMU follows a header: a backing file or a data file may name any file, device or URL of the host, and `-f qcow2` does
//! not prevent that. So a base that names anything outside itself never gets as far as QEMU. Nothing here reads more than
//! the first cluster, three tables of bounded size and the last sector.

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::error::{Fault, Kind};
use crate::specfile::BaseFormat;

use super::bytes::{be64_table, read_up_to};
use super::header_error::HeaderError;
use super::magic::{self, DiskSignature, FileLook};
use super::qcow2::header::{Codec, HEAD_LIMIT, Qcow2Header};
use super::qcow2::reader::OFFSET;

/// A base image that passed inspection. It is never written.
#[derive(Debug)]
pub struct BaseImage {
    /// The path as the user wrote it.
    pub path: PathBuf,
    /// The opened file: the file that was inspected is also the one that is hashed, whatever happens to the name.
    pub file: File,
    /// The result of the inspection.
    pub facts: BaseHeader,
}

/// The properties of a base image that its header shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseHeader {
    /// The format, declared by the spec and confirmed by the bytes.
    pub format: BaseFormat,
    /// The size in bytes of the disk that the guest sees.
    pub virtual_size: u64,
    /// The size of the file in bytes; holes count.
    pub file_size: u64,
    /// The compression of compressed clusters; `None` for raw. The header does not say whether there are any.
    pub codec: Option<Codec>,
    /// Warnings for the user, one sentence each.
    pub warnings: Vec<String>,
}

/// The error of a base image that is refused.
#[derive(Debug, thiserror::Error)]
#[error("base image {}: {why}", .path.display())]
pub struct InspectionError {
    path: PathBuf,
    why: BaseHeaderError,
}

/// The reason of a [`InspectionError`].
#[derive(Debug, thiserror::Error)]
pub enum BaseHeaderError {
    /// It cannot be opened or read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is a directory, FIFO, device or socket.
    #[error("this is {0}, not a file")]
    NotAFile(&'static str),
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// It is a raw disk without a boot sector.
    #[error("the first 64 KiB are all zero: there is no boot sector or partition table")]
    Blank,
    /// It is a raw disk that ends within a sector.
    #[error("a raw disk is whole sectors of 512 bytes, this file has {0} bytes: is it truncated?")]
    PartSector(u64),
    /// It is larger than 64 TiB.
    #[error("{0} bytes is larger than any disk kiln builds (64 TiB)")]
    TooLarge(u64),
    /// The bytes have another format than the spec or the command line declares.
    #[error("{} was expected, but the file is {}", format_name(*.declared), .found.name())]
    Mismatch {
        /// The declared format.
        declared: BaseFormat,
        /// The format of the bytes.
        found: DiskSignature,
    },
    /// The bytes are no known disk format, and qcow2 is declared.
    #[error("qcow2 was expected, but the file is {look}")]
    NotQcow2 {
        /// A guess at what the file is.
        look: FileLook,
    },
    /// The file has the signatures of several formats.
    #[error("the file looks like multiple formats at once: {}", names(.0))]
    Multiple(Vec<DiskSignature>),
    /// The qcow2 header is refused.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// It depends on another file.
    #[error("the image has a backing file (`{0}`), which could be any file of this host")]
    BackingFile(String),
    /// It has internal snapshots.
    #[error("the image holds {0} internal snapshots, perhaps with a guest's memory in them")]
    Snapshots(u32),
    /// Clusters in use lie beyond the end of the file.
    #[error("the image's clusters in use reach to byte {used}, the file ends at byte {file_size}: it is truncated")]
    Truncated {
        /// The offset of the last cluster in use.
        used: u64,
        /// The size of the file.
        file_size: u64,
    },
    /// It is a small file whose tables are used many times, so that its disk would be huge.
    #[error("the image has {tables} L2 tables, which do not fit into {file_size} bytes: some are in use twice")]
    SharedTables {
        /// How many tables its L1 table names.
        tables: u64,
        /// The size of the file.
        file_size: u64,
    },
}

fn format_name(format: BaseFormat) -> &'static str {
    match format {
        BaseFormat::Qcow2 => "qcow2",
        BaseFormat::Raw => "raw",
    }
}

fn names(found: &[DiskSignature]) -> String {
    found.iter().map(|found| found.name()).collect::<Vec<_>>().join(", ")
}

impl InspectionError {
    /// Returns the path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the reason of the refusal.
    #[must_use]
    pub fn why(&self) -> &BaseHeaderError {
        &self.why
    }

    fn flatten_hint(&self, what: &str) -> String {
        let path = self.path.display();
        format!("if you trust it, make a plain copy {what}: qemu-img convert -f qcow2 -O qcow2 {path} plain.qcow2")
    }
}

impl Fault for InspectionError {
    fn kind(&self) -> Kind {
        Kind::Base
    }

    fn hints(&self) -> Vec<String> {
        match &self.why {
            BaseHeaderError::Io(error) if error.kind() == io::ErrorKind::NotFound => vec![
                "a path is relative to the spec's own folder; `url`, with `sums` or `sha256`, lets kiln download the image"
                    .to_owned(),
            ],
            BaseHeaderError::Empty | BaseHeaderError::NotQcow2 { look: FileLook::Page | FileLook::Text } => {
                vec!["the download may have failed: get it again and compare its checksum".to_owned()]
            }
            BaseHeaderError::NotQcow2 { look: FileLook::BootSector } => vec![mismatch_hint(DiskSignature::PartitionTable)],
            BaseHeaderError::NotQcow2 { look: FileLook::Unknown } => {
                vec!["if it is a raw disk, write format = \"raw\" under [base]; `file` and `qemu-img info` tell what it is".to_owned()]
            }
            BaseHeaderError::NotAFile(_) => vec!["name a file; a disk can be copied to one with `qemu-img convert`".to_owned()],
            BaseHeaderError::Mismatch { found, .. } => vec![mismatch_hint(*found)],
            BaseHeaderError::BackingFile(_) => vec![self.flatten_hint("that needs no backing file")],
            BaseHeaderError::Snapshots(_) => vec![self.flatten_hint("without the snapshots")],
            BaseHeaderError::Header(HeaderError::ExtendedL2) => vec![self.flatten_hint("without extended L2 entries")],
            BaseHeaderError::Header(HeaderError::DataFile) => vec![self.flatten_hint("that holds its own data")],
            BaseHeaderError::Header(HeaderError::Corrupt) => vec!["get a fresh copy of the image".to_owned()],
            BaseHeaderError::Truncated { .. } | BaseHeaderError::PartSector(_) | BaseHeaderError::Header(HeaderError::Truncated) => {
                vec!["the download or copy may not have finished: get it again and compare its checksum".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

fn mismatch_hint(found: DiskSignature) -> String {
    match found {
        DiskSignature::Qcow2 => "write format = \"qcow2\" under [base]".to_owned(),
        DiskSignature::PartitionTable => "write format = \"raw\" under [base], where qcow2 is the default".to_owned(),
        DiskSignature::Disk("luks") => "an encrypted disk cannot be a base".to_owned(),
        DiskSignature::Disk(name) => {
            format!("if you trust it, convert it first: qemu-img convert -f {name} -O qcow2 <the file> base.qcow2")
        }
        DiskSignature::Iso => "an installation medium is no base; use a disk image with a system installed".to_owned(),
        DiskSignature::Packed(name) => format!("unpack it first; kiln does not unpack {name}"),
    }
}

impl BaseImage {
    /// Opens and inspects the file at `path`; symbolic links are followed.
    ///
    /// # Errors
    /// When it is not a regular file, not of this format, or must not be opened by QEMU.
    pub fn open(path: &Path, format: BaseFormat) -> Result<Self, InspectionError> {
        let opened = open_regular(path).and_then(|file| Ok((inspect(&file, format)?, file)));
        match opened {
            Ok((facts, file)) => Ok(Self { path: path.to_owned(), file, facts }),
            Err(why) => Err(InspectionError { path: path.to_owned(), why }),
        }
    }
}

/// Checks a file that a guest will write to as a disk, by the rules for base images, but that it may be blank. Returns the
/// open file.
///
/// # Errors
/// As [`BaseImage::open`].
pub fn open_extra_disk(path: &Path, format: BaseFormat) -> Result<File, BaseHeaderError> {
    let file = open_regular(path)?;
    let length = file.metadata()?.len();
    match inspect(&file, format) {
        Err(BaseHeaderError::Blank) if !length.is_multiple_of(512) => Err(BaseHeaderError::PartSector(length)),
        Ok(_) | Err(BaseHeaderError::Blank) => Ok(file),
        Err(why) => Err(why),
    }
}

/// Opens a regular file and nothing else. The type is checked first, because opening alone may do something (a tape rewinds,
/// a watchdog starts), and again afterwards, because another file may have got the name in between; `O_NONBLOCK` keeps a
/// FIFO that got the name from blocking kiln.
fn open_regular(path: &Path) -> Result<File, BaseHeaderError> {
    check_type(fs::metadata(path)?.file_type())?;
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    check_type(file.metadata()?.file_type())?;
    Ok(file)
}

fn check_type(kind: FileType) -> Result<(), BaseHeaderError> {
    match () {
        () if kind.is_file() => Ok(()),
        () if kind.is_dir() => Err(BaseHeaderError::NotAFile("a directory")),
        () if kind.is_fifo() => Err(BaseHeaderError::NotAFile("a FIFO")),
        () if kind.is_block_device() || kind.is_char_device() => Err(BaseHeaderError::NotAFile("a device")),
        () => Err(BaseHeaderError::NotAFile("a socket or something else")),
    }
}

/// Inspects an opened regular file.
///
/// # Errors
/// As [`BaseImage::open`].
pub fn inspect(file: &File, format: BaseFormat) -> Result<BaseHeader, BaseHeaderError> {
    let file_size = file.metadata()?.len();
    if file_size == 0 {
        return Err(BaseHeaderError::Empty);
    }
    let head = read_up_to(file, 0, HEAD_LIMIT)?;
    let start = &head[..head.len().min(magic::HEAD)];
    let tail = read_up_to(file, file_size.saturating_sub(magic::TAIL as u64), magic::TAIL)?;
    let found = magic::find(start, &tail);
    match format {
        BaseFormat::Qcow2 => {
            check_qcow2_signature(found, start)?;
            inspect_qcow2(file, &head, file_size)
        }
        BaseFormat::Raw => {
            check_raw_signature(found)?;
            inspect_raw(start, file_size)
        }
    }
}

fn check_qcow2_signature(found: Vec<DiskSignature>, start: &[u8]) -> Result<(), BaseHeaderError> {
    match found.as_slice() {
        [DiskSignature::Qcow2] => Ok(()),
        [] => Err(BaseHeaderError::NotQcow2 { look: FileLook::of(start) }),
        [other] => Err(BaseHeaderError::Mismatch { declared: BaseFormat::Qcow2, found: *other }),
        _ => Err(BaseHeaderError::Multiple(found)),
    }
}

fn check_raw_signature(mut found: Vec<DiskSignature>) -> Result<(), BaseHeaderError> {
    let all = found.clone();
    found.retain(|format| *format != DiskSignature::PartitionTable);
    match found.as_slice() {
        [] => Ok(()),
        // A hybrid ISO has a partition table and is still an installation medium.
        [DiskSignature::Iso] => Err(BaseHeaderError::Mismatch { declared: BaseFormat::Raw, found: DiskSignature::Iso }),
        [other] if all.len() == 1 => Err(BaseHeaderError::Mismatch { declared: BaseFormat::Raw, found: *other }),
        _ => Err(BaseHeaderError::Multiple(all)),
    }
}

fn inspect_raw(start: &[u8], file_size: u64) -> Result<BaseHeader, BaseHeaderError> {
    if start.iter().all(|byte| *byte == 0) {
        return Err(BaseHeaderError::Blank);
    }
    if !file_size.is_multiple_of(512) {
        return Err(BaseHeaderError::PartSector(file_size));
    }
    if file_size > 64 << 40 {
        return Err(BaseHeaderError::TooLarge(file_size));
    }
    Ok(BaseHeader { format: BaseFormat::Raw, virtual_size: file_size, file_size, codec: None, warnings: Vec::new() })
}

fn inspect_qcow2(file: &File, head: &[u8], file_size: u64) -> Result<BaseHeader, BaseHeaderError> {
    let header = Qcow2Header::parse(head, file_size)?;
    if let Some(name) = header.backing {
        return Err(BaseHeaderError::BackingFile(name));
    }
    if header.snapshots > 0 {
        return Err(BaseHeaderError::Snapshots(header.snapshots));
    }
    check_complete(file, &header, file_size)?;
    check_tables(file, &header, file_size)?;
    let mut warnings = Vec::new();
    if header.dirty {
        warnings.push("the base image was not closed cleanly (dirty bit); its data may be older than expected".into());
    } else if header.lazy_refcounts {
        warnings
            .push("the base image has lazy reference counts; a crash of its last writer may have left leaks".into());
    }
    Ok(BaseHeader {
        format: BaseFormat::Qcow2,
        virtual_size: header.virtual_size,
        file_size,
        codec: Some(header.codec),
        warnings,
    })
}

/// Refuses a file that ends before its last cluster in use: `qemu-img check` accepts a download that broke off, since it
/// reads the missing clusters as zeroes. The reference counts show the last cluster with two reads, however large the image
/// is ("Host cluster management").
fn check_complete(file: &File, header: &Qcow2Header, file_size: u64) -> Result<(), BaseHeaderError> {
    let cluster = header.cluster_size();
    let table_bytes = usize::try_from(header.refcounts.end - header.refcounts.start).unwrap_or(0);
    let table = be64_table(&read_up_to(file, header.refcounts.start, table_bytes)?);
    let Some(index) = table.iter().rposition(|entry| *entry != 0) else { return Ok(()) };
    let at = table[index] & !0x1ff;
    if at.checked_add(cluster).is_none_or(|end| end > file_size.next_multiple_of(cluster)) {
        return Err(BaseHeaderError::Truncated { used: at, file_size });
    }
    let block = read_up_to(file, at, 1 << header.cluster_bits)?;
    let Some(last) = block.iter().rposition(|byte| *byte != 0) else { return Ok(()) };
    // Counts narrower than a byte fill it from the low bits up, so the highest bit set is in the last count in use.
    let bit = (last as u64) * 8 + u64::from(block[last].ilog2());
    let counts_per_block = (cluster * 8) >> header.refcount_order;
    let last_used = index as u64 * counts_per_block + (bit >> header.refcount_order);
    let used = last_used.saturating_mul(cluster);
    if used < file_size { Ok(()) } else { Err(BaseHeaderError::Truncated { used, file_size }) }
}

/// Refuses an L1 table that uses a table in many places, which gives a small file a disk of any size. Clusters that are used
/// twice are detected when the disk is read.
fn check_tables(file: &File, header: &Qcow2Header, file_size: u64) -> Result<(), BaseHeaderError> {
    let bytes = usize::try_from(header.l1.end - header.l1.start).unwrap_or(0);
    let l1 = be64_table(&read_up_to(file, header.l1.start, bytes)?);
    let tables = l1.iter().filter(|entry| **entry & OFFSET != 0).count() as u64;
    let fits = tables * header.cluster_size() <= file_size.next_multiple_of(header.cluster_size());
    if fits { Ok(()) } else { Err(BaseHeaderError::SharedTables { tables, file_size }) }
}
