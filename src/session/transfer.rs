//! Files between host and guest: over the port in both directions, and from a block device.

use std::fs::{self, File};
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::wire::boot_mounts::BootReport;
use crate::wire::mounts::{self, GuestMount};
use crate::wire::tree::{Layout, Totals};
use crate::wire::{HiddenBytes, MAX_DATA, Message};

use super::GuestError;
use super::connection::{Session, unexpected};
use super::error::unwritable;
use super::receive::{FetchRequest, FetchedTree, receive};
use super::stage_source::{PackedTree, StageSource};

/// Number of chunks between the port and the thread that reads or writes files.
const AHEAD: usize = 8;

/// Result of a fetch.
#[derive(Debug)]
pub struct FetchOutcome {
    /// The tree that was written.
    pub tree: FetchedTree,
    /// The error that kept the stream from being kept, if it was to be.
    pub unkept: Option<io::Error>,
}

/// A guest's description of the image's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskReport {
    /// Mounts of the disk, in the order in which they nest.
    pub mounts: Vec<GuestMount>,
    /// Mounts of the next boot.
    pub boot: BootReport,
    /// Whether the guest has an rpm database.
    pub has_rpm: bool,
}

impl Session {
    /// Sends a source over the port. `progress` is called with the number of bytes sent so far. Returns the summary of the
    /// tree.
    ///
    /// # Errors
    /// When the source cannot be read, the guest cannot write it, or the connection fails.
    pub async fn upload(
        &mut self,
        source: &StageSource,
        progress: &mut dyn FnMut(u64),
    ) -> Result<PackedTree, GuestError> {
        let (sender, mut chunks) = mpsc::channel(AHEAD);
        let source = source.clone();
        let packing = spawn_blocking(move || {
            let mut out = BufWriter::with_capacity(MAX_DATA, ChunkSender(sender));
            Ok(source.write_to(&mut out, Layout::Packed)?)
        });
        self.begin_with(&Message::Upload {});
        let mut sent = 0;
        let mut done = None;
        while let Some(chunk) = self.next_chunk(&mut chunks, &mut done).await? {
            sent += chunk.len() as u64;
            self.send_chunk(&chunk).await?;
            progress(sent);
        }
        let packed = joined(packing).await;
        if packed.is_err() {
            // The guest must not wait for the rest.
            self.queue(&Message::Eof {});
            self.flush().await?;
        }
        let packed = packed?;
        let found = match done {
            Some(early) => early,
            None => self.done(&mut |_| {}).await?,
        };
        if found == packed.totals { Ok(packed) } else { Err(mismatch()) }
    }

    /// Asks the guest to unpack the tree stream on the block device with this serial. `progress` is called with the number
    /// of bytes of content written so far.
    ///
    /// # Errors
    /// When the guest finds no such device or cannot write what is on it, or the connection fails.
    pub async fn unpack_device(&mut self, serial: &str, progress: &mut dyn FnMut(u64)) -> Result<(), GuestError> {
        self.begin_with(&Message::Unpack { serial: serial.into() });
        self.done(progress).await.map(|_| ())
    }

    /// Copies a file or folder of the guest to this host. Modes become 0644 or 0755, owners the caller's, attributes are
    /// dropped; other entries are left out, except links that lead to something in the tree. The stream is also written to
    /// `keep`, for [`receive`] to read again; if that fails, the file is removed and the fetch continues. After an error an
    /// unfinished tree may be there.
    ///
    /// # Errors
    /// When it is not there, is beyond the limits, cannot be kept or would lead out of its place, or the connection fails.
    pub async fn fetch(
        &mut self,
        request: FetchRequest,
        keep: Option<PathBuf>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<FetchOutcome, GuestError> {
        let (sender, chunks) = mpsc::channel(AHEAD);
        let path = request.from.clone().into_bytes();
        let receiving = spawn_blocking(move || receive_kept(chunks, &request, keep));
        self.begin_with(&Message::Fetch { path });
        let mut received = 0;
        let totals = loop {
            match self.next().await? {
                Message::Data { bytes: HiddenBytes(bytes) } => {
                    let n = bytes.len();
                    if sender.send(bytes).await.is_err() {
                        // The receiver has ended and has the error.
                        break None;
                    }
                    received += n as u64;
                    self.used(n);
                    progress(received);
                }
                Message::Done { entries, bytes } => break Some(Totals { entries, bytes }),
                other => return Err(unexpected(other)),
            }
        };
        drop(sender);
        let (outcome, found) = joined(receiving).await?;
        if totals == Some(found) { Ok(outcome) } else { Err(mismatch()) }
    }

    /// Asks the guest for a list of every file of its disks, and writes the records ([`crate::wire::listing`]) as they
    /// arrive into a new file. Returns the file, and the number of records according to the guest. `limit` is in bytes.
    ///
    /// # Errors
    /// When the guest cannot list them, sends more than that, or the connection fails.
    pub async fn list(&mut self, into: &Path, limit: u64) -> Result<(File, u64), GuestError> {
        let file = File::options().read(true).write(true).create_new(true).open(into);
        let mut file = file.map_err(unwritable(into))?;
        self.begin_with(&Message::List {});
        let mut left = limit;
        loop {
            match self.next().await? {
                Message::Data { bytes: HiddenBytes(bytes) } => {
                    let rest = left.checked_sub(bytes.len() as u64);
                    left = rest.ok_or_else(|| GuestError::Beyond(format!("{limit} bytes about its files")))?;
                    // A few megabytes in all, into the page cache: no thread is worth that.
                    file.write_all(&bytes).map_err(unwritable(into))?;
                    self.used(bytes.len());
                }
                Message::Progress { .. } => {}
                Message::Done { entries, .. } => return Ok((file, entries)),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Asks the guest for its mounts of the image's disk. The answer may be anything, within bounds.
    ///
    /// # Errors
    /// When the guest cannot find out, or does not answer.
    pub async fn describe_disk(&mut self) -> Result<DiskReport, GuestError> {
        match self.ask(&Message::Mounts {}).await? {
            Message::Mounted { mounts, boot, has_rpm } => {
                mounts::check(&mounts, &boot)?;
                Ok(DiskReport { mounts, boot, has_rpm })
            }
            other => Err(unexpected(other)),
        }
    }

    /// Returns the next chunk to send, and reads the guest's messages meanwhile: it may be done before the packer's thread
    /// is.
    async fn next_chunk(
        &mut self,
        chunks: &mut mpsc::Receiver<Vec<u8>>,
        done: &mut Option<Totals>,
    ) -> Result<Option<Vec<u8>>, GuestError> {
        loop {
            tokio::select! {
                chunk = chunks.recv() => return Ok(chunk),
                message = self.next() => match message? {
                    Message::Done { entries, bytes } => *done = Some(Totals { entries, bytes }),
                    other => only_credit(other)?,
                },
            }
        }
    }

    async fn send_chunk(&mut self, mut chunk: &[u8]) -> Result<(), GuestError> {
        while !chunk.is_empty() {
            while self.credit == 0 {
                let message = self.next().await?;
                only_credit(message)?;
            }
            let (now, later) = chunk.split_at(chunk.len().min(self.credit));
            self.queue(&Message::Data { bytes: HiddenBytes(now.to_vec()) });
            self.flush().await?;
            chunk = later;
        }
        Ok(())
    }

    async fn done(&mut self, progress: &mut dyn FnMut(u64)) -> Result<Totals, GuestError> {
        loop {
            match self.next().await? {
                Message::Done { entries, bytes } => return Ok(Totals { entries, bytes }),
                Message::Progress { bytes } => progress(bytes),
                Message::Credit { .. } => {}
                other => return Err(unexpected(other)),
            }
        }
    }
}

fn only_credit(message: Message) -> Result<(), GuestError> {
    match message {
        Message::Credit { .. } | Message::Progress { .. } => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn mismatch() -> GuestError {
    GuestError::Protocol("it counted other entries than there were".into())
}

async fn joined<T>(task: JoinHandle<Result<T, GuestError>>) -> Result<T, GuestError> {
    // The task is never aborted, so this can only be a panic: a bug that must not be reported as an error of the guest.
    task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Writes the tree that arrives, and the stream itself to `keep`.
fn receive_kept(
    chunks: mpsc::Receiver<Vec<u8>>,
    request: &FetchRequest,
    keep: Option<PathBuf>,
) -> Result<(FetchOutcome, Totals), GuestError> {
    let mut arriving = ChunkReader { chunks, chunk: Vec::new(), at: 0, copy: keep.map(StreamCopy::create) };
    let (tree, totals) = receive(&mut arriving, request)?;
    let unkept = arriving.copy.and_then(|copy| copy.file.err());
    Ok((FetchOutcome { tree, unkept }, totals))
}

/// A copy of the stream that arrives.
struct StreamCopy {
    path: PathBuf,
    /// The file, or the error after which nothing more is written.
    file: io::Result<File>,
}

impl StreamCopy {
    fn create(path: PathBuf) -> Self {
        let file = File::create_new(&path);
        Self { path, file }
    }

    fn add(&mut self, bytes: &[u8]) {
        let Ok(file) = &mut self.file else { return };
        if let Err(error) = file.write_all(bytes) {
            self.file = Err(error);
            // The guest may need the space.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The packer's end of the channel.
struct ChunkSender(mpsc::Sender<Vec<u8>>);

impl Write for ChunkSender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(MAX_DATA);
        self.0.blocking_send(bytes[..n].to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The receiver's end of the channel.
struct ChunkReader {
    chunks: mpsc::Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    copy: Option<StreamCopy>,
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.chunk.len() {
            let Some(chunk) = self.chunks.blocking_recv() else { return Ok(&[]) };
            self.copy.iter_mut().for_each(|copy| copy.add(&chunk));
            (self.chunk, self.at) = (chunk, 0);
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}
