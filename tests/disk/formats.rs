//! Disks in the formats of other virtual machines, read by QEMU and by kiln's own readers.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tokio_util::sync::CancellationToken;

use kiln::disk::chain::Chain;
use kiln::disk::digest::{DiskCopy, disk_sha256, read_back};
use kiln::disk::identity::DiskIdentity;
use kiln::disk::write::{WriteError, write, writes};
use kiln::progress::Progress;
use kiln::specfile::DiskFormat;

use super::{Scratch, cancelled, chain, next_byte, tool};
use proptest::collection::vec;
use proptest::test_runner::{Config, TestRunner};

const MIB: u64 = 1 << 20;
/// Beyond what 32 bits can count.
const FAR: u64 = 4 << 30;

/// Bytes and their place.
type Data<'a> = (u64, &'a [u8]);

fn formats() -> impl Iterator<Item = DiskFormat> {
    DiskFormat::ALL.into_iter().filter(|format| writes(*format))
}

/// A raw disk of this size, with bytes at these places.
fn disk(scratch: &Scratch, size: u64, data: &[Data<'_>]) -> PathBuf {
    let path = scratch.path("source");
    let file = File::create(&path).unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in data {
        file.write_all_at(bytes, *at).unwrap();
    }
    path
}

/// The disk in every format at once, in files with this name.
fn written(scratch: &Scratch, raw: &Path, name: &str) -> Vec<(DiskFormat, PathBuf)> {
    let paths: Vec<_> = formats().map(|format| (format, scratch.path(&format!("{name}.{}", format.name())))).collect();
    let files = paths.iter().map(|(format, path)| (*format, File::create(path).unwrap())).collect();
    let seen = Mutex::new(vec![]);
    let progress = Progress::new(&CancellationToken::new(), |done, _| seen.lock().unwrap().push(done));
    let disk = chain(&[(raw, DiskFormat::Raw)]);
    write(&disk, files, &DiskIdentity::new(&["web", "1"]), &progress).unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted() && seen.iter().all(|done| *done <= disk.virtual_size()), "{seen:?}");
    paths
}

fn copies(files: &[(DiskFormat, PathBuf)]) -> Vec<DiskCopy> {
    let copy = |(format, path): &(DiskFormat, PathBuf)| DiskCopy {
        name: format.name().to_owned(),
        format: *format,
        disk: chain(&[(path, *format)]),
        taken: None,
    };
    files.iter().map(copy).collect()
}

/// What QEMU and kiln read in every file is the disk, and nothing else.
#[track_caller]
fn assert_all_read(raw: &Path, files: &[(DiskFormat, PathBuf)]) {
    let disk = chain(&[(raw, DiskFormat::Raw)]);
    read_back(&disk, &copies(files), None, &Progress::unwatched()).unwrap();
    for (format, path) in files {
        let (driver, name) = (format.driver(), path.to_str().unwrap());
        let info = tool("qemu-img", &["info", "-f", driver, "--output=json", name]);
        let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
        let size = format.virtual_size(disk.virtual_size()).next_multiple_of(512);
        assert_eq!(info["virtual-size"], size, "{format:?}");
        tool("qemu-img", &["compare", "-q", "-f", "raw", "-F", driver, raw.to_str().unwrap(), name]);
        if !matches!(format, DiskFormat::Raw | DiskFormat::Vhd) {
            tool("qemu-img", &["check", "-q", "-f", driver, name]);
        }
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 5;
    (0..length).map(|_| next_byte(&mut state)).collect()
}

#[test]
fn awkward_disks_are_the_same_in_every_format() {
    let noise = noise(3 << 20);
    let (grain, mib) = (&noise[..64 << 10], &noise[..1 << 20]);
    let disks: [(u64, &[Data<'_>]); 9] = [
        (3 * MIB, &[]),
        (1, &[(0, b"x")]),
        (2 * MIB, &[(2 * MIB - 1, b"x")]),
        (MIB + 512, &[(MIB + 511, b"x"), (0, b"x")]),
        (5 * MIB + 12345, &[(5 * MIB, &noise[..12345]), (777, b"some text")]),
        (4 * MIB, &[(MIB, mib), (3 * MIB, grain)]),
        (4 * MIB, &[(MIB - 64 * 1024, grain), (2 * MIB + 4096, grain), (3 * MIB - 1, b"xx")]),
        (3 * MIB, &[(0, &noise)]),
        // Neighbours of the first entry of a VHDX's block table that is a bitmap's, and of what 32 bits can count.
        (FAR + 4 * MIB, &[(0, b"x"), (FAR - MIB, mib), (FAR, mib), (FAR + 2 * MIB, b"x"), (FAR + 4 * MIB - 1, b"x")]),
    ];
    for (number, (size, data)) in disks.into_iter().enumerate() {
        let scratch = Scratch::new();
        let raw = disk(&scratch, size, data);
        let files = written(&scratch, &raw, "disk");
        assert_all_read(&raw, &files);
        if let Some(folder) = std::env::var_os("KILN_FORMATS").map(PathBuf::from) {
            // For fixtures/formats/validate.
            fs::create_dir_all(&folder).unwrap();
            for (format, path) in &files {
                tool(
                    "cp",
                    &[
                        "--sparse=always",
                        path.to_str().unwrap(),
                        &format!("{}/{number}.{}", folder.display(), format.name()),
                    ],
                );
            }
        }
        let data: u64 = data.iter().map(|(_, bytes)| bytes.len() as u64 + 2 * MIB).sum();
        for (format, path) in &files {
            let taken = fs::metadata(path).unwrap().blocks() * 512;
            assert!(taken <= data + MIB, "{format:?} takes {taken} bytes for a disk of {size}");
        }
        for ((format, one), (_, other)) in files.iter().zip(written(&scratch, &raw, "again")) {
            assert!(size > 1 << 30 || fs::read(one).unwrap() == fs::read(other).unwrap(), "{format:?}");
        }
    }
}

#[test]
fn any_extents_are_the_same_in_every_format() {
    let noise = noise(1 << 20);
    let extents = vec((0..6 * MIB, 1..700_000_usize, proptest::bool::ANY), 0..6);
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(20) });
    runner
        .run(&(extents, 1..6 * MIB), |(extents, size)| {
            let scratch = Scratch::new();
            let zeroes = vec![0; noise.len()];
            let data = extents.iter().filter(|(at, ..)| *at < size).map(|(at, length, is_data)| {
                let length = (*length).min(usize::try_from(size - at).unwrap());
                (*at, if *is_data { &noise[..length] } else { &zeroes[..length] })
            });
            let raw = disk(&scratch, size, &data.collect::<Vec<_>>());
            assert_all_read(&raw, &written(&scratch, &raw, "disk"));
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_qemu_writes_is_read_as_well() {
    let scratch = Scratch::new();
    let raw = scratch.raw("source");
    let options = [
        (DiskFormat::Vmdk, "subformat=streamOptimized"),
        (DiskFormat::Vdi, "static=off"),
        (DiskFormat::Vhdx, "subformat=dynamic"),
        (DiskFormat::Vhdx, "subformat=dynamic,block_size=1M,block_state_zero=off"),
        (DiskFormat::Vhdx, "subformat=fixed"),
        (DiskFormat::Vhd, "subformat=fixed,force_size=on"),
    ];
    for (index, (format, option)) in options.into_iter().enumerate() {
        let path = scratch.path(&format!("{index}"));
        let names = [raw.to_str().unwrap(), path.to_str().unwrap()];
        tool("qemu-img", &[&["convert", "-f", "raw", "-O", format.driver(), "-o", option], &names[..]].concat());
        read_back(&chain(&[(&raw, DiskFormat::Raw)]), &copies(&[(format, path)]), None, &Progress::unwatched())
            .unwrap();
    }
}

#[test]
fn a_copy_that_is_not_the_disk_is_found_out() {
    let scratch = Scratch::new();
    let raw = scratch.raw("source");
    let files = written(&scratch, &raw, "disk");
    let disk = chain(&[(&raw, DiskFormat::Raw)]);
    let verdict = |files: &[(DiskFormat, PathBuf)]| read_back(&disk, &copies(files), None, &Progress::unwatched());
    // A byte of the disk that is another one, in a hole and in data.
    for at in [3 * MIB, 4 * MIB + 1000] {
        let other = scratch.path("other");
        fs::copy(&raw, &other).unwrap();
        File::options().write(true).open(&other).unwrap().write_all_at(&[0xaa], at).unwrap();
        for file in written(&scratch, &other, "changed") {
            let error = verdict(&[files[0].clone(), file.clone()]).unwrap_err().to_string();
            let expected =
                format!("{} differs from the sealed disk between bytes {} and ", file.0.name(), at / MIB * MIB);
            assert!(error.starts_with(&expected), "{error}");
        }
    }
    // A disk of another size, and one with more than zeroes behind its end.
    let longer = self::disk(&scratch, 9 * MIB, &[(8 * MIB + 512, b"x")]);
    let error = verdict(&[(DiskFormat::Raw, longer.clone())]).unwrap_err();
    assert_eq!(error.to_string(), "raw holds a disk of 9437184 bytes, not 8388608");
    let shorter = scratch.path("shorter.raw");
    fs::copy(&longer, &shorter).unwrap();
    File::options().write(true).open(&shorter).unwrap().set_len(8 * MIB + 512).unwrap();
    let vhd = written(&scratch, &longer, "longer").pop().unwrap();
    assert_eq!(vhd.0, DiskFormat::Vhd);
    let error =
        read_back(&chain(&[(&shorter, DiskFormat::Raw)]), &copies(&[vhd]), None, &Progress::unwatched()).unwrap_err();
    assert!(error.to_string().starts_with("vhd differs from the sealed disk between bytes 8388608 "), "{error}");
}

/// The file as a chain, and all that is in it.
fn read_all(path: &Path, format: DiskFormat) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let disk = Chain::open(vec![kiln::disk::chain::ChainFile { file, format }]).map_err(|error| error.to_string())?;
    if disk.virtual_size() > 64 * MIB {
        return Err("no disk of this test".to_owned());
    }
    disk_sha256(&disk, &Progress::unwatched()).map(drop).map_err(|error| error.to_string())
}

#[test]
fn damage_is_an_answer_or_an_error_and_never_a_panic() {
    const DATA: u8 = 0xdd;
    let scratch = Scratch::new();
    let raw = disk(&scratch, 3 * MIB, &[(MIB, &[DATA; 5000])]);
    for (format, path) in written(&scratch, &raw, "disk").into_iter().filter(|(format, _)| *format != DiskFormat::Raw) {
        let whole = fs::read(&path).unwrap();
        let (broken, mut errors) = (scratch.path("broken"), 0);
        fs::copy(&path, &broken).unwrap();
        let file = File::options().write(true).open(&broken).unwrap();
        // All numbers of all tables.
        for (at, byte) in whole.iter().enumerate().filter(|(_, byte)| ![0, DATA].contains(byte)) {
            for other in [0, 0xff, byte ^ 1] {
                file.write_all_at(&[other], at as u64).unwrap();
                errors += usize::from(read_all(&broken, format).is_err());
            }
            file.write_all_at(&[*byte], at as u64).unwrap();
        }
        assert!(errors > 20, "{format:?}: {errors}");
        for length in [0, 1, 511, 512, 1024, whole.len() / 2, whole.len() - 512, whole.len() - 1] {
            fs::write(&broken, &whole[..length]).unwrap();
            assert!(read_all(&broken, format).is_err(), "{format:?} cut at {length}");
        }
    }
}

#[test]
fn a_stopped_or_full_file_is_an_error() {
    let scratch = Scratch::new();
    let disk = scratch.raw("source");
    let disk = chain(&[(&disk, DiskFormat::Raw)]);
    for format in formats() {
        let out = File::create(scratch.path("out")).unwrap();
        let stopped = write(&disk, vec![(format, out)], &DiskIdentity::new(&[]), &cancelled());
        assert!(matches!(stopped, Err(WriteError::Cancelled(_))), "{format:?}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let full = write(&disk, vec![(format, full)], &DiskIdentity::new(&[]), &Progress::unwatched());
        assert!(matches!(full, Err(WriteError::Write(_))), "{format:?}: {full:?}");
    }
}
