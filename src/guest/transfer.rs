//! Files between host and guest: over the port in both directions, and from a block device.

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::GuestError;
use super::receive::{Received, receive};
use super::session::{Session, unexpected};
use super::stage::{PackedTree, Source};
use crate::wire::mounts::{self, GuestMount};
use crate::wire::tree::{Layout, Totals};
use crate::wire::{Hidden, MAX_DATA, Message};

/// Chunks between the port and the thread that reads or writes files.
const AHEAD: usize = 8;

/// What a guest says of the image's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskReport {
    /// What is mounted from it, in the order in which it nests.
    pub mounts: Vec<GuestMount>,
    /// Whether there is a database of rpm.
    pub has_rpm: bool,
}

impl Session {
    /// Sends a source over the port. `progress` hears the bytes sent so far. Returns what was sent.
    ///
    /// # Errors
    /// When the source cannot be read, the guest cannot write it, or the conversation fails.
    pub async fn upload(&mut self, source: &Source, progress: &mut dyn FnMut(u64)) -> Result<PackedTree, GuestError> {
        let (sender, mut chunks) = mpsc::channel(AHEAD);
        let source = source.clone();
        let packing = spawn_blocking(move || {
            let mut out = BufWriter::with_capacity(MAX_DATA, Chunks(sender));
            Ok(source.write_to(&mut out, Layout::Packed)?)
        });
        self.begin();
        self.queue(&Message::Upload {});
        let (mut sent, mut done) = (0, None);
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

    /// Has the guest unpack the tree stream on the block device with this serial. `progress` hears the bytes of
    /// content written so far.
    ///
    /// # Errors
    /// When the guest finds no such device or cannot write what is on it, or the conversation fails.
    pub async fn unpack_device(&mut self, serial: &str, progress: &mut dyn FnMut(u64)) -> Result<(), GuestError> {
        self.begin();
        self.queue(&Message::Unpack { serial: serial.into() });
        self.done(progress).await.map(|_| ())
    }

    /// Brings a file or folder of the guest to this host, under the name `into`, which must not exist; folders above
    /// it are made. `limit` is in bytes, holes included. Modes become 0644 or 0755, owners the caller's, attributes
    /// are dropped. Returns the files written. After an error an unfinished tree may be at `into`.
    ///
    /// # Errors
    /// When it is not there, is beyond the limits or would lead out of `into`, or the conversation fails.
    pub async fn fetch(
        &mut self,
        path: &str,
        into: &Path,
        limit: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<PathBuf>, GuestError> {
        let (sender, chunks) = mpsc::channel(AHEAD);
        let into = into.to_owned();
        let receiving = spawn_blocking(move || receive(Arriving::new(chunks), &into, limit));
        self.begin();
        self.queue(&Message::Fetch { path: path.as_bytes().to_vec() });
        let mut received = 0;
        let totals = loop {
            match self.next().await? {
                Message::Data { bytes: Hidden(bytes) } => {
                    let n = bytes.len();
                    if sender.send(bytes).await.is_err() {
                        // The receiver has given up and knows why.
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
        let Received { files, totals: found } = joined(receiving).await?;
        if totals == Some(found) { Ok(files) } else { Err(mismatch()) }
    }

    /// Has the guest tell every file of its disks, and writes the records ([`crate::wire::listing`]) as they come into a new
    /// file. Gives it, and how many there are by the guest's word. `limit` is in bytes.
    ///
    /// # Errors
    /// When the guest cannot, says more than that, or the conversation fails.
    pub async fn list(&mut self, into: &Path, limit: u64) -> Result<(File, u64), GuestError> {
        let failed = |source| GuestError::Write { path: into.to_owned(), source };
        let mut file = File::options().read(true).write(true).create_new(true).open(into).map_err(failed)?;
        self.begin();
        self.queue(&Message::List {});
        let mut left = limit;
        loop {
            match self.next().await? {
                Message::Data { bytes: Hidden(bytes) } => {
                    let beyond = || GuestError::Beyond(format!("{limit} bytes about its files"));
                    left = left.checked_sub(bytes.len() as u64).ok_or_else(beyond)?;
                    // A few megabytes in all, into the page cache: no thread is worth that.
                    file.write_all(&bytes).map_err(failed)?;
                    self.used(bytes.len());
                }
                Message::Progress { .. } => {}
                Message::Done { entries, .. } => return Ok((file, entries)),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Asks what of the image's disk the guest has mounted. It may say anything, within bounds.
    ///
    /// # Errors
    /// When the guest cannot tell, or does not answer.
    pub async fn describe_disk(&mut self) -> Result<DiskReport, GuestError> {
        self.begin();
        self.queue(&Message::Mounts {});
        match self.next().await? {
            Message::Mounted { mounts, has_rpm } => {
                mounts::check(&mounts)?;
                Ok(DiskReport { mounts, has_rpm })
            }
            other => Err(unexpected(other)),
        }
    }

    /// The next chunk to send, while the guest is listened to: it may be done before the packer's thread is.
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
            self.queue(&Message::Data { bytes: Hidden(now.to_vec()) });
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
    // The task is never aborted, so this can only be a panic: a bug that must not pass for an error of the guest.
    task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// The packer's end of the channel.
struct Chunks(mpsc::Sender<Vec<u8>>);

impl Write for Chunks {
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
struct Arriving {
    chunks: mpsc::Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Arriving {
    fn new(chunks: mpsc::Receiver<Vec<u8>>) -> Self {
        Self { chunks, chunk: Vec::new(), at: 0 }
    }
}

impl BufRead for Arriving {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.chunk.len() {
            let Some(chunk) = self.chunks.blocking_recv() else { return Ok(&[]) };
            (self.chunk, self.at) = (chunk, 0);
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}
