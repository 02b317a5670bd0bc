//! Lists of files that read only what has changed since the base was listed.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kiln::disk::chain::Chain;
use kiln::disk::entry::{ContentDigest, DiskEntry};
use kiln::disk::known_files::{KnownFiles, UnchangedFiles};
use kiln::disk::tree::{Tree, TreeVisitor};
use kiln::specfile::BaseFormat;

use crate::{Scratch, chain, tool};

/// A visitor that computes the digest of a tree, and reads contents only where it is asked to.
struct TreeDigest {
    content: ContentDigest,
    reads_content: bool,
}

impl TreeVisitor for TreeDigest {
    fn reads_content(&self) -> bool {
        self.reads_content
    }

    fn visit_entry(&mut self, entry: &DiskEntry) -> ControlFlow<()> {
        self.content.add(entry);
        ControlFlow::Continue(())
    }
}

/// A base with a file system, and a disk on it.
struct Disks {
    base: PathBuf,
    overlay: PathBuf,
    _scratch: Scratch,
}

impl Disks {
    fn new() -> Self {
        let scratch = Scratch::new();
        let tree = scratch.path("tree");
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/os-release"), "ID=debian\n").unwrap();
        for number in 0..20_u8 {
            fs::write(tree.join(format!("file-{number}")), vec![number + 1; 5000 * usize::from(number)]).unwrap();
        }
        let sparse = File::create(tree.join("sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        sparse.write_all_at(b"in the middle of a hole", 500_000).unwrap();
        let (base, overlay) = (scratch.path("base.raw"), scratch.path("overlay.qcow2"));
        let [tree, below, top] = [&tree, &base, &overlay].map(|path| path.to_str().unwrap().to_owned());
        tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", &tree, &below, "16M"]);
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &below, "-F", "raw", &top]);
        Self { base, overlay, _scratch: scratch }
    }

    fn disk(&self) -> Chain {
        chain(&[(&self.overlay, BaseFormat::Qcow2), (&self.base, BaseFormat::Raw)])
    }

    /// The offset of bytes in the base.
    fn find(&self, bytes: &[u8]) -> u64 {
        let base = fs::read(&self.base).unwrap();
        base.windows(bytes.len()).position(|window| window == bytes).unwrap() as u64
    }
}

fn write(file: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

/// Returns the digest of the tree, and what is known of the base afterwards.
fn walk(disk: &Chain, known: &KnownFiles, reads_content: bool) -> (String, KnownFiles) {
    let mut unchanged = UnchangedFiles::new(disk, known.clone()).unwrap();
    let mut digest = TreeDigest { content: ContentDigest::new(), reads_content };
    Tree::open(disk).unwrap().walk_changes(&mut digest, &mut unchanged).unwrap();
    (digest.content.finish().to_string(), unchanged.learned().unwrap_or(known).clone())
}

#[test]
fn files_of_the_base_are_read_once_and_changed_ones_each_time() {
    let disks = Disks::new();
    let whole = |disk: &Chain| Tree::open(disk).unwrap().content_sha256().unwrap().to_string();
    let (first, known) = walk(&disks.disk(), &KnownFiles::default(), false);
    assert_eq!(first, whole(&disks.disk()));
    assert_ne!(known, KnownFiles::default());
    assert_eq!(walk(&disks.disk(), &known, false), (first.clone(), known.clone()));

    // A file changes in the overlay, in its last block: the list has the new content.
    let last = disks.find(&[8; 4096]) + 34_000;
    let (last, top) = (last.to_string(), disks.overlay.to_str().unwrap().to_owned());
    tool("qemu-io", &["-f", "qcow2", "-c", &format!("write -P 77 {last} 512"), &top]);
    let changed = whole(&disks.disk());
    assert_ne!(changed, first);
    assert_eq!(walk(&disks.disk(), &known, false), (changed, known.clone()));

    // A base that changes unnoticed shows what is not read.
    let (before, _) = walk(&disks.disk(), &known, false);
    write(&disks.base, disks.find(&[15; 4096]), b"unnoticed");
    assert_eq!(walk(&disks.disk(), &known, false).0, before);
    assert_eq!(walk(&disks.disk(), &known, true).0, whole(&disks.disk()));
    assert_ne!(whole(&disks.disk()), before);
}
