//! Reads the whole tree of a sealed disk: the root file system, and what its `/etc/fstab` mounts on it.
//!
//! Entries come depth first: a directory before what is in it, names sorted by their bytes within each directory. Where a
//! file system is mounted its root stands for the directory below it, as in the running guest. Hard links are entries of
//! their own with the same number. Memory does not grow with the size of files.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

use super::chain::{Chain, ChainError};
use super::digest::hash_zeroes;
use super::entry::{Chunk, ContentDigest, Entry, FileKind};
use super::gap::{PartitionContent, TreeGap, TreeMount};
use super::partition::{Partition, partitions};
use super::volume::{Node, Volume, VolumeError};
use crate::error::{self, Fault};
use crate::wire::fstab::{self, Mount, Source};

/// Ten times what the largest distributions install.
pub(super) const MAX_ENTRIES: u64 = 20_000_000;
/// All content read in one walk, as a multiple of the file systems' size. Holes count: a few bytes can claim terabytes
/// of them, and hashing those would keep us busy for hours.
const MAX_CONTENT: u64 = 64;
/// Longest path we follow; the kernel takes 4096 bytes in one call, but trees can be deeper.
const MAX_PATH: usize = 64 << 10;
/// As many links as Linux follows in one path (`path_resolution(7)`).
const MAX_LINKS: usize = 40;
/// A table of mounts is a page of text, bytes.
const MAX_FSTAB: u64 = 1 << 20;
/// Where an ESP is mounted that no table names: systemd-gpt-auto-generator(8) takes the first, distributions the second.
const ESP_TARGETS: [&str; 2] = ["/efi", "/boot/efi"];

/// Reading a tree failed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The disk.
    #[error(transparent)]
    Read(#[from] ChainError),
    /// The file system.
    #[error("cannot read the guest's file system")]
    FileSystem(#[from] VolumeError),
    /// Nothing that could be the root.
    #[error("no partition of the disk has an ext4 file system")]
    NoRoot,
    /// A directory that contains itself.
    #[error("the guest's file system is damaged: directory {0} is in the tree twice")]
    Loop(u64),
    /// The guest told of what cannot be.
    #[error("the guest's list of its files makes no sense")]
    Told(#[source] std::io::Error),
    /// Beyond our limits.
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

/// A file or directory: in which file system, and its number there.
type Place = (usize, u64);

/// The guest's files as the running guest would see them.
#[derive(Debug)]
pub struct Tree<'c> {
    /// The root file system first.
    volumes: Vec<Volume<'c>>,
    /// Directories on which another file system is mounted.
    mounts: HashMap<Place, usize>,
    /// Where each of `volumes` is, in their order.
    places: Vec<TreeMount>,
    gaps: Vec<TreeGap>,
}

impl<'c> Tree<'c> {
    /// Finds the root file system: the first ext4 with an `/etc/os-release`, else the largest ext4 of the disk. Mounts on it
    /// what its `/etc/fstab` names, and an EFI system partition that it does not name.
    ///
    /// # Errors
    /// When there is no ext4, or the disk cannot be read. A file system that cannot be opened for another reason is
    /// an error only if nothing better is found.
    pub fn open(disk: &'c Chain) -> Result<Self, TreeError> {
        let mut refused = None;
        let mut found: Vec<(Partition, Tree<'c>)> = Vec::new();
        for partition in partitions(disk)? {
            match Volume::open(disk, &partition) {
                Ok(Some(volume)) => {
                    let tree = Self::of(volume, &partition);
                    found.push((partition, tree));
                }
                Ok(None) => {}
                Err(error) => _ = refused.get_or_insert(error),
            }
        }
        let Some(root) = root(&found) else {
            return Err(refused.map_or(TreeError::NoRoot, TreeError::from));
        };
        let (_, mut tree) = found.remove(root);
        tree.mount_all(found);
        tree.find_unclean();
        Ok(tree)
    }

    fn of(root: Volume<'c>, partition: &Partition) -> Self {
        let &Partition { number, start, length, .. } = partition;
        let place = TreeMount { target: b"/".to_vec(), partition: number, start, length };
        Self { volumes: vec![root], mounts: HashMap::new(), places: vec![place], gaps: Vec::new() }
    }

    /// Adds a gap for every file system in the tree that was not unmounted.
    fn find_unclean(&mut self) {
        let unclean = self.volumes.iter().zip(&self.places).filter(|(volume, _)| !volume.is_clean());
        let gaps = unclean.map(|(volume, place)| {
            let label = String::from_utf8_lossy(volume.label()).into_owned();
            let volume = PartitionContent { partition: place.partition, kind: volume.kind(), label };
            TreeGap::Unclean { volume, target: place.target.clone() }
        });
        self.gaps.extend(gaps.collect::<Vec<_>>());
    }

    /// Mounts what the table names, and the ESP. A table that cannot be read names nothing: whoever reads on from the file
    /// system that holds it says why.
    fn mount_all(&mut self, mut left: Vec<(Partition, Tree<'c>)>) {
        let table = self.read("/etc/fstab", MAX_FSTAB).ok().flatten().unwrap_or_default();
        for mount in fstab::mounts(&table) {
            let on = self.directory(&mount.target).ok().flatten();
            let which = left.iter().position(|(partition, tree)| is_meant(&mount.source, partition, &tree.volumes[0]));
            match (on, which) {
                (Some(on), Some(which)) => self.mount(on, &mount.target, left.remove(which).1),
                _ if mount.is_needed => self.gaps.push(unanswered(mount)),
                _ => {}
            }
        }
        let is_esp = |(partition, tree): &(Partition, Tree<'_>)| {
            partition.is_esp() && matches!(tree.volumes[..], [Volume::Fat(_)])
        };
        let on = ESP_TARGETS.iter().find_map(|target| Some((target, self.directory(target.as_bytes()).ok()??)));
        if let (Some((target, on)), Some(which)) = (on, left.iter().position(is_esp)) {
            self.mount(on, target.as_bytes(), left.remove(which).1);
        }
    }

    fn mount(&mut self, on: Place, target: &[u8], tree: Tree<'c>) {
        self.mounts.insert(on, self.volumes.len());
        self.volumes.extend(tree.volumes);
        let target = target.to_vec();
        self.places.extend(tree.places.into_iter().map(|place| TreeMount { target: target.clone(), ..place }));
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

    /// Whether every file system was unmounted as it should be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.volumes.iter().all(Volume::is_clean)
    }

    /// The content of a regular file of at most `limit` bytes; symbolic links are followed within the guest. `None`
    /// where there is no such file.
    ///
    /// # Errors
    /// When it is longer, or the file system is damaged or cannot be read.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, TreeError> {
        let Some(place) = self.find(path.as_bytes())? else { return Ok(None) };
        let node = self.node(place)?;
        Ok((node.kind() == FileKind::File).then(|| node.read(limit)).transpose()?)
    }

    /// Whether there is a directory of this name; symbolic links are followed within the guest.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn has_directory(&self, path: &str) -> Result<bool, TreeError> {
        Ok(self.directory(path.as_bytes())?.is_some())
    }

    /// The names in a directory, as the file system has them; symbolic links are followed within the guest. `None` where
    /// there is no such directory.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn names(&self, path: &str) -> Result<Option<Vec<Vec<u8>>>, TreeError> {
        let Some(place) = self.directory(path.as_bytes())? else { return Ok(None) };
        Ok(Some(self.node(place)?.names()?.into_iter().map(|(name, _)| name).collect()))
    }

    fn directory(&self, path: &[u8]) -> Result<Option<Place>, VolumeError> {
        let Some(place) = self.find(path)? else { return Ok(None) };
        Ok((self.node(place)?.kind() == FileKind::Directory).then_some(place))
    }

    fn node(&self, (volume, number): Place) -> Result<Node<'_>, VolumeError> {
        self.volumes[volume].node(number)
    }

    fn root(&self) -> Place {
        self.mounted((0, self.volumes[0].root()))
    }

    /// What is mounted here, or this itself. No file system is mounted twice, so this ends.
    fn mounted(&self, mut place: Place) -> Place {
        while let Some(volume) = self.mounts.get(&place) {
            place = (*volume, self.volumes[*volume].root());
        }
        place
    }

    /// Resolves an absolute path as the guest would, links included.
    fn find(&self, path: &[u8]) -> Result<Option<Place>, VolumeError> {
        let mut parents: Vec<Place> = Vec::new();
        let mut at = self.root();
        let mut left = components(path);
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                at = parents.pop().unwrap_or(self.root());
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
                parents.push(at);
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
        Ok(Some(at))
    }

    /// Gives every entry to `visit`, which may stop the walk. Blocks the calling thread: file contents are hashed.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read, or `visit` breaks.
    pub fn walk(&self, visit: &mut dyn FnMut(&Entry) -> ControlFlow<()>) -> Result<(), TreeError> {
        let size: u64 = self.volumes.iter().map(Volume::size).sum();
        let budget = size.saturating_mul(MAX_CONTENT);
        let mut walk = Walk { budget, directories: HashSet::new(), digests: HashMap::new() };
        let root = self.root();
        let mut open = vec![(Vec::new(), root.0, walk.enter(root, &self.node(root)?)?.into_iter())];
        tell(visit, &walk.entry(b"/".to_vec(), root, &self.node(root)?)?)?;
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
            tell(visit, &walk.entry(path.clone(), place, &node)?)?;
            if node.kind() == FileKind::Directory {
                open.push((path, place.0, walk.enter(place, &node)?.into_iter()));
            }
        }
        Ok(())
    }

    /// The digest of the canonical text of the whole tree.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn content_sha256(&self) -> Result<[u8; 32], TreeError> {
        let mut content = ContentDigest::new();
        self.walk(&mut |entry| {
            content.add(entry);
            ControlFlow::Continue(())
        })?;
        Ok(content.finish())
    }
}

fn unanswered(mount: Mount) -> TreeGap {
    TreeGap::Unanswered { source: mount.source.to_string(), target: mount.target }
}

/// Which of these is the root. One that is too damaged to be looked into is not it; reading it later would say why.
fn root(found: &[(Partition, Tree<'_>)]) -> Option<usize> {
    let is_ext4 = |tree: &Tree<'_>| matches!(tree.volumes[..], [Volume::Ext4(_)]);
    let candidates = || found.iter().enumerate().filter(|(_, (_, tree))| is_ext4(tree));
    let has_system = |tree: &Tree<'_>| tree.find(b"/etc/os-release").is_ok_and(|found| found.is_some());
    let largest = || candidates().rev().max_by_key(|(_, (_, tree))| tree.volumes[0].size());
    let first = candidates().find(|(_, (_, tree))| has_system(tree));
    first.or_else(largest).map(|(index, _)| index)
}

/// Whether the table's word is for this file system. Its letters may be of either case in a UUID (libmount).
fn is_meant(source: &Source, partition: &Partition, volume: &Volume<'_>) -> bool {
    match source {
        Source::Uuid(uuid) => uuid.eq_ignore_ascii_case(&volume.uuid()),
        Source::Label(label) => !label.is_empty() && label.as_bytes() == volume.label(),
        Source::PartUuid(uuid) => uuid.eq_ignore_ascii_case(&partition.uuid),
        Source::PartLabel(label) => !label.is_empty() && *label == partition.label,
        Source::Partition(number) => *number == partition.number,
        Source::Device(_) => false,
    }
}

/// The names in a path, last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.rev().map(<[u8]>::to_vec).collect()
}

fn tell(visit: &mut dyn FnMut(&Entry) -> ControlFlow<()>, entry: &Entry) -> Result<(), TreeError> {
    if visit(entry).is_break() { Err(TreeError::Stopped) } else { Ok(()) }
}

/// What a walk remembers.
struct Walk {
    /// Bytes of content that may still be read.
    budget: u64,
    /// Directories entered: none may come again.
    directories: HashSet<Place>,
    /// Of files with several names, so that each is hashed once.
    digests: HashMap<Place, [u8; 32]>,
}

impl Walk {
    fn enter(&mut self, place: Place, directory: &Node<'_>) -> Result<Vec<(Vec<u8>, u64)>, TreeError> {
        if !self.directories.insert(place) {
            return Err(TreeError::Loop(place.1));
        }
        Ok(directory.names()?)
    }

    fn entry(&mut self, path: Vec<u8>, place: Place, node: &Node<'_>) -> Result<Entry, TreeError> {
        let mut entry = node.entry(path, place.0)?;
        if entry.kind == FileKind::File {
            entry.sha256 = Some(self.digest(place, node)?);
        }
        Ok(entry)
    }

    fn digest(&mut self, place: Place, file: &Node<'_>) -> Result<[u8; 32], TreeError> {
        if let Some(digest) = self.digests.get(&place) {
            return Ok(*digest);
        }
        self.budget = self.budget.checked_sub(file.size()).ok_or(TreeError::TooMuch("larger files"))?;
        let mut sha = Sha256::new();
        let _ = file.read_chunks(&mut |chunk| {
            match chunk {
                Chunk::Data(bytes) => sha.update(bytes),
                Chunk::Zeroes(count) => hash_zeroes(&mut sha, count),
            }
            ControlFlow::Continue(())
        })?;
        let digest = sha.finalize().into();
        if file.is_shared() {
            self.digests.insert(place, digest);
        }
        Ok(digest)
    }
}
