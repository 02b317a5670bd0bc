//! The files of a direct boot: the kernel of the guest's own disk, and an initramfs in which kiln's agent is the first process.

use std::io;
use std::path::PathBuf;

use crate::context::BuildContext;
use crate::disk::chain::open_files;
use crate::disk::linux_kernel::{KernelError, LinuxKernel, read_kernel};
use crate::disk::tree::Tree;
use crate::error::{Failure, Fault, Kind};
use crate::event::NoticeLevel;
use crate::initramfs::InitramfsWriter;
use crate::machine::argv::{BackingFiles, INITRAMFS, KERNEL};
use crate::session::AGENT;
use crate::specfile::NetworkBackend;
use crate::wire::direct_boot::{BootInstructions, INSTRUCTIONS, MODULES};

/// The drivers of the disk and of the agent's port.
const DRIVERS: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_console"];
/// The file system of a root that kiln reads.
const ROOT_FILE_SYSTEM: &str = "ext4";
/// Drivers that a kernel may have under another name, or not at all. ext4 asks for a checksum that the kernel finds through
/// modprobe(8), which is not in the initramfs.
const OPTIONAL_DRIVERS: [&str; 4] = ["crc32c_generic", "crc32c_intel", "virtio_rng", "virtio_net"];

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

/// Writes the kernel and the initramfs for the disk in these files into the scratch folder.
///
/// # Errors
/// When the disk has no kernel that can be booted so, or a file cannot be written.
pub(super) fn prepare(build: &BuildContext<'_>, backing: &BackingFiles, grow: bool) -> Result<(), Failure> {
    let disk = open_files(backing.0.clone())?;
    let tree = Tree::open(&disk).map_err(KernelError::from)?;
    let kernel = read_kernel(&tree, &[&DRIVERS[..], &[ROOT_FILE_SYSTEM]].concat(), &OPTIONAL_DRIVERS)?;
    let instructions = BootInstructions {
        partition: tree.mounts()[0].partition,
        file_system: ROOT_FILE_SYSTEM.to_owned(),
        grow,
        network: build.plan.machine.network == NetworkBackend::User,
    };
    build.events.notice(NoticeLevel::Debug, format!("direct boot: kernel {} of the image", kernel.release));
    for (name, content) in [(KERNEL, &kernel.image), (INITRAMFS, &initramfs(&kernel, &instructions))] {
        let path = build.work.join(name);
        std::fs::write(&path, content).map_err(|source| DirectBootError { path, source })?;
    }
    Ok(())
}

fn initramfs(kernel: &LinuxKernel, instructions: &BootInstructions) -> Vec<u8> {
    let mut writer = InitramfsWriter::default();
    for folder in ["/dev", "/proc", "/sys", "/root", "/kiln", MODULES] {
        writer.add_directory(folder);
    }
    // Until the first process has mounted /dev, it and the kernel have no others.
    writer.add_device("/dev/console", 5, 1);
    writer.add_device("/dev/null", 1, 3);
    writer.add_file("/init", 0o755, AGENT);
    writer.add_file(INSTRUCTIONS, 0o644, instructions.to_text().as_bytes());
    for (number, module) in kernel.modules.iter().enumerate() {
        writer.add_file(&format!("{MODULES}/{number:03}-{}.ko", module.name), 0o644, &module.content);
    }
    writer.finish()
}
