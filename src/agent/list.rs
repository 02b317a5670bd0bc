//! Lists every file of the guest to the host, for a disk that the host cannot read itself.
//!
//! The list describes what the image's disk holds, as the guest has it mounted: its root file system, and all that is
//! mounted on it from the same disk, however it was mounted. `/proc`, `/run` and similar directories are listed as they are
//! on the disk.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::vec;

use super::link::lock;
use super::mount_table::{Devices, Location};
use super::pack::xattrs;
use super::sha256::Sha256;
use super::sys::{major, minor};
use super::{RequestFailure, disk_view, folder_names, sys};
use crate::wire::Class;
use crate::wire::listing::{self, Kind, Listed, Moment};
use crate::wire::sparse_blocks::{self, BlockFilter};
use crate::wire::tree::Totals;

/// How many entries are collected before their digests are computed.
const BATCH: usize = 256;
/// Bytes of content read at once.
const CHUNK: usize = 256 << 10;

/// Lists the image's disk. Moves the calling thread into another mount namespace permanently. `progress` is called with the
/// bytes of content read so far.
///
/// # Errors
/// When something cannot be read, or the port takes no more.
pub fn list(out: &mut impl Write, progress: &mut dyn FnMut(u64)) -> Result<Totals, RequestFailure> {
    let mut devices = Devices::default();
    disk_view::enter(&mut |line| devices.locate(line) != Location::Elsewhere)?;
    list_folder(Path::new("/"), out, progress)
}

/// Lists the content of this folder, as if the folder were the root.
///
/// # Errors
/// As [`list`].
pub fn list_folder(root: &Path, out: &mut impl Write, progress: &mut dyn FnMut(u64)) -> Result<Totals, RequestFailure> {
    let mut walk =
        ListWalk { root, out, progress, waiting: Vec::new(), digests: HashMap::new(), totals: Totals::default() };
    let mut levels: Vec<(PathBuf, vec::IntoIter<OsString>)> = Vec::new();
    levels.extend(walk.visit(root.to_owned())?);
    while let Some((folder, names)) = levels.last_mut() {
        match names.next() {
            Some(name) => {
                let path = folder.join(name);
                levels.extend(walk.visit(path)?);
            }
            None => _ = levels.pop(),
        }
    }
    walk.flush()?;
    Ok(walk.totals)
}

struct ListWalk<'a, W> {
    root: &'a Path,
    out: &'a mut W,
    progress: &'a mut dyn FnMut(u64),
    /// Entries that were not sent yet.
    waiting: Vec<PendingDigest>,
    /// The digests of files with several names, by device and inode.
    digests: HashMap<(u64, u64), ListedDigest>,
    totals: Totals,
}

/// The digest of a file's content.
#[derive(Clone)]
struct ListedDigest {
    size: u64,
    sha256: Vec<u8>,
    /// Whether blocks of zeroes are left out of the digest.
    is_sparse: bool,
}

impl ListedDigest {
    fn into_kind(self) -> Kind {
        let Self { size, sha256, is_sparse } = self;
        if is_sparse { Kind::SparseFile { size, sha256 } } else { Kind::File { size, sha256 } }
    }
}

/// An entry that is not written yet, because its digest or that of an earlier entry is missing.
struct PendingDigest {
    listed: Listed,
    /// The path of a regular file's content.
    content: Option<PathBuf>,
    /// The file has several names.
    is_shared: bool,
}

impl<W: Write> ListWalk<'_, W> {
    /// Lists the entry at the path. Returns the names in a directory, which the caller has to visit.
    fn visit(&mut self, path: PathBuf) -> Result<Option<(PathBuf, vec::IntoIter<OsString>)>, RequestFailure> {
        let about = match fs::symlink_metadata(&path) {
            // A service that is still running has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path != self.root => return Ok(None),
            about => about.map_err(RequestFailure::at(path.display()))?,
        };
        let listed = self.listed(&path, &about).map_err(RequestFailure::at(path.display()))?;
        let names = about.is_dir().then(|| names(&path)).transpose().map_err(RequestFailure::at(path.display()))?;
        let content = about.is_file().then(|| path.clone());
        self.waiting.push(PendingDigest { listed, content, is_shared: about.nlink() > 1 });
        if self.waiting.len() >= BATCH {
            self.flush()?;
        }
        Ok(names.map(|names| (path, names.into_iter())))
    }

    fn listed(&self, path: &Path, about: &Metadata) -> io::Result<Listed> {
        let kind = about.file_type();
        let device = about.rdev();
        let major = major(device);
        let minor = minor(device);
        let kind = if kind.is_file() {
            Kind::File { size: 0, sha256: Vec::new() }
        } else if kind.is_dir() {
            Kind::Dir {}
        } else if kind.is_symlink() {
            Kind::Symlink { target: fs::read_link(path)?.into_os_string().into_encoded_bytes() }
        } else if kind.is_char_device() {
            Kind::CharDevice { major, minor }
        } else if kind.is_block_device() {
            Kind::BlockDevice { major, minor }
        } else if kind.is_fifo() {
            Kind::Fifo {}
        } else {
            Kind::Socket {}
        };
        let below = path.strip_prefix(self.root).unwrap_or(path).as_os_str().as_bytes();
        Ok(Listed {
            path: [b"/", below].concat(),
            mode: u16::try_from(about.mode() & 0o7777).unwrap_or_default(),
            uid: about.uid(),
            gid: about.gid(),
            kind,
            xattrs: xattrs(path, |_| true)?,
            modified: moment(about.mtime(), about.mtime_nsec()),
            changed: moment(about.ctime(), about.ctime_nsec()),
            device: about.dev(),
            inode: about.ino(),
        })
    }

    /// Sends the waiting entries, after their content was hashed by as many threads as there are processors.
    fn flush(&mut self) -> Result<(), RequestFailure> {
        let known = self.waiting.iter().map(|waiting| self.digests.get(&file(&waiting.listed)).cloned());
        let mut found: Vec<Option<ListedDigest>> = known.collect();
        let jobs: Vec<(usize, &Path)> = (0..)
            .zip(&self.waiting)
            .filter(|(index, _)| found[*index].is_none())
            .filter_map(|(index, waiting)| Some((index, waiting.content.as_deref()?)))
            .collect();
        for (index, digest) in digests(&jobs)? {
            self.totals.bytes += digest.size;
            found[index] = Some(digest);
        }
        for (PendingDigest { mut listed, content, is_shared }, found) in self.waiting.drain(..).zip(found) {
            if let (Some(_), Some(digest)) = (content, found) {
                if is_shared {
                    self.digests.insert(file(&listed), digest.clone());
                }
                listed.kind = digest.into_kind();
            }
            listing::put(&listed, self.out).map_err(RequestFailure::at("a file cannot be listed"))?;
            self.totals.entries += 1;
        }
        (self.progress)(self.totals.bytes);
        Ok(())
    }
}

fn moment(seconds: i64, nanoseconds: i64) -> Moment {
    Moment { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) }
}

fn file(listed: &Listed) -> (u64, u64) {
    (listed.device, listed.inode)
}

/// Returns the names in a folder, sorted by their bytes: file systems differ in their order.
fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut names = folder_names(folder)?;
    names.sort_unstable();
    Ok(names)
}

/// Returns the digest of each of these files, with the number of the file.
fn digests(jobs: &[(usize, &Path)]) -> Result<Vec<(usize, ListedDigest)>, RequestFailure> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(jobs.len()));
    let work = || {
        let mut buffer = vec![0; CHUNK];
        while let Some((index, path)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = digest(path, &mut buffer).map_err(RequestFailure::at(path.display()));
            lock(&done).push((*index, found));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let done = done.into_inner().map_err(|_| RequestFailure::new(Class::System {}, "a hashing thread panicked"))?;
    done.into_iter().map(|(index, found)| Ok((index, found?))).collect()
}

fn digest(path: &Path, buffer: &mut [u8]) -> io::Result<ListedDigest> {
    let mut file = OpenOptions::new().read(true).custom_flags(sys::O_NOFOLLOW | sys::O_NONBLOCK).open(path)?;
    if let Some(digest) = sparse_digest(&file, buffer)? {
        return Ok(digest);
    }
    let mut sha = Sha256::new();
    let mut size = 0;
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(ListedDigest { size, sha256: sha.finish().to_vec(), is_sparse: false }),
            Ok(n) => {
                sha.update(&buffer[..n]);
                size += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns the digest of the data of a file that is zero for the most part, as `sparse_blocks` defines it; `None` for any other
/// file, which may have been read.
fn sparse_digest(file: &File, buffer: &mut [u8]) -> io::Result<Option<ListedDigest>> {
    let size = file.metadata()?.len();
    if size <= sparse_blocks::LIMIT {
        return Ok(None);
    }
    let mut sha = Sha256::new();
    let mut filter = BlockFilter::new(|bytes| sha.update(bytes));
    let mut at = 0;
    while let Some((start, end)) = sys::next_data(file, at)?.filter(|(start, _)| *start < size) {
        filter.add_zeroes(start - at);
        at = start;
        while at < end.min(size) {
            let length = usize::try_from(end.min(size) - at).unwrap_or(CHUNK).min(buffer.len());
            file.read_exact_at(&mut buffer[..length], at)?;
            filter.add_data(&buffer[..length]);
            at += length as u64;
        }
    }
    filter.add_zeroes(size - at);
    let is_sparse = filter.is_sparse();
    Ok(is_sparse.then(|| ListedDigest { size, sha256: sha.finish().to_vec(), is_sparse }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_taken_apart() {
        assert_eq!((major(0x0103), minor(0x0103)), (1, 3));
        // makedev(259, 3000): the minor number's upper bits stand above the major's lower ones.
        let (high, low) = (3000 / 256, 3000 % 256);
        let device = 259 << 8 | low | high << 20;
        assert_eq!((major(device), minor(device)), (259, 3000));
    }
}
