//! What no header tells: bombs, tables and clusters in use twice, a guest that writes headers into its disk, and disks
//! that fit nowhere.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::{Scratch, chain, facts, refused, sha256sum, tool, write_raw};
use kiln::disk::digest::disk_sha256;
use kiln::disk::inspect::BaseHeaderError;
use kiln::disk::qcow2::create_overlay;
use kiln::disk::write::{WriteError, check_fits};
use kiln::disk::write_qcow2::write_qcow2;
use kiln::error::{Fault, Kind};
use kiln::progress::Progress;
use kiln::specfile::{BaseFormat, Compression};

const CANARY: &str = "the canary of this host sings here;";

/// The guest's first sectors are a header that names the canary, in an overlay and in the raw base below it.
#[test]
fn b7_a_guest_that_writes_an_image_header_into_its_disk_gets_it_back_as_bytes() {
    let scratch = Scratch::new();
    let canary = scratch.path("canary");
    fs::write(&canary, CANARY.repeat(1000)).unwrap();
    let backing = ["-u", "-F", "raw", "-b", canary.to_str().unwrap()];
    let header = fs::read(scratch.create("header", "qcow2", &backing)).unwrap();
    let (base, overlay) = (scratch.path("base"), scratch.path("overlay"));
    fs::write(&base, &header[..128 << 10]).unwrap();
    create_overlay(&overlay, 1 << 20).unwrap();
    let write = format!("write -s {} 0 64k", scratch.text("header"));
    tool("qemu-io", &["-f", "qcow2", "-c", &write, overlay.to_str().unwrap()]);
    let out = scratch.path("out");
    write_raw(&[(&overlay, BaseFormat::Qcow2), (&base, BaseFormat::Raw)], &out);
    let mut expected = header[..128 << 10].to_vec();
    expected.resize(1 << 20, 0);
    assert!(fs::read(&out).unwrap() == expected);
    assert_eq!(fs::read_to_string(&canary).unwrap(), CANARY.repeat(1000), "the host is untouched");
}

#[test]
fn b11_a_dirty_image_and_one_with_lazy_counts_are_accepted_with_a_warning() {
    let scratch = Scratch::new();
    let path = scratch.create("lazy", "qcow2", &["-o", "lazy_refcounts=on"]);
    assert!(facts(&path, BaseFormat::Qcow2).warnings[0].contains("leaks"));
    File::options().write(true).open(&path).unwrap().write_all_at(&1u64.to_be_bytes(), 72).unwrap();
    assert!(facts(&path, BaseFormat::Qcow2).warnings[0].contains("dirty"));
}

/// The disk of [`Scratch::raw`] in compressed clusters.
fn packed(scratch: &Scratch, codec: &str) -> PathBuf {
    let path = scratch.text(codec);
    let option = format!("compression_type={codec}");
    let raw = scratch.raw("bomb.raw");
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", &option, raw.to_str().unwrap(), &path]);
    scratch.path(codec)
}

/// Where the L1 table of an image and the first L2 table are.
fn first_table(image: &[u8]) -> (usize, usize) {
    let number = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let at = |entry: u64| usize::try_from(entry & 0x00ff_ffff_ffff_fe00).unwrap();
    (at(number(40)), at(number(at(number(40)))))
}

/// One small compressed cluster is named by every entry of a table: the disk is as large as its header says and no larger.
#[test]
fn b10_a_bomb_of_compressed_clusters_is_read_and_converted_within_the_size_of_its_disk() {
    for codec in ["zlib", "zstd"] {
        let scratch = Scratch::new();
        let path = packed(&scratch, codec);
        let bytes = fs::read(&path).unwrap();
        let (_, table) = first_table(&bytes);
        // The text begins at 1 MiB of the disk, in its cluster 16.
        let entry = bytes[table + 16 * 8..][..8].to_vec();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&(64u64 << 20).to_be_bytes(), 24).unwrap();
        file.write_all_at(&entry.repeat(8192), table as u64).unwrap();
        let disk = chain(&[(&path, BaseFormat::Qcow2)]);
        let digest = disk_sha256(&disk, &Progress::unwatched()).unwrap();
        let out = scratch.path("out");
        write_raw(&[(&path, BaseFormat::Qcow2)], &out);
        assert_eq!(fs::metadata(&out).unwrap().len(), 64 << 20, "{codec}");
        assert_eq!(digest.to_string(), sha256sum(&out), "{codec}");
    }
}

#[test]
fn b10_tables_and_clusters_in_use_twice_are_refused() {
    let scratch = Scratch::new();
    let (raw, name) = (scratch.raw("disk.raw"), scratch.text("whole"));
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), &name]);
    let whole = fs::read(&name).unwrap();
    let (l1, table) = first_table(&whole);
    let write = |name: &str, changes: &[(usize, &[u8])]| {
        let path = scratch.path(name);
        fs::write(&path, &whole).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        for (at, bytes) in changes {
            file.write_all_at(bytes, *at as u64).unwrap();
        }
        path
    };
    // A table of 512 MiB, 4096 times.
    let tables = whole[l1..l1 + 8].repeat(4096);
    let changes: [(usize, &[u8]); 3] = [(24, &(2u64 << 40).to_be_bytes()), (36, &4096u32.to_be_bytes()), (l1, &tables)];
    let path = write("tables", &changes);
    assert!(matches!(refused(&path, BaseFormat::Qcow2).why(), BaseHeaderError::SharedTables { tables: 4096, .. }));
    // The cluster with the text, in every place of the disk.
    let clusters = whole[table + 16 * 8..][..8].repeat(128);
    let path = write("clusters", &[(table, &clusters)]);
    let digest = disk_sha256(&chain(&[(&path, BaseFormat::Qcow2)]), &Progress::unwatched());
    let error = digest.unwrap_err();
    assert_eq!(error.kind(), Kind::Base);
    let out = File::create(scratch.path("out")).unwrap();
    let disk = chain(&[(&path, BaseFormat::Qcow2)]);
    assert!(write_qcow2(&disk, Compression::Zstd, None, out, &Progress::unwatched()).is_err());
}

#[test]
fn o2_a_raw_disk_larger_than_any_file_is_refused_before_anything_is_written() {
    let scratch = Scratch::new();
    assert!(check_fits(scratch.0.path(), 1 << 20).is_ok());
    let error = check_fits(scratch.0.path(), 1 << 63).unwrap_err();
    assert!(matches!(error, WriteError::TooLarge { .. }), "{error}");
    assert_eq!((error.kind(), error.hints().len()), (Kind::Output, 1));
    assert_eq!(fs::read_dir(scratch.0.path()).unwrap().count(), 0);
}
