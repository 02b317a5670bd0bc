//! Reads the whole tree of a sealed disk: the root file system, and what the guest mounts on it when it boots.
//!
//! Entries come depth first: a directory before its content, names sorted by their bytes within each directory. The root of
//! a mounted file system replaces the directory below it, as in the running guest. Hard links are entries of their own with
//! the same number. Memory does not grow with the size of files.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

use super::chain::ChainError;
use super::entry::{Chunk, ContentDigest, DiskEntry, FileDigest, FileKind};
use super::gap::{PartitionContent, TreeGap, TreeMount};
use super::known_files::UnchangedFiles;
use super::partition::Partition;
use super::sparse::hash_zeroes;
use super::volume::{Volume, VolumeError, VolumeNode};
use crate::digest::Sha256Digest;
use crate::error::{self, Fault};
use crate::wire::sparse_blocks::{self, BlockFilter};

/// The most entries of a tree: ten times what the largest distributions install.
pub(super) const MAX_ENTRIES: u64 = 20_000_000;
/// The most content that is hashed in one walk, as a multiple of the file systems' size. The holes of files that are not
/// sparse ([`crate::wire::sparse_blocks`]) count: hashing those of many files would keep kiln busy for hours. So do
/// directories, paths and attributes, which a caller may keep.
const MAX_CONTENT: u64 = 64;
/// The most content that is hashed, as a multiple of the size of the disk's files: a small file can be a large disk.
const MAX_EXPANSION: u64 = 8192;
/// The content that is hashed whatever the sizes, in bytes: a file with holes may be larger than its disk. It takes seconds.
const LEAST_CONTENT: u64 = 8 << 30;
/// How many bytes of content a byte of a path counts as: one directory can make the paths of all entries below it long, and
/// a comparison of two trees keeps them.
const PATH_COST: u64 = 8;
/// The longest path that is followed; the kernel takes 4096 bytes in one call, but trees can be deeper.
const MAX_PATH: usize = 64 << 10;
/// The most links that are followed in one path, as in Linux (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// The error of reading a tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The disk cannot be read.
    #[error(transparent)]
    Read(#[from] ChainError),
    /// The file system cannot be read.
    #[error("cannot read the guest's file system")]
    FileSystem(#[from] VolumeError),
    /// No file system could be the root.
    #[error("no file system on the disk is a root: none has an /etc/os-release, an /etc/fstab or a /sbin/init")]
    NoRoot,
    /// The root, or one of these volumes that may be the root, has a format that kiln does not read.
    #[error("the root file system is {}, which kiln cannot read", joined(.0, " or "))]
    UnreadableRoot(Vec<PartitionContent>),
    /// Each of these volumes could be the root.
    #[error("the root file system could be {}: neither a boot entry nor an /etc/fstab decides", joined(.0, " or "))]
    SeveralRoots(Vec<PartitionContent>),
    /// A file that must be read as a whole is too long for that.
    #[error("{} in the guest's file system is longer than the {limit} bytes that kiln reads of such a file", .path.escape_debug())]
    LongFile {
        /// The path of the file.
        path: String,
        /// The longest length in bytes.
        limit: u64,
    },
    /// A directory contains itself.
    #[error("the guest's file system is damaged: directory {0} is in the tree twice")]
    Loop(u64),
    /// The guest's list of files is inconsistent.
    #[error("the guest's list of its files is invalid")]
    Told(#[source] std::io::Error),
    /// The tree exceeds a limit.
    #[error("the guest's file system has {0} than kiln reads")]
    TooMuch(&'static str),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

impl Fault for TreeError {
    fn kind(&self) -> error::Kind {
        match self {
            TreeError::Read(error) => error.kind(),
            TreeError::FileSystem(error) => error.kind(),
            TreeError::Stopped => error::Kind::Interrupted,
            _ => error::Kind::Output,
        }
    }
}

/// Observes a tree as it is read.
pub trait TreeVisitor {
    /// Returns whether it has to see the content of every file. If not, that of files with a known digest is not read.
    fn reads_content(&self) -> bool {
        true
    }

    /// Begins the content of the file whose entry comes next. It may be begun again; only the last time counts. A file of
    /// several names is read once.
    fn begin_content(&mut self) {}

    /// Observes a part of that content.
    fn visit_content(&mut self, _chunk: Chunk<'_>) {}

    /// Observes an entry, and may stop the walk.
    fn visit_entry(&mut self, entry: &DiskEntry) -> ControlFlow<()>;
}

/// A visitor of entries only.
pub(crate) struct EntryVisitor<'v>(pub(crate) &'v mut dyn FnMut(&DiskEntry) -> ControlFlow<()>);

impl TreeVisitor for EntryVisitor<'_> {
    fn reads_content(&self) -> bool {
        false
    }

    fn visit_entry(&mut self, entry: &DiskEntry) -> ControlFlow<()> {
        (self.0)(entry)
    }
}

/// A file or directory: the index of its file system, and its number there.
pub(super) type Place = (usize, u64);

/// A file or directory, and its path with links resolved.
#[derive(Debug)]
struct ResolvedPath {
    place: Place,
    path: Vec<u8>,
}

impl ResolvedPath {
    fn new(place: Place, parents: &[(Place, Vec<u8>)]) -> Self {
        let path: Vec<u8> = parents.iter().flat_map(|(_, name)| [b"/", name.as_slice()].concat()).collect();
        Self { place, path: if path.is_empty() { b"/".to_vec() } else { path } }
    }
}

/// The guest's files as the running guest would see them.
#[derive(Debug)]
pub struct Tree<'c> {
    /// The file systems, the root first.
    volumes: Vec<Volume<'c>>,
    /// The index of the file system that is mounted on a directory.
    mounts: HashMap<Place, usize>,
    /// The mount of each of `volumes`, in their order.
    places: Vec<TreeMount>,
    /// The description of each of `volumes`, for messages.
    about: Vec<PartitionContent>,
    gaps: Vec<TreeGap>,
}

impl<'c> Tree<'c> {
    /// Creates the tree of one file system.
    pub(super) fn new(root: Volume<'c>, partition: &Partition) -> Self {
        let about = PartitionContent::new(partition, root.kind(), root.label());
        let mount = TreeMount {
            target: b"/".to_vec(),
            partition: partition.number,
            start: partition.start,
            length: partition.length,
        };
        Self { volumes: vec![root], mounts: HashMap::new(), places: vec![mount], about: vec![about], gaps: Vec::new() }
    }

    /// Adds a gap for every file system in the tree that was not unmounted.
    pub(super) fn find_unclean(&mut self) {
        let all = self.volumes.iter().zip(&self.about).zip(&self.places);
        let gaps = all.filter_map(|((volume, about), place)| {
            let reason = volume.unclean_reason()?;
            Some(TreeGap::Unclean { volume: about.clone(), target: place.target.clone(), reason })
        });
        self.gaps.extend(gaps.collect::<Vec<TreeGap>>());
    }

    pub(super) fn add_gaps(&mut self, gaps: impl IntoIterator<Item = TreeGap>) {
        self.gaps.extend(gaps);
    }

    /// Mounts another tree on a directory; does nothing if the directory does not exist.
    pub(super) fn mount(&mut self, target: &[u8], tree: Tree<'c>) {
        let Ok(Some(ResolvedPath { place, path })) = self.find(target) else { return };
        self.mounts.insert(place, self.volumes.len());
        self.volumes.extend(tree.volumes);
        self.about.extend(tree.about);
        self.places.extend(tree.places.into_iter().map(|place| TreeMount { target: path.clone(), ..place }));
    }

    /// Returns whether the file system of this partition is in the view.
    pub(super) fn has_mounted(&self, partition: u32) -> bool {
        self.places.iter().any(|mount| mount.partition == partition)
    }

    /// Returns the path of a directory with links resolved, or `None` if there is no such directory.
    pub(super) fn canonical(&self, path: &[u8]) -> Option<Vec<u8>> {
        let found = self.find(path).ok().flatten()?;
        let is_directory = self.node(found.place).ok()?.kind() == FileKind::Directory;
        is_directory.then_some(found.path)
    }

    /// Returns whether a directory contains a name, whatever it names. One that cannot be read contains none.
    pub(super) fn has_name(&self, folder: &str, name: &[u8]) -> bool {
        let names = self.names(folder).ok().flatten().unwrap_or_default();
        names.iter().any(|found| found == name)
    }

    /// Returns whether a directory is missing or empty, except for what mkfs(8) creates.
    pub(super) fn is_empty_directory(&self, path: &[u8]) -> bool {
        match self.find(path) {
            Ok(Some(found)) => self.is_empty(found.place).unwrap_or(false),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// Returns whether a directory exists, is empty, and has no file system mounted on it.
    pub(super) fn has_free_directory(&self, path: &[u8]) -> bool {
        let mounted = self.places.iter().any(|mount| mount.target == path);
        !mounted && self.canonical(path).is_some() && self.is_empty_directory(path)
    }

    fn is_empty(&self, place: Place) -> Result<bool, VolumeError> {
        let node = self.node(place)?;
        Ok(node.kind() == FileKind::Directory && node.names()?.iter().all(|(name, _)| name == b"lost+found"))
    }

    /// Returns what is missing in this view, or doubtful.
    #[must_use]
    pub fn gaps(&self) -> &[TreeGap] {
        &self.gaps
    }

    /// Returns the file systems of this view, the root first.
    #[must_use]
    pub fn mounts(&self) -> &[TreeMount] {
        &self.places
    }

    /// Returns whether the running guest sees these files and no others, as far as the disk shows.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !self.gaps.iter().any(TreeGap::hides_files)
    }

    /// Returns whether every file system was cleanly unmounted.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.volumes.iter().all(|volume| volume.unclean_reason().is_none())
    }

    /// Reads the content of a regular file of at most `limit` bytes; symbolic links are followed within the guest. `None` if
    /// there is no such file.
    ///
    /// # Errors
    /// When it is longer, or the file system is damaged or cannot be read.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, TreeError> {
        let Some(ResolvedPath { place, .. }) = self.find(path.as_bytes())? else { return Ok(None) };
        let node = self.node(place)?;
        match node.kind() {
            FileKind::File if node.size() > limit => Err(TreeError::LongFile { path: path.to_owned(), limit }),
            FileKind::File => Ok(Some(node.read(limit)?)),
            _ => Ok(None),
        }
    }

    /// Reads a part of a regular file, or less if the file ends before. The content before the part is read as well.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub(super) fn read_range(&self, path: &str, start: u64, length: usize) -> Result<Option<Vec<u8>>, TreeError> {
        let Some(ResolvedPath { place, .. }) = self.find(path.as_bytes())? else { return Ok(None) };
        let node = self.node(place)?;
        if node.kind() != FileKind::File {
            return Ok(None);
        }
        let mut range = FileRange { skip: start, length, bytes: Vec::new() };
        let _ = node.read_chunks(&mut |chunk| range.add(chunk))?;
        Ok(Some(range.bytes))
    }

    /// Returns whether there is a directory of this name; symbolic links are followed within the guest.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn has_directory(&self, path: &str) -> Result<bool, TreeError> {
        Ok(self.directory(path.as_bytes())?.is_some())
    }

    /// Reads the names in a directory, as the file system has them; symbolic links are followed within the guest. `None` if
    /// there is no such directory.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn names(&self, path: &str) -> Result<Option<Vec<Vec<u8>>>, TreeError> {
        let Some(place) = self.directory(path.as_bytes())? else { return Ok(None) };
        Ok(Some(self.node(place)?.names()?.into_iter().map(|(name, _)| name).collect()))
    }

    pub(super) fn directory(&self, path: &[u8]) -> Result<Option<Place>, VolumeError> {
        let Some(ResolvedPath { place, .. }) = self.find(path)? else { return Ok(None) };
        Ok((self.node(place)?.kind() == FileKind::Directory).then_some(place))
    }

    pub(super) fn node(&self, (volume, number): Place) -> Result<VolumeNode<'_>, VolumeError> {
        self.volumes[volume].node(number)
    }

    fn root(&self) -> Place {
        self.mounted((0, self.volumes[0].root()))
    }

    /// Returns the root of the file system that is mounted here, or the place itself. No file system is mounted twice, so
    /// this ends.
    pub(super) fn mounted(&self, mut place: Place) -> Place {
        while let Some(volume) = self.mounts.get(&place) {
            place = (*volume, self.volumes[*volume].root());
        }
        place
    }

    /// Resolves an absolute path as the guest would, links included.
    fn find(&self, path: &[u8]) -> Result<Option<ResolvedPath>, VolumeError> {
        let mut parents: Vec<(Place, Vec<u8>)> = Vec::new();
        let mut at = self.root();
        let mut left = components(path);
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                at = parents.pop().map_or(self.root(), |(place, _)| place);
                continue;
            }
            let directory = self.node(at)?;
            if directory.kind() != FileKind::Directory {
                return Ok(None);
            }
            let Some((_, number)) = directory.names()?.into_iter().find(|(found, _)| *found == name) else {
                return Ok(None);
            };
            let next = self.mounted((at.0, number));
            let Some(target) = self.node(next)?.link_target()? else {
                parents.push((at, name));
                at = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Ok(None);
            }
            if target.starts_with(b"/") {
                parents.clear();
                at = self.root();
            }
            left.extend(components(&target));
        }
        Ok(Some(ResolvedPath::new(at, &parents)))
    }

    /// Passes every entry to `visit`, which may stop the walk. Blocks the calling thread: file contents are hashed.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read, or `visit` breaks.
    pub fn walk(&self, visit: &mut dyn FnMut(&DiskEntry) -> ControlFlow<()>) -> Result<(), TreeError> {
        self.walk_contents(&mut EntryVisitor(visit))
    }

    /// Passes every entry, and before it the content of a regular file, to `visitor`, which may stop the walk. Blocks the
    /// calling thread.
    ///
    /// # Errors
    /// As [`Tree::walk`].
    pub fn walk_contents(&self, visitor: &mut dyn TreeVisitor) -> Result<(), TreeError> {
        self.walk_changes(visitor, &mut UnchangedFiles::none())
    }

    /// Walks as [`Tree::walk_contents`] does, without reading the files whose digests are known, if the visitor does not
    /// read them.
    ///
    /// # Errors
    /// As [`Tree::walk`].
    pub fn walk_changes(&self, visitor: &mut dyn TreeVisitor, unchanged: &mut UnchangedFiles) -> Result<(), TreeError> {
        let size: u64 = self.volumes.iter().map(Volume::size).sum();
        let structure = size.saturating_mul(MAX_CONTENT);
        let content = most_content(structure, self.volumes[0].disk().file_bytes());
        let mut walk = TreeWalk { content, structure, directories: HashSet::new(), digests: HashMap::new(), unchanged };
        let root = self.root();
        let mut open = vec![(Vec::new(), root.0, walk.enter(root, &self.node(root)?)?.into_iter())];
        let entry = walk.entry(b"/".to_vec(), root, &self.node(root)?, visitor)?;
        tell(visitor, &entry)?;
        let mut count = 0;
        while let Some((path, volume, names)) = open.last_mut() {
            let Some((name, number)) = names.next() else {
                open.pop();
                continue;
            };
            count += 1;
            let path = [path.as_slice(), b"/", &name].concat();
            if count > MAX_ENTRIES || path.len() > MAX_PATH {
                return Err(TreeError::TooMuch("more names or longer paths"));
            }
            let place = self.mounted((*volume, number));
            let node = self.node(place)?;
            let entry = walk.entry(path.clone(), place, &node, visitor)?;
            tell(visitor, &entry)?;
            if node.kind() == FileKind::Directory {
                open.push((path, place.0, walk.enter(place, &node)?.into_iter()));
            }
        }
        Ok(())
    }

    /// Computes the digest of the canonical text of the whole tree.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn content_sha256(&self) -> Result<Sha256Digest, TreeError> {
        let mut content = ContentDigest::new();
        self.walk(&mut |entry| {
            content.add(entry);
            ControlFlow::Continue(())
        })?;
        Ok(content.finish())
    }
}

fn joined(volumes: &[PartitionContent], word: &str) -> String {
    volumes.iter().map(ToString::to_string).collect::<Vec<_>>().join(word)
}

/// Returns the names in a path, last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.rev().map(<[u8]>::to_vec).collect()
}

fn tell(visitor: &mut dyn TreeVisitor, entry: &DiskEntry) -> Result<(), TreeError> {
    if visitor.visit_entry(entry).is_break() { Err(TreeError::Stopped) } else { Ok(()) }
}

/// A visitor that collects a part of a file.
struct FileRange {
    /// How many bytes before the part are left to skip.
    skip: u64,
    length: usize,
    bytes: Vec<u8>,
}

impl FileRange {
    fn add(&mut self, chunk: Chunk<'_>) -> ControlFlow<()> {
        let size = match chunk {
            Chunk::Data(bytes) => bytes.len() as u64,
            Chunk::Zeroes(count) => count,
        };
        let skipped = self.skip.min(size);
        self.skip -= skipped;
        let missing = self.length - self.bytes.len();
        let count = usize::try_from(size - skipped).unwrap_or(usize::MAX).min(missing);
        match chunk {
            Chunk::Data(bytes) => {
                self.bytes.extend(bytes.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX)).take(count));
            }
            Chunk::Zeroes(_) => self.bytes.resize(self.bytes.len() + count, 0),
        }
        if self.bytes.len() < self.length { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// Returns how much content may be hashed: `worth` is the size of the file systems, `file_bytes` that of the disk's files.
fn most_content(worth: u64, file_bytes: u64) -> u64 {
    worth.min(file_bytes.saturating_mul(MAX_EXPANSION)).max(LEAST_CONTENT)
}

/// The state of a walk.
struct TreeWalk<'w> {
    /// How many bytes of content may still be hashed.
    content: u64,
    /// How many bytes of directories, paths and attributes may still be read.
    structure: u64,
    /// The directories that were entered: none may be entered again.
    directories: HashSet<Place>,
    /// The digests of files with several names, so that each is hashed once.
    digests: HashMap<Place, FileDigest>,
    /// The digests of files that are as in the base.
    unchanged: &'w mut UnchangedFiles,
}

impl TreeWalk<'_> {
    fn enter(&mut self, place: Place, directory: &VolumeNode<'_>) -> Result<Vec<(Vec<u8>, u64)>, TreeError> {
        if !self.directories.insert(place) {
            return Err(TreeError::Loop(place.1));
        }
        self.charge(directory.size(), "larger directories")?;
        Ok(directory.names()?)
    }

    fn entry(
        &mut self,
        path: Vec<u8>,
        place: Place,
        node: &VolumeNode<'_>,
        visitor: &mut dyn TreeVisitor,
    ) -> Result<DiskEntry, TreeError> {
        self.charge(PATH_COST * path.len() as u64, "longer paths")?;
        let mut entry = node.entry(path, place.0)?;
        self.charge(entry.xattrs.iter().map(|xattr| xattr.value.len() as u64).sum(), "larger attributes")?;
        if entry.kind == FileKind::File {
            entry.digest = Some(self.digest(place, node, visitor)?);
        }
        Ok(entry)
    }

    fn charge(&mut self, bytes: u64, what: &'static str) -> Result<(), TreeError> {
        self.structure = self.structure.checked_sub(bytes).ok_or(TreeError::TooMuch(what))?;
        Ok(())
    }

    fn digest(
        &mut self,
        place: Place,
        file: &VolumeNode<'_>,
        visitor: &mut dyn TreeVisitor,
    ) -> Result<FileDigest, TreeError> {
        if let Some(digest) = self.digests.get(&place) {
            return Ok(*digest);
        }
        let digest = match self.sparse_digest(file, visitor)? {
            Some(digest) => FileDigest::Sparse(digest),
            None => FileDigest::Content(self.known_digest(file, visitor)?),
        };
        if file.is_shared() {
            self.digests.insert(place, digest);
        }
        Ok(digest)
    }

    /// Returns the digest of a file's content, which is not read if nobody has to see it and the base decides it.
    fn known_digest(
        &mut self,
        file: &VolumeNode<'_>,
        visitor: &mut dyn TreeVisitor,
    ) -> Result<Sha256Digest, TreeError> {
        let Some(layout) = self.unchanged.are_sought().then(|| file.layout()).transpose()?.flatten() else {
            return self.content_digest(file, visitor);
        };
        if let Some(digest) = self.unchanged.find(&layout).filter(|_| !visitor.reads_content()) {
            return Ok(digest);
        }
        let digest = self.content_digest(file, visitor)?;
        self.unchanged.learn(&layout, digest);
        Ok(digest)
    }

    fn content_digest(
        &mut self,
        file: &VolumeNode<'_>,
        visitor: &mut dyn TreeVisitor,
    ) -> Result<Sha256Digest, TreeError> {
        self.content = self.content.checked_sub(file.size()).ok_or(TreeError::TooMuch("larger files"))?;
        let mut sha = Sha256::new();
        visitor.begin_content();
        let _ = file.read_chunks(&mut |chunk| {
            visitor.visit_content(chunk);
            match chunk {
                Chunk::Data(bytes) => sha.update(bytes),
                Chunk::Zeroes(count) => hash_zeroes(&mut sha, count),
            }
            ControlFlow::Continue(())
        })?;
        Ok(sha.into())
    }

    /// Returns the digest of a file with too many zeroes to be hashed; `None` for any other file.
    fn sparse_digest(
        &mut self,
        file: &VolumeNode<'_>,
        visitor: &mut dyn TreeVisitor,
    ) -> Result<Option<Sha256Digest>, TreeError> {
        if file.size() <= sparse_blocks::LIMIT {
            return Ok(None);
        }
        let mut sha = Sha256::new();
        let mut filter = BlockFilter::new(|bytes| sha.update(bytes));
        let budget = &mut self.content;
        visitor.begin_content();
        let read = file.read_chunks(&mut |chunk| {
            visitor.visit_content(chunk);
            match chunk {
                Chunk::Zeroes(count) => {
                    filter.add_zeroes(count);
                    ControlFlow::Continue(())
                }
                Chunk::Data(bytes) => {
                    filter.add_data(bytes);
                    let left = budget.checked_sub(bytes.len() as u64);
                    *budget = left.unwrap_or(0);
                    if left.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                }
            }
        })?;
        if read.is_break() {
            return Err(TreeError::TooMuch("larger files"));
        }
        let is_sparse = filter.is_sparse();
        Ok(is_sparse.then(|| sha.into()))
    }
}
