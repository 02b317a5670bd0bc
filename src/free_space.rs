//! Free space on this host's disks, checked before anything boots: a disk that is full after ten minutes was nearly full
//! before.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::error::{Fault, Kind};
use crate::event::{Events, NoticeLevel};
use crate::size::ByteSize;

/// The least space that a build needs: the smallest use that was observed, for the overlay or for the image.
const LEAST: ByteSize = ByteSize::mib(64);

/// A disk is practically full.
#[derive(Debug, thiserror::Error)]
#[error("too little room in {}: a build needs {LEAST} at the very least, and {free} are free", folder.display())]
pub struct FreeSpaceError {
    folder: PathBuf,
    free: ByteSize,
}

impl Fault for FreeSpaceError {
    fn kind(&self) -> Kind {
        Kind::Host
    }

    fn hints(&self) -> Vec<String> {
        vec!["`kiln gc` makes room; --cache and --store (KILN_CACHE, KILN_STORE) choose other places".into()]
    }
}

/// Returns how many bytes may still be written below a folder; `None` where that is not known.
pub fn free(folder: &Path) -> Option<ByteSize> {
    statvfs(folder).ok().map(|facts| ByteSize(facts.blocks_available() * facts.fragment_size()))
}

/// Refuses to begin where nothing fits, and warns where less is free than the base image takes: an image is seldom smaller.
///
/// # Errors
/// When there is next to no free space in a folder.
pub fn check(folders: [&Path; 2], base: ByteSize, events: &Events) -> Result<(), FreeSpaceError> {
    for folder in folders {
        let Some(free) = free(folder) else { continue };
        if free < LEAST {
            return Err(FreeSpaceError { folder: folder.to_owned(), free });
        }
        if free < base {
            let place = folder.display();
            events.notice(
                NoticeLevel::Warning,
                format!("{free} are free in {place}, and the base image alone has {base}"),
            );
        }
    }
    Ok(())
}
