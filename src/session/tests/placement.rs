//! Tests of `copy` and `write` with existing files in the guest, and of the resulting owners.

use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};

use super::trees::folder;
use super::*;

/// Returns two users without an account, or this user if the tests may not give files away.
fn users() -> [(u32, u32); 2] {
    let me = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    if me.0 == 0 { [(1234, 4321), (77, 88)] } else { [me, me] }
}

fn owner_of(path: &Path) -> (u32, u32) {
    let about = fs::symlink_metadata(path).unwrap();
    (about.uid(), about.gid())
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn owned_by((user, group): (u32, u32), source: StageSource) -> StageSource {
    StageSource { owner: specfile::FileOwner { user: user.to_string(), group: Some(group.to_string()) }, ..source }
}

#[test]
fn folders_made_on_the_way_belong_to_the_owner_and_older_ones_to_theirs() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path();
    let [dev, other] = users();
    for (name, mode) in [("home", 0o711), ("site", 0o750)] {
        fs::create_dir(base.join(name)).unwrap();
        fs::set_permissions(base.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(base.join("site/index"), "new").unwrap();
    lchown(base.join("home"), Some(other.0), Some(other.1)).unwrap();
    with_agent(async |mut session, _| {
        let site = base.join("site");
        for source in [
            text("theme = dark\n", &base.join("home/.config/app/app.conf")),
            folder(&site, &base.join("home/a/b"), false, false),
            folder(&site, &base.join("home/c/d"), true, true),
            folder(&site.join("index"), &base.join("home/e/f"), false, true),
        ] {
            session.upload(&owned_by(dev, source), &mut |_| {}).await.unwrap();
        }
    });
    assert_eq!((owner_of(&base.join("home")), mode_of(&base.join("home"))), (other, 0o711));
    for made in [".config", ".config/app", "a", "c", "e", "e/f"] {
        let made = base.join("home").join(made);
        assert_eq!((owner_of(&made), mode_of(&made)), (dev, 0o755), "{}", made.display());
    }
    for copied in [".config/app/app.conf", "a/b", "a/b/index", "c/d", "c/d/index", "e/f/index"] {
        assert_eq!(owner_of(&base.join("home").join(copied)), dev, "{copied}");
    }
    assert_eq!((mode_of(&base.join("home/a/b")), mode_of(&base.join("home/c/d"))), (0o750, 0o750));
}

#[test]
fn folders_within_a_copy_that_were_there_keep_owner_and_mode() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path();
    let [dev, other] = users();
    fs::create_dir_all(base.join("overlay/tmp/new")).unwrap();
    fs::create_dir_all(base.join("overlay/home/dev")).unwrap();
    fs::write(base.join("overlay/home/dev/.bashrc"), "x").unwrap();
    fs::create_dir_all(base.join("root/tmp")).unwrap();
    fs::create_dir_all(base.join("root/home/dev")).unwrap();
    fs::set_permissions(base.join("root/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(base.join("root/home/dev"), fs::Permissions::from_mode(0o700)).unwrap();
    lchown(base.join("root/home/dev"), Some(dev.0), Some(dev.1)).unwrap();
    with_agent(async |mut session, _| {
        let overlay = folder(&base.join("overlay"), &base.join("root"), true, true);
        session.upload(&owned_by(other, overlay), &mut |_| {}).await.unwrap();
    });
    assert_eq!(mode_of(&base.join("root/tmp")), 0o1777);
    assert_eq!((owner_of(&base.join("root/home/dev")), mode_of(&base.join("root/home/dev"))), (dev, 0o700));
    assert_eq!(owner_of(&base.join("root/tmp/new")), other);
    assert_eq!(owner_of(&base.join("root/home/dev/.bashrc")), other);
}

#[test]
fn a_link_to_a_folder_is_that_folder() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path();
    fs::create_dir_all(base.join("site/sub")).unwrap();
    fs::write(base.join("site/sub/page"), "new").unwrap();
    symlink("v2", base.join("site/current")).unwrap();
    fs::create_dir_all(base.join("real/v1")).unwrap();
    fs::set_permissions(base.join("real"), fs::Permissions::from_mode(0o711)).unwrap();
    symlink("real", base.join("link")).unwrap();
    symlink("v1", base.join("real/current")).unwrap();
    with_agent(async |mut session, _| {
        let site = base.join("site");
        for (contents, into) in [(false, false), (true, true), (false, true)] {
            session.upload(&folder(&site, &base.join("link"), contents, into), &mut |_| {}).await.unwrap();
        }
    });
    assert!(base.join("link").is_symlink());
    assert_eq!(mode_of(&base.join("real")), 0o711);
    for page in ["real/sub/page", "real/site/sub/page"] {
        assert_eq!(fs::read_to_string(base.join(page)).unwrap(), "new", "{page}");
    }
    // A link replaces another, wherever that led.
    assert_eq!(fs::read_link(base.join("real/current")).unwrap(), Path::new("v2"));
}

#[test]
fn what_is_in_the_way_is_named_with_what_to_do() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path();
    fs::create_dir_all(base.join("site/bin")).unwrap();
    fs::write(base.join("site/bin/tool"), "new").unwrap();
    fs::create_dir_all(base.join("tools")).unwrap();
    fs::write(base.join("tools/bin"), "new").unwrap();
    symlink("nowhere", base.join("tools/lib")).unwrap();
    fs::write(base.join("file"), "old").unwrap();
    symlink("nowhere", base.join("dangling")).unwrap();
    for folder in ["a/lib", "b/usr/bin", "c/bin", "d"] {
        fs::create_dir_all(base.join(folder)).unwrap();
    }
    symlink("usr/bin", base.join("b/bin")).unwrap();
    fs::write(base.join("d/bin"), "old").unwrap();
    let (site, tools) = (base.join("site"), base.join("tools"));
    with_agent(async |mut session, _| {
        for (source, in_the_way, what) in [
            (folder(&site, &base.join("file"), false, false), "file", "is a file, where a folder is needed"),
            (folder(&site, &base.join("file"), true, true), "file", "is a file, where a folder is needed"),
            (folder(&site, &base.join("file"), false, true), "file", "is a file, where a folder is needed"),
            (text("new", &base.join("file/deeper/conf")), "file", "is a file, where a folder is needed"),
            (folder(&site, &base.join("d"), true, true), "d/bin", "is a file, where a folder is needed"),
            (folder(&site, &base.join("dangling"), false, false), "dangling", "leads to no folder"),
            (text("new", &base.join("dangling/conf")), "dangling", "leads to no folder"),
            (folder(&tools, &base.join("a"), true, true), "a/lib", "is a folder, which a symbolic link cannot replace"),
            (folder(&tools, &base.join("c"), true, true), "c/bin", "is a folder, which a file cannot replace"),
            (
                folder(&tools, &base.join("b"), true, true),
                "b/bin",
                "is a symbolic link to a folder, which a file cannot replace",
            ),
        ] {
            let refused = session.upload(&source, &mut |_| {}).await.unwrap_err().to_string();
            let expected = format!("{} is ", base.join(in_the_way).display());
            assert!(refused.contains(&expected) && refused.contains(what), "{source:?}: {refused}");
            assert!(refused.contains("remove it in an earlier step"), "{refused}");
        }
    });
    assert!(base.join("b/bin").is_symlink() && base.join("dangling").is_symlink());
    assert_eq!(fs::read_to_string(base.join("file")).unwrap(), "old");
}
