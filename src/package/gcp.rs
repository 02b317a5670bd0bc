//! What Google Compute Engine imports: the raw disk as a sparse file in a tar archive, compressed with gzip.
//!
//! Google's page on importing images asks for a disk of whole GiB, in a file `disk.raw`, in an archive of GNU tar's old
//! format that `tar -Sczf` makes. Blocks of zeros of the disk are holes in the archive.

use std::ops::Range;
use std::sync::Arc;
use std::thread;

use crate::disk::chain::Chain;
use crate::plan::limits;
use crate::progress::Progress;
use crate::specfile::OutputFormat;

use super::PackageError;
use super::content::PackageContent;
use super::gzip::in_parallel;
use super::tar::{Archive, Format};

/// The only member name that Google accepts.
const MEMBER: &str = "disk.raw";
/// Unit that is either zero or data as a whole. As large as a cluster, so that a map stays small.
const GRAIN: u64 = 64 << 10;
/// Size of the part that one thread examines at a time.
const SHARE: u64 = 8 << 20;

/// Creates the archive of a disk, not compressed yet. Reads the whole disk to find zeros: the same disk gives the same
/// archive, however it is stored. `progress` counts the bytes of the disk. Uses all processors.
///
/// # Errors
/// When the disk is no whole GiB or cannot be read, or the work is cancelled.
pub fn archive(chain: &Arc<Chain>, modified: u64, progress: &Progress<'_>) -> Result<PackageContent, PackageError> {
    limits::check(OutputFormat::Gcp, chain.virtual_size())?;
    let mut archive = Archive::new(Format::OldGnu, modified);
    archive.disk(MEMBER, chain, &data(chain, progress)?)?;
    Ok(archive.finish())
}

/// Returns the ranges of the disk that are not zero: whole grains, in order, adjacent ones joined.
fn data(chain: &Chain, progress: &Progress<'_>) -> Result<Vec<Range<u64>>, PackageError> {
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut next = 0;
    for extent in chain.extents() {
        let extent = extent?;
        let before = next;
        // Two extents may share a grain: neither a raw file's holes nor a base's clusters need be of this size.
        next = next.max(extent.range.start / GRAIN * GRAIN);
        progress.advance(next - before)?;
        let end = if extent.data { extent.range.end.next_multiple_of(GRAIN) } else { next };
        while next < end {
            let shares: Vec<_> = (0..threads).map(|n| next + n * SHARE).take_while(|start| *start < end).collect();
            for share in in_parallel(&shares, |start| look_through(chain, *start..end.min(start + SHARE))) {
                share?.into_iter().for_each(|grain| join(&mut found, grain));
            }
            let done = end.min(next + threads * SHARE);
            progress.advance(done - next)?;
            next = done;
        }
    }
    progress.advance(chain.virtual_size() - next)?;
    Ok(found)
}

/// Returns the grains of a part of the disk that are not zero.
fn look_through(chain: &Chain, part: Range<u64>) -> Result<Vec<Range<u64>>, PackageError> {
    let mut bytes = vec![0; usize::try_from(GRAIN).unwrap_or(usize::MAX)];
    let mut found = Vec::new();
    for start in part.step_by(bytes.len()) {
        chain.read_at(start, &mut bytes)?;
        if bytes.iter().any(|byte| *byte != 0) {
            found.push(start..start + GRAIN);
        }
    }
    Ok(found)
}

/// Appends a grain to the ranges, joined with the last one if they are adjacent.
fn join(found: &mut Vec<Range<u64>>, grain: Range<u64>) {
    match found.last_mut() {
        Some(last) if last.end == grain.start => last.end = grain.end,
        _ => found.push(grain),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::disk::chain::ChainFile;
    use crate::specfile::DiskFormat;

    const GIB: u64 = 1 << 30;

    /// Creates a raw disk in `folder` that has a few bytes at each of these places, and no hole in the grains around them.
    fn disk(folder: &Path, gib: u64, places: &[u64]) -> Arc<Chain> {
        let file = File::create_new(folder.join(MEMBER)).unwrap();
        file.set_len(gib * GIB).unwrap();
        let zeroes = vec![0; usize::try_from(GRAIN).unwrap()];
        for place in places {
            for end in [*place, place + 3] {
                file.write_all_at(&zeroes, end / GRAIN * GRAIN).unwrap();
            }
        }
        for place in places {
            file.write_all_at(b"data", *place).unwrap();
        }
        chain(folder)
    }

    fn chain(folder: &Path) -> Arc<Chain> {
        let file = File::open(folder.join(MEMBER)).unwrap();
        Arc::new(Chain::open(vec![ChainFile { file, format: DiskFormat::Raw }]).unwrap())
    }

    fn packed(disk: &Arc<Chain>) -> PackageContent {
        archive(disk, 1_767_323_045, &Progress::unwatched()).unwrap()
    }

    /// Returns awkward disks: their names, sizes in GiB, and the places of data.
    fn awkward() -> Vec<(&'static str, u64, Vec<u64>)> {
        vec![
            ("empty", 1, vec![]),
            ("first", 1, vec![0]),
            ("last", 1, vec![GIB - 4]),
            ("four extents", 1, (0..4).map(|n| n * 3 * GRAIN).collect()),
            ("five extents", 1, (0..5).map(|n| n * 3 * GRAIN).collect()),
            ("more than a block of extents", 1, (0..26).map(|n| n * 3 * GRAIN).collect()),
            ("whole blocks of extents", 1, (0..4 + 21 + 21 - 1).map(|n| n * 2 * GRAIN).collect()),
            ("across a grain", 1, vec![5 * GRAIN - 2]),
            ("beyond what octal digits hold", 9, vec![7, (8 * GIB) - 4, 8 * GIB, 9 * GIB - GRAIN]),
        ]
    }

    /// Checks that GNU tar, if asked to look for holes that this file system has, writes the same archive to the byte.
    #[test]
    fn it_is_what_gnu_tar_writes() {
        for (name, gib, places) in awkward() {
            let folder = tempfile::tempdir().unwrap();
            let ours = packed(&disk(folder.path(), gib, &places)).to_vec().unwrap();
            let mut command = Command::new("tar");
            command.args(["--format=oldgnu", "-Sc", "--hole-detection=seek", "--mtime=@1767323045", "--mode=644"]);
            command.args(["--owner=0", "--group=0", "--numeric-owner", "-C"]).arg(folder.path()).arg(MEMBER);
            // A file system with blocks larger than a grain's has other holes.
            let theirs = command.output().unwrap();
            assert!(theirs.status.success(), "{}", String::from_utf8_lossy(&theirs.stderr));
            if let Some(at) =
                (0..ours.len().max(theirs.stdout.len())).find(|at| ours.get(*at) != theirs.stdout.get(*at))
            {
                let lengths = (ours.len(), theirs.stdout.len());
                panic!("{name}: byte {at}: {:?} {:?} of {lengths:?}", ours.get(at), theirs.stdout.get(at));
            }
        }
    }
}
