//! A file that is being downloaded: its bytes so far, their origin, and their unpacked form.
//!
//! ```text
//! part/KEY/data            the bytes so far
//! part/KEY/origin.json     its URL and validators, by which a server identifies it
//! part/KEY/unpacked        its unpacked form so far
//! ```
//!
//! The downloading process holds an exclusive flock(2) on the folder. A process that finds it locked waits; one that finds
//! it free continues with the bytes that are there, and hashes and unpacks them from the first byte on. Nothing in this
//! folder is trusted.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use nix::fcntl::OFlag;

use crate::digest::Sha256Digest;
use crate::digest_cache;
use crate::fs::{FileLock, Fs, is_at, read_up_to, try_lock};
use crate::size::ByteSize;

use super::checksum::{Checksum, DownloadHasher};
use super::error::{AttemptError, DownloadError, TransferError};
use super::transfer::{TransferOrigin, TransferStart, TransferTarget};
use super::unpack::{FileCompression, FileUnpacker, UnpackError, UnpackedFile};
use super::watch::DownloadWatch;
use super::{FILE_MODE, FOLDER_MODE};

const DATA: &str = "data";
const ORIGIN: &str = "origin.json";
const UNPACKED: &str = "unpacked";
/// Size of reads, bytes.
const PIECE: usize = 256 << 10;
/// Size limit of the origin, a URL and two headers, bytes.
const LARGEST_ORIGIN: u64 = 256 << 10;

/// The right to download one file.
#[derive(Debug)]
pub(super) struct DownloadClaim {
    folder: PathBuf,
    _lock: FileLock,
    fs: Fs,
}

impl DownloadClaim {
    /// Creates the folder if it is missing, and waits until nobody else has it. Returns `None` if it was not there any more
    /// after the wait: another process has finished the download, or given up.
    pub(super) fn take(folder: &Path, fs: &Fs, watch: &mut DownloadWatch<'_>) -> Result<Option<Self>, DownloadError> {
        fs.ensure_dir(folder, FOLDER_MODE).map_err(DownloadError::cache("lock", folder))?;
        let file = match File::open(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(DownloadError::cache("lock", folder))?,
        };
        let lock = if try_lock(&file).map_err(DownloadError::cache("lock", folder))? {
            FileLock::exclusive(file)
        } else {
            watch.notice("waiting for another kiln that downloads the same file".into());
            wait(file, watch)?
        };
        let lock = lock.map_err(DownloadError::cache("lock", folder))?;
        let is_there = is_at(lock.file(), folder);
        Ok(is_there.then(|| Self { folder: folder.to_owned(), _lock: lock, fs: fs.clone() }))
    }

    /// Returns the path of the file before it is committed.
    pub(super) fn data(&self) -> PathBuf {
        self.folder.join(DATA)
    }

    /// Returns the path of the unpacked file before it is committed.
    pub(super) fn unpacked(&self) -> PathBuf {
        self.folder.join(UNPACKED)
    }

    /// Removes the folder. Files that cannot be removed are left to eviction.
    pub(super) fn discard(self) {
        let _ = self.fs.remove(&self.folder);
    }

    /// Keeps what can be continued: the bytes as they were downloaded.
    pub(super) fn leave(self) {
        if fs::metadata(self.data()).is_ok_and(|data| data.len() > 0) {
            let _ = self.fs.remove(&self.unpacked());
        } else {
            self.discard();
        }
    }
}

/// Waits for the lock in a thread, since flock(2) cannot be interrupted. The thread releases the lock at once if the
/// receiver is gone.
fn wait(file: File, watch: &mut DownloadWatch<'_>) -> Result<io::Result<FileLock>, DownloadError> {
    let (sender, receiver) = mpsc::sync_channel(0);
    let thread = thread::Builder::new().name("download lock".into());
    if let Err(error) = thread.spawn(move || drop(sender.send(FileLock::exclusive(file)))) {
        return Ok(Err(error));
    }
    let received = watch.receive(&receiver)?;
    Ok(received.unwrap_or_else(|| Err(io::Error::other("the waiting thread is gone"))))
}

/// The expected file, and its processing.
#[derive(Debug, Clone)]
pub(super) struct ExpectedFile {
    /// Name of the file in messages.
    pub(super) name: String,
    pub(super) checksum: Checksum,
    pub(super) packing: Option<FileCompression>,
    /// Size limit of the unpacked file.
    pub(super) limit: ByteSize,
}

/// The partial file, with its state.
pub(super) struct PartialDownload<'a> {
    claim: &'a DownloadClaim,
    wanted: &'a ExpectedFile,
    data: File,
    length: u64,
    origin: Option<TransferOrigin>,
    intake: DownloadIntake,
    /// Whether the bytes are from several places or times, so that a wrong digest is not the fault of the last one.
    is_doubtful: bool,
}

/// A file with the right digest. It is durable, and still under its temporary name.
#[derive(Debug)]
pub(super) struct VerifiedFile {
    /// SHA-256 of the file as it was downloaded.
    pub(super) sha256: Sha256Digest,
    /// The unpacked form, if it was requested.
    pub(super) unpacked: Option<UnpackedFile>,
    /// Whether it was downloaded just now, rather than only unpacked.
    pub(super) is_new: bool,
}

impl VerifiedFile {
    /// Unpacks an existing file. Returns `None` if it is not the right one.
    pub(super) fn unpack(
        mut file: &File,
        claim: &DownloadClaim,
        wanted: &ExpectedFile,
        watch: &mut DownloadWatch<'_>,
    ) -> Result<Option<Self>, DownloadError> {
        let total = file.metadata().map_err(DownloadError::cache("read", &wanted.name))?.len();
        let mut intake = DownloadIntake::new(claim, wanted)?;
        let mut piece = vec![0; PIECE];
        let mut done = 0;
        while let count @ 1.. = file.read(&mut piece).map_err(DownloadError::cache("read", &wanted.name))? {
            intake.push(&piece[..count]).map_err(DownloadError::cache("write", claim.unpacked()))?;
            done += count as u64;
            watch.read(done, Some(total))?;
        }
        let (sha256, found) = intake.hashing.finish();
        if found != wanted.checksum {
            return Ok(None);
        }
        let unpacked = unpacked(intake.unpacker, claim, wanted)?;
        Ok(Some(Self { sha256, unpacked, is_new: false }))
    }
}

/// Returns the unpacked form, durable.
fn unpacked(
    unpacker: Option<Result<FileUnpacker, UnpackError>>,
    claim: &DownloadClaim,
    wanted: &ExpectedFile,
) -> Result<Option<UnpackedFile>, DownloadError> {
    let Some(unpacker) = unpacker else { return Ok(None) };
    let unpacked = unpacker.and_then(FileUnpacker::finish);
    let unpacked = unpacked.map_err(|error| match error {
        UnpackError::Write(source) => DownloadError::cache("write", claim.unpacked())(source),
        source => DownloadError::Unpack { file: wanted.name.clone(), source },
    })?;
    seal(claim, &claim.unpacked())?;
    Ok(Some(unpacked))
}

fn seal(claim: &DownloadClaim, path: &Path) -> Result<(), DownloadError> {
    let sealed = File::open(path).and_then(|file| claim.fs.seal(&file, FILE_MODE));
    sealed.map_err(DownloadError::cache("write", path))
}

impl<'a> PartialDownload<'a> {
    /// Opens the partial file. Blocks while the existing bytes are read again.
    pub(super) fn open(
        claim: &'a DownloadClaim,
        wanted: &'a ExpectedFile,
        watch: &mut DownloadWatch<'_>,
    ) -> Result<Self, DownloadError> {
        let path = claim.data();
        let data = open(&path).map_err(DownloadError::cache("open", &path))?;
        let intake = DownloadIntake::new(claim, wanted)?;
        let mut part = Self { claim, wanted, data, length: 0, origin: None, intake, is_doubtful: false };
        let origin = read_up_to(&claim.folder.join(ORIGIN), LARGEST_ORIGIN).ok();
        match origin.and_then(|text| serde_json::from_slice(&text).ok()) {
            Some(origin) => part.replay(origin, watch)?,
            None => part.clear()?,
        }
        Ok(part)
    }

    fn replay(&mut self, origin: TransferOrigin, watch: &mut DownloadWatch<'_>) -> Result<(), DownloadError> {
        let path = self.claim.data();
        let length = self.data.metadata().map_err(DownloadError::cache("read", &path))?.len();
        if origin.total.is_some_and(|total| length > total) {
            return self.clear();
        }
        let mut piece = vec![0; PIECE];
        while self.length < length {
            let count = usize::try_from(length - self.length).unwrap_or(PIECE).min(PIECE);
            let read = self.data.read_exact_at(&mut piece[..count], self.length);
            read.map_err(DownloadError::cache("read", &path))?;
            self.intake.push(&piece[..count]).map_err(DownloadError::cache("write", self.claim.unpacked()))?;
            self.length += count as u64;
            watch.read(self.length, origin.total)?;
        }
        self.data.seek(SeekFrom::Start(length)).map_err(DownloadError::cache("read", &path))?;
        self.origin = Some(origin);
        self.is_doubtful = length > 0;
        Ok(())
    }

    /// Discards all bytes and their origin, so that the next attempt starts from the beginning.
    fn clear(&mut self) -> Result<(), DownloadError> {
        let emptied = self.data.set_len(0).and_then(|()| self.data.rewind());
        emptied.map_err(DownloadError::cache("empty", self.claim.data()))?;
        self.length = 0;
        self.origin = None;
        self.is_doubtful = false;
        self.intake = DownloadIntake::new(self.claim, self.wanted)?;
        Ok(())
    }
}

impl TransferTarget for PartialDownload<'_> {
    type Whole = VerifiedFile;

    fn length(&self) -> u64 {
        self.length
    }

    fn origin(&self) -> Option<&TransferOrigin> {
        self.origin.as_ref()
    }

    fn begin(&mut self, origin: TransferOrigin, how: TransferStart) -> Result<(), DownloadError> {
        match how {
            TransferStart::Anew => self.clear()?,
            // Bytes of another place, or of another file by now, whatever the server claims.
            TransferStart::Continue => self.is_doubtful = true,
        }
        let path = self.claim.folder.join(ORIGIN);
        let text = serde_json::to_vec(&origin).map_err(io::Error::from);
        text.and_then(|text| digest_cache::replace(&path, &text)).map_err(DownloadError::cache("write", &path))?;
        self.origin = Some(origin);
        Ok(())
    }

    fn accept(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.data.write_all(bytes).map_err(DownloadError::cache("write", self.claim.data()))?;
        self.length += bytes.len() as u64;
        self.intake.push(bytes).map_err(DownloadError::cache("write", self.claim.unpacked()))
    }

    fn finish(&mut self) -> Result<VerifiedFile, AttemptError> {
        let (sha256, found) = self.intake.hashing.clone().finish();
        if found != self.wanted.checksum {
            let is_doubtful = self.is_doubtful;
            self.clear()?;
            let wrong = TransferError::Digest { expected: self.wanted.checksum.clone(), found };
            return Err(if is_doubtful { TransferError::Stale } else { wrong }.into());
        }
        let unpacked = unpacked(self.intake.unpacker.take(), self.claim, self.wanted)?;
        seal(self.claim, &self.claim.data())?;
        Ok(VerifiedFile { sha256, unpacked, is_new: true })
    }
}

/// Hashes and unpacks the bytes in one pass.
struct DownloadIntake {
    hashing: DownloadHasher,
    /// An error in the file only matters if it is the right file: until then the place may be to blame.
    unpacker: Option<Result<FileUnpacker, UnpackError>>,
}

impl DownloadIntake {
    fn new(claim: &DownloadClaim, wanted: &ExpectedFile) -> Result<Self, DownloadError> {
        let hashing = DownloadHasher::new(wanted.checksum.algorithm());
        let unpacker = match wanted.packing {
            Some(packing) => {
                let path = claim.unpacked();
                let file = open(&path).and_then(|file| file.set_len(0).map(|()| file));
                let file = file.map_err(DownloadError::cache("open", &path))?;
                Some(Ok(FileUnpacker::new(packing, file, wanted.limit)))
            }
            None => None,
        };
        Ok(Self { hashing, unpacker })
    }

    /// Takes the next bytes. Fails only if the unpacked form cannot be written.
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hashing.update(bytes);
        let Some(Ok(unpacker)) = &mut self.unpacker else { return Ok(()) };
        match unpacker.push(bytes) {
            Err(UnpackError::Write(error)) => Err(error),
            Err(error) => {
                self.unpacker = Some(Err(error));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Opens the file for writing. It may be read-only, if kiln was killed after that was set.
pub(super) fn open(path: &Path) -> io::Result<File> {
    match fs::set_permissions(path, Permissions::from_mode(0o600)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let no_follow = OFlag::O_NOFOLLOW.bits();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_follow).open(path)
}
