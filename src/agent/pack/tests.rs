//! Tests of trees that change while they are packed, and of files that the kernel generates.

use std::cell::RefCell;
use std::fs::OpenOptions;

use super::*;
use crate::wire::tree::{Decoder, Head, Layout, TreeItem};

const HEAD: Head = Head { to: Vec::new(), name: Vec::new(), into: false, contents: false, owner: None };

/// A writer that changes the tree before one of the stream's records: by then an entry has been sent, and its content is yet
/// to come.
struct MeddlingWriter<F> {
    stream: Vec<u8>,
    writes: usize,
    at: usize,
    meddle: F,
}

impl<F: FnMut()> Write for &mut MeddlingWriter<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        if self.writes == self.at {
            (self.meddle)();
        }
        self.stream.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The result of a fetch.
#[derive(Debug, Default)]
struct Arrived {
    /// Regular files and their content, holes as zeros.
    files: Vec<(String, Vec<u8>)>,
    notes: Vec<String>,
    left_out: Vec<String>,
}

/// Packs a living tree, and calls `meddle` before the given record.
fn fetch(root: &Path, at: usize, meddle: impl FnMut()) -> Result<Arrived, PackError> {
    let mut writer = MeddlingWriter { stream: Vec::new(), writes: 0, at, meddle };
    pack(root, Encoder::new(&mut writer, Layout::Packed, HEAD).unwrap(), &mut FetchedFiles)?;
    Ok(unpack(&writer.stream))
}

fn unpack(stream: &[u8]) -> Arrived {
    let (mut decoder, _) = Decoder::new(stream).unwrap();
    let mut arrived = Arrived::default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    loop {
        match decoder.next_item().unwrap() {
            TreeItem::Entry(Entry { path, kind: Kind::File { size }, .. }) => {
                arrived.files.push((text(&path), vec![0; usize::try_from(size).unwrap()]));
            }
            TreeItem::Entry(_) => {}
            TreeItem::Data { mut offset } => loop {
                let bytes = decoder.content().unwrap().to_vec();
                if bytes.is_empty() {
                    break;
                }
                let start = usize::try_from(offset).unwrap();
                arrived.files.last_mut().unwrap().1[start..start + bytes.len()].copy_from_slice(&bytes);
                decoder.consume(bytes.len());
                offset += bytes.len() as u64;
            },
            TreeItem::Note(note) => {
                let line = format!("{}: {}", text(&note.path), note.text);
                if note.is_left_out { arrived.left_out.push(line) } else { arrived.notes.push(line) }
            }
            TreeItem::End(_) => return arrived,
        }
    }
}

fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn a_file_that_grows_is_what_was_there_when_it_was_opened() {
    let temp = tempfile::tempdir().unwrap();
    let log = temp.path().join("busy.log");
    let before = vec![b'x'; 3 << 20];
    fs::write(&log, &before).unwrap();
    let arrived = fetch(&log, 2, || append(&log, b"more")).unwrap();
    assert!(arrived.files[0].1 == before);
    assert_eq!(arrived.notes, [": grew while it was read: these are its first 3145728 bytes"]);
    let quiet = fetch(&log, 2, || ()).unwrap();
    assert!(quiet.notes.is_empty() && quiet.left_out.is_empty(), "{quiet:?}");
}

#[test]
fn an_empty_file_that_grows_stays_empty() {
    let temp = tempfile::tempdir().unwrap();
    let log = temp.path().join("log");
    fs::write(&log, "").unwrap();
    // A line is appended after the file was opened: its attributes are read before its entry is written.
    let file = File::open(&log).unwrap();
    let metadata = file.metadata().unwrap();
    append(&log, b"line\n");
    let mut stream = Vec::new();
    let encoder = Encoder::new(&mut stream, Layout::Packed, HEAD).unwrap();
    let (root, links, buffer) = (log.clone(), HashMap::new(), Vec::new());
    let mut walk = PackWalk { path: log, root, encoder, packing: &mut FetchedFiles, links, buffer };
    walk.living_file(&file, &metadata).unwrap();
    walk.encoder.finish().unwrap();
    let arrived = unpack(&stream);
    assert_eq!(arrived.files, [(String::new(), Vec::new())]);
    assert_eq!(arrived.notes, [": was empty, and grew while it was read"]);
}

#[test]
fn a_file_that_shrinks_is_filled_up_with_zeros() {
    let temp = tempfile::tempdir().unwrap();
    let log = temp.path().join("log");
    fs::write(&log, vec![b'x'; 3 << 20]).unwrap();
    // The file is cut after its first piece, as when a log is rotated by copying and truncating.
    let cut = || OpenOptions::new().write(true).open(&log).unwrap().set_len(100).unwrap();
    let arrived = fetch(&log, 3, cut).unwrap();
    let content = &arrived.files[0].1;
    assert_eq!(content.len(), 3 << 20);
    assert!(content[..1 << 20].iter().all(|byte| *byte == b'x') && content[1 << 20..].iter().all(|byte| *byte == 0));
    let expected = ": shrank from 3145728 to 100 bytes while it was read: zeros stand for the rest";
    assert_eq!(arrived.notes, [expected]);
}

#[test]
fn what_vanishes_or_changes_in_a_living_folder_is_noted() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    fs::create_dir(root.join("folder")).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(root.join(name), name).unwrap();
    }
    let meddle = || {
        fs::remove_file(root.join("b")).unwrap();
        fs::remove_dir(root.join("folder")).unwrap();
    };
    let arrived = fetch(root, 2, meddle).unwrap();
    let names: Vec<&str> = arrived.files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "c"]);
    assert_eq!(arrived.left_out, ["b: vanished before it could be read", "folder: vanished before it could be read"]);
    let old = filetime(&root.join("a"));
    // The clock of a file system is coarse.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let arrived = fetch(root, 3, || fs::write(root.join("a"), "z").unwrap()).unwrap();
    assert_ne!(old, filetime(&root.join("a")));
    assert_eq!(arrived.notes, ["a: was written to while it was read"]);
    let gone = fetch(&root.join("b"), 0, || ()).unwrap_err();
    assert!(matches!(gone, PackError::Read(..)), "{gone}");
}

fn filetime(path: &Path) -> (i64, i64) {
    let about = fs::metadata(path).unwrap();
    (about.mtime(), about.mtime_nsec())
}

#[test]
fn a_planned_tree_that_changes_is_an_error() {
    struct Planned;
    impl PackHooks for Planned {}
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    fs::write(&file, "content").unwrap();
    let meddled = RefCell::new(false);
    let meddle = || {
        append(&file, b"more");
        *meddled.borrow_mut() = true;
    };
    let mut writer = MeddlingWriter { stream: Vec::new(), writes: 0, at: 2, meddle };
    let packed = pack(&file, Encoder::new(&mut writer, Layout::Packed, HEAD).unwrap(), &mut Planned);
    assert!(matches!(packed, Err(PackError::Changed(_))) && meddled.into_inner());
}

#[test]
fn files_of_the_kernel_are_read_to_their_end() {
    let version = fetch(Path::new("/proc/version"), 0, || ()).unwrap();
    assert_eq!(version.files, [(String::new(), fs::read("/proc/version").unwrap())]);
    assert!(version.notes.is_empty() && !version.files[0].1.is_empty());
    let attribute = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
    let attribute = if attribute.exists() { attribute } else { Path::new("/sys/kernel/uevent_seqnum") };
    let size = fs::metadata(attribute).unwrap().size();
    let read = fetch(attribute, 0, || ()).unwrap();
    assert_eq!(read.files, [(String::new(), fs::read(attribute).unwrap())]);
    assert!(size == 4096 && read.files[0].1.len() < 4096 && read.notes.is_empty(), "{read:?}");
}

#[test]
fn folders_of_the_kernel_are_read_as_far_as_they_can_be() {
    let read = fetch(Path::new("/proc/sys/vm"), 0, || ()).unwrap();
    let swappiness = read.files.iter().find(|(name, _)| name == "swappiness");
    assert_eq!(swappiness.unwrap().1, fs::read("/proc/sys/vm/swappiness").unwrap());
    // Nobody may read the file that makes the kernel compact its memory.
    let unreadable = |name: &str| fs::read(format!("/proc/sys/vm/{name}")).is_err();
    if Path::new("/proc/sys/vm/compact_memory").exists() && unreadable("compact_memory") {
        let named = read.left_out.iter().any(|line| line.starts_with("compact_memory: cannot be read: "));
        assert!(named, "{:?}", read.left_out);
    }
}

#[test]
fn holes_of_a_living_file_stay_holes() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("sparse");
    let sparse = File::create(&file).unwrap();
    sparse.write_all_at(b"data", 8 << 20).unwrap();
    sparse.set_len(64 << 20).unwrap();
    let mut stream = Vec::new();
    pack(&file, Encoder::new(&mut stream, Layout::Packed, HEAD).unwrap(), &mut FetchedFiles).unwrap();
    assert!(stream.len() < 1 << 20, "{} bytes", stream.len());
    assert!(unpack(&stream).files[0].1 == fs::read(&file).unwrap());
}
