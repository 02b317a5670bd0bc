//! Links in the folder where QEMU runs, by which it finds a kernel that is not on the disk.

use std::fs::remove_file;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::plan::machine::PlannedMachine;

use super::argv::{BASE_INITRD, BASE_KERNEL};

/// Links the kernel of a machine and its initrd, if it has a kernel beside its disk.
pub(crate) fn link_kernel(machine: &PlannedMachine, folder: &Path) -> io::Result<()> {
    let Some(kernel) = &machine.kernel else { return Ok(()) };
    replace_link(&kernel.image, &folder.join(BASE_KERNEL))?;
    kernel.initrd.as_ref().map_or(Ok(()), |initrd| replace_link(initrd, &folder.join(BASE_INITRD)))
}

/// Creates a link in place of the one of an earlier boot.
fn replace_link(target: &Path, link: &Path) -> io::Result<()> {
    match remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, link)
}
