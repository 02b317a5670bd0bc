//! Disks on which the guest sees other files than those of its file systems, or does not mount what it could: kiln sees the same
//! or declares what it lacks.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use kiln::disk::tree::Tree;
use kiln::specfile::BaseFormat;

use super::layouts::{ExpectedView, OTHER, ROOT, check, disk, ext4, folder, part, root};
use super::{Scratch, chain, make_ext4, tool};

/// Paths and contents.
type FileList<'f> = &'f [(&'f str, &'f str)];

const HOME_TYPE: &str = "type=933AC7E1-2EB4-4F13-B844-0E14E2AEF915";

#[test]
fn e1_e2_what_hides_directories_is_declared() {
    let scratch = Scratch::new();
    let data = folder(&scratch, "data", &[("inner/file", "content")]);
    let data_content = ext4(&scratch, &data, OTHER);
    let own = format!("UUID={ROOT} / ext4\n");
    let unit = "[Mount]\nWhat=/data/ssh\nWhere=/etc/ssh\nType=none\nOptions=bind\n";
    let wanted = [
        ("etc/systemd/system/etc-ssh.mount", unit),
        ("etc/systemd/system/local-fs.target.wants/etc-ssh.mount", "->../etc-ssh.mount"),
    ];
    let part_unit = format!("[Mount]\nWhat=UUID={OTHER}\nWhere=/srv\nOptions=ro,X-mount.subdir=inner\n");
    let part_wanted = [
        ("etc/systemd/system/srv.mount", part_unit.as_str()),
        ("etc/systemd/system/local-fs.target.wants/srv.mount", "->../srv.mount"),
    ];
    let cases: [(String, FileList<'_>, &str); 7] = [
        (format!("{own}/data/ssh /etc/ssh none bind 0 0\n"), &[], "/etc/ssh is bound to /data/ssh"),
        (
            format!("{own}overlay /etc overlay lowerdir=/etc,upperdir=/a,workdir=/b\n"),
            &[],
            "an overlay is mounted on /etc",
        ),
        (own.clone(), &wanted, "/etc/ssh is bound to /data/ssh"),
        (
            format!("{own}UUID={OTHER} /srv ext4 X-mount.subdir=inner\n"),
            &[],
            "/srv is a directory of ext4 on partition 2",
        ),
        (own.clone(), &part_wanted, "/srv is a directory of ext4 on partition 2"),
        (format!("{own}ID=virtio-data /srv ext4 defaults\n"), &[], "/srv is mounted from /dev/disk/by-id/virtio-data"),
        (own.clone(), &[("ostree/deploy/os/var/x", "")], "a deployment of OSTree"),
    ];
    for (index, (table, files, words)) in cases.into_iter().enumerate() {
        let name = format!("root{index}");
        let root = root(&scratch, &name, &table, &[&[("srv/", ""), ("etc/ssh/sshd_config", "x")], files].concat());
        let parts = [part("type=L", ext4(&scratch, &root, ROOT)), part("type=L", data_content.clone())];
        check(&disk(&scratch, "gpt", &parts), ExpectedView::Gap(words), &[&name, "data"]);
    }
    // Nothing is hidden.
    let table = format!("{own}/data /mnt none bind,noauto 0 0\n/var /var none bind,ro\n");
    let root = root(&scratch, "root", &table, &[("mnt/", ""), ("var/", "")]);
    let content = ext4(&scratch, &root, ROOT);
    check(&content, ExpectedView::Whole(&[("/", &root)]), &["root"]);
}

#[test]
fn e1_e2_a_line_with_noauto_is_mounted_if_a_unit_wants_it() {
    let scratch = Scratch::new();
    let data = folder(&scratch, "data", &[("file", "content")]);
    let data_content = ext4(&scratch, &data, OTHER);
    let line = |options: &str| format!("UUID={ROOT} / ext4\nUUID={OTHER} /srv ext4 {options} 0 0\n");
    let unit = format!("[Mount]\nWhat=\\\n  UUID={OTHER}\nWhere=/srv\n");
    let link = ("etc/systemd/system/local-fs.target.wants/srv.mount", "->../srv.mount");
    let mounted: [(String, FileList<'_>); 5] = [
        (line("noauto,x-systemd.wanted-by=multi-user.target"), &[]),
        (line("noauto,x-systemd.required-by=local-fs.target"), &[]),
        (line("noauto"), &[("etc/systemd/system/local-fs.target.wants/srv.automount", "")]),
        (line("noauto"), &[link]),
        (format!("UUID={ROOT} / ext4\n"), &[("etc/systemd/system/srv.mount", &unit), link]),
    ];
    let root_part = |root: &Path| part("type=L", ext4(&scratch, root, ROOT));
    for (index, (table, files)) in mounted.into_iter().enumerate() {
        let name = format!("mounted{index}");
        let root = root(&scratch, &name, &table, &[&[("srv/", "")], files].concat());
        let image = disk(&scratch, "gpt", &[root_part(&root), part("type=L", data_content.clone())]);
        check(&image, ExpectedView::Whole(&[("/", &root), ("/srv", &data)]), &[&name, "data"]);
    }
    let needs = ("usr/lib/systemd/system/a.service", "[Unit]\nRequiresMountsFor=/srv/data\n");
    let two = format!("{}UUID={ROOT} /srv ext4\n", line("defaults"));
    let doubtful: [(String, FileList<'_>, &str); 3] = [
        (line("noauto,x-systemd.wanted-by=a.service"), &[], "a unit needs it that may not be started"),
        (line("noauto"), &[needs], "a unit needs it that may not be started"),
        (two, &[], "the table of mounts has two lines for it"),
    ];
    for (index, (table, files, reason)) in doubtful.into_iter().enumerate() {
        let name = format!("doubtful{index}");
        let root = root(&scratch, &name, &table, &[&[("srv/", "")], files].concat());
        let image = disk(&scratch, "gpt", &[root_part(&root), part("type=L", data_content.clone())]);
        let words = format!("ext4 on partition 2 may be mounted on /srv: {reason}");
        check(&image, ExpectedView::Gap(&words), &[&name, "data"]);
    }
}

#[test]
fn e1_e2_a_masked_unit_mounts_nothing() {
    let scratch = Scratch::new();
    let home = folder(&scratch, "home", &[]);
    let content = ext4(&scratch, &home, OTHER);
    let mask = ("etc/systemd/system/home.mount", "->/dev/null");
    let no_generator = ("etc/systemd/system-generators/systemd-gpt-auto-generator", "->/dev/null");
    let own = format!("UUID={ROOT} / ext4\n");
    let bound = format!("{own}/a /home none bind\n");
    let by_table = format!("{own}UUID={OTHER} /home ext4\n");
    let cases = [
        (&own, HOME_TYPE, mask),
        (&by_table, "type=L", mask),
        (&bound, "type=L", mask),
        (&own, HOME_TYPE, no_generator),
    ];
    for (index, (table, fields, masking)) in cases.into_iter().enumerate() {
        let name = format!("root{index}");
        let root = root(&scratch, &name, table, &[("home/", ""), masking]);
        let parts = [part("type=L", ext4(&scratch, &root, ROOT)), part(fields, content.clone())];
        check(&disk(&scratch, "gpt", &parts), ExpectedView::Whole(&[("/", &root)]), &[&name]);
    }
}

#[test]
fn e1_a_table_of_partitions_with_a_wrong_checksum_is_not_used() {
    let scratch = Scratch::new();
    let root = root(&scratch, "root", "", &[]);
    let image = disk(&scratch, "gpt", &[part("type=L", ext4(&scratch, &root, ROOT))]);
    let pristine = fs::read(&image).unwrap();
    let words = "a partition table (GPT) with a wrong checksum on the whole disk, which kiln cannot read";
    // The name of the first partition, the number of entries, and the whole header.
    for (at, bytes) in [(1024 + 56, &b"Z"[..]), (512 + 80, &[64]), (512, &[0; 512])] {
        fs::write(&image, &pristine).unwrap();
        File::options().write(true).open(&image).unwrap().write_all_at(bytes, at).unwrap();
        check(&image, ExpectedView::Refused(words), &[]);
    }
    fs::write(&image, &pristine[..pristine.len() - (2 << 20)]).unwrap();
    check(&image, ExpectedView::Refused(words), &[]);
}

#[test]
fn e1_e2_what_belongs_to_a_file_system_elsewhere_is_neither_root_nor_left_over() {
    let scratch = Scratch::new();
    let menu = "title a\nlinux /v\noptions roothash=abc root=/dev/mapper/root systemd.verity=1\n";
    let root = root(&scratch, "root", "", &[("boot/loader/entries/a.conf", menu)]);
    let content = ext4(&scratch, &root, ROOT);
    let hashes = scratch.path("hashes");
    fs::write(&hashes, [&b"verity\0\0\x01\0\0\0"[..], &[0x5a; 4096]].concat()).unwrap();
    File::options().write(true).open(&hashes).unwrap().set_len(1 << 20).unwrap();
    let journal = scratch.path("journal");
    File::create(&journal).unwrap().set_len(4 << 20).unwrap();
    tool("mke2fs", &["-q", "-F", "-O", "journal_dev", journal.to_str().unwrap()]);
    let root_type = "type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709";
    let parts = [part(root_type, content), part("type=L", hashes), part("type=L", journal)];
    let image = disk(&scratch, "gpt", &parts);
    check(&image, ExpectedView::Whole(&[("/", &root)]), &["root"]);
    let opened = chain(&[(&image, BaseFormat::Raw)]);
    assert_eq!(Tree::open(&opened).unwrap().gaps(), []);
}

#[test]
fn e1_a_file_system_with_errors_is_declared_as_such() {
    let scratch = Scratch::new();
    let folder = folder(&scratch, "errors", &[]);
    for (command, words) in [
        ("ssv state 3", "is marked as having errors: the guest checks it"),
        ("ssv last_orphan 12", "the guest deletes its orphaned files"),
        ("feature needs_recovery", "its journal is not replayed"),
    ] {
        let image = make_ext4(&scratch, "fs", "4M", &["-t", "ext4"], &folder);
        tool("debugfs", &["-w", "-R", command, image.to_str().unwrap()]);
        check(&image, ExpectedView::Gap(words), &["errors"]);
    }
}

#[test]
fn a_table_of_mounts_that_is_too_long_is_named() {
    let scratch = Scratch::new();
    let table = format!("UUID={ROOT} / ext4\n{}", "# comment\n".repeat(200_000));
    let root = root(&scratch, "root", &table, &[]);
    check(
        &ext4(&scratch, &root, ROOT),
        ExpectedView::Refused("/etc/fstab in the guest's file system is longer than"),
        &["root"],
    );
}
