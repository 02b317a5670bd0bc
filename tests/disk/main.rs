//! The disk modules against `qemu-img` and e2fsprogs as independent witnesses. Both must be installed: a test that
//! cannot ask its witness fails.

#[path = "../support/mod.rs"]
mod support;

mod attacks;
mod boot_menus;
mod corpus;
mod formats;
mod hostile;
mod incremental;
mod journals;
mod layouts;
mod linux_kernel;
mod mount_gaps;
mod sparse_files;
mod unchanged_files;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use kiln::agent::list::list_folder;
use kiln::digest::{Sha256Digest, hex, sha256_file};
use kiln::disk::as_mounted::left_over;
use kiln::disk::base_twin::TwinReader;
use kiln::disk::chain::{Chain, ChainFile};
use kiln::disk::digest::{DigestError, disk_sha256};
use kiln::disk::entry::{ContentDigest, DiskEntry, FileDigest, FileKind, canonical};
use kiln::disk::fat::{Fat, FatError, FatNode};
use kiln::disk::gap::TreeMount;
use kiln::disk::guest_listing::GuestListing;
use kiln::disk::header_error::HeaderError;
use kiln::disk::identity::DiskIdentity;
use kiln::disk::inspect::{BaseHeader, BaseHeaderError, BaseImage, InspectionError};
use kiln::disk::packages::{InstalledPackage, PackageDatabase, PackageType, has_rpm_database, read_databases};
use kiln::disk::partition_table::partitions;
use kiln::disk::qcow2::create_overlay;
use kiln::disk::qcow2::header::Codec;
use kiln::disk::tree::{Tree, TreeError};
use kiln::disk::write::{WriteError, write};
use kiln::disk::write_qcow2::write_qcow2;
use kiln::error::{Fault, Kind};
use kiln::progress::Progress;
use kiln::specfile::{BaseFormat, Compression, DiskFormat};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Runs a tool and returns what it wrote to stdout.
#[track_caller]
fn tool(program: &str, args: &[&str]) -> Vec<u8> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| panic!("{program} must be installed for this test: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A folder for one test, with names in it.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }

    /// `qemu-img create -f FORMAT OPTIONS NAME 64M`
    fn create(&self, name: &str, format: &str, options: &[&str]) -> PathBuf {
        let path = self.text(name);
        tool("qemu-img", &[&["create", "-q", "-f", format], options, &[&path, "64M"]].concat());
        self.path(name)
    }

    /// A raw disk of 8 MiB: a boot signature, text that compresses, noise that does not, and holes.
    fn raw(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"\x55\xaa", 510).unwrap();
        file.write_all_at(&b"the quick brown fox ".repeat(30_000), 1 << 20).unwrap();
        let mut state = 1u64;
        let noise: Vec<u8> = (0..300_000).map(|_| next_byte(&mut state)).collect();
        file.write_all_at(&noise, (4 << 20) + 777).unwrap();
        file.write_all_at(b"end", (8 << 20) - 3).unwrap();
        path
    }
}

/// Xorshift: noise that is the same in every run.
fn next_byte(state: &mut u64) -> u8 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.to_le_bytes()[3]
}

#[track_caller]
fn facts(path: &Path, format: BaseFormat) -> BaseHeader {
    BaseImage::open(path, format).unwrap().facts
}

#[track_caller]
fn refused(path: &Path, format: BaseFormat) -> InspectionError {
    let error = BaseImage::open(path, format).unwrap_err();
    assert_eq!(error.kind(), Kind::Base);
    error
}

#[test]
fn inspection_agrees_with_qemu_img_on_good_images() {
    let scratch = Scratch::new();
    let options = [
        "cluster_size=512",
        "cluster_size=64k",
        "cluster_size=2M",
        "compat=0.10",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
        "compression_type=zstd",
        "preallocation=metadata",
        "preallocation=full",
    ];
    for (index, option) in options.into_iter().enumerate() {
        let path = scratch.create(&format!("{index}.qcow2"), "qcow2", &["-o", option]);
        let facts = facts(&path, BaseFormat::Qcow2);
        let info = tool("qemu-img", &["info", "--output=json", path.to_str().unwrap()]);
        let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
        assert_eq!(info["virtual-size"], facts.virtual_size, "{option}");
        assert_eq!(facts.codec == Some(Codec::Zstd), option.ends_with("zstd"));
        assert_eq!(facts.warnings.len(), usize::from(option.starts_with("lazy")), "{option}");
    }
    let raw = scratch.raw("disk.raw");
    assert_eq!(facts(&raw, BaseFormat::Raw).virtual_size, 8 << 20);
    for compression in ["zlib", "zstd"] {
        let packed = scratch.text(compression);
        let option = format!("compression_type={compression}");
        tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", &option, raw.to_str().unwrap(), &packed]);
        assert_eq!(facts(Path::new(&packed), BaseFormat::Qcow2).virtual_size, 8 << 20);
    }
}

#[test]
fn b2_b4_a_backing_file_of_any_spelling_is_refused() {
    let scratch = Scratch::new();
    let names = ["/etc/hostname", "json:{\"driver\":\"raw\"}", "nbd://127.0.0.1:9/x", "fat:/etc", "/dev/null", "x y"];
    for name in names {
        let path = scratch.create("overlay", "qcow2", &["-u", "-b", name, "-F", "raw"]);
        let error = refused(&path, BaseFormat::Qcow2);
        assert!(matches!(error.why(), BaseHeaderError::BackingFile(_)), "{name}: {error}");
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn b3_images_that_are_more_than_one_disk_are_refused() {
    let scratch = Scratch::new();
    let data = format!("data_file={}", scratch.text("data"));
    let header = |path: &Path| match refused(path, BaseFormat::Qcow2).why() {
        BaseHeaderError::Header(error) => error.clone(),
        other => panic!("{}: {other}", path.display()),
    };
    assert_eq!(header(&scratch.create("d1", "qcow2", &["-o", &data])), HeaderError::DataFile);
    let raw_data = format!("{data},data_file_raw=on");
    assert_eq!(header(&scratch.create("d2", "qcow2", &["-o", &raw_data])), HeaderError::DataFile);
    assert_eq!(header(&scratch.create("l2", "qcow2", &["-o", "extended_l2=on"])), HeaderError::ExtendedL2);
    let luks =
        ["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"];
    assert_eq!(header(&scratch.create("luks", "qcow2", &luks)), HeaderError::Encrypted);
    let snapshots = scratch.create("snapshots", "qcow2", &[]);
    tool("qemu-img", &["snapshot", "-c", "one", snapshots.to_str().unwrap()]);
    assert!(matches!(refused(&snapshots, BaseFormat::Qcow2).why(), BaseHeaderError::Snapshots(1)));
}

#[test]
fn b5_b6_bytes_of_another_format_are_refused_whatever_the_spec_says() {
    let scratch = Scratch::new();
    for format in ["vmdk", "vdi", "vhdx", "vpc", "qed"] {
        let path = scratch.create(format, format, &[]);
        for declared in [BaseFormat::Raw, BaseFormat::Qcow2] {
            let error = refused(&path, declared);
            assert!(matches!(error.why(), BaseHeaderError::Mismatch { .. }), "{error}");
            assert!(error.to_string().ends_with(&format!("the file is {format}")), "{error}");
        }
    }
    let fixed = scratch.create("fixed", "vpc", &["-o", "subformat=fixed"]);
    File::options().write(true).open(&fixed).unwrap().write_all_at(b"\x55\xaa", 510).unwrap();
    assert!(matches!(refused(&fixed, BaseFormat::Raw).why(), BaseHeaderError::Mismatch { .. }));
    let qcow2 = scratch.create("q", "qcow2", &[]);
    assert!(matches!(refused(&qcow2, BaseFormat::Raw).why(), BaseHeaderError::Mismatch { .. }));
    let raw = scratch.raw("disk.raw");
    assert!(matches!(refused(&raw, BaseFormat::Qcow2).why(), BaseHeaderError::NotQcow2 { .. }));
    let flat = scratch.path("flat.vmdk");
    fs::write(&flat, "# Disk DescriptorFile\nversion=1\nRW 2048 FLAT \"/etc/hostname\" 0\n").unwrap();
    assert!(matches!(refused(&flat, BaseFormat::Raw).why(), BaseHeaderError::Mismatch { .. }));
}

#[test]
fn b12_a_polyglot_is_refused_under_either_name() {
    let scratch = Scratch::new();
    let path = scratch.create("polyglot", "qcow2", &["-o", "preallocation=full"]);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"EFI PART", 512).unwrap();
    file.write_all_at(b"CD001", 0x8001).unwrap();
    for declared in [BaseFormat::Qcow2, BaseFormat::Raw] {
        let error = refused(&path, declared);
        assert!(error.to_string().contains("multiple formats"), "{error}");
    }
}

#[test]
fn b9_what_is_not_a_whole_disk_is_refused_at_once() {
    let scratch = Scratch::new();
    let why = |path: &Path, format| match refused(path, format).why() {
        BaseHeaderError::NotAFile(what) => (*what).to_owned(),
        other => other.to_string(),
    };
    let fifo = scratch.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (empty, zero, part) = (scratch.path("empty"), scratch.path("zero"), scratch.path("part"));
    File::create(&empty).unwrap();
    File::create(&zero).unwrap().set_len(1 << 40).unwrap();
    fs::write(&part, b"\x55\xaa".repeat(300)).unwrap();
    assert_eq!(why(&fifo, BaseFormat::Qcow2), "a FIFO");
    assert_eq!(why(scratch.0.path(), BaseFormat::Raw), "a directory");
    assert_eq!(why(Path::new("/dev/zero"), BaseFormat::Raw), "a device");
    assert!(why(&empty, BaseFormat::Raw).contains("empty"));
    assert!(why(&zero, BaseFormat::Raw).contains("all zero"));
    assert!(why(&zero, BaseFormat::Qcow2).contains("qcow2 was expected"));
    assert!(why(&part, BaseFormat::Raw).contains("600 bytes"));
    assert!(why(&scratch.path("absent"), BaseFormat::Raw).contains("No such file"));
}

#[test]
fn b9_a_cut_image_is_truncated_wherever_it_is_cut() {
    let scratch = Scratch::new();
    let raw = scratch.raw("disk.raw");
    for extra in [&[][..], &["-c"], &["-c", "-o", "compression_type=zstd"], &["-o", "cluster_size=4k"]] {
        let path = scratch.text("whole.qcow2");
        let args = [&["convert", "-f", "raw", "-O", "qcow2"], extra, &[raw.to_str().unwrap(), &path]].concat();
        tool("qemu-img", &args);
        let whole = fs::read(&path).unwrap();
        facts(Path::new(&path), BaseFormat::Qcow2);
        for eighth in 1..8 {
            let cut = scratch.path("cut.qcow2");
            fs::write(&cut, &whole[..whole.len() * eighth / 8]).unwrap();
            let error = refused(&cut, BaseFormat::Qcow2);
            assert!(error.to_string().contains("truncated"), "{error}");
        }
    }
}

fn chain<F: Into<DiskFormat> + Copy>(layers: &[(&Path, F)]) -> Chain {
    let open = |(path, format): &(&Path, F)| ChainFile { file: File::open(path).unwrap(), format: (*format).into() };
    Chain::open(layers.iter().map(open).collect()).unwrap()
}

/// The raw bytes of a qcow2 as `qemu-img` sees them, backing files included.
fn as_raw(scratch: &Scratch, image: &Path) -> PathBuf {
    let raw = scratch.text("witness.raw");
    tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", image.to_str().unwrap(), &raw]);
    PathBuf::from(raw)
}

fn sha256sum(path: &Path) -> String {
    let line = String::from_utf8(tool("sha256sum", &[path.to_str().unwrap()])).unwrap();
    line.split(' ').next().unwrap().to_owned()
}

/// Digest, bytes and extents of a chain are what `qemu-img` makes of it.
#[track_caller]
fn assert_same_disk(scratch: &Scratch, layers: &[(&Path, BaseFormat)]) {
    let disk = chain(layers);
    let raw = as_raw(scratch, layers[0].0);
    let digest = disk_sha256(&disk, &Progress::unwatched()).unwrap();
    assert_eq!(digest.to_string(), sha256sum(&raw));
    assert_eq!(sha256_file(&File::open(&raw).unwrap()).unwrap(), digest);
    let expected = fs::read(&raw).unwrap();
    assert_eq!(disk.virtual_size(), expected.len() as u64);
    let mut state = 7;
    for _ in 0..300 {
        let mut number = || (0..4).fold(0, |number, _| number << 8 | usize::from(next_byte(&mut state)));
        let start = number() % expected.len();
        let mut bytes = vec![1; (number() % 200_000).min(expected.len() - start)];
        disk.read_at(start as u64, &mut bytes).unwrap();
        assert!(bytes == expected[start..start + bytes.len()], "at {start}");
    }
    assert_extents(&disk, layers[0].0, &expected);
}

#[track_caller]
fn assert_extents(disk: &Chain, top: &Path, expected: &[u8]) {
    let extents: Vec<_> = disk.extents().map(Result::unwrap).collect();
    let zero = |range: &std::ops::Range<u64>| {
        expected[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
            .iter()
            .all(|byte| *byte == 0)
    };
    assert!(extents.iter().all(|extent| extent.data || zero(&extent.range)));
    assert!(extents.windows(2).all(|pair| pair[0].range.end == pair[1].range.start && pair[0].data != pair[1].data));
    let map = tool("qemu-img", &["map", "-f", "qcow2", "--output=json", top.to_str().unwrap()]);
    let map: Vec<serde_json::Value> = serde_json::from_slice(&map).unwrap();
    let data = |at: u64| {
        let inside = |entry: &&serde_json::Value| {
            let start = entry["start"].as_u64().unwrap();
            (start..start + entry["length"].as_u64().unwrap()).contains(&at)
        };
        let entry = map.iter().find(inside).unwrap();
        entry["data"] == true && entry["zero"] == false
    };
    for extent in extents {
        assert_eq!(data(extent.range.start), extent.data, "{extent:?}");
        assert_eq!(disk.next_data(extent.range.start).unwrap() == Some(extent.range.clone()), extent.data);
    }
}

#[test]
fn a_chain_reads_what_qemu_img_reads() {
    let scratch = Scratch::new();
    let raw = scratch.raw("base.raw");
    let kinds: [&[&str]; 7] = [
        &[],
        &["-c"],
        &["-c", "-o", "compression_type=zstd"],
        &["-c", "-o", "compression_type=zstd,cluster_size=2M"],
        &["-c", "-o", "cluster_size=512"],
        &["-o", "compat=0.10,cluster_size=4k"],
        &["-c", "-o", "compat=0.10"],
    ];
    for kind in kinds {
        let base = scratch.text("base.qcow2");
        tool("qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"], kind, &[raw.to_str().unwrap(), &base]].concat());
        assert_same_disk(&scratch, &[(Path::new(&base), BaseFormat::Qcow2)]);
        for (below, format) in [(scratch.path("base.qcow2"), "qcow2"), (raw.clone(), "raw")] {
            let overlay = overlay_with_writes(&scratch, &below, format);
            let format = if format == "raw" { BaseFormat::Raw } else { BaseFormat::Qcow2 };
            assert_same_disk(&scratch, &[(&overlay, BaseFormat::Qcow2), (&below, format)]);
        }
    }
}

/// A larger overlay with data, zero clusters and discarded clusters of its own; its size is no multiple of its cluster.
fn overlay_with_writes(scratch: &Scratch, below: &Path, format: &str) -> PathBuf {
    let overlay = scratch.text("overlay.qcow2");
    let below = below.to_str().unwrap();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", below, "-F", format, &overlay, "12585472"]);
    let writes = ["write -P 7 100k 70k", "write -z 1M 256k", "write -P 9 9M 1M", "write -z 5M 100k", "discard 9M 128k"];
    let commands = writes.iter().flat_map(|write| ["-c", *write]);
    tool("qemu-io", &["-f", "qcow2"].into_iter().chain(commands).chain([overlay.as_str()]).collect::<Vec<_>>());
    PathBuf::from(overlay)
}

#[test]
fn a_chain_of_three_hides_what_a_shorter_middle_cannot_see() {
    let scratch = Scratch::new();
    let raw = scratch.raw("base.raw");
    let (middle, top) = (scratch.text("middle"), scratch.text("top"));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", raw.to_str().unwrap(), "-F", "raw", &middle, "4M"]);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &middle, "-F", "qcow2", &top, "8M"]);
    let (middle, top) = (Path::new(&middle), Path::new(&top));
    assert_same_disk(&scratch, &[(top, BaseFormat::Qcow2), (middle, BaseFormat::Qcow2), (&raw, BaseFormat::Raw)]);
}

#[test]
fn a_damaged_or_stopped_chain_is_an_error() {
    let scratch = Scratch::new();
    let raw = scratch.raw("base.raw");
    let packed = scratch.text("packed.qcow2");
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", raw.to_str().unwrap(), &packed]);
    let whole = fs::read(&packed).unwrap();
    let disk = chain(&[(Path::new(&packed), BaseFormat::Qcow2)]);
    let stopped = disk_sha256(&disk, &cancelled());
    assert!(matches!(stopped, Err(DigestError::Cancelled(_))));
    assert!(disk.read_at(8 << 20, &mut [0]).is_err());
    // Every 64 KiB of the file broken in turn, tables and data alike: an answer or an error, never a panic.
    let mut errors = 0;
    for at in (64 << 10..whole.len()).step_by(64 << 10) {
        let mut bytes = whole.clone();
        let end = bytes.len().min(at + 300);
        bytes[at..end].fill(0xfe);
        let broken = scratch.path("broken.qcow2");
        fs::write(&broken, bytes).unwrap();
        let layer = ChainFile { file: File::open(&broken).unwrap(), format: DiskFormat::Qcow2 };
        let digest = Chain::open(vec![layer]).map(|disk| disk_sha256(&disk, &Progress::unwatched()));
        errors += usize::from(!matches!(digest, Ok(Ok(_))));
    }
    assert!(errors > 3, "{errors}");
}

/// Returns the progress of work that was cancelled before it began.
fn cancelled() -> Progress<'static> {
    let cancel = CancellationToken::new();
    cancel.cancel();
    Progress::unreported(&cancel)
}

/// Writes the disk to a new raw file.
fn write_raw(layers: &[(&Path, BaseFormat)], out: &Path) {
    let files = vec![(DiskFormat::Raw, File::create_new(out).unwrap())];
    let identity = DiskIdentity::new(&["web", "1"]);
    write(&chain(layers), files, &identity, &Progress::unwatched()).unwrap();
}

#[test]
fn an_overlay_becomes_qcow2_of_every_compression_with_the_same_disk_and_the_same_bytes() {
    let scratch = Scratch::new();
    let base = scratch.raw("base,x.raw");
    let overlay = scratch.path("over,lay");
    create_overlay(&overlay, 12 << 20).unwrap();
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 7 9M 1M", overlay.to_str().unwrap()]);
    let layers = [(&*overlay, BaseFormat::Qcow2), (&*base, BaseFormat::Raw)];
    let digest = disk_sha256(&chain(&layers), &Progress::unwatched()).unwrap();
    let kinds = [(Compression::Zstd, "zstd"), (Compression::Zlib, "zlib"), (Compression::None, "none")];
    for (compression, name) in kinds {
        let first = written_qcow2(&scratch, "first", &layers, compression, None);
        let second = written_qcow2(&scratch, "second", &layers, compression, None);
        assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap(), "{name}");
        let converted = chain(&[(&first, BaseFormat::Qcow2)]);
        assert_eq!(disk_sha256(&converted, &Progress::unwatched()).unwrap(), digest);
        assert_same_disk(&scratch, &[(&first, BaseFormat::Qcow2)]);
        let header = facts(&first, BaseFormat::Qcow2);
        assert_eq!(header.virtual_size, 12 << 20);
        // Only zstd needs a reader that knows compression types.
        let info = tool("qemu-img", &["info", "--output=json", first.to_str().unwrap()]);
        let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
        let expected = if compression == Compression::Zstd { "zstd" } else { "zlib" };
        assert_eq!(info["format-specific"]["data"]["compression-type"], expected, "{name}");
    }
}

#[test]
fn a_zlib_disk_is_as_small_as_that_of_qemu_img() {
    let scratch = Scratch::new();
    let raw = scratch.raw("base.raw");
    let ours = written_qcow2(&scratch, "ours", &[(&raw, BaseFormat::Raw)], Compression::Zlib, None);
    let theirs = scratch.text("theirs");
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", raw.to_str().unwrap(), &theirs]);
    let sizes = [ours, PathBuf::from(theirs)].map(|path| fs::metadata(path).unwrap().len());
    // Up to two clusters more, for tables that lie elsewhere.
    assert!(sizes[0] <= sizes[1] + sizes[1] / 20 + (128 << 10), "{sizes:?}");
}

#[test]
fn an_empty_overlay_of_any_size_is_sound() {
    let scratch = Scratch::new();
    for size in [512, 1 << 20, (2 << 30) + 512, 4 << 30, 1 << 40, (1 << 40) + 512, 64 << 40] {
        let path = scratch.path("empty");
        create_overlay(&path, size).unwrap();
        let name = path.to_str().unwrap();
        tool("qemu-img", &["check", "-q", "-f", "qcow2", name]);
        tool("qemu-io", &["-f", "qcow2", "-c", &format!("write -P 7 {} 512", size - 512), name]);
        tool("qemu-img", &["check", "-q", "-f", "qcow2", name]);
        assert_eq!(facts(&path, BaseFormat::Qcow2).virtual_size, size);
    }
}

/// A freed block of the guest's is gone from the disk, whatever its neighbours hold.
#[test]
fn o4_a_discarded_block_is_gone_and_its_neighbours_stay() {
    let scratch = Scratch::new();
    let path = scratch.path("overlay");
    create_overlay(&path, 1 << 20).unwrap();
    let options = format!("driver=qcow2,discard=unmap,file.driver=file,file.filename={}", path.display());
    let commands = ["-c", "write -P 7 0 64k", "-c", "discard 4k 4k", "-c", "discard 60k 4k"];
    tool("qemu-io", &[&["--image-opts"], commands.as_slice(), &[&options]].concat());
    let mut bytes = vec![0; 64 << 10];
    chain(&[(&path, BaseFormat::Qcow2)]).read_at(0, &mut bytes).unwrap();
    let blocks: Vec<u8> =
        bytes.chunks(4096).map(|block| if block.iter().all(|byte| *byte == block[0]) { block[0] } else { 1 }).collect();
    assert_eq!(blocks, [7, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
}

/// The disk as a sound qcow2 file of this name.
fn written_qcow2(
    scratch: &Scratch,
    name: &str,
    layers: &[(&Path, BaseFormat)],
    compression: Compression,
    twin: Option<&Path>,
) -> PathBuf {
    let path = scratch.path(name);
    let twin = twin.map(|twin| TwinReader::open(File::open(twin).unwrap()).unwrap());
    let seen = Mutex::new(vec![]);
    let progress = Progress::new(&CancellationToken::new(), |done, _| seen.lock().unwrap().push(done));
    write_qcow2(&chain(layers), compression, twin.as_ref(), File::create(&path).unwrap(), &progress).unwrap();
    assert!(seen.lock().unwrap().is_sorted(), "{seen:?}");
    // Neither errors nor leaked clusters: it would end with 2 or 3.
    tool("qemu-img", &["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
    path
}

/// The disk as a qcow2 file of this name, compressed with zstd.
fn compressed(scratch: &Scratch, name: &str, layers: &[(&Path, BaseFormat)], twin: Option<&Path>) -> PathBuf {
    written_qcow2(scratch, name, layers, Compression::Zstd, twin)
}

#[test]
fn a_compressed_disk_is_the_disk_and_the_same_bytes_with_a_twin() {
    let scratch = Scratch::new();
    let raw = scratch.raw("base.raw");
    let zstd = ["-c", "-o", "compression_type=zstd"];
    let kinds: [&[&str]; 5] =
        [&[], &["-c"], &zstd, &["-c", "-o", "cluster_size=512"], &["-o", "compat=0.10,cluster_size=2M"]];
    let mut bases = vec![(raw.clone(), "raw")];
    for (index, kind) in kinds.into_iter().enumerate() {
        let base = scratch.text(&format!("base-{index}"));
        tool("qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"], kind, &[raw.to_str().unwrap(), &base]].concat());
        bases.push((PathBuf::from(base), "qcow2"));
    }
    let mut all = vec![];
    for (below, format) in bases {
        let overlay = overlay_with_writes(&scratch, &below, format);
        let format = if format == "raw" { BaseFormat::Raw } else { BaseFormat::Qcow2 };
        let base = (&*below, format);
        let layers = [(&*overlay, BaseFormat::Qcow2), base];
        let twin = compressed(&scratch, "twin", &[base], None);
        let (slow, fast) =
            (compressed(&scratch, "slow", &layers, None), compressed(&scratch, "fast", &layers, Some(&twin)));
        assert!(fs::read(&slow).unwrap() == fs::read(&fast).unwrap(), "{base:?}");
        assert_same_disk(&scratch, &[(&fast, BaseFormat::Qcow2)]);
        let digest = |layers: &[_]| disk_sha256(&chain(layers), &Progress::unwatched()).unwrap();
        assert_eq!(digest(&layers), digest(&[(&fast, BaseFormat::Qcow2)]));
        all.push(fs::read(fast).unwrap());
    }
    all.dedup();
    assert_eq!(all.len(), 1, "the base's own format shows");
    let theirs = scratch.text("theirs");
    let overlay = scratch.text("overlay.qcow2");
    tool("qemu-img", &[&["convert", "-O", "qcow2"], &zstd[..], &[&overlay, &theirs]].concat());
    let size = fs::metadata(theirs).unwrap().len();
    assert!(all[0].len() as u64 <= size + (64 << 10), "{} and {size}", all[0].len());
}

#[test]
fn a_huge_sparse_disk_is_compressed_in_no_time_and_a_stopped_one_is_an_error() {
    let scratch = Scratch::new();
    let raw = scratch.path("huge.raw");
    let file = File::create(&raw).unwrap();
    file.set_len(3 << 40).unwrap();
    for at in [0, (1 << 40) + 12345, (3 << 40) - 6] {
        file.write_all_at(b"kiln", at).unwrap();
    }
    let layers = [(&*raw, BaseFormat::Raw)];
    let packed = compressed(&scratch, "packed", &layers, None);
    tool("qemu-img", &["compare", "-q", "-f", "raw", "-F", "qcow2", raw.to_str().unwrap(), packed.to_str().unwrap()]);
    assert!(fs::metadata(packed).unwrap().len() < 1 << 20);
    let out = File::create(scratch.path("stopped")).unwrap();
    let stopped = write_qcow2(&chain(&layers), Compression::Zstd, None, out, &cancelled());
    assert!(matches!(stopped, Err(WriteError::Cancelled(_))));
    // An empty disk has no data, and is a disk.
    let empty = scratch.create("empty.qcow2", "qcow2", &[]);
    let packed = compressed(&scratch, "packed-empty", &[(&empty, BaseFormat::Qcow2)], None);
    assert_eq!(facts(&packed, BaseFormat::Qcow2).virtual_size, 64 << 20);
}

#[test]
fn b7_a_raw_guest_disk_with_a_qcow2_header_stays_raw() {
    let scratch = Scratch::new();
    let canary = scratch.path("canary");
    fs::write(&canary, b"secret of the host".repeat(1000)).unwrap();
    let hostile = scratch.create("hostile", "qcow2", &["-u", "-F", "raw", "-b", canary.to_str().unwrap()]);
    let out = scratch.path("out.raw");
    write_raw(&[(&hostile, BaseFormat::Raw)], &out);
    let bytes = fs::read(&out).unwrap();
    assert!(bytes.starts_with(b"QFI\xfb"));
    assert!(!bytes.windows(18).any(|window| window == b"secret of the host"));
}

/// A tree with everything a file system treats specially, made in a folder of the host.
fn source_tree(folder: &Path) {
    use std::os::unix::ffi::OsStrExt;
    let write = |name: &str, content: &[u8]| fs::write(folder.join(name), content).unwrap();
    for name in ["etc", "usr/lib", "many", "deep/er/est", "var/lib/dpkg", "a"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    write("usr/lib/os-release", b"ID=test\n");
    write("a/x", b"x");
    write("a-b", b"sorted after a/x");
    write("empty", b"");
    write("tiny", b"fits into an inode");
    write("hundred", &b"more than sixty bytes, less than an inode. ".repeat(2));
    write("big", &b"0123456789abcdef".repeat(20_000));
    write(&"n".repeat(255), b"the longest name");
    fs::write(folder.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8\\")), b"?").unwrap();
    let status = "Package: zsh\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.9\n";
    write("var/lib/dpkg/status", status.as_bytes());
    (0..700).for_each(|index| write(&format!("many/file with a longer name {index}"), index.to_string().as_bytes()));
    std::os::unix::fs::symlink("../usr/lib/os-release", folder.join("etc/os-release")).unwrap();
    std::os::unix::fs::symlink("/".repeat(150), folder.join("long-link")).unwrap();
    fs::hard_link(folder.join("big"), folder.join("deep/er/est/same")).unwrap();
    let holes = File::create(folder.join("holes")).unwrap();
    // Ends in data: mke2fs 1.47.0 forgets a hole at the end where it uses inline_data.
    holes.write_all_at(b"end", (5 << 20) - 3).unwrap();
    (0..400).for_each(|index| holes.write_all_at(&[1; 900], index * 12_288).unwrap());
    for (name, mode) in [("tiny", 0o4711), ("a", 0o1777), ("empty", 0o400)] {
        fs::set_permissions(folder.join(name), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
}

/// The canonical lines of a folder of the host, read with nothing but the host's own calls.
fn host_lines(root: &Path, folder: &Path, lines: &mut Vec<String>) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort_by(|one, other| one.file_name().unwrap().as_bytes().cmp(other.file_name().unwrap().as_bytes()));
    let escape = |bytes: &[u8]| -> String {
        let one = |byte: &u8| match byte {
            0x21..=0x7e if *byte != b'\\' => char::from(*byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        };
        bytes.iter().map(one).collect()
    };
    for path in names {
        let facts = fs::symlink_metadata(&path).unwrap();
        let (kind, rest) = match facts.file_type() {
            kind if kind.is_dir() => ("dir", String::new()),
            kind if kind.is_symlink() => {
                ("link", format!(" to={}", escape(fs::read_link(&path).unwrap().as_os_str().as_bytes())))
            }
            _ => {
                let digest = sha256_file(&File::open(&path).unwrap()).unwrap();
                ("file", format!(" size={} sha256={digest}", facts.len()))
            }
        };
        let name = escape(&[b"/", path.strip_prefix(root).unwrap().as_os_str().as_bytes()].concat());
        let (mode, uid, gid) = (facts.mode() & 0o7777, facts.uid(), facts.gid());
        lines.push(format!("path={name} type={kind} mode={mode:04o} owner={uid}:{gid}{rest}\n"));
        if facts.is_dir() {
            host_lines(root, &path, lines);
        }
    }
}

/// The canonical lines of a disk, without the root directory and `lost+found`, which only `mkfs` makes.
fn tree_lines(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    tree.walk(&mut |entry| {
        if entry.path != b"/" && entry.path != b"/lost+found" {
            lines.push(canonical(entry));
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    lines
}

fn make_ext4(scratch: &Scratch, name: &str, size: &str, options: &[&str], folder: &Path) -> PathBuf {
    let path = scratch.text(name);
    let source = ["-d", folder.to_str().unwrap(), &path, size];
    tool("mke2fs", &[&["-q", "-F"], options, &source].concat());
    scratch.path(name)
}

#[test]
fn every_kind_of_ext_file_system_is_read_as_it_was_written() {
    let scratch = Scratch::new();
    let folder = scratch.path("tree");
    source_tree(&folder);
    let mut expected = Vec::new();
    host_lines(&folder, &folder, &mut expected);
    let kinds: [&[&str]; 7] = [
        &["-t", "ext4", "-b", "4096"],
        &["-t", "ext4", "-b", "1024", "-O", "^64bit"],
        &["-t", "ext4", "-O", "inline_data", "-I", "256"],
        &["-t", "ext4", "-O", "bigalloc,large_dir,casefold,metadata_csum_seed"],
        &["-t", "ext4", "-O", "^flex_bg", "-g", "2048", "-b", "1024"],
        &["-t", "ext3", "-b", "1024"],
        &["-t", "ext2", "-I", "128"],
    ];
    for kind in kinds {
        let image = make_ext4(&scratch, "fs", "48M", kind, &folder);
        let disk = chain(&[(&image, BaseFormat::Raw)]);
        let tree = Tree::open(&disk).unwrap();
        assert!(tree.is_clean(), "{kind:?}");
        for (line, expected) in tree_lines(&tree).iter().zip(&expected) {
            assert_eq!(line, expected, "{kind:?}");
        }
        assert_eq!(tree_lines(&tree).len(), expected.len(), "{kind:?}");
        let zsh = InstalledPackage { name: "zsh".into(), version: "5.9".into(), arch: "amd64".into() };
        let expected = PackageDatabase { kind: PackageType::Deb, packages: vec![zsh] };
        assert_eq!(read_databases(&tree).unwrap(), [expected]);
        assert_eq!(tree.read("/etc/os-release", 100).unwrap().unwrap(), b"ID=test\n");
    }
}

#[test]
fn every_package_database_is_read_and_an_empty_one_hides_no_other() {
    let scratch = Scratch::new();
    let folder = scratch.path("tree");
    for (path, text) in [
        ("var/lib/dpkg/status", ""),
        ("lib/apk/db/installed", "P:musl\nV:1.2-r0\nA:x86_64\n\n"),
        ("var/lib/rpm/rpmdb.sqlite", "SQLite format 3"),
    ] {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let databases = |name: &str| {
        let image = make_ext4(&scratch, name, "8M", &["-t", "ext4"], &folder);
        let disk = chain(&[(&image, BaseFormat::Raw)]);
        let tree = Tree::open(&disk).unwrap();
        assert!(has_rpm_database(&tree).unwrap());
        let found = read_databases(&tree).unwrap();
        found.into_iter().map(|database| (database.kind, database.packages.len())).collect::<Vec<_>>()
    };
    assert_eq!(databases("apk"), [(PackageType::Apk, 1)]);
    let status = "Package: a\nStatus: install ok triggers-pending\nArchitecture: all\nVersion: 1\n";
    fs::write(folder.join("var/lib/dpkg/status"), status).unwrap();
    assert_eq!(databases("both"), [(PackageType::Deb, 1), (PackageType::Apk, 1)]);
}

#[test]
fn a_guest_lists_what_the_host_would_read() {
    let scratch = Scratch::new();
    let folder = scratch.path("tree");
    source_tree(&folder);
    tool("mkfifo", &["-m", "640", folder.join("pipe").to_str().unwrap()]);
    let image = make_ext4(&scratch, "fs", "48M", &["-t", "ext4"], &folder);
    let disk = chain(&[(&image, BaseFormat::Raw)]);
    let expected = tree_lines(&Tree::open(&disk).unwrap());
    let mut spool = tempfile::tempfile().unwrap();
    let mut heard = 0;
    let totals = list_folder(&folder, &mut spool, &mut |bytes| heard = bytes).unwrap();
    let (mut lines, mut files) = (Vec::new(), std::collections::HashMap::new());
    GuestListing::new(spool, totals.entries)
        .walk(&mut |entry| {
            lines.extend((entry.path != b"/").then(|| canonical(entry)));
            files.insert(entry.path.clone(), (entry.file, entry.modified, entry.changed));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_same(&lines, &expected);
    assert_eq!(lines.len() as u64 + 1, totals.entries);
    assert_eq!(heard, totals.bytes);
    let (big, same) = (files[&b"/big"[..]], files[&b"/deep/er/est/same"[..]]);
    assert_eq!((big.0, big.1), (same.0, same.1), "two names of one file");
    let facts = fs::symlink_metadata(folder.join("big")).unwrap();
    let seconds = std::os::unix::fs::MetadataExt::mtime(&facts);
    assert_eq!((big.1.seconds, big.2.seconds), (seconds, std::os::unix::fs::MetadataExt::ctime(&facts)));
    fs::write(folder.join("a/x"), "y").unwrap();
    let mut changed = Vec::new();
    list_folder(&folder, &mut changed, &mut |_| {}).unwrap();
    let mut spool = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut spool, &changed).unwrap();
    let mut other = ContentDigest::new();
    GuestListing::new(spool, totals.entries)
        .walk(&mut |entry| {
            other.add(entry);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_ne!(other.finish(), Tree::open(&disk).unwrap().content_sha256().unwrap());
}

#[test]
fn what_only_root_can_make_is_read_too() {
    let scratch = Scratch::new();
    let folder = scratch.path("tree");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "content").unwrap();
    let image = make_ext4(&scratch, "fs", "4M", &["-t", "ext4"], &folder);
    let long = "v".repeat(700);
    fs::write(scratch.path("long"), &long).unwrap();
    let commands = [
        "mknod null c 1 3".to_owned(),
        "mknod disk b 259 3000".to_owned(),
        "mknod pipe p".to_owned(),
        "sif file uid 70000".to_owned(),
        "sif file gid 4000000000".to_owned(),
        "sif file mtime 20400102030405".to_owned(),
        "ea_set file user.short abc".to_owned(),
        format!("ea_set -f {} file security.long", scratch.text("long")),
    ];
    let script = scratch.text("script");
    fs::write(&script, commands.join("\n")).unwrap();
    tool("debugfs", &["-w", "-f", &script, image.to_str().unwrap()]);
    let disk = chain(&[(&image, BaseFormat::Raw)]);
    let tree = Tree::open(&disk).unwrap();
    let digest = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    let value = hex(long.as_bytes());
    let expected = [
        "path=/disk type=block mode=0000 owner=0:0 device=259:3000\n".to_owned(),
        format!(
            "path=/file type=file mode=0644 owner=70000:4000000000 size=7 sha256={digest} \
             xattr:security.long={value} xattr:user.short=616263\n"
        ),
        "path=/null type=char mode=0000 owner=0:0 device=1:3\n".to_owned(),
        "path=/pipe type=fifo mode=0000 owner=0:0\n".to_owned(),
    ];
    fs::set_permissions(folder.join("file"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(tree_lines(&tree), expected);
    let mut seconds = 0;
    tree.walk(&mut |entry| {
        seconds = seconds.max(entry.modified.seconds);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seconds, 2_209_086_245, "after 2038");
}

#[test]
fn a_file_system_that_was_not_unmounted_says_so() {
    let scratch = Scratch::new();
    let folder = scratch.path("tree");
    fs::create_dir(&folder).unwrap();
    for command in ["ssv state 0", "ssv state 3", "ssv last_orphan 12", "feature needs_recovery"] {
        let image = make_ext4(&scratch, "fs", "4M", &["-t", "ext4"], &folder);
        tool("debugfs", &["-w", "-R", command, image.to_str().unwrap()]);
        let disk = chain(&[(&image, BaseFormat::Raw)]);
        assert!(!Tree::open(&disk).unwrap().is_clean(), "{command}");
    }
    let image = make_ext4(&scratch, "fs", "4M", &["-t", "ext4", "-O", "encrypt"], &folder);
    let error = Tree::open(&chain(&[(&image, BaseFormat::Raw)])).unwrap_err();
    assert!(matches!(&error, TreeError::FileSystem(error) if error.to_string().contains("encrypt")), "{error}");
}

#[test]
fn the_root_is_found_among_partitions_and_the_digest_depends_on_content_alone() {
    let scratch = Scratch::new();
    let (root, data) = (scratch.path("root"), scratch.path("data"));
    source_tree(&root);
    fs::create_dir(&data).unwrap();
    fs::write(data.join("data"), "no system here").unwrap();
    let mut digests = Vec::new();
    for (label, block, types) in [("gpt", "4096", ["L", "U", "L"]), ("dos", "1024", ["83", "ef", "83"])] {
        let image = scratch.path("disk");
        let file = File::create(&image).unwrap();
        file.set_len(150 << 20).unwrap();
        let [first, second, third] = types;
        let script = format!(
            "label: {label}\nstart=2048,size=131072,type={first}\nstart=133120,size=2048,type={second}\n\
             start=135168,size=131072,type={third}\n"
        );
        fs::write(scratch.path("script"), script).unwrap();
        let command = format!("sfdisk -q {} < {}", scratch.text("disk"), scratch.text("script"));
        tool("sh", &["-c", &command]);
        for (sectors, size, folder) in [(2048, "64M", &data), (135_168, "48M", &root)] {
            let fs_image = make_ext4(&scratch, "fs", size, &["-t", "ext4", "-b", block], folder);
            file.write_all_at(&fs::read(fs_image).unwrap(), sectors * 512).unwrap();
        }
        let disk = chain(&[(&image, BaseFormat::Raw)]);
        let found: Vec<_> = partitions(&disk).unwrap().iter().map(|part| (part.number, part.start / 512)).collect();
        assert_eq!(found, [(1, 2048), (2, 133_120), (3, 135_168)]);
        let tree = Tree::open(&disk).unwrap();
        assert!(tree.read("/usr/lib/os-release", 100).unwrap().is_some());
        digests.push(tree.content_sha256().unwrap());
    }
    assert_eq!(digests[0], digests[1]);
    fs::write(root.join("a/x"), "y").unwrap();
    let changed = make_ext4(&scratch, "fs", "48M", &["-t", "ext4"], &root);
    let changed = chain(&[(&changed, BaseFormat::Raw)]);
    assert_ne!(Tree::open(&changed).unwrap().content_sha256().unwrap(), digests[0]);
}

/// A FAT file system of this many sectors with this tree in it, written by mtools.
fn make_fat(scratch: &Scratch, name: &str, sectors: u32, options: &[&str], folder: &Path) -> PathBuf {
    let path = scratch.text(name);
    File::create(&path).unwrap().set_len(u64::from(sectors) * 512).unwrap();
    let total = sectors.to_string();
    tool(
        "mformat",
        &[&["-i", &path, "-T", &total, "-h", "4", "-s", "16", "-N", "4b494c4e"], options, &["::"]].concat(),
    );
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    for name in names {
        // It has to know that names are UTF-8.
        let copy = ["LC_ALL=C.UTF-8", "mcopy", "-i", &path, "-s", "-m", "-Q", name.to_str().unwrap(), "::"];
        tool("env", &copy);
    }
    scratch.path(name)
}

/// What an EFI system partition holds, and what is hard about FAT.
fn esp_tree(folder: &Path) {
    for name in ["EFI/BOOT", "EFI/debian", "loader/entries", "many"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    let write = |name: &str, content: &[u8]| fs::write(folder.join(name), content).unwrap();
    write("EFI/BOOT/BOOTX64.EFI", &b"MZ program ".repeat(9000));
    write("EFI/debian/grub.cfg", b"search.fs_uuid\n");
    write("loader/entries/a long name, with commas.conf", b"title");
    write("loader/entries/gr\u{fc}\u{df} \u{3a9}", b"not ASCII");
    write("lower.txt", b"x");
    write("empty", b"");
    (0..200).for_each(|index| write(&format!("many/file number {index}"), &b"content".repeat(index)));
}

/// Says the first line that is not the same.
#[track_caller]
fn assert_same(found: &[String], expected: &[String]) {
    for (line, expected) in found.iter().zip(expected) {
        assert_eq!(line, expected);
    }
    assert_eq!(found.len(), expected.len());
}

/// The lines of a folder as FAT has them: no owners, no modes.
fn fat_lines(folder: &Path, on: &str) -> Vec<String> {
    let mut lines = Vec::new();
    host_lines(folder, folder, &mut lines);
    let fields = |line: String| {
        let (path, rest) = line.split_once(" type=").unwrap();
        let (kind, rest) = rest.split_once(" mode=").unwrap();
        let behind = rest.split(' ').skip(2).fold(String::new(), |text, field| text + " " + field);
        let behind = if behind.is_empty() { "\n".to_owned() } else { behind };
        format!("path={on}{} type={kind} mode=0755 owner=0:0{behind}", path.strip_prefix("path=").unwrap())
    };
    lines.into_iter().map(fields).collect()
}

#[test]
fn every_width_of_fat_is_read_as_it_was_written() {
    let scratch = Scratch::new();
    let folder = scratch.path("tree");
    esp_tree(&folder);
    fs::write(folder.join("fixed"), "read only").unwrap();
    let mut expected = fat_lines(&folder, "");
    let fixed = expected.iter().position(|line| line.contains("path=/fixed ")).unwrap();
    expected[fixed] = expected[fixed].replace("mode=0755", "mode=0555");
    for (sectors, options) in
        [(4096, &["-c", "2"][..]), (65536, &["-c", "4"]), (131_072, &["-F", "-c", "1"]), (40_000, &["-c", "8"])]
    {
        let image = make_fat(&scratch, "fat", sectors, options, &folder);
        tool("mattrib", &["-i", image.to_str().unwrap(), "+r", "::fixed"]);
        tool("mdel", &["-i", image.to_str().unwrap(), "::empty"]);
        let disk = chain(&[(&image, BaseFormat::Raw)]);
        let fat = Fat::open(&disk, 0, disk.virtual_size()).unwrap();
        assert_eq!(fat.uuid(), "4B49-4C4E");
        let mut lines = Vec::new();
        fat_walk(&fat, &fat.node(0).unwrap(), "", &mut lines);
        let expected: Vec<_> = expected.iter().filter(|line| !line.contains("path=/empty ")).collect();
        assert_same(&lines, &expected.into_iter().cloned().collect::<Vec<_>>());
    }
}

/// The lines of a FAT file system alone, which no tree has for its root.
fn fat_walk(fat: &Fat, folder: &FatNode, path: &str, lines: &mut Vec<String>) {
    for (name, number) in fat.read_directory(folder).unwrap() {
        let node = fat.node(number).unwrap();
        let is_file = node.kind == FileKind::File;
        let entry = DiskEntry {
            path: [path.as_bytes(), b"/", &name].concat(),
            kind: node.kind,
            mode: node.mode,
            uid: 0,
            gid: 0,
            size: node.size,
            digest: is_file.then(|| FileDigest::Content(Sha256Digest::of(fat.read(&node, 1 << 20).unwrap()))),
            target: None,
            device: None,
            xattrs: Vec::new(),
            modified: node.modified,
            changed: node.changed,
            file: (0, number),
        };
        lines.push(canonical(&entry));
        if !is_file {
            fat_walk(fat, &node, std::str::from_utf8(&entry.path).unwrap(), lines);
        }
    }
}

/// A disk with an ESP, a separate /boot and a root; a table that names them like this.
fn disk_with_mounts(scratch: &Scratch, table: &str) -> PathBuf {
    let (root, boot, esp) = (scratch.path("root"), scratch.path("boot"), scratch.path("esp"));
    for folder in [&root, &boot, &esp] {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir(folder).unwrap();
    }
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::create_dir_all(root.join("boot/hidden")).unwrap();
    fs::create_dir_all(root.join("efi")).unwrap();
    fs::write(root.join("usr/lib/os-release"), "ID=test\n").unwrap();
    fs::write(root.join("etc/os-release"), "ID=test\n").unwrap();
    fs::write(root.join("etc/fstab"), table).unwrap();
    std::os::unix::fs::symlink("boot", root.join("start")).unwrap();
    fs::create_dir_all(boot.join("efi")).unwrap();
    fs::write(boot.join("vmlinuz"), "kernel").unwrap();
    esp_tree(&esp);
    let image = scratch.path("disk");
    let file = File::create(&image).unwrap();
    file.set_len(150 << 20).unwrap();
    let script = "label: gpt\n\
        start=2048,size=65536,type=U,uuid=6B696C6E-0000-4000-8000-00000000000E,name=\"EFI part\"\n\
        start=67584,size=65536,type=L,uuid=6B696C6E-0000-4000-8000-00000000000B\n\
        start=133120,size=131072,type=L,uuid=6B696C6E-0000-4000-8000-00000000000A\n";
    fs::write(scratch.path("script"), script).unwrap();
    tool("sh", &["-c", &format!("sfdisk -q {} < {}", scratch.text("disk"), scratch.text("script"))]);
    let uuid = ["-t", "ext4", "-U", "6b696c6e-1111-4000-8000-00000000000b", "-L", "boot part"];
    let parts = [
        (2048, make_fat(scratch, "esp.img", 65536, &["-v", "ESP"], &esp)),
        (67_584, make_ext4(scratch, "boot.img", "32M", &uuid, &boot)),
        (133_120, make_ext4(scratch, "root.img", "64M", &["-t", "ext4"], &root)),
    ];
    for (sector, part) in parts {
        file.write_all_at(&fs::read(part).unwrap(), sector * 512).unwrap();
    }
    image
}

#[test]
fn what_the_table_mounts_is_part_of_the_tree() {
    let scratch = Scratch::new();
    let esp_lines = |on: &str| {
        let mut lines = vec![format!("path={on} type=dir mode=0755 owner=0:0\n")];
        lines.extend(fat_lines(&scratch.path("esp"), on));
        lines
    };
    let boot_then_esp = ["UUID=6b696c6e-1111-4000-8000-00000000000b", "UUID=4b49-4c4e"];
    for [boot, esp] in [
        boot_then_esp,
        ["LABEL=boot\\040part", "LABEL=ESP"],
        ["PARTUUID=6b696c6e-0000-4000-8000-00000000000b", "PARTLABEL=EFI\\040part"],
        ["/dev/vda2", "/dev/sda1"],
    ] {
        let image = disk_with_mounts(
            &scratch,
            &format!("/dev/vda3 / ext4\n{boot} /start ext4\n{esp} /boot/efi vfat umask=0077\n"),
        );
        let disk = chain(&[(&image, BaseFormat::Raw)]);
        let tree = Tree::open(&disk).unwrap();
        assert!(tree.is_whole());
        let lines = tree_lines(&tree);
        let found: Vec<_> = lines.iter().filter(|line| line.starts_with("path=/boot/efi")).cloned().collect();
        assert_same(&found, &esp_lines("/boot/efi"));
        assert!(lines.iter().any(|line| line.starts_with("path=/boot/vmlinuz ")), "{boot}");
        assert!(!lines.iter().any(|line| line.contains("hidden")), "what lies below a mount is not seen");
        assert_eq!(tree.read("/start/efi/EFI/debian/grub.cfg", 100).unwrap().unwrap(), b"search.fs_uuid\n");
        assert_eq!(tree.read("/boot/efi/EFI/../../vmlinuz", 100).unwrap().unwrap(), b"kernel");
    }
    // Nothing names the ESP: it is where it is by convention. What is on no partition is missing, if it has to be there.
    for (table, is_whole) in [("", true), ("/dev/vg/home /home xfs", false), ("LABEL=data /srv ext4 nofail", true)] {
        let image = disk_with_mounts(&scratch, table);
        let disk = chain(&[(&image, BaseFormat::Raw)]);
        let tree = Tree::open(&disk).unwrap();
        assert_eq!(tree.is_whole(), is_whole, "{table}");
        assert_eq!(tree.read("/efi/EFI/debian/grub.cfg", 100).unwrap().unwrap(), b"search.fs_uuid\n");
        assert!(tree.has_directory("/boot/hidden").unwrap() && !tree.has_directory("/boot/vmlinuz").unwrap());
    }
}

#[test]
fn what_a_guest_had_mounted_is_the_tree_whatever_the_disk_names() {
    let scratch = Scratch::new();
    let image = disk_with_mounts(&scratch, "LABEL=ESP /boot/efi vfat\n");
    let disk = chain(&[(&image, BaseFormat::Raw)]);
    let mount = |target: &str, partition, sector: u64, sectors: u64| TreeMount {
        target: target.into(),
        partition,
        start: sector * 512,
        length: sectors * 512,
    };
    let (root, boot, esp) =
        (mount("/", 3, 133_120, 131_072), mount("/boot", 2, 67_584, 65_536), mount("/boot/efi", 1, 2048, 65_536));
    // As a unit of systemd mounts /boot: no table names it.
    let tree = Tree::open_as_mounted(&disk, &[root.clone(), boot.clone(), esp.clone()]).unwrap();
    assert!(tree.is_whole());
    assert_eq!(tree.mounts(), [root.clone(), boot.clone(), esp.clone()]);
    assert_eq!(tree.read("/boot/vmlinuz", 100).unwrap().unwrap(), b"kernel");
    assert!(tree.has_directory("/boot/efi/EFI").unwrap() && !tree.has_directory("/boot/hidden").unwrap());
    // Only the root, though the table names more.
    let tree = Tree::open_as_mounted(&disk, std::slice::from_ref(&root)).unwrap();
    assert!(
        tree.is_whole() && tree.has_directory("/boot/hidden").unwrap() && !tree.has_directory("/boot/efi/EFI").unwrap()
    );
    let left: Vec<String> = left_over(&disk, &[root.start]).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(
        left[1].contains("boot part") && left_over(&disk, &[root.start, boot.start, esp.start]).unwrap().is_empty()
    );
    // What does not agree with the disk is a gap, or there is no root.
    let elsewhere = TreeMount { start: boot.start + 512, ..boot.clone() };
    let no_directory = TreeMount { target: b"/nowhere".to_vec(), ..boot.clone() };
    for lie in [elsewhere, no_directory, TreeMount { partition: 9, ..boot }] {
        let tree = Tree::open_as_mounted(&disk, &[root.clone(), lie.clone()]).unwrap();
        assert_eq!((tree.is_whole(), tree.gaps().len()), (false, 1), "{lie:?}");
    }
    for lie in [&[][..], &[TreeMount { partition: 9, ..root.clone() }], &[TreeMount { length: 512, ..root }]] {
        assert!(Tree::open_as_mounted(&disk, lie).is_err(), "{lie:?}");
    }
}

#[test]
fn a_damaged_fat_is_an_answer_or_an_error() {
    let scratch = Scratch::new();
    let folder = scratch.path("tree");
    esp_tree(&folder);
    let (mut refused, mut read) = (0, 0);
    for (sectors, options) in [(2048, &["-c", "1"][..]), (4600, &["-c", "1"]), (67_000, &["-F", "-c", "1"])] {
        let image = make_fat(&scratch, "fat", sectors, options, &folder);
        let whole = fs::read(&image).unwrap();
        let file = File::options().write(true).open(&image).unwrap();
        let disk = chain(&[(&image, BaseFormat::Raw)]);
        let mut state = 7;
        for round in 0..200 {
            let mut number = || (0..3).fold(0, |number, _| number << 8 | usize::from(next_byte(&mut state)));
            let mut changed = Vec::new();
            for _ in 0..=round % 40 {
                // The boot sector, the tables and the first directories.
                let range = if number() % 8 == 0 { 512 } else { 768 << 10 };
                let (at, byte) = (number() % range.min(whole.len()), number().to_le_bytes()[0]);
                file.write_all_at(&[byte], at as u64).unwrap();
                changed.push(at);
            }
            let result = Fat::open(&disk, 0, disk.virtual_size()).and_then(|fat| everything(&fat));
            refused += usize::from(result.is_err());
            read += usize::from(result.is_ok());
            for at in changed {
                file.write_all_at(&whole[at..=at], at as u64).unwrap();
            }
        }
    }
    assert!(refused > 50 && read > 50, "{refused} {read}");
}

/// Reads all that is in it, each entry once.
fn everything(fat: &Fat) -> Result<(), FatError> {
    let (mut seen, mut left) = (std::collections::HashSet::new(), vec![0]);
    while let Some(number) = left.pop() {
        let node = fat.node(number)?;
        if node.kind == FileKind::File {
            let _ = fat.read_chunks(&node, &mut |_| ControlFlow::Continue(()))?;
        } else if seen.insert(number) {
            left.extend(fat.read_directory(&node)?.into_iter().map(|(_, number)| number));
        }
    }
    Ok(())
}

#[test]
fn a_damaged_file_system_is_an_answer_or_an_error() {
    let scratch = Scratch::new();
    let folder = scratch.path("tree");
    fs::create_dir_all(folder.join("a/b")).unwrap();
    for index in 0..60 {
        fs::write(folder.join(format!("a/{index}")), index.to_string().repeat(40)).unwrap();
    }
    let (mut refused, mut read) = (0, 0);
    for kind in
        [&["-t", "ext4", "-b", "1024", "-O", "inline_data", "-N", "96"][..], &["-t", "ext2", "-b", "1024", "-N", "96"]]
    {
        let image = make_ext4(&scratch, "fs", "1M", kind, &folder);
        let whole = fs::read(&image).unwrap();
        let mut state = 5;
        for _ in 0..150 {
            let mut bytes = whole.clone();
            for _ in 0..24 {
                let mut number = || (0..3).fold(0, |number, _| number << 8 | usize::from(next_byte(&mut state)));
                let (at, byte) = (1024 + number() % (160 << 10), number());
                bytes[at] = byte.to_le_bytes()[0];
            }
            let broken = scratch.path("broken");
            fs::write(&broken, bytes).unwrap();
            let disk = chain(&[(&broken, BaseFormat::Raw)]);
            let result = Tree::open(&disk).and_then(|tree| tree.content_sha256());
            refused += usize::from(result.is_err());
            read += usize::from(result.is_ok());
        }
    }
    assert!(refused > 20 && read > 20, "{refused} {read}");
}

#[test]
fn b8_qemu_img_opens_every_mutated_header_that_inspection_accepts() {
    let scratch = Scratch::new();
    let whole = fs::read(scratch.create("q", "qcow2", &[])).unwrap();
    let mutated = scratch.path("mutated");
    let (mut state, mut accepted, mut refused) = (11, 0, 0);
    for _ in 0..200 {
        let mut bytes = whole.clone();
        let at = 4 + usize::from(next_byte(&mut state)) % 108;
        bytes[at] = 1 << (next_byte(&mut state) % 8);
        fs::write(&mutated, &bytes).unwrap();
        let Ok(image) = BaseImage::open(&mutated, BaseFormat::Qcow2) else {
            refused += 1;
            continue;
        };
        let info = tool("qemu-img", &["info", "-f", "qcow2", "--output=json", mutated.to_str().unwrap()]);
        let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
        assert_eq!(info["virtual-size"], image.facts.virtual_size, "byte {at}");
        accepted += 1;
    }
    assert!(accepted > 20 && refused > 20, "{accepted} {refused}");
}
