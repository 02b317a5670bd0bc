//! Files with more zeroes than are hashed: listed alike by the host and by the guest, in no more time.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use kiln::agent::list::list_folder;
use kiln::disk::entry::canonical;
use kiln::disk::guest_listing::GuestListing;
use kiln::disk::tree::Tree;
use kiln::specfile::BaseFormat;

use super::layouts::{ROOT, digest, ext4, root, sees_change};
use super::{Scratch, chain, tree_lines};

/// The digest of what is not zero in a file, made anew from its description in `docs/store.md`.
fn sparse_sha256(blocks: &[(u64, &[u8])]) -> String {
    let mut sha = sha2::Sha256::default();
    for (at, bytes) in blocks {
        sha2::Digest::update(&mut sha, at.to_le_bytes());
        sha2::Digest::update(&mut sha, bytes);
    }
    kiln::digest::hex(&sha2::Digest::finalize(sha))
}

#[test]
fn e2_files_may_be_larger_than_the_disk() {
    let scratch = Scratch::new();
    let folder = root(&scratch, "root", "", &[("empty", ""), ("data", "")]);
    for (name, size) in [("empty", 200 << 30), ("data", 300 << 30)] {
        let file = File::options().write(true).open(folder.join(name)).unwrap();
        file.set_len(size).unwrap();
    }
    let file = File::options().write(true).open(folder.join("data")).unwrap();
    file.write_all_at(b"<early>", 10 << 12).unwrap();
    file.write_all_at(b"end", (300 << 30) - 3).unwrap();
    let mut early = b"<early>".to_vec();
    early.resize(4096, 0);
    let mut end = vec![0; 4093];
    end.extend_from_slice(b"end");
    let content = ext4(&scratch, &folder, ROOT);
    let disk = chain(&[(&content, BaseFormat::Raw)]);
    let lines = tree_lines(&Tree::open(&disk).unwrap());
    let data = sparse_sha256(&[(10 << 12, &early), ((300 << 30) - 4096, &end)]);
    for expected in [
        format!("size={} sparse_sha256={}\n", 200_u64 << 30, sparse_sha256(&[])),
        format!("size={} sparse_sha256={data}\n", 300_u64 << 30),
    ] {
        assert!(lines.iter().any(|line| line.ends_with(&expected)), "{expected} {lines:?}");
    }
    // The guest's own list is the same.
    let mut spool = tempfile::tempfile().unwrap();
    let totals = list_folder(&folder, &mut spool, &mut |_| {}).unwrap();
    let mut listed = Vec::new();
    GuestListing::new(spool, totals.entries)
        .walk(&mut |entry| {
            listed.extend((entry.path != b"/").then(|| canonical(entry)));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(listed, lines);
    assert!(sees_change(&content, digest(&content), "<early>"));
}
