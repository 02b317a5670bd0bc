//! Free space on the host for a checkpoint. A checkpoint only saves time, so it never takes the space that the build needs.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::context::BuildContext;
use crate::event::NoticeLevel;
use crate::free_space::free;
use crate::guest::boot::Guest;
use crate::plan::Plan;
use crate::size::ByteSize;
use crate::specfile::DiskFormat;

use super::LayerKind;

/// The most that a guest is assumed to still write, bytes. It may write as much as its disk holds, but few guests write
/// more than this.
const MOST_GROWTH: u64 = 1 << 30;
/// The space that is reserved for everything else that a build writes.
const RESERVE: u64 = 64 << 20;

/// The decision whether checkpoints fit on the host's disk; reports once where they do not.
pub(super) struct CheckpointRoom {
    memory: u64,
    disk: u64,
    is_reported: bool,
}

impl CheckpointRoom {
    pub(super) fn new(plan: &Plan) -> Self {
        Self { memory: plan.machine.memory.bytes(), disk: plan.disk_size(), is_reported: false }
    }

    /// Excludes the memory from a layer where there is no space for it besides what the guest may still write.
    pub(super) fn check(
        &mut self,
        wanted: LayerKind,
        build: &BuildContext<'_>,
        guest: &Guest,
        chain: &[(PathBuf, DiskFormat)],
    ) -> LayerKind {
        if wanted == LayerKind::Disk {
            return wanted;
        }
        let memory = guest.machine.resident_memory().map_or(self.memory, |resident| resident.min(self.memory));
        let needed = ByteSize(memory + self.growth(chain) + RESERVE);
        match free(build.work.path()) {
            Some(free) if free < needed => {
                if !self.is_reported {
                    let text = format!("no checkpoints: {free} are free where the cache is, and {needed} are needed");
                    build.events.notice(NoticeLevel::Info, text);
                }
                self.is_reported = true;
                LayerKind::Disk
            }
            _ => wanted,
        }
    }

    /// Estimates how much the guest may still write, bytes.
    fn growth(&self, chain: &[(PathBuf, DiskFormat)]) -> u64 {
        let allocated: u64 =
            chain.iter().filter_map(|(path, _)| path.metadata().ok()).map(|file| file.blocks() * 512).sum();
        self.disk.saturating_sub(allocated).min(MOST_GROWTH)
    }
}
