//! The journals of sealed disks: erased where e2fsck finds nothing to replay, with every other byte as it was.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use kiln::disk::journal_eraser::erase_journals;
use kiln::specfile::DiskFormat;

use super::{Scratch, as_raw, chain, make_ext4, tool};

const MARK: &[u8] = b"name-of-a-deleted-file";

/// The blocks of a file system's journal by debugfs(8), which lists them as `(0-9):13-22, (IND):23, (10):24`.
fn journal_blocks(image: &Path) -> Vec<u64> {
    let listed = String::from_utf8(tool("debugfs", &["-R", "stat <8>", image.to_str().unwrap()])).unwrap();
    let (_, list) = listed.split_once("BLOCKS:").or(listed.split_once("EXTENTS:")).unwrap();
    let data = list.split([',', '\n']).filter(|part| part.trim().trim_start_matches('(').starts_with(char::is_numeric));
    let blocks = data.flat_map(|part| {
        let (_, range) = part.split_once("):").unwrap();
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse::<u64>().unwrap()..=last.parse().unwrap()
    });
    blocks.collect()
}

fn block_size(options: &[&str]) -> u64 {
    let given = options.iter().skip_while(|option| **option != "-b").nth(1);
    given.map_or(4096, |size| size.parse().unwrap())
}

/// Writes the mark to each block of a journal but its first one, and returns the disk as it is without its journal.
fn mark_journal(image: &Path, size: u64) -> Vec<u8> {
    let mut expected = fs::read(image).unwrap();
    let file = File::options().write(true).open(image).unwrap();
    for block in &journal_blocks(image)[1..] {
        file.write_all_at(MARK, block * size).unwrap();
        let at = usize::try_from(block * size).unwrap();
        expected[at..at + usize::try_from(size).unwrap()].fill(0);
    }
    expected
}

/// Returns the disk as `qemu-img` reads it through the overlay in which journals are erased.
fn erased(scratch: &Scratch, image: &Path) -> Vec<u8> {
    let path = scratch.path("erased.qcow2");
    erase_journals(&chain(&[(image, DiskFormat::Raw)]), File::create(&path).unwrap()).unwrap();
    let rebase = ["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", image.to_str().unwrap(), path.to_str().unwrap()];
    tool("qemu-img", &rebase);
    fs::read(as_raw(scratch, &path)).unwrap()
}

#[test]
fn a_journal_without_transactions_is_erased_and_nothing_else() {
    let scratch = Scratch::new();
    let folder = scratch.path("tree");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "content ".repeat(9000)).unwrap();
    let kinds: [&[&str]; 4] = [
        &["-t", "ext4", "-b", "4096"],
        &["-t", "ext4", "-b", "1024", "-O", "^64bit"],
        &["-t", "ext4", "-b", "4096", "-O", "bigalloc,metadata_csum_seed"],
        &["-t", "ext3", "-b", "1024"],
    ];
    for kind in kinds {
        let image = make_ext4(&scratch, "fs", "48M", kind, &folder);
        let expected = mark_journal(&image, block_size(kind));
        assert!(erased(&scratch, &image) == expected, "{kind:?}");
        tool("e2fsck", &["-f", "-n", scratch.path("witness.raw").to_str().unwrap()]);
    }
}

#[test]
fn a_journal_that_a_mount_would_replay_or_that_is_none_stays() {
    let scratch = Scratch::new();
    let folder = scratch.path("tree");
    fs::create_dir(&folder).unwrap();
    let marked = make_ext4(&scratch, "marked", "48M", &["-t", "ext4", "-b", "4096"], &folder);
    mark_journal(&marked, 4096);
    let superblock = journal_blocks(&marked)[0] * 4096;
    for (what, at) in [
        ("a transaction", superblock + 0x1c),
        ("no journal", superblock),
        ("a journal of other blocks", superblock + 0xc),
        ("a file system that is not clean", 1024 + 0x60),
    ] {
        let image = scratch.path("broken");
        fs::copy(&marked, &image).unwrap();
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        assert!(erased(&scratch, &image) == fs::read(&image).unwrap(), "{what}");
    }
    let none = make_ext4(&scratch, "ext2", "48M", &["-t", "ext2"], &folder);
    assert!(erased(&scratch, &none) == fs::read(&none).unwrap());
}
