//! Tests of fetches from a guest that keeps working, and of files that its kernel generates.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::trees::fetch;
use super::*;

#[test]
fn files_of_the_kernel_arrive_with_their_content() {
    let temp = tempfile::tempdir().unwrap();
    with_agent(async |mut session, _| {
        let request = fetch(Path::new("/proc/version"), &temp.path().join("kernel"), 1 << 20);
        let tree = session.fetch(request, None, &mut |_| {}).await.unwrap().tree;
        assert!(tree.notes.is_empty() && tree.left_out.is_empty(), "{tree:?}");
        let request = fetch(Path::new("/proc/sys/vm"), &temp.path().join("vm"), 1 << 20);
        let tree = session.fetch(request, None, &mut |_| {}).await.unwrap().tree;
        assert!(tree.files.contains(&"vm/swappiness".to_owned()), "{tree:?}");
        assert_eq!(tree.left_out_count, tree.left_out.len() as u64, "{tree:?}");
        for left_out in &tree.left_out {
            assert!(left_out.contains(": cannot be read: "), "{left_out}");
        }
    });
    assert_eq!(fs::read(temp.path().join("kernel")).unwrap(), fs::read("/proc/version").unwrap());
}

#[test]
fn a_log_in_use_arrives_as_it_was_with_a_note() {
    let temp = tempfile::tempdir().unwrap();
    let log = temp.path().join("busy.log");
    fs::write(&log, vec![b'x'; 30 << 20]).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let (until, path) = (Arc::clone(&is_over), log.clone());
    let writer = std::thread::spawn(move || {
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        while !until.load(Ordering::SeqCst) {
            file.write_all(b"a line\n").unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let from = log.clone();
    with_agent(async |mut session, _| {
        let request = fetch(&from, &temp.path().join("fetched"), 1 << 30);
        let tree = session.fetch(request, None, &mut |_| {}).await.unwrap().tree;
        assert_eq!(tree.notes.len(), 1, "{tree:?}");
        let expected = format!("{} grew while it was read: these are its first ", from.display());
        assert!(tree.notes[0].starts_with(&expected), "{tree:?}");
    });
    is_over.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    let (fetched, log) = (fs::read(temp.path().join("fetched")).unwrap(), fs::read(log).unwrap());
    assert!(fetched.len() >= 30 << 20 && log.starts_with(&fetched));
}
