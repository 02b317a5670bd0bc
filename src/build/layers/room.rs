//! Room on the host for a checkpoint. A checkpoint only saves time, so it never takes the room that the build needs.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::event::Level;
use crate::plan::Plan;
use crate::size::ByteSize;
use crate::specfile::DiskFormat;

use super::super::Build;
use super::super::boot::Guest;
use super::super::space::free;
use super::LayerKind;

/// What a guest may still write is as large as its disk, and few write more than this.
const MOST_GROWTH: u64 = 1 << 30;
/// For everything else that a build writes.
const RESERVE: u64 = 64 << 20;

/// Decides whether checkpoints fit on the host's disk, and reports once where they do not.
pub(super) struct CheckpointRoom {
    memory: u64,
    disk: u64,
    is_reported: bool,
}

impl CheckpointRoom {
    pub(super) fn new(plan: &Plan) -> Self {
        Self { memory: plan.machine.memory.bytes(), disk: plan.disk_size(), is_reported: false }
    }

    /// Leaves the memory out of a layer where there is no room for it besides what the guest may still write.
    pub(super) fn check(
        &mut self,
        wanted: LayerKind,
        build: &Build<'_>,
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
                    build.events.notice(Level::Info, text);
                }
                self.is_reported = true;
                LayerKind::Disk
            }
            _ => wanted,
        }
    }

    /// Estimates what the guest may still write, bytes.
    fn growth(&self, chain: &[(PathBuf, DiskFormat)]) -> u64 {
        let allocated: u64 =
            chain.iter().filter_map(|(path, _)| path.metadata().ok()).map(|file| file.blocks() * 512).sum();
        self.disk.saturating_sub(allocated).min(MOST_GROWTH)
    }
}
