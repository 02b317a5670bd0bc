//! Mutated images of at most 1 MiB, given to every reader of disks and lists: none takes 256 MiB or 10 s, and none panics.
//!
//! `KILN_MUTATIONS` says how many; `scripts/acceptance` sets a million.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kiln::disk::chain::{Chain, ChainFile};
use kiln::disk::inspect::BaseImage;
use kiln::disk::journal_eraser::erase_journals;
use kiln::disk::listing::{self, ListingReader, ListingRecord, ListingWriter};
use kiln::disk::os_release::os;
use kiln::disk::packages::read_databases;
use kiln::disk::tree::{Tree, TreeError};
use kiln::specfile::{BaseFormat, DiskFormat};
use kiln::store::Manifest;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use support::{Kiln, PATIENCE};

mod support;

/// Cases of an ordinary run.
const FEW: u64 = 260;
const MOST_MEMORY: usize = 256 << 20;
const MOST_TIME: Duration = Duration::from_secs(10);

/// The system's allocator, which counts.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn took(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its interface")]
// SAFETY: every call is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        took(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What reads a file.
#[derive(Debug, Clone, Copy)]
enum Reader {
    Disk(DiskFormat),
    Listing,
    Manifest,
}

impl Reader {
    /// Reads it to the end, or to its first error.
    fn read(self, path: &Path) -> bool {
        match self {
            Reader::Disk(format) => read_disk(path, format),
            Reader::Listing => {
                let listing = File::open(path).map_err(Into::into).and_then(ListingReader::open);
                listing.is_ok_and(|records| records.fold(true, |ok, record| ok & record.is_ok()))
            }
            Reader::Manifest => {
                let manifest = Manifest::parse(&fs::read(path).expect("there"), path);
                manifest.is_ok_and(|manifest| !manifest.to_json().is_empty())
            }
        }
    }
}

/// Reads a disk as `kiln diff` and the list of a version's files do.
fn read_disk(path: &Path, format: DiskFormat) -> bool {
    let base = match format {
        DiskFormat::Qcow2 => Some(BaseFormat::Qcow2),
        DiskFormat::Raw => Some(BaseFormat::Raw),
        _ => None,
    };
    if base.is_some_and(|format| BaseImage::open(path, format).is_err()) {
        return false;
    }
    let Ok(disk) = Chain::open(vec![ChainFile { file: File::open(path).expect("there"), format }]) else {
        return false;
    };
    let _ = erase_journals(&disk, tempfile::tempfile().expect("a temporary file"));
    let Ok(tree) = Tree::open(&disk) else { return false };
    let _ = (os(&tree), read_databases(&tree));
    tree.walk(&mut |entry| {
        drop(ListingRecord::of(entry, None));
        ControlFlow::Continue(())
    })
    .is_ok()
}

/// A file that is in order, in the folder where its mutations are read.
struct Seed {
    name: String,
    path: PathBuf,
    reader: Reader,
    content: Vec<u8>,
    /// Where its bytes are not zero, in pieces of [`PIECE`]: what holds structures.
    pieces: Vec<usize>,
}

const PIECE: usize = 256;

impl Seed {
    fn new(path: PathBuf, reader: Reader) -> Self {
        let content = fs::read(&path).expect("made");
        // No image in the formats of VirtualBox and Hyper-V is smaller.
        let most =
            if matches!(reader, Reader::Disk(DiskFormat::Vdi | DiskFormat::Vhdx | DiskFormat::Vhd)) { 16 } else { 1 };
        assert!(content.len() <= most << 20, "{}: {} bytes", path.display(), content.len());
        assert!(reader.read(&path), "{} is in order", path.display());
        let pieces = content.chunks(PIECE).enumerate().filter(|(_, piece)| piece.iter().any(|byte| *byte != 0));
        let pieces = pieces.map(|(number, _)| number * PIECE).collect();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        Self { name, path, reader, content, pieces }
    }

    /// Changes the file as this case does, reads it, and changes it back.
    fn try_case(&self, case: u64) -> bool {
        let mut random = Random(case.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let changes: Vec<_> = (0..=random.below(12)).map(|_| self.mutation(&mut random)).collect();
        let file = File::options().write(true).open(&self.path).expect("ours");
        for (at, bytes) in &changes {
            file.write_all_at(bytes, *at as u64).expect("written");
        }
        let (before, began) = (NOW.load(Ordering::Relaxed), processor_time());
        PEAK.store(before, Ordering::Relaxed);
        let read = catch_unwind(AssertUnwindSafe(|| self.reader.read(&self.path)));
        let (memory, time) = (PEAK.load(Ordering::Relaxed) - before, processor_time().saturating_sub(began));
        let is_good = read.is_ok() && memory < MOST_MEMORY && time < MOST_TIME;
        if !is_good {
            let kept = std::env::temp_dir().join(format!("kiln-mutation-{}-{case}", self.name));
            fs::copy(&self.path, &kept).expect("copied");
            panic!("{}: {read:?}, {} MiB, {time:?}; it is kept as {}", self.name, memory >> 20, kept.display());
        }
        for (at, bytes) in changes {
            file.write_all_at(&self.content[at..at + bytes.len()], at as u64).expect("written");
        }
        read.unwrap_or_default()
    }

    /// Where to write what: a number of a length that structures have, or a piece of elsewhere.
    fn mutation(&self, random: &mut Random) -> (usize, Vec<u8>) {
        let piece = self.pieces[random.below(self.pieces.len())];
        let at = piece + random.below(PIECE);
        let interesting =
            [0, 1, 2, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX];
        let number = match random.below(3) {
            0 => interesting[random.below(interesting.len())],
            1 => random.next() % 4096,
            _ => random.next(),
        };
        let bytes = match random.below(8) {
            0 => number.to_le_bytes().to_vec(),
            1 => number.to_be_bytes().to_vec(),
            2 | 3 => number.to_le_bytes()[..4].to_vec(),
            4 => number.to_le_bytes()[..2].to_vec(),
            5 => {
                let from = self.pieces[random.below(self.pieces.len())];
                self.content[from..(from + PIECE).min(self.content.len())].to_vec()
            }
            _ => number.to_le_bytes()[..1].to_vec(),
        };
        let at = at.min(self.content.len().saturating_sub(bytes.len()));
        (at, bytes)
    }
}

/// The time that this thread has had: a busy machine is not the reader's fault.
fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("Linux tells it");
    let time = |value: TimeVal| Duration::from_micros(u64::try_from(value.num_microseconds()).unwrap_or_default());
    time(usage.user_time()) + time(usage.system_time())
}

/// Xorshift: the same case is the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 16).expect("64 bits") % limit
    }
}

#[track_caller]
fn tool(program: &str, args: &[&str]) -> Vec<u8> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed (scripts/setup): {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A small system: packages, links, a directory of many names, sparse and long files.
fn system(folder: &Path) {
    for name in ["etc", "var/lib/dpkg", "deep/a/b/c", "many"] {
        fs::create_dir_all(folder.join(name)).expect("made");
    }
    let write = |name: &str, content: &str| fs::write(folder.join(name), content).expect("written");
    write("etc/os-release", "ID=debian\nVERSION_ID=12\n");
    write("etc/fstab", "LABEL=ESP /boot/efi vfat defaults 0 2\n");
    write("var/lib/dpkg/status", "Package: a\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n");
    write("deep/a/b/c/small", "inline");
    write("long", &"some text, again and again ".repeat(2000));
    for number in 0..150 {
        write(&format!("many/a rather long name of a file, number {number}"), "");
    }
    let sparse = File::create(folder.join("sparse")).expect("made");
    sparse.set_len(1 << 20).expect("set");
    sparse.write_all_at(b"end", (1 << 20) - 3).expect("written");
    std::os::unix::fs::symlink("../etc/os-release", folder.join("deep/link")).expect("made");
    std::os::unix::fs::symlink("x".repeat(200), folder.join("deep/long link")).expect("made");
    fs::hard_link(folder.join("long"), folder.join("deep/hard")).expect("made");
}

fn make_ext4(path: &Path, options: &[&str], folder: &Path, size: &str) {
    tool("mke2fs", &[&["-q", "-F"], options, &["-d", text(folder), text(path), size]].concat());
}

/// Two partitions: ext4 and FAT.
fn make_partitioned(folder: &Path, label: &str) -> PathBuf {
    let path = folder.join(format!("{label}.raw"));
    let (root, esp) = (folder.join("root"), folder.join("esp"));
    make_ext4(&root, &["-t", "ext4", "-b", "1024", "-N", "256", "-O", "^has_journal"], &folder.join("tree"), "700k");
    File::create(&esp).expect("made").set_len(200 << 10).expect("set");
    tool("mformat", &["-i", text(&esp), "-T", "400", "-h", "1", "-s", "1", "-c", "1", "::"]);
    tool("mcopy", &["-i", text(&esp), text(&folder.join("tree/etc/fstab")), "::/GRUB.CFG"]);
    let disk = File::create(&path).expect("made");
    disk.set_len(1000 << 10).expect("set");
    let kinds = if label == "gpt" { ["L", "U"] } else { ["83", "ef"] };
    let script =
        format!("label: {label}\nstart=64,size=1400,type={}\nstart=1500,size=400,type={}\n", kinds[0], kinds[1]);
    fs::write(folder.join("script"), script).expect("written");
    tool("sh", &["-c", &format!("sfdisk -q --no-tell-kernel {} < {}", text(&path), text(&folder.join("script")))]);
    for (part, sector) in [(&root, 64), (&esp, 1500)] {
        disk.write_all_at(&fs::read(part).expect("made"), sector * 512).expect("written");
    }
    path
}

fn seeds(folder: &Path) -> Vec<Seed> {
    let tree = folder.join("tree");
    system(&tree);
    let raw = Reader::Disk(DiskFormat::Raw);
    let mut seeds = Vec::new();
    for (name, options) in [
        ("ext4", &["-t", "ext4", "-b", "1024", "-N", "256", "-O", "inline_data,^has_journal", "-I", "256"][..]),
        ("ext4-plain", &["-t", "ext4", "-b", "1024", "-N", "256", "-O", "^metadata_csum,^has_journal,ea_inode"]),
        ("ext4-large-blocks", &["-t", "ext4", "-b", "4096", "-N", "256", "-O", "^has_journal"]),
        ("ext2", &["-t", "ext2", "-b", "1024", "-N", "256"]),
    ] {
        let path = folder.join(format!("{name}.raw"));
        make_ext4(&path, options, &tree, "1M");
        seeds.push(Seed::new(path, raw));
    }
    seeds.extend(["gpt", "dos"].map(|label| Seed::new(make_partitioned(folder, label), raw)));
    let source = folder.join("ext4-plain.raw");
    for (format, options, reader) in [
        ("qcow2", &["-c"][..], DiskFormat::Qcow2),
        ("vmdk", &["-o", "subformat=streamOptimized"], DiskFormat::Vmdk),
        ("vdi", &[], DiskFormat::Vdi),
        ("vhdx", &["-o", "subformat=dynamic,block_size=1M"], DiskFormat::Vhdx),
        ("vpc", &["-o", "subformat=fixed,force_size=on"], DiskFormat::Vhd),
    ] {
        let path = folder.join(format!("disk.{format}"));
        let convert = [&["convert", "-f", "raw", "-O", format], options, &[text(&source), text(&path)]].concat();
        tool("qemu-img", &convert);
        seeds.push(Seed::new(path, Reader::Disk(reader)));
    }
    seeds.push(Seed::new(make_listing(folder, &source), Reader::Listing));
    let manifest = folder.join("manifest.json");
    fs::write(&manifest, MANIFEST).expect("written");
    seeds.push(Seed::new(manifest, Reader::Manifest));
    seeds
}

const MANIFEST: &str = r#"{"schema": 1, "sequence": 1, "kiln": "0.1.0", "image": {"name": "web", "version": "1"},
"build_key": "k", "machine": {"accel": "tcg", "qemu": "10", "cpus": 2, "memory": 1073741824, "firmware": "bios"},
"base": {"source": "a", "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "format": "qcow2"},
"steps": [{"name": "a", "verb": "run", "key": "k", "cached": false, "seconds": 1.5}],
"outputs": [{"file": "a", "format": "qcow2", "bytes": 1, "virtual_bytes": 2,
"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}],
"disk_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
"packages": [], "tests": [{"name": "a", "ok": true, "seconds": 1, "definition": {"run": [1, 2]}}],
"started": "2026-01-02T03:04:05Z", "finished": "2026-01-02T03:05:05Z"}"#;

fn make_listing(folder: &Path, disk: &Path) -> PathBuf {
    let path = folder.join(listing::FILE);
    let layer = ChainFile { file: File::open(disk).expect("made"), format: DiskFormat::Raw };
    let chain = Chain::open(vec![layer]).expect("a disk");
    let mut writer = ListingWriter::new(File::create(&path).expect("made")).expect("begun");
    let walked = Tree::open(&chain).expect("a tree").walk(&mut |entry| {
        writer.add(entry, Some(1)).expect("written");
        ControlFlow::Continue(())
    });
    walked.expect("in order");
    writer.finish().expect("ended");
    path
}

/// Ends the process when a case takes too long: nothing else can stop a reader that does not end.
fn watch(case: &'static AtomicU64) {
    std::thread::spawn(move || {
        let (mut last, mut since) = (u64::MAX, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = case.load(Ordering::Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if since.elapsed() > 6 * MOST_TIME {
                eprintln!("case {now} does not end");
                std::process::abort();
            }
        }
    });
}

#[test]
fn mutated_images_take_neither_memory_nor_time() {
    static CASE: AtomicU64 = AtomicU64::new(0);
    let folder = tempfile::tempdir().expect("a folder");
    let seeds = seeds(folder.path());
    assert_eq!(seeds.len(), 13, "{:?}", seeds.iter().map(|seed| &seed.name).collect::<Vec<_>>());
    let cases = std::env::var("KILN_MUTATIONS").map_or(FEW, |number| number.parse().expect("a number"));
    watch(&CASE);
    let (mut read, began) = (0_u64, Instant::now());
    for case in 0..cases {
        CASE.store(case, Ordering::Relaxed);
        let seed = &seeds[usize::try_from(case % seeds.len() as u64).expect("few")];
        read += u64::from(seed.try_case(case));
        if case % 10_000 == 9999 {
            eprintln!("mutations: {} of {cases} in {:?}, {read} read to the end", case + 1, began.elapsed());
        }
    }
    println!("mutations: {cases} over {} seeds in {:?}, {read} read to the end", seeds.len(), began.elapsed());
    assert!(read > cases / 20 && read < cases, "{read} of {cases} were read to the end");
    CASE.store(u64::MAX, Ordering::Relaxed);
}

#[test]
fn a_file_longer_than_any_can_be_is_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tree, path) = (folder.path().join("tree"), folder.path().join("disk.raw"));
    system(&tree);
    make_ext4(&path, &["-t", "ext4", "-b", "1024", "-N", "256", "-O", "^has_journal"], &tree, "1M");
    for (size, is_whole) in [("0x3ffffffffff", true), ("0xf85a000000000000", false)] {
        tool("debugfs", &["-w", "-R", &format!("sif /sparse size {size}"), text(&path)]);
        let began = Instant::now();
        assert_eq!(read_disk(&path, DiskFormat::Raw), is_whole, "{size}");
        assert!(began.elapsed() < MOST_TIME, "{size}: {:?}", began.elapsed());
    }
}

/// A disk of less than 1 MiB on which `files` files have `attributes` attributes, whose values are all one of 60 KiB.
fn shared_attributes(folder: &Path, name: &str, files: usize, attributes: u8) -> PathBuf {
    let (tree, path) = (folder.join(name), folder.join(format!("{name}.raw")));
    fs::create_dir_all(tree.join("etc")).expect("made");
    fs::write(tree.join("etc/os-release"), "ID=x\n").expect("written");
    fs::write(tree.join("value"), vec![7; 60 << 10]).expect("written");
    fs::write(tree.join("block"), vec![0xee; 4096]).expect("written");
    for number in 0..files {
        fs::write(tree.join(format!("f{number}")), "").expect("written");
    }
    make_ext4(&path, &["-t", "ext4", "-b", "4096", "-N", "256", "-O", "^has_journal,^metadata_csum"], &tree, "1020k");
    let debugfs =
        |request: &str| String::from_utf8(tool("debugfs", &["-w", "-R", request, text(&path)])).expect("text");
    let block: u64 = debugfs("blocks /block").trim().parse().expect("one block");
    let stat = debugfs("stat /value");
    let holder: u32 = stat.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("Inode: NUMBER");
    let mut content = [0xea02_0000_u32, 1, 1, 0, 0, 0, 0, 0].map(u32::to_le_bytes).concat();
    for number in 0..attributes {
        content.extend([3, 1, 0, 0]);
        content.extend(holder.to_le_bytes());
        content.extend((60_u32 << 10).to_le_bytes());
        content.extend(0_u32.to_le_bytes());
        content.extend(format!("{number:03} ").as_bytes());
    }
    let file = File::options().write(true).open(&path).expect("ours");
    content.resize(4096, 0);
    file.write_all_at(&content, block * 4096).expect("written");
    let script: String = (0..files).map(|number| format!("sif /f{number} file_acl {block}\n")).collect();
    fs::write(folder.join("script"), script).expect("written");
    tool("debugfs", &["-w", "-f", text(&folder.join("script")), text(&path)]);
    path
}

#[test]
fn attributes_that_share_a_value_take_no_more_memory_than_kiln_says() {
    let kiln = Kiln::new();
    let folder = kiln.place().path().to_owned();
    let too_many = shared_attributes(&folder, "too-many", 2, 150);
    let layer = ChainFile { file: File::open(&too_many).expect("made"), format: DiskFormat::Raw };
    let disk = Chain::open(vec![layer]).expect("a disk");
    let error = Tree::open(&disk).expect("a tree").walk(&mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, TreeError::FileSystem(_)), "{error:?}");
    // As many as one file may have, on as many files as wait between reader and comparison.
    shared_attributes(&folder, "many", 24, 15);
    shared_attributes(&folder, "few", 24, 14);
    let diff = kiln
        .within(6 * PATIENCE)
        .after("ulimit -v 500000")
        .args(["diff", "many.raw", "few.raw"])
        .stdout_has("~ /f23 (xattr:user.");
    diff.run();
}
