//! Images that must not get near QEMU, each a few bytes that say one hostile thing, by the rows of the fault table.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use kiln::specfile::BaseFormat;
use nix::sys::stat::Mode;

/// One of them.
pub struct Hostile {
    /// Row and what is wrong: `b2-backing-absolute`.
    pub name: String,
    /// The format a spec would state for it.
    pub declared: BaseFormat,
    /// What QEMU's tools do to this host when they are let at it.
    pub harm: Option<Harm>,
    content: Content,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// The canary's bytes come out.
    Leaks,
    /// A connection is made.
    Connects,
}

enum Content {
    Bytes(Vec<u8>),
    /// Zeroes, this many bytes.
    Zeroes(u64),
    Folder,
    Fifo,
    Socket,
    Link(PathBuf),
}

impl Hostile {
    /// Makes it in the folder.
    pub fn make(&self, folder: &Path) -> PathBuf {
        let path = folder.join(&self.name);
        match &self.content {
            Content::Bytes(bytes) => fs::write(&path, bytes).unwrap(),
            Content::Zeroes(bytes) => File::create(&path).unwrap().set_len(*bytes).unwrap(),
            Content::Folder => fs::create_dir(&path).unwrap(),
            Content::Fifo => nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap(),
            Content::Socket => drop(UnixListener::bind(&path).unwrap()),
            Content::Link(target) => symlink(target, &path).unwrap(),
        }
        path
    }
}

/// All of them, in the order of the rows. `canary` is a file of this host, and something listens on `port` of 127.0.0.1.
pub fn corpus(canary: &Path, port: u16) -> Vec<Hostile> {
    let mut all = Corpus(Vec::new());
    all.backing_files(canary);
    all.data_files(canary);
    all.backing_urls(canary, port);
    all.other_formats(canary);
    all.header_fields();
    all.no_whole_files();
    all.bombs_and_damage();
    all.polyglots(canary);
    all.0
}

struct Corpus(Vec<Hostile>);

impl Corpus {
    fn add(&mut self, name: &str, declared: BaseFormat, content: Content) -> &mut Hostile {
        self.0.push(Hostile { name: name.to_owned(), declared, harm: None, content });
        self.0.last_mut().unwrap()
    }

    fn qcow2(&mut self, name: &str, image: Qcow2) -> &mut Hostile {
        self.add(name, BaseFormat::Qcow2, Content::Bytes(image.0))
    }

    fn raw(&mut self, name: &str, bytes: Vec<u8>) -> &mut Hostile {
        self.add(name, BaseFormat::Raw, Content::Bytes(bytes))
    }

    fn backing_files(&mut self, canary: &Path) {
        let path = canary.as_os_str().as_bytes();
        let named = |name: &[u8]| Qcow2::new().backing(name, Some("raw"));
        self.qcow2("b2-backing-absolute", named(path)).harm = Some(Harm::Leaks);
        self.qcow2("b2-backing-probed", Qcow2::new().backing(path, None)).harm = Some(Harm::Leaks);
        self.qcow2("b2-backing-file-protocol", named(&[b"file:", path].concat())).harm = Some(Harm::Leaks);
        let (folder, file) = (canary.parent().unwrap().as_os_str().as_bytes(), canary.file_name().unwrap().as_bytes());
        self.qcow2("b2-backing-relative", named(&[b"../", file].concat())).harm = Some(Harm::Leaks);
        let long = [folder, &b"/.".repeat((1023 - path.len()) / 2), b"/", file].concat();
        self.qcow2("b2-backing-longest-name", named(&long)).harm = Some(Harm::Leaks);
        self.qcow2("b2-backing-version-2", Qcow2::version_2().backing(path, None)).harm = Some(Harm::Leaks);
        self.qcow2("b2-backing-of-itself", named(b"b2-backing-of-itself"));
        self.qcow2("b2-backing-another-hostile-one", named(b"b2-backing-absolute"));
        self.qcow2("b2-backing-hidden-by-control-characters", named(&[b"\r\x1b[2K", path].concat()));
        self.qcow2("b2-backing-no-utf8", named(b"/etc/\xff\xfe"));
        self.qcow2("b2-backing-without-a-name", Qcow2::new().put64(8, 1024));
        self.qcow2("b2-backing-name-outside-the-cluster", Qcow2::new().put64(8, 3 << 16).put32(16, 8));
        self.qcow2("b2-backing-name-outside-the-file", Qcow2::new().put64(8, u64::MAX).put32(16, 8));
    }

    fn data_files(&mut self, canary: &Path) {
        let path = canary.as_os_str().as_bytes();
        let named = |image: Qcow2| image.extension(0x4441_5441, path);
        // The first cluster of the disk is the first of the data file.
        let mapped = |image: Qcow2| image.put64(3 << 16, 1 << 63 | 4 << 16).put64(4 << 16, 1 << 63);
        self.qcow2("b3-data-file", mapped(named(Qcow2::new().put64(72, 4)))).harm = Some(Harm::Leaks);
        let raw = mapped(named(Qcow2::new().put64(72, 4).put64(88, 2)));
        self.qcow2("b3-data-file-raw", raw).harm = Some(Harm::Leaks);
        self.qcow2("b3-data-file-without-its-bit", named(Qcow2::new()));
        self.qcow2("b3-data-file-without-its-name", Qcow2::new().put64(72, 4));
        self.qcow2("b3-data-file-raw-bit-alone", Qcow2::new().put64(88, 2));
        self.qcow2("b3-data-file-and-backing", named(Qcow2::new().put64(72, 4)).backing(path, Some("raw")));
        self.qcow2("b3-data-file-behind-another-extension", named(Qcow2::new().extension(0x1234_5678, b"harmless")));
        self.qcow2("b3-encrypted-aes", Qcow2::new().put32(32, 1));
        self.qcow2("b3-encrypted-luks", Qcow2::new().put32(32, 2).extension(0x0537_be77, &[0; 16]));
        self.qcow2("b3-encryption-without-its-method", Qcow2::new().extension(0x0537_be77, &[0; 16]));
        self.qcow2("b3-snapshot", Qcow2::new().put32(60, 1).put64(64, 4 << 16));
        self.qcow2("b3-most-snapshots", Qcow2::new().put32(60, u32::MAX).put64(64, 4 << 16));
    }

    fn backing_urls(&mut self, canary: &Path, port: u16) {
        let path = canary.display();
        let leaks = [
            (
                "json-raw",
                format!(r#"json:{{"driver":"raw","size":4096,"file":{{"driver":"file","filename":"{path}"}}}}"#),
            ),
            ("json-nested", format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{path}"}}}}"#)),
            ("json-dotted", format!(r#"json:{{"driver":"raw","file.driver":"file","file.filename":"{path}"}}"#)),
        ];
        for (what, name) in leaks {
            self.qcow2(&format!("b4-{what}"), Qcow2::new().backing(name.as_bytes(), Some("raw"))).harm =
                Some(Harm::Leaks);
        }
        let connects = [
            ("nbd", format!("nbd://127.0.0.1:{port}/x")),
            ("nbd-plain", format!("nbd:127.0.0.1:{port}")),
            (
                "json-nbd",
                format!(
                    r#"json:{{"driver":"raw","file":{{"driver":"nbd","export":"x","server.type":"inet","server.host":"127.0.0.1","server.port":"{port}"}}}}"#
                ),
            ),
        ];
        for (what, name) in connects {
            self.qcow2(&format!("b4-{what}"), Qcow2::new().backing(name.as_bytes(), Some("raw"))).harm =
                Some(Harm::Connects);
        }
        // What these reach depends on how QEMU was built.
        let others = [
            ("nbd-unix", "nbd+unix:///x?socket=/run/x.sock".to_owned()),
            ("http", format!("http://127.0.0.1:{port}/x")),
            ("https", format!("https://127.0.0.1:{port}/x")),
            ("ftp", format!("ftp://127.0.0.1:{port}/x")),
            ("ssh", format!("ssh://root@127.0.0.1:{port}/etc/shadow")),
            ("iscsi", format!("iscsi://127.0.0.1:{port}/iqn.x/0")),
            ("nfs", "nfs://127.0.0.1/x".to_owned()),
            ("gluster", format!("gluster://127.0.0.1:{port}/x/y")),
            ("rbd", "rbd:pool/image".to_owned()),
            ("nvme", "nvme://0000:00:00.0/1".to_owned()),
            ("fat", "fat:/etc".to_owned()),
            ("fat-writable", "fat:rw:/etc".to_owned()),
            ("json-fat", r#"json:{"driver":"vvfat","dir":"/etc","rw":true}"#.to_owned()),
            ("json-host-device", r#"json:{"driver":"host_device","filename":"/dev/zero"}"#.to_owned()),
            ("json-file", format!(r#"json:{{"driver":"file","filename":"{path}"}}"#)),
            ("json-unclosed", r#"json:{"driver":"#.to_owned()),
            ("json-of-data-file", format!(r#"json:{{"driver":"qcow2","data-file":"{path}"}}"#)),
            ("blkdebug", format!("blkdebug::{path}")),
            ("blkverify", format!("blkverify:{path}:{path}")),
            ("null", "null-co://".to_owned()),
            ("device-zero", "/dev/zero".to_owned()),
            ("device-mem", "/dev/mem".to_owned()),
            ("proc-environ", "/proc/self/environ".to_owned()),
            ("proc-descriptor", "/proc/self/fd/0".to_owned()),
            ("descriptor-set", "/dev/fdset/1".to_owned()),
        ];
        for (what, name) in others {
            self.qcow2(&format!("b4-{what}"), Qcow2::new().backing(name.as_bytes(), Some("raw")));
        }
    }

    fn other_formats(&mut self, canary: &Path) {
        let path = canary.as_os_str().as_bytes();
        // A guest that writes such a header into its raw disk is the same attack, once its disk is somebody's base.
        self.raw("b5-qcow2-stated-as-raw", Qcow2::new().0);
        self.raw("b5-b7-qcow2-with-backing-stated-as-raw", Qcow2::new().backing(path, Some("raw")).0).harm =
            Some(Harm::Leaks);
        let starts: [(&str, &[u8]); 22] = [
            ("qcow-version-1", b"QFI\xfb\0\0\0\x01"),
            ("qed", b"QED\0"),
            ("vhd-dynamic", b"conectix"),
            ("vhdx", b"vhdxfile"),
            ("luks-1", b"LUKS\xba\xbe\0\x01"),
            ("luks-2", b"LUKS\xba\xbe\0\x02"),
            ("parallels", b"WithoutFreeSpace"),
            ("parallels-extended", b"WithouFreSpacExt"),
            ("bochs", b"Bochs Virtual HD Image"),
            ("cloop", b"#!/bin/sh\n#V2.0 Format\n"),
            ("vmdk-sparse", b"KDMV"),
            ("vmdk-esx", b"COWD"),
            ("vmdk-se-sparse", &[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0]),
            ("gzip", b"\x1f\x8b\x08"),
            ("xz", b"\xfd7zXZ\0"),
            ("zstd", b"\x28\xb5\x2f\xfd"),
            ("bzip2", b"BZh9"),
            ("zip", b"PK\x03\x04"),
            ("7z", b"7z\xbc\xaf\x27\x1c"),
            ("text", b"#!/bin/sh\n"),
            ("html", b"<!DOCTYPE html>"),
            ("pointer-of-git-lfs", b"version https://git-lfs.github.com/spec/v1\n"),
        ];
        for (what, start) in starts {
            let declared = if matches!(what, "text" | "html" | "pointer-of-git-lfs" | "vmdk-se-sparse") {
                BaseFormat::Qcow2
            } else {
                BaseFormat::Raw
            };
            self.add(&format!("b5-{what}"), declared, Content::Bytes(sectors(&[(0, start)])));
        }
        self.raw("b5-vdi", sectors(&[(0, b"<<< Oracle VM VirtualBox Disk Image >>>\n"), (0x40, b"\x7f\x10\xda\xbe")]));
        self.raw("b5-vhd-fixed", sectors(&[(510, b"\x55\xaa"), ((256 << 10) - 512, b"conectix")]));
        self.raw("b5-dmg", sectors(&[(510, b"\x55\xaa"), ((256 << 10) - 512, b"koly")]));
        self.raw("b5-tar", sectors(&[(0, b"disk.raw"), (257, b"ustar\x0000")]));
        self.raw("b5-iso", sectors(&[(0x8001, b"CD001")]));
        self.raw("b5-udf", sectors(&[(0x8001, b"BEA01"), (0x8801, b"NSR03")]));
        let descriptor = |before: &str, extent: &str| {
            let text = format!(
                "{before}version=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 128 {extent}\n"
            );
            sectors(&[(0, text.as_bytes())])
        };
        let flat = format!("FLAT \"{}\" 0", canary.display());
        for (what, before, extent) in [
            ("flat", "# Disk DescriptorFile\n", flat.as_str()),
            ("flat-bare-comment", "#\n", &flat),
            ("flat-without-comment", "", &flat),
            ("flat-other-comment", "# a disk, not a DescriptorFile\n \n", &flat),
            ("flat-relative", "# Disk DescriptorFile\n", "FLAT \"../canary\" 0"),
            ("vmfs", "# Disk DescriptorFile\n", "VMFS \"/etc/hostname\""),
            ("sparse-extent", "# Disk DescriptorFile\n", "SPARSE \"/etc/hostname\""),
        ] {
            let image = self.raw(&format!("b6-vmdk-{what}"), descriptor(before, extent));
            image.harm = what.starts_with("flat").then_some(Harm::Leaks);
        }
        let embedded = format!("# Disk DescriptorFile\nversion=1\nRW 128 {flat}\n");
        self.raw("b6-vmdk-embedded-descriptor", sectors(&[(0, b"KDMV"), (512, embedded.as_bytes())]));
        self.raw("b6-vmdk-windows-lines", sectors(&[(0, b"# Disk DescriptorFile\r\nversion=1\r\n")]));
    }

    fn header_fields(&mut self) {
        let words: [(&str, usize, u32); 21] = [
            ("version-0", 4, 0),
            ("version-4", 4, 4),
            ("version-9", 4, 9),
            ("version-largest", 4, u32::MAX),
            ("cluster-bits-0", 20, 0),
            ("cluster-bits-8", 20, 8),
            ("cluster-bits-22", 20, 22),
            ("cluster-bits-40", 20, 40),
            ("cluster-bits-largest", 20, u32::MAX),
            ("l1-size-0", 36, 0),
            ("l1-size-largest", 36, u32::MAX),
            ("refcount-clusters-0", 56, 0),
            ("refcount-clusters-largest", 56, u32::MAX),
            ("refcount-order-7", 96, 7),
            ("refcount-order-60", 96, 60),
            ("header-length-0", 100, 0),
            ("header-length-72", 100, 72),
            ("header-length-106", 100, 106),
            ("header-length-largest", 100, u32::MAX),
            ("backing-size-5000", 16, 5000),
            ("compression-without-its-bit", 104, 1 << 24),
        ];
        for (what, at, value) in words {
            self.qcow2(&format!("b8-{what}"), Qcow2::new().put32(at, value));
        }
        let longs: [(&str, usize, u64); 19] = [
            ("size-0", 24, 0),
            ("size-part-sector", 24, (1 << 20) + 1),
            ("size-2-60", 24, 1 << 60),
            ("size-2-63", 24, 1 << 63),
            ("size-largest", 24, u64::MAX),
            ("size-beyond-l1", 24, 4 << 30),
            ("l1-offset-0", 40, 0),
            ("l1-offset-unaligned", 40, (3 << 16) + 512),
            ("l1-offset-beyond", 40, 1 << 40),
            ("l1-offset-largest", 40, u64::MAX << 16),
            ("l1-in-refcounts", 40, 1 << 16),
            ("refcounts-in-header", 48, 0),
            ("refcounts-beyond", 48, 1 << 40),
            ("refcounts-unaligned", 48, (1 << 16) + 8),
            ("snapshots-offset-unaligned", 64, 3),
            ("unknown-feature", 72, 1 << 5),
            ("unknown-features-all", 72, !0 << 5),
            ("compression-bit-without-type", 72, 8),
            ("extended-l2", 72, 16),
        ];
        for (what, at, value) in longs {
            self.qcow2(&format!("b8-{what}"), Qcow2::new().put64(at, value));
        }
        self.qcow2("b8-extension-beyond-the-cluster", Qcow2::new().put32(112, 1).put32(116, 1 << 17));
        self.qcow2("b8-extension-largest", Qcow2::new().put32(112, 1).put32(116, u32::MAX));
        self.qcow2("b8-snapshots-largest", Qcow2::new().put32(60, u32::MAX).put64(64, 1 << 62));
    }

    fn no_whole_files(&mut self) {
        self.raw("b9-empty", Vec::new());
        self.qcow2("b9-empty-qcow2", Qcow2(Vec::new()));
        self.qcow2("b9-magic-alone", Qcow2::cut(4));
        self.qcow2("b9-part-of-a-header", Qcow2::cut(71));
        self.qcow2("b9-header-alone", Qcow2::cut(112));
        self.qcow2("b9-half", Qcow2::cut(2 << 16));
        // Its refcounts say that a cluster is in use which the file does not have.
        self.qcow2(
            "b9-last-clusters-missing",
            Qcow2::new().put64(1 << 16, 2 << 16).put32((2 << 16) + 400, 0x0001_0001),
        );
        self.raw("b9-part-of-a-sector", b"\x55\xaa".repeat(300));
        self.add("b9-zeroes", BaseFormat::Raw, Content::Zeroes(1 << 40));
        self.add("b9-zeroes-qcow2", BaseFormat::Qcow2, Content::Zeroes(1 << 40));
        self.add("b9-folder", BaseFormat::Raw, Content::Folder);
        self.add("b9-fifo", BaseFormat::Raw, Content::Fifo);
        self.add("b9-socket", BaseFormat::Raw, Content::Socket);
        self.add("b9-device-zero", BaseFormat::Raw, Content::Link("/dev/zero".into()));
        self.add("b9-device-null", BaseFormat::Qcow2, Content::Link("/dev/null".into()));
        self.add("b9-link-to-nothing", BaseFormat::Raw, Content::Link("nothing".into()));
        self.add("b9-link-to-itself", BaseFormat::Raw, Content::Link("b9-link-to-itself".into()));
        self.add("b9-link-to-a-folder", BaseFormat::Qcow2, Content::Link("/proc".into()));
        self.add("b9-link-to-endless-proc", BaseFormat::Raw, Content::Link("/proc/kmsg".into()));
    }

    fn bombs_and_damage(&mut self) {
        // 8192 tables in one: 4 TiB of disk out of 320 KiB.
        let mut tables = Qcow2::new().put64(24, 4 << 40).put32(36, 8192);
        for index in 0..8192 {
            tables = tables.put64((3 << 16) + 8 * index, 1 << 63 | 4 << 16);
        }
        self.qcow2("b10-one-table-for-all", tables);
        self.qcow2("b11-marked-corrupt", Qcow2::new().put64(72, 2));
        self.qcow2("b11-marked-corrupt-and-dirty", Qcow2::new().put64(72, 3));
    }

    fn polyglots(&mut self, canary: &Path) {
        let backing = Qcow2::new().backing(canary.as_os_str().as_bytes(), Some("raw"));
        let with: [(&str, usize, &[u8]); 6] = [
            ("gpt", 512, b"EFI PART"),
            ("boot-sector", 510, b"\x55\xaa"),
            ("iso", 0x8001, b"CD001"),
            ("udf", 0x8001, b"BEA01"),
            ("tar", 257, b"ustar\x0000"),
            ("vdi", 0x40, b"\x7f\x10\xda\xbe"),
        ];
        for (what, at, bytes) in with {
            self.qcow2(&format!("b12-qcow2-{what}"), Qcow2::new().put(at, bytes));
        }
        let image = self.add(
            "b12-raw-gpt-over-qcow2",
            BaseFormat::Raw,
            Content::Bytes(backing.put(512, b"EFI PART").put(510, b"\x55\xaa").0),
        );
        image.harm = Some(Harm::Leaks);
        let iso: (usize, &[u8]) = (0x8001, b"CD001");
        self.raw("b12-iso-gpt", sectors(&[(510, b"\x55\xaa"), (512, b"EFI PART"), iso]));
        self.raw("b12-iso-vmdk", sectors(&[(0, b"KDMV"), iso]));
        self.raw("b12-iso-gzip", sectors(&[(0, b"\x1f\x8b\x08"), iso]));
        self.raw("b12-gpt-vhd", sectors(&[(512, b"EFI PART"), ((256 << 10) - 512, b"conectix")]));
        self.raw("b12-gpt-vmdk", sectors(&[(0, b"# Disk DescriptorFile\nversion=1\n"), (512, b"EFI PART")]));
    }
}

/// A raw file of 256 KiB with these bytes at these places.
fn sectors(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 256 << 10];
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    bytes
}

/// A qcow2 file of five clusters of 64 KiB, sound until it is changed: 1 GiB of nothing. The refcount table is the second
/// cluster, the L1 table the fourth.
struct Qcow2(Vec<u8>);

impl Qcow2 {
    fn new() -> Self {
        let image = Self(vec![0; 5 << 16]).put(0, b"QFI\xfb").put32(4, 3).put32(20, 16).put64(24, 1 << 30);
        image.put32(36, 2).put64(40, 3 << 16).put64(48, 1 << 16).put32(56, 1).put32(96, 4).put32(100, 112)
    }

    fn version_2() -> Self {
        Self::new().put32(4, 2).put(72, &[0; 40])
    }

    fn cut(length: usize) -> Self {
        let mut image = Self::new();
        image.0.truncate(length);
        image
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn put32(self, at: usize, value: u32) -> Self {
        self.put(at, &value.to_be_bytes())
    }

    fn put64(self, at: usize, value: u64) -> Self {
        self.put(at, &value.to_be_bytes())
    }

    /// Adds a header extension behind those there are.
    fn extension(self, kind: u32, bytes: &[u8]) -> Self {
        let mut at = if self.0[7] == 2 { 72 } else { 112 };
        while self.0[at..at + 4] != [0; 4] {
            let length = u32::from_be_bytes(self.0[at + 4..at + 8].try_into().unwrap()) as usize;
            at += 8 + length.next_multiple_of(8);
        }
        let length = u32::try_from(bytes.len()).unwrap();
        self.put32(at, kind).put32(at + 4, length).put(at + 8, bytes)
    }

    fn backing(self, name: &[u8], format: Option<&str>) -> Self {
        let image = match format {
            Some(format) => self.extension(0xe279_2aca, format.as_bytes()),
            None => self,
        };
        // Behind the extensions; QEMU wants it in the first cluster.
        image.put(4096, name).put64(8, 4096).put32(16, u32::try_from(name.len()).unwrap())
    }
}
