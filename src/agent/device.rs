//! Reads a block device ahead of its consumer, bypassing the page cache.
//!
//! Under software emulation the guest's page cache costs more than the disk: 30 to 60 MB/s through it, 215 without.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::{RequestFailure, sys};
use crate::wire::Class;
use crate::wire::tree::BLOCK;

/// Bytes read at once.
const READ: usize = 4 << 20;
/// How many buffers of [`READ`] bytes there are.
const BUFFERS: usize = 3;
/// How long a device may take to appear after it was plugged.
const APPEAR: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(50);

/// Waits until the device with this serial number appears, and returns its path.
pub fn find(serial: &str) -> Result<PathBuf, RequestFailure> {
    let began = Instant::now();
    loop {
        if let Some(path) = look(serial) {
            return Ok(path);
        }
        if began.elapsed() > APPEAR {
            let text = format!("no block device with the serial `{serial}` appeared in the guest");
            return Err(RequestFailure::new(Class::NotFound {}, text));
        }
        // Waiting for the kernel's event would need a netlink socket, which std does not have.
        thread::sleep(RETRY);
    }
}

fn look(serial: &str) -> Option<PathBuf> {
    let mut devices = fs::read_dir("/sys/block").ok()?.flatten();
    let ours = devices.find(|device| has_serial(&device.path(), serial))?;
    Some(Path::new("/dev").join(ours.file_name())).filter(|path| path.exists())
}

/// Returns whether a disk in `/sys` has this serial number.
pub fn has_serial(disk: &Path, serial: &str) -> bool {
    let serials = ["serial", "device/serial"].map(|file| fs::read_to_string(disk.join(file)));
    serials.into_iter().flatten().any(|found| found.trim() == serial)
}

/// A file or device that a thread of its own reads from the start, in large aligned blocks.
#[derive(Debug)]
pub struct ReadAhead {
    full: Receiver<io::Result<AlignedBuffer>>,
    empty: SyncSender<AlignedBuffer>,
    current: Option<AlignedBuffer>,
}

/// A buffer whose bytes start at a multiple of [`BLOCK`].
#[derive(Debug)]
struct AlignedBuffer {
    store: Vec<u8>,
    start: usize,
    length: usize,
    at: usize,
}

impl AlignedBuffer {
    fn new() -> Self {
        let store = vec![0; READ + BLOCK];
        let start = store.as_ptr().align_offset(BLOCK);
        Self { store, start, length: 0, at: 0 }
    }

    fn fill(&mut self, from: &mut File) -> io::Result<()> {
        self.at = 0;
        self.length = from.read(&mut self.store[self.start..self.start + READ])?;
        Ok(())
    }

    fn rest(&self) -> &[u8] {
        &self.store[self.start + self.at..self.start + self.length]
    }
}

impl ReadAhead {
    /// Opens a file or device, with direct I/O if possible, and starts to read it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let direct = OpenOptions::new().read(true).custom_flags(sys::O_DIRECT).open(path);
        let mut file = direct.or_else(|_| File::open(path))?;
        let (give, full) = sync_channel(BUFFERS);
        let (empty, take) = sync_channel::<AlignedBuffer>(BUFFERS);
        for _ in 0..BUFFERS {
            let _ = empty.send(AlignedBuffer::new());
        }
        thread::spawn(move || {
            for mut buffer in take {
                let filled = buffer.fill(&mut file);
                let last = filled.is_err() || buffer.length == 0;
                if give.send(filled.map(|()| buffer)).is_err() || last {
                    break;
                }
            }
        });
        Ok(Self { full, empty, current: None })
    }
}

impl BufRead for ReadAhead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.as_ref().is_none_or(|buffer| buffer.rest().is_empty()) {
            if let Some(used) = self.current.take() {
                let _ = self.empty.send(used);
            }
            let Ok(next) = self.full.recv() else { return Ok(&[]) };
            self.current = Some(next?);
        }
        Ok(self.current.as_ref().map_or(&[], AlignedBuffer::rest))
    }

    fn consume(&mut self, n: usize) {
        if let Some(buffer) = &mut self.current {
            buffer.at += n;
        }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}
