//! Trees to the guest and back.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use crate::copy_filter::CopyFilter;
use crate::progress::Progress;

use super::*;

pub(super) fn folder(from: &Path, to: &Path, contents: bool, into: bool) -> StageSource {
    StageSource {
        what: StageContent::Path { from: from.to_owned(), contents, filter: CopyFilter::default() },
        to: to.to_str().unwrap().into(),
        into,
        owner: me(),
        mode: None,
    }
}

/// Returns a request to fetch at most so many bytes to this path.
pub(super) fn fetch(from: &Path, to: &Path, bytes: u64) -> FetchRequest {
    FetchRequest {
        from: from.to_str().unwrap().into(),
        root: to.parent().unwrap().into(),
        to: to.file_name().unwrap().into(),
        limits: FetchLimits::new(bytes),
    }
}

/// Lists everything that a copy of a tree preserves, by path.
fn listing(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let about = fs::symlink_metadata(&path).unwrap();
        let content = match about.file_type() {
            kind if kind.is_dir() => {
                waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                "folder".into()
            }
            kind if kind.is_symlink() => format!("-> {}", fs::read_link(&path).unwrap().display()),
            kind if kind.is_file() => format!("{:?}", hash(&fs::read(&path).unwrap())),
            other => format!("{other:?}"),
        };
        let links = if about.is_dir() { 0 } else { about.nlink() };
        let line = format!("{:o} {links} {}.{} {content}", about.mode(), about.mtime(), about.mtime_nsec());
        found.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), line);
    }
    found
}

fn hash(bytes: &[u8]) -> (usize, u64) {
    (bytes.len(), bytes.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte))))
}

/// Creates a folder with one entry of every type.
fn zoo(root: &Path) {
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir_all(root.join("deep/er/empty")).unwrap();
    fs::write(root.join("plain"), "plain").unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    fs::write(root.join("deep/run.sh"), "#!/bin/sh\n").unwrap();
    mode(&root.join("deep/run.sh"), 0o4755);
    fs::write(root.join(OsStr::from_bytes(b"\xff\xfe name\n")), "odd").unwrap();
    fs::hard_link(root.join("plain"), root.join("deep/er/same")).unwrap();
    symlink("../nowhere", root.join("deep/link")).unwrap();
    let sparse = File::create(root.join("deep/sparse")).unwrap();
    sparse.write_all_at(&[7; 10_000], 5 << 20).unwrap();
    sparse.set_len((20 << 20) + 123).unwrap();
    fs::write(root.join("large"), vec![42; (9 << 20) + 17]).unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o620)).unwrap();
    mode(&root.join("deep/er"), 0o2750);
    mode(root, 0o711);
    for path in ["large", "deep/er/empty", "deep/er", "deep", "."] {
        File::open(root.join(path))
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321))
            .unwrap();
    }
}

#[test]
fn a_tree_arrives_as_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("zoo"), temp.path().join("a/b/copy"));
    zoo(&from);
    with_agent(async |mut session, _| {
        let mut progress = 0;
        let sent = session.upload(&folder(&from, &to, false, false), &mut |bytes| progress = bytes).await.unwrap();
        assert_eq!(listing(&from), listing(&to));
        assert!(progress > 9 << 20);
        let device = File::create(temp.path().join("device")).unwrap();
        assert_eq!(
            sent.sha256,
            stage(&folder(&from, &to, false, false), &device, &Progress::unwatched()).unwrap().sha256
        );
        let blocks = fs::metadata(to.join("deep/sparse")).unwrap().blocks();
        assert!(blocks <= 64, "{blocks} blocks: the holes are gone");
        assert_eq!(fs::metadata(temp.path().join("a")).unwrap().mode() & 0o7777, 0o755);
    });
}

#[test]
fn extended_attributes_are_kept() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::write(&from, "x").unwrap();
    testing::set_xattr(&from, b"user.kiln", b"v\0lue").unwrap();
    with_agent(async |mut session, _| {
        session.upload(&folder(&from, &to, false, false), &mut |_| {}).await.unwrap();
        assert_eq!(testing::xattr(&to, b"user.kiln").unwrap(), b"v\0lue");
    });
}

#[test]
fn a_slash_decides_where_a_copy_goes_and_nothing_in_the_guest_does() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path();
    let from = base.join("site");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("index"), "new").unwrap();
    fs::set_permissions(&from, fs::Permissions::from_mode(0o711)).unwrap();
    let file = from.join("index");
    for old in ["o1", "o2"] {
        fs::create_dir(base.join(old)).unwrap();
        fs::write(base.join(old).join("index"), "old").unwrap();
        fs::write(base.join(old).join("kept"), "kept").unwrap();
        fs::set_permissions(base.join(old), fs::Permissions::from_mode(0o700)).unwrap();
    }
    symlink("o1", base.join("link")).unwrap();
    with_agent(async |mut session, _| {
        let mut check = async |source: StageSource, expected: &str| {
            session.upload(&source, &mut |_| {}).await.unwrap();
            assert_eq!(fs::read_to_string(base.join(expected)).unwrap(), "new", "{source:?}");
        };
        check(folder(&from, &base.join("n1"), false, false), "n1/index").await;
        check(folder(&from, &base.join("n2"), true, true), "n2/index").await;
        check(folder(&from, &base.join("n3"), true, false), "n3/index").await;
        check(folder(&from, &base.join("n4"), false, true), "n4/site/index").await;
        check(folder(&from, &base.join("o1"), false, false), "o1/index").await;
        check(folder(&from, &base.join("o2"), true, true), "o2/index").await;
        check(folder(&file, &base.join("f1"), false, false), "f1").await;
        check(folder(&file, &base.join("f2"), false, true), "f2/index").await;
        check(text("new", &base.join("t1/deeper")), "t1/deeper").await;
    });
    for old in ["o1", "o2"] {
        assert_eq!(fs::read_to_string(base.join(old).join("kept")).unwrap(), "kept");
        assert!(!base.join(old).join("site").exists());
    }
    let mode = |path: &str| fs::metadata(base.join(path)).unwrap().mode() & 0o7777;
    assert_eq!(mode("o1"), 0o711, "the folder itself was copied");
    assert_eq!(mode("o2"), 0o700, "a folder that is merged into keeps its mode");
    assert_eq!(fs::metadata(base.join("t1/deeper")).unwrap().mtime(), 1_700_000_000);
}

#[test]
fn a_file_in_the_place_of_a_folder_is_refused_with_what_to_do() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path();
    let file = base.join("index");
    fs::write(&file, "new").unwrap();
    fs::create_dir_all(base.join("srv/index")).unwrap();
    symlink("srv", base.join("link")).unwrap();
    with_agent(async |mut session, _| {
        for (source, remedy) in [
            (folder(&file, &base.join("srv"), false, false), "end `to` with a slash"),
            (folder(&file, &base.join("link"), false, false), "end `to` with a slash"),
            (folder(&file, &base.join("srv"), false, true), "copy to another name"),
            (text("new", &base.join("srv")), "write to a file in it"),
            (text("new", &base.join("link")), "write to a file in it"),
        ] {
            let refused = session.upload(&source, &mut |_| {}).await.unwrap_err().to_string();
            assert!(refused.contains("is a folder") && refused.contains(remedy), "{source:?}: {refused}");
        }
    });
    assert!(fs::symlink_metadata(base.join("link")).unwrap().is_symlink());
    assert_eq!(fs::read_dir(base.join("srv/index")).unwrap().count(), 0);
}

#[test]
fn links_in_the_guest_are_followed_above_and_replaced_below() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path();
    fs::create_dir_all(base.join("root/usr/bin")).unwrap();
    symlink("usr/bin", base.join("root/bin")).unwrap();
    fs::write(base.join("target"), "untouched").unwrap();
    symlink(base.join("target"), base.join("root/usr/bin/tool")).unwrap();
    fs::create_dir_all(base.join("from/bin")).unwrap();
    fs::write(base.join("from/bin/tool"), "new").unwrap();
    with_agent(async |mut session, _| {
        session.upload(&folder(&base.join("from"), &base.join("root"), true, true), &mut |_| {}).await.unwrap();
    });
    assert!(fs::symlink_metadata(base.join("root/bin")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(base.join("root/usr/bin/tool")).unwrap().is_file());
    assert_eq!(fs::read_to_string(base.join("target")).unwrap(), "untouched");
    let left: Vec<_> = fs::read_dir(base.join("root/usr/bin")).unwrap().collect();
    assert_eq!(left.len(), 1, "a temporary name is left: {left:?}");
}

#[test]
fn twenty_thousand_small_files_arrive() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    for n in 0..200 {
        let inner = from.join(n.to_string());
        fs::create_dir_all(&inner).unwrap();
        (0..100).for_each(|n| fs::write(inner.join(n.to_string()), n.to_string()).unwrap());
    }
    with_agent(async |mut session, _| {
        session.upload(&folder(&from, &to, false, false), &mut |_| {}).await.unwrap();
    });
    assert_eq!(listing(&from).len(), listing(&to).len());
}

#[test]
fn g5_what_was_fetched_is_tame() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("zoo"), temp.path().join("out/zoo"));
    zoo(&from);
    let odd = from.join(OsStr::from_bytes(b"\xff\xfe name\n"));
    with_agent(async |mut session, _| {
        let refused = session.fetch(fetch(&from, &temp.path().join("odd"), 1 << 30), None, &mut |_| {}).await;
        assert!(matches!(refused, Err(GuestError::Unkept { .. })), "{refused:?}");
        fs::remove_file(odd).unwrap();
        symlink("er/same", from.join("deep/inner")).unwrap();
        symlink(from.join("plain"), from.join("deep/absolute")).unwrap();
        let stream = temp.path().join("stream");
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        let fetched = session.fetch(fetch(&from, &to, 1 << 30), Some(stream.clone()), &mut |_| {}).await.unwrap();
        let tree = fetched.tree;
        assert_eq!(tree.files.len(), 6, "{tree:?}");
        let links = [("zoo/deep/absolute", "../plain"), ("zoo/deep/inner", "er/same"), ("zoo/deep/link", "../nowhere")];
        assert_eq!(tree.links, links.map(|(link, to)| (link.to_owned(), to.to_owned())).into());
        assert_eq!(tree.left_out, ["pipe: a named pipe", "socket: a socket"]);
        // The stream that is kept for the step cache produces the same tree.
        let again = fetch(&from, &temp.path().join("again/zoo"), 1 << 30);
        let stream = std::io::BufReader::new(File::open(stream).unwrap());
        assert_eq!(receive::receive(stream, &again).unwrap().0, tree);
        assert_eq!(listing(&to), listing(&temp.path().join("again/zoo")));
        assert!(to.join("deep/er/empty").is_dir());
        let device =
            session.fetch(fetch(Path::new("/dev/null"), &temp.path().join("null"), 5), None, &mut |_| {}).await;
        let device = device.unwrap_err().to_string();
        assert!(device.contains("`/dev/null` cannot be kept beside the image: it is a device"), "{device}");
        let plain = from.join("plain");
        let one = session.fetch(fetch(&plain, &temp.path().join("one"), 5), None, &mut |_| {}).await.unwrap();
        assert_eq!(one.tree.files, ["one"]);
        let missing = fetch(Path::new("/no/such/file"), &temp.path().join("two"), 5);
        let missing = session.fetch(missing, None, &mut |_| {}).await;
        assert!(matches!(missing, Err(GuestError::Refused { full: false, .. })), "{missing:?}");
        assert_eq!(output(&mut session, &sh("echo still here")).await.1, "still here\n");
    });
    assert_eq!(fs::metadata(to.join("deep/run.sh")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(to.join("plain")).unwrap().mode() & 0o7777, 0o644);
    assert_eq!(fs::read(to.join("large")).unwrap(), fs::read(from.join("large")).unwrap());
    assert_eq!(fs::read(to.join("deep/sparse")).unwrap(), fs::read(from.join("deep/sparse")).unwrap());
    assert_eq!(fs::metadata(to.join("large")).unwrap().mtime(), 1_234_567_890);
}

#[test]
fn g5_a_fetch_beyond_its_limit_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let from = temp.path().join("from");
    File::create(&from).unwrap().set_len(1 << 40).unwrap();
    with_agent(async |mut session, _| {
        let refused = session.fetch(fetch(&from, &temp.path().join("to"), 1 << 30), None, &mut |_| {}).await;
        assert!(matches!(refused, Err(GuestError::Beyond(_))), "{refused:?}");
        session.ping().await.unwrap();
    });
}

#[test]
fn a_stream_that_cannot_be_kept_does_not_end_the_fetch() {
    let temp = tempfile::tempdir().unwrap();
    let from = temp.path().join("from");
    fs::write(&from, "x").unwrap();
    with_agent(async |mut session, _| {
        let full =
            session.fetch(fetch(&from, &temp.path().join("to"), 5), Some("/dev/full/stream".into()), &mut |_| {}).await;
        let full = full.unwrap();
        assert!(full.unkept.is_some() && full.tree.files == ["to"], "{full:?}");
        assert_eq!(fs::read(temp.path().join("to")).unwrap(), b"x");
    });
}

#[test]
fn the_limits_of_a_fetch_count_all_fetches_and_no_path_of_this_host() {
    let temp = tempfile::tempdir().unwrap();
    let from = temp.path().join("from");
    fs::create_dir(&from).unwrap();
    (0..10).for_each(|n| fs::write(from.join(format!("{n}")), "x").unwrap());
    let deep = temp.path().join("long/".repeat(200));
    with_agent(async |mut session, _| {
        let mut request = fetch(&from, &deep.join("to"), 1 << 20);
        // A folder and ten files: `to`, and `to/0` to `to/9`.
        (request.limits.entries, request.limits.names) = (21, 83);
        let tree = session.fetch(request.clone(), None, &mut |_| {}).await.unwrap().tree;
        request.limits = request.limits.besides(&tree);
        assert_eq!((request.limits.entries, request.limits.names), (10, 41));
        request.to = "ot".into();
        let refused = session.fetch(request.clone(), None, &mut |_| {}).await.unwrap_err().to_string();
        assert!(refused.contains("99000 files, folders and links"), "{refused}");
        (request.limits.entries, request.to) = (11, "on".into());
        let refused = session.fetch(request, None, &mut |_| {}).await.unwrap_err().to_string();
        assert!(refused.contains("names of 3145728 bytes"), "{refused}");
    });
}

#[test]
fn a_staged_tree_is_the_same_tree() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("zoo"), temp.path().join("copy"));
    zoo(&from);
    let device = temp.path().join("device");
    let source = folder(&from, &to, false, false);
    let written = AtomicU64::new(0);
    let cancel = CancellationToken::new();
    let progress = Progress::new(&cancel, |done, _| written.store(done, Ordering::Relaxed));
    let staged = stage(&source, &File::create(&device).unwrap(), &progress).unwrap();
    let written = written.load(Ordering::Relaxed);
    assert_eq!(fs::metadata(&device).unwrap().len(), staged.bytes);
    assert!(staged.bytes.is_multiple_of(4096) && written <= staged.bytes && written + 4096 > staged.bytes);
    cancel.cancel();
    stage(&source, &File::create(temp.path().join("stopped")).unwrap(), &progress).unwrap_err();
    let totals = testing::unpack_file(&device).unwrap();
    assert_eq!((totals.entries, totals.bytes), (staged.entries, staged.content));
    assert_eq!(listing(&from), listing(&to));
}

#[test]
fn the_digest_sees_content_but_not_holes() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("file");
    let digest = |write: &dyn Fn(&File)| {
        let file = File::create(&path).unwrap();
        write(&file);
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        folder(&path, Path::new("/to"), false, false).examine().unwrap().sha256
    };
    let holes = digest(&|file| file.set_len(1 << 20).unwrap());
    let zeros = digest(&|file| file.write_all_at(&vec![0; 1 << 20], 0).unwrap());
    let other = digest(&|file| file.write_all_at(&vec![1; 1 << 20], 0).unwrap());
    assert_eq!(holes, zeros);
    assert_ne!(zeros, other);
}

#[test]
fn an_input_that_cannot_be_read_is_the_users_fault_and_spoils_nothing() {
    let temp = tempfile::tempdir().unwrap();
    with_agent(async |mut session, _| {
        let source = folder(&temp.path().join("missing"), &temp.path().join("to"), false, false);
        let missing = session.upload(&source, &mut |_| {}).await;
        assert!(matches!(missing, Err(GuestError::Input(_))), "{missing:?}");
        let device = folder(Path::new("/dev/null"), &temp.path().join("to"), false, false);
        let device = session.upload(&device, &mut |_| {}).await;
        assert!(matches!(device, Err(GuestError::Input(_))), "{device:?}");
        session.ping().await.unwrap();
    });
}

#[test]
fn an_upload_that_breaks_off_leaves_no_half_file() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("a"), vec![1; 3 << 20]).unwrap();
    let mut stream = Vec::new();
    folder(&from, &to, true, false).write_to(&mut stream, crate::wire::tree::Layout::Packed).unwrap();
    let device = temp.path().join("device");
    fs::write(&device, &stream[..2 << 20]).unwrap();
    testing::unpack_file(&device).unwrap_err();
    assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
    // The same where it was to replace an older file.
    fs::write(to.join("a"), "older").unwrap();
    testing::unpack_file(&device).unwrap_err();
    assert_eq!(fs::read_to_string(to.join("a")).unwrap(), "older");
}
