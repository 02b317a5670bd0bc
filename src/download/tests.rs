//! Tests of the cache when kiln is killed, or cannot write, at any of its calls.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;

use super::*;
use tokio_util::sync::CancellationToken;

use crate::digest::Sha256Digest;
use crate::error::{Fault, Kind};
use crate::fs::testing::faults::on_a_small_disk;

/// Returns a request for a packed file of this host with this content.
fn request(folder: &Path, plain: &[u8]) -> DownloadRequest {
    let packed = zstd::bulk::compress(plain, 1).unwrap();
    let path = folder.join("disk.zst");
    fs::write(&path, &packed).unwrap();
    DownloadRequest {
        urls: vec![format!("file://{}", path.display()).parse().unwrap()],
        pin: DownloadPin::Checksum(Sha256Digest::of(&packed).into()),
        packing: Some(FileCompression::Zstd),
        limits: DownloadLimits::default(),
    }
}

fn downloads(cache: &Path, reach: NetworkMode, fs: &Fs) -> Result<DownloadCache, DownloadError> {
    DownloadCache::open_on(cache, Arc::new(DigestCache::load(cache)), reach, fs.clone())
}

fn fetch(cache: &Path, request: &DownloadRequest, reach: NetworkMode, fs: &Fs) -> Result<Download, DownloadError> {
    let cancel = CancellationToken::new();
    downloads(cache, reach, fs)?.fetch(request, &mut DownloadWatch::new(&cancel, &mut |_| {}, &mut |_| {}))
}

fn partial(cache: &Path) -> usize {
    fs::read_dir(cache.join("downloads/part")).map_or(0, Iterator::count)
}

#[test]
fn h5_a_kill_at_any_call_leaves_the_file_whole_or_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let plain = b"a disk".repeat(50_000);
    let request = request(folder.path(), &plain);
    let mut kills = 0;
    for calls in 0.. {
        let cache = folder.path().join(format!("cache-{calls}"));
        fs::create_dir(&cache).unwrap();
        let fs = Fs::default();
        fs.faults.die_after(calls);
        let killed = fetch(&cache, &request, NetworkMode::Online, &fs);
        let is_done = killed.is_ok();
        drop(killed);
        match fetch(&cache, &request, NetworkMode::Offline, &Fs::default()) {
            Ok(found) => assert_eq!(fs::read(found.path).unwrap(), plain),
            Err(error) => assert!(!is_done && matches!(error, DownloadError::Offline(_)), "{calls}: {error}"),
        }
        let found = fetch(&cache, &request, NetworkMode::Online, &Fs::default()).unwrap();
        assert_eq!(fs::read(found.path).unwrap(), plain);
        let evicted = downloads(&cache, NetworkMode::Offline, &Fs::default()).unwrap();
        evicted.evict(ByteSize::gib(1)).unwrap();
        if is_done {
            break;
        }
        kills += 1;
    }
    assert!(kills > 15, "{kills}");
}

#[test]
fn h10_what_cannot_be_kept_leaves_nothing_and_is_the_hosts_fault() {
    let folder = tempfile::tempdir().unwrap();
    let request = request(folder.path(), &b"a disk".repeat(50_000));
    for errno in [Errno::EIO, Errno::ENOSPC, Errno::EROFS] {
        for calls in 0.. {
            let cache = folder.path().join(format!("{errno:?}-{calls}"));
            fs::create_dir(&cache).unwrap();
            let fs = Fs::default();
            fs.faults.fail_at(calls, errno);
            let fetched = fetch(&cache, &request, NetworkMode::Online, &fs).map(drop);
            let Some(failed) = fs.faults.failed() else {
                fetched.unwrap();
                break;
            };
            // A failure to remove leftovers after the download is ignored.
            if let Err(error) = fetched {
                assert_eq!(error.kind(), Kind::Host, "{failed}");
            }
            fs.faults.heal();
            fetch(&cache, &request, NetworkMode::Online, &fs).expect(&failed);
            downloads(&cache, NetworkMode::Offline, &fs).unwrap().evict(ByteSize(0)).unwrap();
            assert_eq!(partial(&cache), 0, "{failed}");
        }
    }
}

#[test]
fn h9_a_full_disk_is_told_and_left_as_it_was() {
    on_a_small_disk("download::tests::h9_a_full_disk_is_told_and_left_as_it_was", |disk| {
        let folder = tempfile::tempdir().unwrap();
        // The packed file fits, the unpacked one does not; in the second case there is nothing to unpack.
        let plain: Vec<u8> = (0..600_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let packed = request(folder.path(), &plain);
        let path = folder.path().join("plain");
        fs::write(&path, &plain).unwrap();
        let plain = DownloadRequest {
            urls: vec![format!("file://{}", path.display()).parse().unwrap()],
            pin: DownloadPin::Checksum(Sha256Digest::of(&plain).into()),
            packing: None,
            ..packed.clone()
        };
        for request in [packed, plain] {
            let error = fetch(disk, &request, NetworkMode::Online, &Fs::default()).unwrap_err();
            assert_eq!(error.kind(), Kind::Host, "{error}");
            assert!(error.hints()[0].contains("make room"), "{error}");
            assert_eq!(partial(disk), 0);
        }
    });
}
