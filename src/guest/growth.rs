//! Checks that the root file system has grown to a disk that is larger than the base image. A base image without growpart
//! boots with its old size; the steps may still have enough room, so that this is no error.

use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::context::BuildContext;
use crate::disk::chain::open_files;
use crate::disk::partition_table::partitions;
use crate::error::Failure;
use crate::event::NoticeLevel;
use crate::plan::Plan;
use crate::session::Exec;
use crate::size::ByteSize;
use crate::wire::mounts::DiskPartition;

use super::boot::Guest;
use super::mounts::survey;

/// A command that prints the size of the root file system in kilobytes (POSIX df).
const ROOT_SIZE: &str = "df -Pk / | awk 'NR == 2 { print $2 }'";
/// The deadline for small requests to the guest.
const PATIENCE: Duration = Duration::from_secs(60);
/// What tools leave unused behind the last partition, in bytes: the backup of the GPT, and the rest of an aligned block.
const UNUSED: u64 = 16 << 20;
/// The part of a partition that a file system may need for itself: inode tables and a journal, in ext4 up to a tenth.
const OVERHEAD: u64 = 8;

/// The room of the root file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RootSpace {
    /// The size of the disk.
    disk: u64,
    /// The size of the file system.
    file_system: u64,
    /// The partition, and what it could have up to the next partition or the end of the disk.
    partition: Option<PartitionSpace>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PartitionSpace {
    length: u64,
    room: u64,
}

/// Warns of a root that is smaller than it could be.
pub(super) async fn check(build: &BuildContext<'_>, guest: &mut Guest) -> Result<(), Failure> {
    let disk = build.plan.disk_size();
    let file_system = root_size(build, guest).await?;
    let survey = survey(build, guest).await?;
    let partition = match survey.root_partition() {
        Some(partition) => Some(measure(build.plan, partition).await?),
        None => None,
    };
    if let Some((level, text)) = (RootSpace { disk, file_system, partition }).describe() {
        build.events.notice(level, text);
    }
    Ok(())
}

/// Returns the size of the root file system in bytes; 0 if it is not known.
async fn root_size(build: &BuildContext<'_>, guest: &mut Guest) -> Result<u64, Failure> {
    let mut output = Vec::new();
    let exec = Exec { timeout: Some(PATIENCE), ..Exec::new(["sh", "-c", ROOT_SIZE]) };
    let mut keep = |_, bytes: &[u8]| output.extend_from_slice(bytes);
    let request = guest.session.exec(&exec, &mut keep);
    build.limits.call_with_grace(&guest.machine, PATIENCE, request).await?;
    let kilobytes: u64 = String::from_utf8_lossy(&output).trim().parse().unwrap_or(0);
    Ok(kilobytes.saturating_mul(1024))
}

/// Measures the partition of the root by the partition table of the base image: no other partition moves at the first boot.
async fn measure(plan: &Plan, partition: &DiskPartition) -> Result<PartitionSpace, Failure> {
    let files = vec![(plan.base.file.clone(), plan.base.format.into())];
    let read = spawn_blocking(move || Ok::<_, Failure>(partitions(&open_files(files)?)?));
    let others = read.await.expect("reading a partition table does not panic")?;
    let starts = others.iter().map(|other| other.start).filter(|start| *start > partition.start);
    let end = starts.min().unwrap_or(plan.disk_size());
    Ok(PartitionSpace { length: partition.length, room: end.saturating_sub(partition.start) })
}

impl RootSpace {
    /// Describes a root that is smaller than it could be, or than the disk lets expect.
    fn describe(&self) -> Option<(NoticeLevel, String)> {
        let RootSpace { disk, file_system, partition } = *self;
        let of_disk = format!("the root file system has {} of the disk's {}", ByteSize(file_system), ByteSize(disk));
        let is_small = file_system < disk / 2;
        let Some(PartitionSpace { length, room }) = partition else {
            return is_small.then(|| (NoticeLevel::Warning, format!("{of_disk}: the base image did not grow it")));
        };
        if length.saturating_add(UNUSED) < room {
            let text =
                format!("{of_disk}: the base image did not grow its partition, which could have {}", ByteSize(room));
            return Some((NoticeLevel::Warning, text));
        }
        if file_system < length - length / OVERHEAD {
            let text = format!("{of_disk}: the base image did not grow it to its partition of {}", ByteSize(length));
            return Some((NoticeLevel::Warning, text));
        }
        is_small.then(|| (NoticeLevel::Info, format!("{of_disk}: it cannot grow, since another partition follows")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn describe(disk: u64, file_system: u64, partition: Option<(u64, u64)>) -> Option<(NoticeLevel, String)> {
        let partition = partition.map(|(length, room)| PartitionSpace { length, room });
        RootSpace { disk, file_system, partition }.describe()
    }

    #[test]
    fn a_root_that_has_grown_is_no_matter_what_its_file_system_needs_for_itself() {
        // Behind an ESP and /boot of 1.1 GiB; ext4 with many inodes, then xfs.
        for file_system in [9 * GIB - 9 * GIB / 10, 9 * GIB - 64 * MIB] {
            assert_eq!(describe(10 * GIB, file_system, Some((9 * GIB - MIB, 9 * GIB))), None);
        }
        let small = 3 * GIB - 128 * MIB;
        assert_eq!(describe(3 * GIB, small - 200 * MIB, Some((small, small + 34 * 512))), None);
    }

    #[test]
    fn a_root_that_could_be_larger_is_warned_of() {
        let (level, text) = describe(10 * GIB, 6 * GIB, Some((6 * GIB, 10 * GIB - MIB))).unwrap();
        assert!(level == NoticeLevel::Warning && text.contains("did not grow its partition"), "{text}");
        let (level, text) = describe(10 * GIB, 6 * GIB, Some((10 * GIB - 2 * MIB, 10 * GIB - MIB))).unwrap();
        assert!(level == NoticeLevel::Warning && text.contains("did not grow it to its partition"), "{text}");
        let (level, text) = describe(10 * GIB, 4 * GIB, None).unwrap();
        assert!(level == NoticeLevel::Warning && text.contains("did not grow it"), "{text}");
        assert_eq!(describe(10 * GIB, 6 * GIB, None), None, "on LVM");
    }

    #[test]
    fn a_root_before_another_partition_cannot_grow() {
        let (level, text) = describe(10 * GIB, 2 * GIB, Some((2 * GIB, 2 * GIB))).unwrap();
        assert!(level == NoticeLevel::Info && text.contains("another partition follows"), "{text}");
        assert_eq!(describe(10 * GIB, 8 * GIB, Some((8 * GIB, 8 * GIB))), None);
    }
}
