//! Disks of every layout that kiln meets: each is listed whole, equal to the folders that it was made from, or what is
//! missing is declared. A byte that changes in any file system changes the digest, unless there is none.

use std::fmt::Write;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kiln::digest::Sha256Digest;
use kiln::disk::entry::FileDigest;
use kiln::disk::packages::{PackageType, has_rpm_database, read_databases, unread_managers};
use kiln::disk::tree::Tree;
use kiln::specfile::BaseFormat;

use super::{Scratch, chain, fat_lines, host_lines, make_ext4, make_fat, tool, tree_lines};

const MIB: u64 = 1 << 20;
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
pub(super) const ROOT: &str = "6b696c6e-0000-4000-8000-000000000001";
pub(super) const OTHER: &str = "6b696c6e-0000-4000-8000-000000000002";
pub(super) const THIRD: &str = "6b696c6e-0000-4000-8000-000000000003";

/// A partition to be: a line of sfdisk(8) without its place, and the file with its content.
pub(super) struct PartitionPlan {
    fields: String,
    content: PathBuf,
}

pub(super) fn part(fields: &str, content: PathBuf) -> PartitionPlan {
    PartitionPlan { fields: fields.to_owned(), content }
}

/// What is to be seen of a layout.
#[derive(Clone, Copy)]
pub(super) enum ExpectedView<'f> {
    /// All of it: each folder at its mount point, FAT or not.
    Whole(&'f [(&'f str, &'f Path)]),
    /// Files, but with a gap that hides some and has these words.
    Gap(&'f str),
    /// An error with these words.
    Refused(&'f str),
}

/// Paths and contents.
type FileList<'f> = &'f [(&'f str, &'f str)];

/// Makes a folder with these files; one whose name ends in a slash is a directory, a content that begins with `->` a link.
/// The file `marker` holds what tells this file system from all others.
pub(super) fn folder(scratch: &Scratch, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = scratch.path(name);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("marker"), marker(name)).unwrap();
    for (path, content) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix("->") {
            Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
            None if path.as_os_str().as_encoded_bytes().ends_with(b"/") => fs::create_dir_all(path).unwrap(),
            None => fs::write(path, content).unwrap(),
        }
    }
    folder
}

fn marker(name: &str) -> String {
    format!("<the file system of {name}>")
}

/// A root with this table, and more files.
pub(super) fn root(scratch: &Scratch, name: &str, table: &str, files: &[(&str, &str)]) -> PathBuf {
    folder(scratch, name, &[&[("etc/os-release", "ID=test\n"), ("etc/fstab", table)], files].concat())
}

pub(super) fn ext4(scratch: &Scratch, folder: &Path, uuid: &str) -> PathBuf {
    let name = format!("{}.ext4", folder.file_name().unwrap().to_str().unwrap());
    make_ext4(scratch, &name, "8M", &["-t", "ext4", "-U", uuid, "-O", "^resize_inode"], folder)
}

fn fat(scratch: &Scratch, folder: &Path) -> PathBuf {
    let name = format!("{}.fat", folder.file_name().unwrap().to_str().unwrap());
    make_fat(scratch, &name, 16_384, &["-v", "ESP"], folder)
}

/// An XFS with the marker of this name, as small as mkfs.xfs(8) makes it, for tests alone.
fn xfs(scratch: &Scratch, name: &str, uuid: &str) -> PathBuf {
    let path = scratch.path(&format!("{name}.xfs"));
    File::create(&path).unwrap().set_len(32 * MIB).unwrap();
    fs::write(scratch.path("xfs-marker"), marker(name)).unwrap();
    let prototype = format!("/x\n0 0\nd--755 0 0\nmarker ---644 0 0 {}\n$\n", scratch.text("xfs-marker"));
    fs::write(scratch.path("prototype"), prototype).unwrap();
    let (uuid, prototype) = (format!("uuid={uuid}"), scratch.text("prototype"));
    tool("mkfs.xfs", &["-q", "--unsupported", "-m", &uuid, "-p", &prototype, path.to_str().unwrap()]);
    path
}

fn btrfs(scratch: &Scratch, folder: &Path, uuid: &str) -> PathBuf {
    let path = scratch.path("root.btrfs");
    File::create(&path).unwrap().set_len(128 * MIB).unwrap();
    let folder = folder.to_str().unwrap();
    tool("mkfs.btrfs", &["-q", "-U", uuid, "--rootdir", folder, path.to_str().unwrap()]);
    path
}

/// What begins with these bytes at their places, and has the marker of this name.
fn imitation(scratch: &Scratch, name: &str, parts: &[(u64, &[u8])]) -> PathBuf {
    let path = scratch.path(&format!("{name}.imitation"));
    let file = File::create(&path).unwrap();
    file.set_len(4 * MIB).unwrap();
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at).unwrap();
    }
    file.write_all_at(marker(name).as_bytes(), 2 * MIB).unwrap();
    path
}

/// A physical volume of LVM2: its label in the second sector.
fn lvm(scratch: &Scratch, name: &str) -> PathBuf {
    imitation(scratch, name, &[(512, b"LABELONE\x01\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0LVM2 001")])
}

/// Partitions a disk, one after the other from its second MiB on, and writes their content.
pub(super) fn disk(scratch: &Scratch, label: &str, parts: &[PartitionPlan]) -> PathBuf {
    let image = scratch.path("disk");
    let sizes: Vec<u64> = parts.iter().map(|part| fs::metadata(&part.content).unwrap().len()).collect();
    let file = File::create(&image).unwrap();
    file.set_len(sizes.iter().map(|size| size + MIB).sum::<u64>() + 4 * MIB).unwrap();
    let mut script = format!("label: {label}\n");
    let mut at = MIB;
    for (part, size) in parts.iter().zip(&sizes) {
        writeln!(script, "start={},size={},{}", at / 512, size / 512, part.fields).unwrap();
        copy(&part.content, &file, at);
        at += size + MIB;
    }
    fs::write(scratch.path("script"), script).unwrap();
    tool("sh", &["-c", &format!("sfdisk -q {} < {}", scratch.text("disk"), scratch.text("script"))]);
    image
}

fn copy(content: &Path, disk: &File, at: u64) {
    let bytes = fs::read(content).unwrap();
    for (index, piece) in (0..).zip(bytes.chunks(1 << 16)) {
        if piece != &ZEROES[..piece.len()] {
            disk.write_all_at(piece, at + (index << 16)).unwrap();
        }
    }
}

/// The digest of a disk, if kiln would publish one.
pub(super) fn digest(image: &Path) -> Option<Sha256Digest> {
    let disk = chain(&[(image, BaseFormat::Raw)]);
    let tree = Tree::open(&disk).ok().filter(Tree::is_whole)?;
    Some(tree.content_sha256().unwrap())
}

/// Checks what is seen of a disk, and that a changed byte of every file system named is seen.
#[track_caller]
pub(super) fn check(image: &Path, expected: ExpectedView<'_>, names: &[&str]) {
    let disk = chain(&[(image, BaseFormat::Raw)]);
    let view = Tree::open(&disk);
    match expected {
        ExpectedView::Whole(folders) => {
            let tree = view.unwrap();
            assert!(tree.is_whole(), "{:?}", tree.gaps());
            assert_eq!(sorted(tree_lines(&tree)), expected_lines(folders));
            let targets: Vec<&[u8]> = tree.mounts().iter().map(|mount| mount.target.as_slice()).collect();
            let mut expected: Vec<&[u8]> = folders.iter().map(|(target, _)| target.as_bytes()).collect();
            expected.sort_by_key(|target| targets.iter().position(|found| found == target));
            assert_eq!(targets, expected);
        }
        ExpectedView::Gap(words) => {
            let tree = view.unwrap();
            let gaps: Vec<String> =
                tree.gaps().iter().filter(|gap| gap.hides_files()).map(ToString::to_string).collect();
            assert!(!tree.is_whole() && gaps.iter().any(|gap| gap.contains(words)), "{gaps:?}");
        }
        ExpectedView::Refused(words) => {
            let error = view.map(|tree| tree.gaps().to_vec()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
    let before = digest(image);
    for name in names {
        assert!(sees_change(image, before, &marker(name)), "a change of {name} is not seen");
    }
}

/// Changes the first byte of a text and looks whether the digest is another one than before, or none.
pub(super) fn sees_change(image: &Path, before: Option<Sha256Digest>, text: &str) -> bool {
    let found = tool("grep", &["-obUaF", text, image.to_str().unwrap()]);
    let at = String::from_utf8(found).unwrap().split(':').next().unwrap().parse::<u64>().unwrap();
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(b"[", at).unwrap();
    let after = digest(image);
    file.write_all_at(b"<", at).unwrap();
    before.is_none() || before != after
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.retain(|line| !line.contains("/lost+found "));
    lines.sort();
    lines
}

/// The lines of every folder at its mount point, without what lies below one.
fn expected_lines(folders: &[(&str, &Path)]) -> Vec<String> {
    let mut lines = Vec::new();
    for (target, folder) in folders {
        let below = format!("path={target}/");
        lines.retain(|line: &String| !line.starts_with(&below));
        let prefix = target.trim_end_matches('/');
        if prefix.is_empty() || !is_fat(folder) {
            let mut found = Vec::new();
            host_lines(folder, folder, &mut found);
            lines.extend(found.iter().map(|line| line.replacen("path=", &format!("path={prefix}"), 1)));
        } else {
            lines.extend(fat_lines(folder, prefix));
        }
    }
    sorted(lines)
}

fn is_fat(folder: &Path) -> bool {
    folder.join("EFI").exists()
}

/// Says which layouts have left-over file systems.
#[track_caller]
fn assert_left_over(image: &Path, words: &[&str]) {
    let disk = chain(&[(image, BaseFormat::Raw)]);
    let gaps: Vec<String> = Tree::open(&disk).unwrap().gaps().iter().map(ToString::to_string).collect();
    assert_eq!(gaps, words);
}

#[test]
fn e1_e2_one_file_system_with_or_without_a_table_of_partitions() {
    let scratch = Scratch::new();
    let folder = root(&scratch, "root", &format!("UUID={ROOT} / ext4\n"), &[]);
    let content = ext4(&scratch, &folder, ROOT);
    check(&content, ExpectedView::Whole(&[("/", &folder)]), &["root"]);
    let image = disk(&scratch, "gpt", &[part("type=L", content)]);
    check(&image, ExpectedView::Whole(&[("/", &folder)]), &["root"]);
}

#[test]
fn e1_e2_a_readable_boot_never_stands_in_for_a_root_that_is_not() {
    let scratch = Scratch::new();
    let xfs_root = xfs(&scratch, "xfs", ROOT);
    let files = folder(&scratch, "files", &[("etc/os-release", "ID=fedora\n")]);
    let btrfs_root = btrfs(&scratch, &files, ROOT);
    let lvm_root = lvm(&scratch, "lvm");
    let luks = imitation(&scratch, "luks", &[(0, b"LUKS\xba\xbe\0\x02"), (168, ROOT.as_bytes())]);
    let grub = |device: &str| format!("menuentry 'x' {{\n\tlinux /vmlinuz root={device} ro\n}}\n");
    let entry = |device: &str| format!("title x\nlinux /vmlinuz\noptions root={device} rootflags=subvol=root\n");
    let uuid = format!("UUID={ROOT}");
    let boots = [
        ("silent", "vmlinuz", "kernel".to_owned()),
        ("menu", "grub2/grub.cfg", grub(&uuid)),
        ("entry", "loader/entries/a.conf", entry(&uuid)),
        ("mapped", "grub/grub.cfg", grub("/dev/mapper/vg-root")),
    ];
    let boots = boots.map(|(name, file, text)| {
        let folder = folder(&scratch, name, &[(file, &text), ("etc/", "")]);
        (name, ext4(&scratch, &folder, OTHER))
    });
    let [silent, menu, entry, mapped] = &boots;
    for (boot, content, name, words) in [
        (silent, &xfs_root, "xfs", "the root file system is xfs on partition 2, which kiln cannot read"),
        (menu, &xfs_root, "xfs", "the root file system is xfs on partition 2"),
        (entry, &btrfs_root, "files", "btrfs on partition 2"),
        (silent, &btrfs_root, "files", "btrfs on partition 2"),
        (mapped, &lvm_root, "lvm", "an LVM physical volume on partition 2"),
        (silent, &lvm_root, "lvm", "an LVM physical volume on partition 2"),
        (mapped, &luks, "luks", "LUKS on partition 2"),
    ] {
        let plans = [part("type=L", boot.1.clone()), part("type=L", content.clone())];
        check(&disk(&scratch, "gpt", &plans), ExpectedView::Refused(words), &[boot.0, name]);
    }
}

#[test]
fn e1_e2_parts_of_the_tree_are_mounted_by_every_name() {
    let scratch = Scratch::new();
    let usr = folder(&scratch, "usr", &[("lib/os-release", "ID=test\n"), ("sbin/init", "program")]);
    let data = folder(&scratch, "data", &[("file", "content")]);
    let usr_content = ext4(&scratch, &usr, OTHER);
    let data_content = ext4(&scratch, &data, THIRD);
    let unit = format!("[Mount]\nWhat=/dev/disk/by-uuid/{THIRD}\nWhere=/srv\nType=ext4\n");
    let home_type = "type=933AC7E1-2EB4-4F13-B844-0E14E2AEF915";
    let usr_type = "type=8484680C-9521-48C6-9C11-B0720656F69E";
    let link = ("etc/os-release", "->../usr/lib/os-release");
    let cases = [
        (format!("UUID={OTHER} /usr ext4\nPARTLABEL=data /var ext4\n"), "type=L", "type=L,name=data", "/var", None),
        ("LABEL=x /mnt ext4 noauto\n".to_owned(), usr_type, home_type, "/home", None),
        (
            String::new(),
            usr_type,
            "type=L",
            "/srv",
            Some(("etc/systemd/system/srv.mount", "etc/systemd/system/local-fs.target.wants/srv.mount")),
        ),
    ];
    for (index, (table, usr_fields, data_fields, target, unit_paths)) in cases.into_iter().enumerate() {
        let name = format!("root{index}");
        let mut files = vec![link, ("usr/", ""), ("var/", ""), ("home/", ""), ("srv/", ""), ("etc/fstab", &table)];
        if let Some((path, wanted)) = unit_paths {
            files.extend([(path, unit.as_str()), (wanted, "->../srv.mount")]);
        }
        let root = folder(&scratch, &name, &files);
        // The root comes last, and is not the largest.
        let plans = [
            part(usr_fields, usr_content.clone()),
            part(data_fields, data_content.clone()),
            part("type=L", ext4(&scratch, &root, ROOT)),
        ];
        let folders: [(&str, &Path); 3] = [("/", &root), ("/usr", &usr), (target, &data)];
        check(&disk(&scratch, "gpt", &plans), ExpectedView::Whole(&folders), &[&name, "usr", "data"]);
    }
}

#[test]
fn e1_e2_mount_points_are_mounted_after_what_they_lie_on() {
    let scratch = Scratch::new();
    let table = format!("UUID=4b49-4c4e /boot/efi vfat\nUUID={OTHER} /boot ext4\nUUID={ROOT} / ext4\n");
    let root = root(&scratch, "root", &table, &[("boot/hidden", "x")]);
    let boot = folder(&scratch, "boot", &[("efi/", "")]);
    let esp = folder(&scratch, "esp", &[("EFI/BOOT/BOOTX64.EFI", "program")]);
    let plans = [
        part("type=U", fat(&scratch, &esp)),
        part("type=L", ext4(&scratch, &boot, OTHER)),
        part("type=L", ext4(&scratch, &root, ROOT)),
    ];
    let folders: [(&str, &Path); 3] = [("/", &root), ("/boot", &boot), ("/boot/efi", &esp)];
    check(&disk(&scratch, "gpt", &plans), ExpectedView::Whole(&folders), &["root", "boot", "esp"]);
}

#[test]
fn e1_e2_an_efi_system_partition_that_nothing_names_has_its_places() {
    let scratch = Scratch::new();
    let esp = folder(&scratch, "esp", &[("EFI/BOOT/BOOTX64.EFI", "program")]);
    let content = fat(&scratch, &esp);
    for (index, (directory, label)) in
        [("efi", "gpt"), ("boot", "gpt"), ("boot/efi", "gpt"), ("efi", "dos")].iter().enumerate()
    {
        let name = format!("root{index}");
        let root = root(&scratch, &name, "", &[(&format!("{directory}/"), "")]);
        let (root_type, esp_type) = if *label == "gpt" { ("type=L", "type=U") } else { ("type=83", "type=ef") };
        let plans = [part(root_type, ext4(&scratch, &root, ROOT)), part(esp_type, content.clone())];
        let folders: [(&str, &Path); 2] = [("/", &root), (&format!("/{directory}"), &esp)];
        check(&disk(&scratch, label, &plans), ExpectedView::Whole(&folders), &[&name, "esp"]);
    }
    let root = root(&scratch, "root", "", &[]);
    let image = disk(&scratch, "gpt", &[part("type=L", ext4(&scratch, &root, ROOT)), part("type=U", content)]);
    assert_left_over(&image, &["nothing mounts FAT on partition 2 (label \"ESP\")"]);
}

#[test]
fn e1_e2_what_the_guest_mounts_and_kiln_does_not_read_is_declared() {
    let scratch = Scratch::new();
    let xfs_data = xfs(&scratch, "xfs", OTHER);
    let swap = imitation(&scratch, "swap", &[(4086, b"SWAPSPACE2")]);
    let raid = imitation(&scratch, "raid", &[(4 * MIB - 8192, b"\xfc\x4e\x2b\xa9")]);
    let unit = format!("[Mount]\nWhat=UUID={OTHER}\n");
    let own = format!("UUID={ROOT} / ext4\n");
    let cases: [(&str, FileList<'_>, &Path, &str, &str); 8] = [
        (
            &format!("{own}UUID={OTHER} /srv xfs nofail\n"),
            &[],
            &xfs_data,
            "xfs",
            "/srv is xfs on partition 2, which kiln cannot read",
        ),
        (&format!("{own}/dev/sda2 /srv xfs noauto,x-systemd.automount\n"), &[], &xfs_data, "xfs", "/srv is xfs"),
        (
            &own,
            &[
                ("etc/systemd/system/srv.mount", &unit),
                ("etc/systemd/system/a.target.wants/srv.mount", "->../srv.mount"),
            ],
            &xfs_data,
            "xfs",
            "/srv is xfs",
        ),
        (
            &own,
            &[("etc/systemd/system/srv.mount", &unit)],
            &xfs_data,
            "xfs",
            "xfs on partition 2 may be mounted on /srv",
        ),
        (
            &format!("{own}/dev/mapper/vg-srv /srv ext4\n"),
            &[],
            &lvm(&scratch, "lvm"),
            "lvm",
            "/srv is mounted from /dev/mapper/vg-srv",
        ),
        (
            &format!("{own}UUID={THIRD} /srv ext4 nofail\n"),
            &[],
            &lvm(&scratch, "lvm"),
            "lvm",
            "/srv is mounted from UUID=",
        ),
        (&format!("{own}UUID={THIRD} /srv ext4\n"), &[], &raid, "raid", "/srv is mounted from UUID="),
        (
            &format!("{own}LABEL=gone /srv ext4\n"),
            &[],
            &swap,
            "swap",
            "/srv is mounted from LABEL=gone, which is on no partition",
        ),
    ];
    for (index, (table, files, content, name, words)) in cases.into_iter().enumerate() {
        let root_name = format!("root{index}");
        let root = root(&scratch, &root_name, table, &[&[("srv/", "")], files].concat());
        let plans = [part("type=L", ext4(&scratch, &root, ROOT)), part("type=L", content.to_owned())];
        check(&disk(&scratch, "gpt", &plans), ExpectedView::Gap(words), &[&root_name, name]);
    }
    // Nothing of the running tree: a boot does not mount it, or goes on without it.
    let root = root(
        &scratch,
        "root",
        &format!("{own}UUID={OTHER} /srv xfs noauto\nLABEL=gone /mnt ext4 nofail\n"),
        &[("srv/", "")],
    );
    let root_content = ext4(&scratch, &root, ROOT);
    let image =
        disk(&scratch, "gpt", &[part("type=L", root_content.clone()), part("type=L", xfs_data), part("type=S", swap)]);
    check(&image, ExpectedView::Whole(&[("/", &root)]), &["root"]);
    assert_left_over(&image, &["nothing mounts xfs on partition 2"]);
    let var = "type=4D21B016-B534-45C2-A9FB-5C16E091FD2D";
    let data = folder(&scratch, "data", &[]);
    let image = disk(&scratch, "gpt", &[part("type=L", root_content), part(var, ext4(&scratch, &data, THIRD))]);
    check(&image, ExpectedView::Gap("ext4 on partition 2 may be mounted on /var"), &["root", "data"]);
}

#[test]
fn e1_e2_a_root_on_a_logical_partition_is_found_beside_a_primary_boot() {
    let scratch = Scratch::new();
    let table = "PARTUUID=6b696c6e-05 / ext4\n/dev/vda1 /boot ext4\n/dev/sda6 /home ext4\n";
    let root = root(&scratch, "root", table, &[("boot/", ""), ("home/", "")]);
    let boot = folder(&scratch, "boot", &[("vmlinuz", "kernel")]);
    let home = folder(&scratch, "home", &[]);
    let contents = [ext4(&scratch, &boot, OTHER), ext4(&scratch, &root, ROOT), ext4(&scratch, &home, THIRD)];
    let image = scratch.path("disk");
    let file = File::create(&image).unwrap();
    file.set_len(48 * MIB).unwrap();
    let script = "label: dos\nlabel-id: 0x6b696c6e\nstart=2048,size=16384,type=83\nstart=20480,size=77824,type=f\n\
        start=22528,size=16384,type=83\nstart=40960,size=16384,type=83\n";
    fs::write(scratch.path("script"), script).unwrap();
    for (content, sector) in contents.iter().zip([2048, 22_528, 40_960]) {
        copy(content, &file, sector * 512);
    }
    tool("sh", &["-c", &format!("sfdisk -q {} < {}", scratch.text("disk"), scratch.text("script"))]);
    let folders: [(&str, &Path); 3] = [("/", &root), ("/boot", &boot), ("/home", &home)];
    check(&image, ExpectedView::Whole(&folders), &["root", "boot", "home"]);
    // The second table of the chain leads back to itself, and to the first one.
    for first in [18_432_u32, 0] {
        file.write_all_at(&first.to_le_bytes(), 40_960 * 512 - MIB + 446 + 16 + 8).unwrap();
        file.write_all_at(&[5], 40_960 * 512 - MIB + 446 + 16 + 4).unwrap();
        file.write_all_at(&1_u32.to_le_bytes(), 40_960 * 512 - MIB + 446 + 16 + 12).unwrap();
        check(&image, ExpectedView::Whole(&folders), &["root"]);
    }
}

#[test]
fn e1_e2_sectors_of_4096_bytes_are_found() {
    let scratch = Scratch::new();
    let root = root(&scratch, "root", "/dev/vda1 / ext4\n/dev/vda2 /boot ext4\n", &[("boot/", "")]);
    let boot = folder(&scratch, "boot", &[]);
    let contents = [ext4(&scratch, &root, ROOT), ext4(&scratch, &boot, OTHER)];
    for commands in ["g\nn\n1\n256\n2303\nn\n2\n2560\n4607\nw\n", "o\nn\np\n1\n256\n2303\nn\np\n2\n2560\n4607\nw\n"] {
        let image = scratch.path("disk");
        let file = File::create(&image).unwrap();
        file.set_len(24 * MIB).unwrap();
        fs::write(scratch.path("script"), commands).unwrap();
        tool("sh", &["-c", &format!("fdisk -b 4096 {} < {}", scratch.text("disk"), scratch.text("script"))]);
        copy(&contents[0], &file, 256 * 4096);
        copy(&contents[1], &file, 2560 * 4096);
        check(&image, ExpectedView::Whole(&[("/", &root), ("/boot", &boot)]), &["root", "boot"]);
    }
}

#[test]
fn e1_e2_of_two_roots_the_boot_entry_decides_or_none_is_taken() {
    let scratch = Scratch::new();
    let menu = |uuid: &str| format!("menuentry 'x' {{\n\tlinux /boot/vmlinuz root=UUID={uuid}\n}}\n");
    let system = |name: &str, uuid: &str| {
        let table = format!("UUID={uuid} / ext4\nLABEL=ESP /efi vfat\n");
        let folder = root(&scratch, name, &table, &[("efi/", ""), ("boot/grub/grub.cfg", &menu(uuid))]);
        let content = ext4(&scratch, &folder, uuid);
        (folder, content)
    };
    let (_, first) = system("first", ROOT);
    let (second_folder, second) = system("second", OTHER);
    let stub = format!("search.fs_uuid {OTHER} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n");
    let chosen = folder(&scratch, "chosen", &[("EFI/debian/grub.cfg", &stub)]);
    let silent = folder(&scratch, "silent", &[("EFI/BOOT/BOOTX64.EFI", "program")]);
    let plans = |esp: &Path| {
        [part("type=U", fat(&scratch, esp)), part("type=L", first.clone()), part("type=L", second.clone())]
    };
    let image = disk(&scratch, "gpt", &plans(&chosen));
    check(&image, ExpectedView::Whole(&[("/", &second_folder), ("/efi", &chosen)]), &["second", "chosen"]);
    assert_left_over(&image, &["nothing mounts ext4 on partition 2"]);
    let words = "the root file system could be ext4 on partition 2 or ext4 on partition 3";
    check(&disk(&scratch, "gpt", &plans(&silent)), ExpectedView::Refused(words), &["first", "second", "silent"]);
}

#[test]
fn e1_a_rescue_system_is_not_the_root() {
    let scratch = Scratch::new();
    let rescue = folder(&scratch, "rescue", &[("etc/os-release", "ID=rescue\n"), ("sbin/init", "program")]);
    let copied = root(&scratch, "copied", &format!("UUID={ROOT} / ext4\n"), &[]);
    let root = root(&scratch, "root", &format!("UUID={ROOT} / ext4\n"), &[]);
    for other in [&rescue, &copied] {
        let plans = [part("type=L", ext4(&scratch, other, OTHER)), part("type=L", ext4(&scratch, &root, ROOT))];
        let image = disk(&scratch, "gpt", &plans);
        check(&image, ExpectedView::Whole(&[("/", &root)]), &["root"]);
        assert_left_over(&image, &["nothing mounts ext4 on partition 1"]);
    }
    let plans = [part("type=L", ext4(&scratch, &copied, OTHER)), part("type=L", xfs(&scratch, "xfs", ROOT))];
    check(&disk(&scratch, "gpt", &plans), ExpectedView::Refused("xfs on partition 2"), &["copied", "xfs"]);
}

#[test]
fn e1_e2_a_journal_that_is_not_replayed_is_declared() {
    let scratch = Scratch::new();
    let root = root(&scratch, "root", &format!("UUID={ROOT} / ext4\nUUID={OTHER} /srv ext4\n"), &[("srv/", "")]);
    let data = folder(&scratch, "data", &[]);
    let contents = [ext4(&scratch, &root, ROOT), ext4(&scratch, &data, OTHER)];
    for (index, words) in
        ["/ is ext4 on partition 1, which was not unmounted", "/srv is ext4 on partition 2"].iter().enumerate()
    {
        let [root, data] = contents.clone();
        let mut both = [root, data];
        let dirty = scratch.path(&format!("dirty{index}"));
        fs::copy(&both[index], &dirty).unwrap();
        tool("debugfs", &["-w", "-R", "feature needs_recovery", dirty.to_str().unwrap()]);
        both[index] = dirty;
        let plans = both.map(|content| part("type=L", content));
        check(&disk(&scratch, "gpt", &plans), ExpectedView::Gap(words), &["root", "data"]);
    }
}

#[test]
fn e1_e2_a_gpt_that_an_mbr_has_replaced_does_not_count() {
    let scratch = Scratch::new();
    let root = root(&scratch, "root", "/dev/vda2 / ext4\n", &[]);
    let content = ext4(&scratch, &root, ROOT);
    let image = disk(&scratch, "gpt", &[part("type=L", content.clone())]);
    let stale = fs::read(&image).unwrap();
    let other = folder(&scratch, "other", &[]);
    let image = disk(&scratch, "dos", &[part("type=82", ext4(&scratch, &other, OTHER)), part("type=83", content)]);
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&stale[512..34 * 512], 512).unwrap();
    let disk = chain(&[(&image, BaseFormat::Raw)]);
    assert_eq!(Tree::open(&disk).unwrap().mounts()[0].partition, 2);
}

#[test]
fn a_sparse_file_may_be_larger_than_its_disk() {
    let scratch = Scratch::new();
    let root = root(&scratch, "root", "", &[]);
    let file = File::create(root.join("sparse")).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.set_len(1 << 30).unwrap();
    let content = ext4(&scratch, &root, ROOT);
    let disk = chain(&[(&content, BaseFormat::Raw)]);
    let mut found = None;
    let tree = Tree::open(&disk).unwrap();
    let walked = tree.walk(&mut |entry| {
        if entry.path == b"/sparse" {
            found = Some((entry.size, entry.digest));
        }
        ControlFlow::Continue(())
    });
    walked.unwrap();
    assert!(matches!(found, Some((size, Some(FileDigest::Content(_)))) if size == 1 << 30), "{found:?}");
}

#[test]
fn e3_the_packages_of_every_manager_are_listed_or_missing() {
    let scratch = Scratch::new();
    let stanza = "Package: base-files\nArchitecture: amd64\nVersion: 12.4\n";
    let files = [
        ("var/lib/dpkg/status.d/base", stanza),
        ("var/lib/dpkg/status.d/base.md5sums", "Package: no\nVersion: 1\n"),
        ("var/lib/dpkg/status", "Package: a\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n"),
        ("var/lib/dpkg/updates/0000", "Package: a\nStatus: deinstall ok config-files\nArchitecture: all\n"),
        (
            "var/lib/dpkg/updates/0001",
            "Package: evil\nStatus: install ok half-configured\nArchitecture: all\nVersion: 1\n",
        ),
        ("var/lib/pacman/local/foo-1-1/desc", "%NAME%\nfoo\n"),
        ("usr/lib/opkg/status", "Package: foo\n"),
        ("usr/share/rpm/rpmdb.sqlite", "x"),
        ("var/db/pkg/sys-apps/x-1/CONTENTS", "x"),
        ("nix/var/nix/db/db.sqlite", "x"),
        ("var/db/xbps/", ""),
    ];
    let root = root(&scratch, "root", "", &files);
    let content = ext4(&scratch, &root, ROOT);
    let disk = chain(&[(&content, BaseFormat::Raw)]);
    let tree = Tree::open(&disk).unwrap();
    let databases = read_databases(&tree).unwrap();
    assert_eq!((databases.len(), databases[0].kind, databases[0].packages.len()), (1, PackageType::Deb, 2));
    assert_eq!(databases[0].packages[1].name, "evil", "of an installation that was killed");
    assert_eq!(
        (databases[0].packages[0].name.as_str(), databases[0].packages[0].arch.as_str()),
        ("base-files", "amd64")
    );
    assert_eq!(unread_managers(&tree).unwrap(), ["opkg", "pacman", "portage", "nix"], "an empty folder is none");
    assert!(has_rpm_database(&tree).unwrap());
}
