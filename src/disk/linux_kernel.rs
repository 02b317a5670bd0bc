//! Finds the Linux kernel of a disk, and the modules through which it reaches its root file system and the agent's port.
//!
//! Sources: the kernel's `Documentation/arch/x86/boot.rst` (the setup header of a `bzImage`); depmod(8) and
//! modules.dep(5), modules.builtin in `Documentation/kbuild/kbuild.rst`.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::tree::{Tree, TreeError};
use crate::error::{Fault, Kind};

/// The longest kernel that is read, in bytes.
const MAX_KERNEL: u64 = 128 << 20;
/// The longest initrd that is read, in bytes.
pub(crate) const MAX_INITRD: u64 = 512 << 20;
/// How much of a kernel is read to learn its release: its setup code, which has at most 64 sectors.
pub(super) const HEAD: usize = 64 << 10;
/// The longest list of modules that is read, in bytes.
const MAX_LIST: u64 = 16 << 20;
/// The longest module, compressed or not, in bytes.
const MAX_MODULE: u64 = 64 << 20;
/// Where distributions have their kernels. The second one is a link to the newest kernel, or a kernel by itself.
const FOLDERS: [&str; 2] = ["/boot", "/"];
/// How the names of kernels begin.
const NAMES: [&str; 3] = ["vmlinuz", "bzImage", "kernel-"];
/// The magic number in a setup header.
const HDRS: [u8; 4] = *b"HdrS";
/// The least version of the boot protocol that has the kernel's version.
const BOOT_PROTOCOL: u16 = 0x0200;
/// The offset of the setup header.
const SETUP_HEADER: usize = 0x202;
/// The offset that the address of the version is relative to.
const SETUP: usize = 0x200;
/// The longest release, `__NEW_UTS_LEN` of the kernel.
pub(super) const MAX_RELEASE: usize = 64;

/// The part of the setup header that leads to the kernel's version.
#[repr(C)]
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
struct SetupHeader {
    header: [u8; 4],
    version: U16,
    realmode_swtch: U32,
    start_sys_seg: U16,
    kernel_version: U16,
}

/// A kernel of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinuxKernel {
    /// The release, as `uname -r` prints it.
    pub release: String,
    /// The kernel as the boot loader loads it.
    pub image: Vec<u8>,
}

/// A module of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelModule {
    /// Its name, such as `virtio_blk`.
    pub name: String,
    /// The object file, uncompressed.
    pub content: Vec<u8>,
}

/// The reason why a disk cannot be booted directly.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// There is no kernel with its modules.
    #[error("no Linux kernel with its modules is in /boot of the image")]
    NoKernel,
    /// kiln cannot read the root, and no kernel elsewhere has its initrd beside it.
    #[error("kiln cannot read the root, and no other file system of the image has a Linux kernel with its initrd")]
    NoInitrd,
    /// The kernel cannot reach its disk or the agent.
    #[error("the kernel {release} of the image has no driver `{driver}`")]
    NoDriver {
        /// The release of the kernel.
        release: String,
        /// The name of the missing module.
        driver: String,
    },
    /// A kernel that is not on the disk cannot reach the disk or the agent.
    #[error(
        "the kernel {release} beside the image has no driver `{driver}`: it is not built in, there is no initrd, and the image \
         has no such module in /lib/modules"
    )]
    NoDriverBeside {
        /// The release of the kernel.
        release: String,
        /// The name of the missing module.
        driver: String,
    },
    /// A module cannot be unpacked.
    #[error("cannot unpack the module {path} of the image")]
    Unpack {
        /// The path of the module.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The disk cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl Fault for KernelError {
    fn kind(&self) -> Kind {
        Kind::Base
    }

    fn hints(&self) -> Vec<String> {
        let full_boot = "build it with `boot = \"full\"` under [machine]";
        match self {
            KernelError::NoKernel | KernelError::NoInitrd => vec![
                "name a kernel that is a file beside the disk as `base.kernel`".into(),
                format!("if the disk has a boot loader and a kernel, {full_boot}"),
            ],
            KernelError::NoDriverBeside { .. } => vec!["name an initrd that has the driver as `base.initrd`".into()],
            _ => vec![full_boot.into()],
        }
    }
}

/// Reads the modules of a kernel that is not on the disk, if the disk has some of its release. Without a list of what is built
/// in, every driver that is no module counts as built in.
///
/// # Errors
/// When a driver is missing, or a file cannot be read.
pub(super) fn read_modules(
    tree: &Tree<'_>,
    release: &str,
    drivers: &[&str],
    optional: &[&str],
) -> Result<Option<Vec<KernelModule>>, KernelError> {
    let table = ModuleTable::read(tree, release)?;
    if table.modules.is_empty() && table.builtin.is_empty() {
        return Ok(None);
    }
    if table.builtin.is_empty() {
        return table.read_all(tree, &[], &[drivers, optional].concat()).map(Some);
    }
    table.read_all(tree, drivers, optional).map(Some)
}

/// Reads the newest kernel of a disk, and the modules that provide `drivers` or that those depend on. A driver of `optional`
/// may be missing.
///
/// # Errors
/// When there is no kernel, a driver is missing, or a file cannot be read.
pub(super) fn read_kernel(
    tree: &Tree<'_>,
    drivers: &[&str],
    optional: &[&str],
) -> Result<(LinuxKernel, Vec<KernelModule>), KernelError> {
    let mut newest: Option<KernelFile> = None;
    for kernel in kernel_files(tree)? {
        if tree.has_directory(&modules_folder(&kernel.release))? {
            newest = newest.into_iter().chain([kernel]).max_by(KernelFile::compare);
        }
    }
    let kernel = newest.ok_or(KernelError::NoKernel)?.read(tree)?;
    let modules = ModuleTable::read(tree, &kernel.release)?.read_all(tree, drivers, optional)?;
    Ok((kernel, modules))
}

/// Reads the newest kernel that has its initrd beside it, and the initrd.
///
/// # Errors
/// When there is no such kernel, or a file cannot be read.
pub(super) fn read_kernel_with_initrd(trees: &[&Tree<'_>]) -> Result<(LinuxKernel, Vec<u8>), KernelError> {
    let mut found: Vec<(KernelFile, &Tree<'_>, String)> = Vec::new();
    for tree in trees {
        for kernel in kernel_files(tree)? {
            if let Some(initrd) = kernel.initrd(tree)? {
                found.push((kernel, *tree, initrd));
            }
        }
    }
    let newest = found.into_iter().max_by(|(one, ..), (other, ..)| one.compare(other));
    let (kernel, tree, initrd) = newest.ok_or(KernelError::NoInitrd)?;
    let initrd = tree.read(&initrd, MAX_INITRD)?.ok_or(KernelError::NoInitrd)?;
    Ok((kernel.read(tree)?, initrd))
}

/// The path of a kernel, and its release.
struct KernelFile {
    release: String,
    path: String,
}

impl KernelFile {
    fn compare(&self, other: &Self) -> Ordering {
        compare_releases(&self.release, &other.release)
    }

    fn read(self, tree: &Tree<'_>) -> Result<LinuxKernel, KernelError> {
        let image = tree.read(&self.path, MAX_KERNEL)?.ok_or(KernelError::NoKernel)?;
        Ok(LinuxKernel { release: self.release, image })
    }

    /// Returns the path of the initrd beside the kernel: of its release, or of the same suffix, as in `vmlinuz-lts` and
    /// `initramfs-lts`.
    fn initrd(&self, tree: &Tree<'_>) -> Result<Option<String>, TreeError> {
        let (folder, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let suffix = name.split_once('-').map_or("", |(_, suffix)| suffix);
        let present = tree.names(if folder.is_empty() { "/" } else { folder })?.unwrap_or_default();
        let wanted = [self.release.as_str(), suffix].into_iter().filter(|name| !name.is_empty());
        let wanted: Vec<String> = wanted.flat_map(initrd_names).collect();
        let found = wanted.into_iter().find(|name| present.iter().any(|present| present == name.as_bytes()));
        Ok(found.map(|name| format!("{folder}/{name}")))
    }
}

/// Returns the names that an initrd of this kernel may have: those of initramfs-tools, dracut, `SUSE` and mkinitcpio, and
/// mkinitfs.
fn initrd_names(kernel: &str) -> [String; 4] {
    [
        format!("initrd.img-{kernel}"),
        format!("initramfs-{kernel}.img"),
        format!("initrd-{kernel}"),
        format!("initramfs-{kernel}"),
    ]
}

fn kernel_files(tree: &Tree<'_>) -> Result<Vec<KernelFile>, TreeError> {
    let mut found = Vec::new();
    for path in kernel_paths(tree)? {
        found.extend(read_release(tree, &path)?.map(|release| KernelFile { release, path }));
    }
    Ok(found)
}

fn kernel_paths(tree: &Tree<'_>) -> Result<Vec<String>, TreeError> {
    let mut paths = Vec::new();
    for folder in FOLDERS {
        let names = tree.names(folder)?.unwrap_or_default();
        let names = names.into_iter().filter_map(|name| String::from_utf8(name).ok());
        let kernels = names.filter(|name| NAMES.iter().any(|prefix| name.starts_with(prefix)));
        paths.extend(kernels.map(|name| format!("{}/{name}", folder.trim_end_matches('/'))));
    }
    // Fedora also keeps each kernel beside its modules, and some images keep it there alone.
    for release in tree.names("/lib/modules")?.unwrap_or_default() {
        if let Ok(release) = String::from_utf8(release) {
            paths.push(format!("/lib/modules/{release}/vmlinuz"));
        }
    }
    Ok(paths)
}

fn modules_folder(release: &str) -> String {
    format!("/lib/modules/{release}")
}

/// Reads the release of a kernel; `None` if the file is missing or no kernel.
fn read_release(tree: &Tree<'_>, path: &str) -> Result<Option<String>, TreeError> {
    Ok(tree.read_range(path, 0, HEAD)?.and_then(|head| parse_release(&head)))
}

/// Returns whether this is the beginning of a bzImage.
pub(super) fn has_setup_header(head: &[u8]) -> bool {
    setup_header(head).is_some()
}

fn setup_header(head: &[u8]) -> Option<SetupHeader> {
    let (header, _) = SetupHeader::read_from_prefix(head.get(SETUP_HEADER..)?).ok()?;
    (header.header == HDRS && header.version.get() >= BOOT_PROTOCOL).then_some(header)
}

/// Parses the release in the setup code of a kernel: the first word of its version.
pub(super) fn parse_release(head: &[u8]) -> Option<String> {
    let offset = setup_header(head)?.kernel_version.get();
    let version = head.get(SETUP + usize::from(offset)..).filter(|_| offset != 0)?;
    plain_release(version.split(|byte| *byte == b' ' || *byte == 0).next()?)
}

/// Returns a release that can be a part of a path, and be shown.
pub(super) fn plain_release(word: &[u8]) -> Option<String> {
    let release = std::str::from_utf8(word).ok()?;
    let is_visible = release.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    let is_plain = is_visible && (1..=MAX_RELEASE).contains(&release.len()) && release != "." && release != "..";
    is_plain.then(|| release.to_owned())
}

/// Compares two releases: runs of digits as numbers, all else as bytes.
fn compare_releases(one: &str, other: &str) -> Ordering {
    release_parts(one).cmp(release_parts(other))
}

/// Splits a release into numbers and other parts. Numbers are later than anything else, so that 6.1.10 is later than
/// 6.1-rc1.
fn release_parts(release: &str) -> impl Iterator<Item = (u64, &str)> {
    let mut rest = release;
    std::iter::from_fn(move || {
        let is_number = rest.chars().next()?.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != is_number).unwrap_or(rest.len());
        let (part, later) = rest.split_at(end);
        rest = later;
        Some(part.parse().map_or((0, part), |number: u64| (number.saturating_add(1), "")))
    })
}

/// The modules of a kernel, and those that are a part of it.
struct ModuleTable {
    release: String,
    /// For each module its path below the folder, and the paths that it depends on, the first one to be loaded last.
    modules: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl ModuleTable {
    /// Reads the lists of modules; those that the disk does not have are empty.
    fn read(tree: &Tree<'_>, release: &str) -> Result<Self, TreeError> {
        let folder = modules_folder(release);
        let dependencies = read_text(tree, &format!("{folder}/modules.dep"))?;
        let builtin = read_text(tree, &format!("{folder}/modules.builtin"))?;
        Ok(Self {
            release: release.to_owned(),
            modules: dependencies.lines().filter_map(parse_dependencies).collect(),
            builtin: builtin.lines().map(module_name).collect(),
        })
    }

    /// Reads the modules of these drivers, each after those that it depends on.
    fn read_all(&self, tree: &Tree<'_>, drivers: &[&str], optional: &[&str]) -> Result<Vec<KernelModule>, KernelError> {
        let mut paths: Vec<&str> = Vec::new();
        for driver in optional.iter().chain(drivers) {
            match self.modules.get(*driver) {
                Some((path, dependencies)) => {
                    let in_order = dependencies.iter().rev().chain([path]).map(String::as_str);
                    paths.extend(in_order.collect::<Vec<_>>());
                }
                None if self.builtin.contains(*driver) || optional.contains(driver) => {}
                None => {
                    return Err(KernelError::NoDriver { release: self.release.clone(), driver: (*driver).to_owned() });
                }
            }
        }
        let mut seen = BTreeSet::new();
        paths.retain(|path| seen.insert(*path));
        paths.into_iter().map(|path| self.read_module(tree, path)).collect()
    }

    fn read_module(&self, tree: &Tree<'_>, path: &str) -> Result<KernelModule, KernelError> {
        let name = module_name(path);
        let missing = || KernelError::NoDriver { release: self.release.clone(), driver: name.clone() };
        let full =
            if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", modules_folder(&self.release)) };
        let stored = tree.read(&full, MAX_MODULE)?.ok_or_else(missing)?;
        let content = unpack(path, stored).map_err(|source| KernelError::Unpack { path: full, source })?;
        Ok(KernelModule { name, content })
    }
}

fn read_text(tree: &Tree<'_>, path: &str) -> Result<String, TreeError> {
    let bytes = tree.read(path, MAX_LIST)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Parses a line `kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz ...` of modules.dep(5).
fn parse_dependencies(line: &str) -> Option<(String, (String, Vec<String>))> {
    let (path, dependencies) = line.split_once(':')?;
    let dependencies = dependencies.split_whitespace().map(str::to_owned).collect();
    Some((module_name(path), (path.to_owned(), dependencies)))
}

/// Returns the name of the module in a file: `-` and `_` are the same in it.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Unpacks a module by the ending of its name.
fn unpack(path: &str, stored: Vec<u8>) -> io::Result<Vec<u8>> {
    match path.rsplit('.').next() {
        Some("xz") => read_limited(liblzma::read::XzDecoder::new(&stored[..])),
        Some("zst") => read_limited(zstd::Decoder::new(&stored[..])?),
        Some("gz") => read_limited(MultiGzDecoder::new(&stored[..])),
        _ => Ok(stored),
    }
}

fn read_limited(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    reader.take(MAX_MODULE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_MODULE { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(content) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a kernel of this version.
    fn head(version: &str) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[0x202..0x206].copy_from_slice(&HDRS);
        head[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        head[0x20e..0x210].copy_from_slice(&0x3000_u16.to_le_bytes());
        head[0x3200..0x3200 + version.len()].copy_from_slice(version.as_bytes());
        head
    }

    #[test]
    fn the_release_is_the_first_word_of_the_version() {
        let debian = head("6.1.0-37-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP");
        assert_eq!(parse_release(&debian).as_deref(), Some("6.1.0-37-cloud-amd64"));
        for bad in [head(""), head("../../etc x"), head(".. x"), vec![0; HEAD], head("6.1")[..0x300].to_vec(), vec![]] {
            assert_eq!(parse_release(&bad), None);
        }
    }

    #[test]
    fn a_later_release_is_greater() {
        let rising = ["5.10.0-9-amd64", "6.1-rc1", "6.1.0-9-amd64", "6.1.0-37-amd64", "6.1.10", "6.12.1"];
        for pair in rising.windows(2) {
            assert_eq!(compare_releases(pair[0], pair[1]), Ordering::Less, "{pair:?}");
        }
    }

    #[test]
    fn dependencies_are_named_as_the_kernel_names_modules() {
        let line = "kernel/drivers/virtio/virtio-pci.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz kernel/a/virtio.ko";
        let (name, (path, dependencies)) = parse_dependencies(line).unwrap();
        assert_eq!((name.as_str(), path.as_str()), ("virtio_pci", "kernel/drivers/virtio/virtio-pci.ko.xz"));
        assert_eq!(dependencies.iter().map(|path| module_name(path)).collect::<Vec<_>>(), ["virtio_ring", "virtio"]);
        assert!(parse_dependencies("no colon").is_none());
    }

    #[test]
    fn a_module_is_unpacked_by_its_ending() {
        let plain = b"module".repeat(100);
        let zstd = zstd::bulk::compress(&plain, 3).unwrap();
        assert_eq!(unpack("a.ko", plain.clone()).unwrap(), plain);
        assert_eq!(unpack("a.ko.zst", zstd).unwrap(), plain);
        assert!(unpack("a.ko.xz", plain.clone()).is_err());
        assert!(unpack("a.ko.gz", plain).is_err());
    }
}
