//! The files of a direct boot: the kernel of the guest's own disk, unless one is beside it, and an initramfs in which kiln's
//! agent is the first process.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;

use crate::disk::boot_files::{BootDrivers, RootAccess, SeparateKernel, find_boot_files, find_root_access};
use crate::disk::chain::{Chain, open_files};
use crate::disk::kernel_file::find_release;
use crate::disk::linux_kernel::MAX_INITRD;
use crate::error::{Failure, Fault, FileError, Kind};
use crate::event::NoticeLevel;
use crate::initramfs::InitramfsWriter;
use crate::machine::argv::{BackingFiles, INITRAMFS, KERNEL};
use crate::plan::machine::MachineKernel;
use crate::session::AGENT;
use crate::specfile::DiskFormat;
use crate::wire::direct_boot::{BootInstructions, INSTRUCTIONS, MODULES};

use super::boot::MachineSite;

/// The drivers of the disk and of the agent's port.
const DRIVERS: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_console"];
/// Drivers that a kernel may have under another name, or not at all. ext4 asks for a checksum that the kernel finds through
/// modprobe(8), which is not in the initramfs. pvpanic tells QEMU that the kernel has panicked.
const OPTIONAL_DRIVERS: [&str; 5] = ["crc32c_generic", "crc32c_intel", "virtio_rng", "virtio_net", "pvpanic_mmio"];

/// The reason why the files of a direct boot cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
struct DirectBootError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Fault for DirectBootError {
    fn kind(&self) -> Kind {
        Kind::Host
    }

    fn hints(&self) -> Vec<String> {
        vec!["free some space where the cache folder is, or set KILN_CACHE".into()]
    }
}

/// The files of a direct boot that are to be written.
struct DirectBootFiles {
    base: PathBuf,
    format: DiskFormat,
    /// The kernel that is not on the disk, if there is one.
    kernel: Option<MachineKernel>,
    folder: PathBuf,
    grow: bool,
    network: bool,
}

/// Writes the kernel and the initramfs for the lowest of the backing files, the base image, into the scratch folder.
///
/// The kernel is that of the base whatever the steps install: a step then sees the same kernel whether the steps before it
/// ran or came from the cache.
///
/// # Errors
/// When the disk has no kernel that can be booted so, or a file cannot be read or written.
pub(super) async fn prepare(site: MachineSite<'_>, backing: &BackingFiles, grow: bool) -> Result<(), Failure> {
    let (base, format) = backing.0.last().cloned().expect("an overlay has a backing file");
    let kernel = site.machine.kernel.clone();
    let folder = site.folder.to_owned();
    let network = site.machine.network.has_card();
    let files = DirectBootFiles { base, format, kernel, folder, grow, network };
    let found = spawn_blocking(move || files.write()).await.expect("reading a disk does not panic")?;
    site.events.notice(NoticeLevel::Debug, format!("direct boot: {found}"));
    Ok(())
}

impl DirectBootFiles {
    /// Writes the files, and describes the kernel.
    fn write(&self) -> Result<String, Failure> {
        let disk = open_files(vec![(self.base.clone(), self.format)])?;
        let (about, access) = match &self.kernel {
            None => self.write_kernel(&disk)?,
            Some(kernel) => {
                let kernel = read_separate_kernel(kernel)?;
                let release = kernel.release.clone().unwrap_or_else(|| "of unknown release".to_owned());
                let access = find_root_access(&disk, kernel, &DRIVERS, &OPTIONAL_DRIVERS)?;
                (format!("kernel {release} beside the image"), access)
            }
        };
        let instructions = instructions(&access, self.grow, self.network);
        self.write_file(INITRAMFS, &initramfs(&access.drivers, &instructions))?;
        Ok(about)
    }

    /// Writes the kernel of the disk, and describes it.
    fn write_kernel(&self, disk: &Chain) -> Result<(String, RootAccess), Failure> {
        let found = find_boot_files(disk, &DRIVERS, &OPTIONAL_DRIVERS)?;
        self.write_file(KERNEL, &found.kernel.image)?;
        Ok((format!("kernel {} of the image", found.kernel.release), found.access))
    }

    fn write_file(&self, name: &str, content: &[u8]) -> Result<(), DirectBootError> {
        let path = self.folder.join(name);
        fs::write(&path, content).map_err(|source| DirectBootError { path, source })
    }
}

/// Reads the release and the initrd of a kernel that is not on the disk.
fn read_separate_kernel(kernel: &MachineKernel) -> Result<SeparateKernel, FileError> {
    let release = File::open(&kernel.image).and_then(|file| find_release(&file));
    let release = release.map_err(FileError::of(Kind::Base, "read the kernel", &kernel.image))?;
    Ok(SeparateKernel { release, initrd: kernel.initrd.as_deref().map(read_initrd).transpose()? })
}

fn read_initrd(path: &Path) -> Result<Vec<u8>, FileError> {
    let read = || {
        let mut content = Vec::new();
        File::open(path)?.take(MAX_INITRD + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_INITRD { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(content) }
    };
    read().map_err(FileError::of(Kind::Base, "read the initrd", path))
}

fn instructions(access: &RootAccess, grow: bool, network: bool) -> BootInstructions {
    let file_system = access.root.file_system;
    let drivers: Vec<&str> = match &access.drivers {
        BootDrivers::Modules(_) => Vec::new(),
        BootDrivers::Initrd(_) => [&DRIVERS[..], &[file_system], &OPTIONAL_DRIVERS].concat(),
    };
    BootInstructions {
        partition: access.root.number,
        file_system: file_system.to_owned(),
        usr: access.root.usr,
        drivers: drivers.into_iter().map(str::to_owned).collect(),
        grow,
        network,
    }
}

/// Returns the archive of kiln's first process. The kernel unpacks several, one after another: where the image's initrd is
/// needed, kiln's archive follows it and replaces its `/init`.
fn initramfs(drivers: &BootDrivers, instructions: &BootInstructions) -> Vec<u8> {
    let mut writer = InitramfsWriter::default();
    for folder in ["/dev", "/proc", "/sys", "/root", "/kiln", MODULES] {
        writer.add_directory(folder);
    }
    // Until the first process has mounted /dev, it and the kernel have no others.
    writer.add_device("/dev/console", 5, 1);
    writer.add_device("/dev/null", 1, 3);
    writer.add_file("/init", 0o755, AGENT);
    writer.add_file(INSTRUCTIONS, 0o644, instructions.to_text().as_bytes());
    match drivers {
        BootDrivers::Modules(modules) => {
            for (number, module) in modules.iter().enumerate() {
                writer.add_file(&format!("{MODULES}/{number:03}-{}.ko", module.name), 0o644, &module.content);
            }
            writer.finish()
        }
        BootDrivers::Initrd(initrd) => {
            let mut archives = initrd.clone();
            archives.resize(archives.len().next_multiple_of(4), 0);
            archives.extend(writer.finish());
            archives
        }
    }
}
