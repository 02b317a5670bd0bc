//! Disks with two roots, of which the boot loader's configuration chooses one: kiln takes that one, or none. What else a boot
//! entry says of the files of the guest is applied or declared.

use std::path::PathBuf;

use super::Scratch;
use super::layouts::{ExpectedView, OTHER, ROOT, THIRD, check, disk, ext4, folder, part, root};

/// Paths and contents.
type FileList<'f> = &'f [(&'f str, &'f str)];

/// A disk with a boot partition and two roots that say nothing of themselves.
struct TwoRoots {
    scratch: Scratch,
    first: PathBuf,
    second: PathBuf,
    count: usize,
}

/// What kiln is to see.
#[derive(Debug, Clone, Copy)]
enum ChosenRoot {
    First,
    Second,
    None,
}

impl TwoRoots {
    fn new() -> Self {
        let scratch = Scratch::new();
        let first = root(&scratch, "first", "", &[]);
        let second = root(&scratch, "second", "", &[]);
        ext4(&scratch, &first, ROOT);
        ext4(&scratch, &second, OTHER);
        Self { scratch, first, second, count: 0 }
    }

    /// Checks which root kiln takes with these files on the boot partition.
    #[track_caller]
    fn check(&mut self, files: FileList<'_>, expected: ChosenRoot) {
        self.count += 1;
        let name = format!("boot{}", self.count);
        let boot = ext4(&self.scratch, &folder(&self.scratch, &name, files), THIRD);
        let parts = [
            part("type=L", boot),
            part("type=L,name=rootA", self.scratch.path("first.ext4")),
            part("type=L,name=rootB", self.scratch.path("second.ext4")),
        ];
        let image = disk(&self.scratch, "gpt", &parts);
        match expected {
            ChosenRoot::First => check(&image, ExpectedView::Whole(&[("/", &self.first)]), &["first"]),
            ChosenRoot::Second => check(&image, ExpectedView::Whole(&[("/", &self.second)]), &["second"]),
            ChosenRoot::None => {
                check(&image, ExpectedView::Refused("the root file system could be"), &["first", "second"]);
            }
        }
    }
}

fn entry(title: &str, device: &str) -> String {
    format!("menuentry '{title}' {{\n\tlinux /vmlinuz root={device} quiet\n}}\n")
}

/// The configuration that RAUC's manual has for GRUB.
const RAUC: &str = "default=0\ntimeout=3\nset ORDER=\"A B\"\nset A_OK=1\nset B_OK=1\nset A_TRY=0\nset B_TRY=0\nload_env\n\
    for SLOT in $ORDER; do\n    if [ \"$SLOT\" == \"A\" ]; then\n        INDEX=0\n        OK=$A_OK\n        TRY=$A_TRY\n        A_TRY=1\n    fi\n\
    if [ \"$SLOT\" == \"B\" ]; then\n        INDEX=1\n        OK=$B_OK\n        TRY=$B_TRY\n        B_TRY=1\n    fi\n\
    if [ \"$OK\" -eq 1 -a \"$TRY\" -eq 0 ]; then\n        default=$INDEX\n        break\n    fi\ndone\nsave_env A_TRY A_OK B_TRY B_OK ORDER\n";

#[test]
fn e1_e2_the_boot_loader_chooses_among_two_roots_or_none_is_taken() {
    let mut disk = TwoRoots::new();
    let both = format!("{}{}", entry("Slot A", "/dev/vda2"), entry("Slot B", "PARTLABEL=rootB"));
    let either = |first: &str, second: &str| {
        format!("if [ \"$x\" = 1 ]; then\n{}else\n{}fi\n", entry("a", first), entry("b", second))
    };
    let with_default = |default: &str| format!("set default={default}\n{both}");
    let loader = |device: &str| format!("title x\nlinux /vmlinuz\noptions root={device}\n");
    let [first_entry, second_entry] = [loader("/dev/vda2"), loader("/dev/vda3")];
    let twice = entry("x", &format!("UUID={ROOT} ro root=UUID={OTHER}"));
    let environment = "# GRUB Environment Block\nORDER=B A\nsaved_entry=1\n";
    let cases: [(FileList<'_>, ChosenRoot); 15] = [
        (&[("grub/grub.cfg", &format!("{RAUC}{both}")), ("grub/grubenv", environment)], ChosenRoot::None),
        (&[("grub/grub.cfg", &either("/dev/vda2", "/dev/vda3"))], ChosenRoot::None),
        (&[("grub/grub.cfg", &either("/dev/vda3", &format!("UUID={OTHER}")))], ChosenRoot::Second),
        (&[("grub/grub.cfg", &twice)], ChosenRoot::Second),
        (&[("grub/grub.cfg", &with_default("0"))], ChosenRoot::First),
        (&[("grub/grub.cfg", &with_default("1"))], ChosenRoot::Second),
        (
            &[
                ("grub/grub.cfg", &format!("{}source $prefix/custom.cfg\n", with_default("0"))),
                ("grub/custom.cfg", "default=1\n"),
            ],
            ChosenRoot::Second,
        ),
        (
            &[
                ("grub/grub.cfg", &format!("load_env\n{}", with_default("${saved_entry}"))),
                ("grub/grubenv", environment),
            ],
            ChosenRoot::Second,
        ),
        (
            &[
                ("loader/loader.conf", "default a.efi\n"),
                ("loader/entries/old.conf", &first_entry),
                ("EFI/Linux/a.efi", "MZxx"),
            ],
            ChosenRoot::None,
        ),
        (
            &[
                ("loader/loader.conf", ""),
                ("loader/entries/a.conf", &first_entry),
                ("loader/entries/b.conf", &second_entry),
            ],
            ChosenRoot::Second,
        ),
        (
            &[
                ("loader/loader.conf", "default a*"),
                ("loader/entries/a.conf", &first_entry),
                ("loader/entries/b.conf", &second_entry),
            ],
            ChosenRoot::First,
        ),
        (&[("grub/grub.cfg", &entry("x", "/dev/vda2")), ("loader/entries/b.conf", &second_entry)], ChosenRoot::None),
        (&[("cmdline.txt", "root=/dev/vda3 rootwait\n")], ChosenRoot::Second),
        (
            &[("cmdline.txt", "root=/dev/vda3 rootwait\n"), ("autoboot.txt", "[all]\nboot_partition=2\n")],
            ChosenRoot::None,
        ),
        (
            &[(
                "extlinux/extlinux.conf",
                "DEFAULT b\nLABEL a\n APPEND root=/dev/vda2\nLABEL b\n APPEND root=/dev/vda3\n",
            )],
            ChosenRoot::Second,
        ),
    ];
    for (files, expected) in cases {
        disk.check(files, expected);
    }
}

/// A unified kernel image with this command line, which has nothing else.
fn unified_kernel(command_line: &str) -> Vec<u8> {
    let mut file = vec![0; 0x400];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 0x40;
    file[0x40..0x44].copy_from_slice(b"PE\0\0");
    file[0x46] = 1;
    let section = 0x40 + 24;
    file[section..section + 8].copy_from_slice(b".cmdline");
    let length = u32::try_from(command_line.len()).unwrap().to_le_bytes();
    file[section + 8..section + 12].copy_from_slice(&length);
    file[section + 16..section + 20].copy_from_slice(&length);
    file[section + 20..section + 24].copy_from_slice(&0x400_u32.to_le_bytes());
    file.extend(command_line.as_bytes());
    file
}

#[test]
fn e1_e2_a_unified_kernel_image_names_its_root() {
    let mut disk = TwoRoots::new();
    let kernels = [("1.9", ROOT), ("1.10", OTHER)].map(|(version, uuid)| {
        let bytes = unified_kernel(&format!("root=UUID={uuid} ro"));
        (format!("EFI/Linux/linux-{version}.efi"), String::from_utf8(bytes).unwrap())
    });
    let both: Vec<(&str, &str)> = kernels.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
    disk.check(&both, ChosenRoot::Second);
    disk.check(&both[..1], ChosenRoot::First);
    let chosen = [&both[..], &[("loader/loader.conf", "default linux-1.9.efi\n")]].concat();
    disk.check(&chosen, ChosenRoot::First);
    let lost = [&both[..], &[("loader/loader.conf", "default gone.efi\n")]].concat();
    disk.check(&lost, ChosenRoot::None);
}

#[test]
fn e1_e2_what_a_boot_entry_says_of_the_tree_is_applied_or_declared() {
    let scratch = Scratch::new();
    let usr = folder(&scratch, "usr", &[("file", "content")]);
    let usr_content = ext4(&scratch, &usr, THIRD);
    let home_type = "type=933AC7E1-2EB4-4F13-B844-0E14E2AEF915";
    let cases = [
        (format!("mount.usr=UUID={THIRD}"), "type=L", ExpectedView::Whole(&[]), Some("/usr")),
        ("systemd.gpt_auto=0".to_owned(), home_type, ExpectedView::Whole(&[]), None),
        ("quiet".to_owned(), home_type, ExpectedView::Whole(&[]), Some("/home")),
        ("mount.usr=/dev/vdb1".to_owned(), "type=L", ExpectedView::Gap("/usr is mounted from /dev/vdb1"), None),
        (
            "systemd.mount-extra=/dev/vda2:/srv:ext4".to_owned(),
            "type=L",
            ExpectedView::Gap("systemd.mount-extra="),
            None,
        ),
        ("ostree=/ostree/boot.1/os/1/0".to_owned(), "type=L", ExpectedView::Gap("ostree=/ostree/boot.1"), None),
        ("overlayroot=tmpfs".to_owned(), "type=L", ExpectedView::Gap("overlayroot=tmpfs"), None),
        ("systemd.mask=srv.mount".to_owned(), "type=L", ExpectedView::Gap("systemd.mask=srv.mount"), None),
    ];
    for (index, (option, fields, expected, mounted)) in cases.into_iter().enumerate() {
        let name = format!("root{index}");
        let menu = entry("x", &format!("UUID={ROOT} ro {option}"));
        let files = [("usr/", ""), ("home/", ""), ("srv/", ""), ("boot/grub/grub.cfg", menu.as_str())];
        let root = root(&scratch, &name, &format!("UUID={ROOT} / ext4\n"), &files);
        let parts = [part("type=L", ext4(&scratch, &root, ROOT)), part(fields, usr_content.clone())];
        let image = disk(&scratch, "gpt", &parts);
        let folders = [("/", root.as_path()), (mounted.unwrap_or_default(), usr.as_path())];
        let folders = if mounted.is_some() { &folders[..] } else { &folders[..1] };
        match expected {
            ExpectedView::Whole(_) => check(&image, ExpectedView::Whole(folders), &[&name]),
            other => check(&image, other, &[&name]),
        }
    }
}
