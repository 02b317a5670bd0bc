//! Conversions that follow the change: what is as in the base is taken from its twin, and is the same to the byte.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kiln::digest::sha256_file;
use kiln::disk::base_twin::{PreparedBase, TwinReader};
use kiln::disk::chain::{Chain, ChainFile};
use kiln::disk::chunk_index::{ChunkIndex, KnownChunks, chunks};
use kiln::disk::digest::{DigestError, DiskCopy, TakenClusters, read_back};
use kiln::disk::write_qcow2::write_qcow2;
use kiln::progress::Progress;
use kiln::specfile::{BaseFormat, Compression, DiskFormat};

use crate::{Scratch, chain, compressed, next_byte, tool};

const MIB: u64 = 1 << 20;
/// The size of the base, which does not end with a stripe, and of the disk on it.
const BASE: u64 = 38 * MIB + 4096;
const DISK: u64 = 48 * MIB;

/// A base with text, noise that does not compress, and zeroes, and a disk on it that has changed in two places.
struct Disks {
    scratch: Scratch,
    base: PathBuf,
    overlay: PathBuf,
}

impl Disks {
    fn new(size: u64) -> Self {
        let scratch = Scratch::new();
        let base = scratch.path("base.raw");
        let file = File::create(&base).unwrap();
        file.set_len(BASE).unwrap();
        let mut state = 1_u64;
        let noise: Vec<u8> = (0..MIB).map(|_| next_byte(&mut state)).collect();
        for stripe in [0, 1, 3, 4, 6, 7, 8, 9] {
            let at = stripe * 4 * MIB;
            file.write_all_at(&format!("{stripe} is the number of this part. ").repeat(20_000).into_bytes(), at)
                .unwrap();
            if stripe % 2 == 0 && stripe < 9 {
                file.write_all_at(&noise, at + 2 * MIB + 12_345).unwrap();
            }
        }
        let overlay = scratch.path("overlay.qcow2");
        let [below, top] = [&base, &overlay].map(|path| path.to_str().unwrap().to_owned());
        let size = size.to_string();
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &below, "-F", "raw", &top, &size]);
        let writes = ["write -P 7 12300k 70k", "write -z 17M 256k", "discard 19M 64k"];
        let commands = writes.iter().flat_map(|write| ["-c", *write]);
        tool("qemu-io", &["-f", "qcow2"].into_iter().chain(commands).chain([top.as_str()]).collect::<Vec<_>>());
        Self { scratch, base, overlay }
    }

    /// The disk, on a base in this file.
    fn layers<'a>(&'a self, base: &'a Path) -> [(&'a Path, BaseFormat); 2] {
        [(&self.overlay, BaseFormat::Qcow2), (base, BaseFormat::Raw)]
    }

    fn twin(&self) -> PathBuf {
        compressed(&self.scratch, "twin", &[(&self.base, BaseFormat::Raw)], None)
    }

    /// The base as a build with a disk of this size prepares it, once all of its twin has been compared with it.
    fn prepared(&self, size: u64) -> Arc<PreparedBase> {
        let twin = TwinReader::open(File::open(self.twin()).unwrap()).unwrap();
        known(twin, &chain(&[(&self.base, BaseFormat::Raw)]).of_size(size))
    }

    /// A base of the same shape, whose bytes in the parts that the disk has not changed are others.
    fn other_base(&self) -> PathBuf {
        let other = self.scratch.path("other.raw");
        fs::copy(&self.base, &other).unwrap();
        let file = File::options().write(true).open(&other).unwrap();
        for at in [0, 5 * MIB, 25 * MIB, 33 * MIB] {
            file.write_all_at(b"another byte", at).unwrap();
        }
        other
    }
}

/// A base with this twin whose chunks are all known.
fn known(twin: TwinReader, base: &Chain) -> Arc<PreparedBase> {
    let chunks = Mutex::new(KnownChunks::new(base.virtual_size()));
    let prepared = PreparedBase { twin, chunks };
    prepared.learn(base, &read_back(base, &[], None, &Progress::unwatched()).unwrap()).unwrap();
    Arc::new(prepared)
}

fn copy(file: &Path, base: Option<&Arc<PreparedBase>>) -> DiskCopy {
    let taken = base.map(|base| TakenClusters {
        base: Arc::clone(base),
        copy: TwinReader::open(File::open(file).unwrap()).unwrap(),
    });
    DiskCopy { name: "copy".into(), format: DiskFormat::Qcow2, disk: chain(&[(file, DiskFormat::Qcow2)]), taken }
}

/// The digests of a disk's chunks, computed from all of its bytes.
fn expected_chunks(disk: &Chain) -> ChunkIndex {
    let mut index = ChunkIndex::new(disk.virtual_size());
    for (number, range) in chunks(disk.virtual_size()).enumerate() {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        disk.read_at(range.start, &mut bytes).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let digest = bytes.iter().any(|byte| *byte != 0).then(|| sha256_file(&file).unwrap());
        index.set(number, digest);
    }
    index
}

/// With a twin and without one, the bytes are the same; what has not changed is not read with one.
#[test]
fn unchanged_parts_are_taken_from_the_twin() {
    for size in [BASE, DISK] {
        let disks = Disks::new(size);
        let twin = disks.twin();
        let slow = compressed(&disks.scratch, "slow", &disks.layers(&disks.base), None);
        let fast = compressed(&disks.scratch, "fast", &disks.layers(&disks.base), Some(&twin));
        assert!(fs::read(&slow).unwrap() == fs::read(&fast).unwrap(), "{size}");
        let other = disks.other_base();
        let unread = compressed(&disks.scratch, "unread", &disks.layers(&other), Some(&twin));
        assert!(fs::read(&slow).unwrap() == fs::read(unread).unwrap(), "{size}");
    }
}

/// What was copied is not read again, so a twin that changes meanwhile is noticed by its file.
#[test]
fn a_twin_in_the_cache_must_not_change() {
    let disks = Disks::new(DISK);
    let path = disks.twin();
    let open = || TwinReader::open_cached(File::open(&path).unwrap()).unwrap();
    let prepared = PreparedBase { twin: open(), chunks: Mutex::new(KnownChunks::new(DISK)) };
    prepared.check_unchanged().unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"x", file.metadata().unwrap().len() / 2).unwrap();
    assert!(prepared.check_unchanged().is_err());
    let again = PreparedBase { twin: open(), chunks: Mutex::new(KnownChunks::new(DISK)) };
    again.check_unchanged().unwrap();
}

/// A base that is compressed like an output is its own twin; a cluster beyond its end is not taken from it.
#[test]
fn a_base_can_be_its_own_twin() {
    let disks = Disks::new(DISK);
    let packed = disks.twin();
    let layers = [(&*disks.overlay, BaseFormat::Qcow2), (&*packed, BaseFormat::Qcow2)];
    let slow = compressed(&disks.scratch, "slow", &layers, None);
    let own = TwinReader::itself(File::open(&packed).unwrap(), BaseFormat::Qcow2).unwrap();
    let path = disks.scratch.path("own");
    let file = File::create(&path).unwrap();
    write_qcow2(&chain(&layers), Compression::Zstd, Some(&own), file, &Progress::unwatched()).unwrap();
    assert!(fs::read(slow).unwrap() == fs::read(&path).unwrap());
    let base = chain(&[(&packed, BaseFormat::Qcow2)]).of_size(DISK);
    let base = known(own, &base);
    let found = read_back(&chain(&layers), &[copy(&path, Some(&base))], Some(&base), &Progress::unwatched()).unwrap();
    assert_eq!(found, expected_chunks(&chain(&layers)));
}

#[test]
fn the_digests_are_those_of_the_bytes_and_only_changes_are_hashed() {
    for size in [BASE, DISK] {
        let disks = Disks::new(size);
        let base = disks.prepared(size);
        let layers = disks.layers(&disks.base);
        let file = compressed(&disks.scratch, "file", &layers, Some(&disks.twin()));
        let disk = chain(&layers);
        let expected = expected_chunks(&disk);
        assert_ne!(expected.to_text(), base.known_chunks().to_text());
        let copies = || [copy(&file, Some(&base)), copy(&file, None)];
        assert_eq!(read_back(&disk, &[], None, &Progress::unwatched()).unwrap(), expected, "{size}");
        assert_eq!(read_back(&disk, &copies(), None, &Progress::unwatched()).unwrap(), expected, "{size}");
        assert_eq!(read_back(&disk, &copies(), Some(&base), &Progress::unwatched()).unwrap(), expected, "{size}");
        // What has not changed is neither read nor hashed.
        let other = disks.other_base();
        let unread = chain(&disks.layers(&other));
        let found = read_back(&unread, &[copy(&file, Some(&base))], Some(&base), &Progress::unwatched()).unwrap();
        assert_eq!(found, expected, "{size}");
        assert_ne!(read_back(&unread, &[], None, &Progress::unwatched()).unwrap().sha256(), expected.sha256());
        // A copy that was not made from the twin is compared byte by byte.
        let error = read_back(&unread, &[copy(&file, None)], Some(&base), &Progress::unwatched()).unwrap_err();
        assert!(matches!(error, DigestError::Differs { .. }), "{error}");
    }
}

/// What no conversion has compared with the base yet is read, and is known afterwards.
#[test]
fn a_new_twin_is_compared_with_the_base() {
    let disks = Disks::new(DISK);
    let layers = disks.layers(&disks.base);
    let file = compressed(&disks.scratch, "file", &layers, Some(&disks.twin()));
    let twin = TwinReader::open(File::open(disks.twin()).unwrap()).unwrap();
    let base = Arc::new(PreparedBase { twin, chunks: Mutex::new(KnownChunks::new(DISK)) });
    let other = disks.other_base();
    let error =
        read_back(&chain(&disks.layers(&other)), &[copy(&file, Some(&base))], Some(&base), &Progress::unwatched());
    assert!(matches!(error, Err(DigestError::Differs { .. })));
    let disk = chain(&layers);
    let index = read_back(&disk, &[copy(&file, Some(&base))], Some(&base), &Progress::unwatched()).unwrap();
    base.learn(&disk, &index).unwrap();
    let known = base.known_chunks().to_text();
    // The chunks with changes.
    let unknown: Vec<_> = known.lines().skip(1).enumerate().filter(|(_, line)| *line == "unknown").collect();
    assert_eq!(unknown.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [3, 4], "{known}");
    let same = known.lines().zip(index.to_text().lines()).filter(|(one, other)| one == other).count();
    assert_eq!(same, known.lines().count() - 2);
}

/// A base that is a disk of another size has other chunks.
#[test]
fn digests_of_another_size_are_not_used() {
    let disks = Disks::new(DISK);
    let base = disks.prepared(BASE);
    let disk = chain(&disks.layers(&disks.base));
    assert_eq!(read_back(&disk, &[], Some(&base), &Progress::unwatched()).unwrap(), expected_chunks(&disk));
}

/// Whatever a twin or a copy contains, nothing panics, and the parts of a copy that are not taken from the twin are compared.
#[test]
fn damaged_twins_and_copies_are_errors_at_worst() {
    let disks = Disks::new(DISK);
    let layers = disks.layers(&disks.base);
    let twin = fs::read(disks.twin()).unwrap();
    let file = fs::read(compressed(&disks.scratch, "file", &layers, Some(&disks.twin()))).unwrap();
    let base = disks.prepared(DISK);
    let disk = chain(&layers);
    let mut state = 99_u64;
    let mut damage = |sound: &[u8]| {
        let mut number = || (0..4).fold(0, |number, _| number << 8 | usize::from(next_byte(&mut state)));
        let mut bytes = sound.to_vec();
        // Most of the structures are at the end.
        for _ in 0..=number() % 8 {
            let from = if number() % 4 == 0 { 0 } else { bytes.len() - (256 << 10) };
            let at = from + number() % (bytes.len() - from);
            bytes[at] ^= 1 << (number() % 8);
        }
        bytes
    };
    let mut found = 0;
    for _ in 0..150 {
        let [twin_path, out] = ["damaged-twin", "out"].map(|name| disks.scratch.path(name));
        fs::write(&twin_path, damage(&twin)).unwrap();
        let opened = [
            TwinReader::open(File::open(&twin_path).unwrap()).ok(),
            TwinReader::itself(File::open(&twin_path).unwrap(), BaseFormat::Qcow2),
        ];
        for twin in opened.into_iter().flatten() {
            let to = File::create(&out).unwrap();
            let written = write_qcow2(&disk, Compression::Zstd, Some(&twin), to, &Progress::unwatched());
            found += usize::from(written.is_err() || fs::read(&out).unwrap() != file);
        }
        fs::write(&out, damage(&file)).unwrap();
        let opened = File::open(&out).map(|file| Chain::open(vec![ChainFile { file, format: DiskFormat::Qcow2 }]));
        if opened.unwrap().is_ok() && TwinReader::open(File::open(&out).unwrap()).is_ok() {
            found +=
                usize::from(read_back(&disk, &[copy(&out, Some(&base))], Some(&base), &Progress::unwatched()).is_err());
        }
    }
    assert!(found > 50, "{found}");
}

/// A file that a faulty writer made is noticed, whichever entry of its tables is another one.
#[test]
fn a_misplaced_cluster_is_found_out() {
    let disks = Disks::new(DISK);
    let base = disks.prepared(DISK);
    let layers = disks.layers(&disks.base);
    let sound = fs::read(compressed(&disks.scratch, "file", &layers, Some(&disks.twin()))).unwrap();
    let disk = chain(&layers);
    let word = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap());
    let l1 = usize::try_from(word(40)).unwrap();
    let l2 = usize::try_from(word(l1) & 0x00ff_ffff_ffff_fe00).unwrap();
    let entries: Vec<usize> = (0..640).map(|index| l2 + 8 * index).filter(|at| word(*at) != 0).collect();
    assert!(entries.len() > 100);
    let verdict = |bytes: &[u8]| {
        let path = disks.scratch.path("damaged");
        fs::write(&path, bytes).unwrap();
        read_back(&disk, &[copy(&path, Some(&base))], Some(&base), &Progress::unwatched())
    };
    verdict(&sound).unwrap();
    for (index, at) in entries.iter().enumerate().step_by(7) {
        let mut damaged = sound.clone();
        let other = if index % 2 == 0 { 0 } else { word(*at) ^ 512 };
        damaged[*at..at + 8].copy_from_slice(&other.to_be_bytes());
        assert!(verdict(&damaged).is_err(), "entry {index}");
    }
}
