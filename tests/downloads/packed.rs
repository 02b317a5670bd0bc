//! Packed files: unpacked on the way, and never more than they may.

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use super::*;
use kiln::download::{FileCompression, UnpackError};
use kiln::error::{Fault, Kind};
use kiln::size::ByteSize;

const ALL: [(FileCompression, &str); 3] =
    [(FileCompression::Xz, "a.xz"), (FileCompression::Zstd, "a.zst"), (FileCompression::Gzip, "a.gz")];

fn pack(packing: FileCompression, plain: &[u8]) -> Vec<u8> {
    match packing {
        FileCompression::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        FileCompression::Zstd => zstd::bulk::compress(plain, 1).unwrap(),
        FileCompression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
    }
}

fn packed_request(server: &Server, name: &str, packed: &[u8]) -> DownloadRequest {
    DownloadRequest { packing: FileCompression::of(name), ..request(&[server.url(name)], packed) }
}

/// Noise between zeros, as a disk has it.
fn disk() -> Vec<u8> {
    [&noise(500_000)[..], &vec![0; 3 << 20], &noise(70_001), &vec![0; 100_000]].concat()
}

#[test]
fn each_packing_is_unpacked_and_has_holes_for_zeros() {
    let plain = disk();
    for (packing, name) in ALL {
        assert_eq!(FileCompression::of(name), Some(packing));
        let packed = Arc::new(pack(packing, &plain));
        let server = Server::of(&packed);
        let mut bench = Bench::new();
        let request = packed_request(&server, name, &packed);
        let found = bench.fetch(&request).unwrap();
        assert!(fs::read(&found.path).unwrap() == plain, "{name}");
        assert_eq!((found.sha256.to_string(), found.source_sha256.to_string()), (sha256(&plain), sha256(&packed)));
        let facts = fs::metadata(&found.path).unwrap();
        assert_eq!(facts.permissions().mode() & 0o7777, 0o444);
        assert!(facts.blocks() * 512 < 1 << 20, "{name}: {} blocks", facts.blocks());
        drop(found);
        // Both are kept; the packed one is not asked for again, nor unpacked again.
        assert_eq!(bench.files().len(), 2);
        bench.fetch(&DownloadRequest { packing: None, ..request.clone() }).unwrap();
        bench.fetch_by(NetworkMode::Offline, &request).unwrap();
        assert_eq!(server.seen().len(), 1);
    }
}

#[test]
fn what_is_there_packed_is_unpacked_without_a_network() {
    let plain = disk();
    let packed = Arc::new(pack(FileCompression::Zstd, &plain));
    let server = Server::of(&packed);
    let mut bench = Bench::new();
    let request = packed_request(&server, "a.zst", &packed);
    bench.fetch(&DownloadRequest { packing: None, ..request.clone() }).unwrap();
    let found = bench.fetch_by(NetworkMode::Offline, &request).unwrap();
    assert_eq!(found.sha256.to_string(), sha256(&plain));
    drop(found);
    let mut unpacked = bench.files();
    unpacked.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("unpacked."));
    // One that is damaged is made again.
    damage(&unpacked[0]);
    bench.fetch_by(NetworkMode::Offline, &request).unwrap();
    assert!(bench.notices[0].contains("is damaged and will be made again"), "{:?}", bench.notices);
    assert_eq!((server.seen().len(), bench.files().len()), (1, 2));
}

#[test]
fn streams_one_after_another_are_one_file() {
    for (packing, name) in ALL {
        let packed = Arc::new([pack(packing, b"one "), pack(packing, b"two")].concat());
        let server = Server::of(&packed);
        let found = Bench::new().fetch(&packed_request(&server, name, &packed)).unwrap();
        assert_eq!(found.sha256.to_string(), sha256(b"one two"), "{name}");
    }
}

#[test]
fn what_is_cut_off_or_goes_on_is_refused_though_its_digest_is_right() {
    let plain = noise(300_000);
    for (packing, name) in ALL {
        let packed = pack(packing, &plain);
        let mut broken = packed.clone();
        broken[100_000] ^= 1;
        let broken = if packing == FileCompression::Zstd { packed[..packed.len() - 5].to_vec() } else { broken };
        let cases =
            [packed[..packed.len() - 1].to_vec(), packed[..3].to_vec(), [&packed[..], b"more"].concat(), broken];
        for (number, bytes) in cases.into_iter().enumerate() {
            let bytes = Arc::new(bytes);
            let server = Server::of(&bytes);
            let mut bench = Bench::new();
            let error = bench.fetch(&packed_request(&server, name, &bytes)).unwrap_err();
            let is_refused = matches!(
                &error,
                DownloadError::Unpack { source: UnpackError::Damaged { .. } | UnpackError::Other(_), .. }
            );
            assert!(is_refused && error.kind() == Kind::Base, "{name} {number}: {error:?}");
            assert!(
                bench.files().iter().all(|path| path.starts_with(bench.part(&packed_request(&server, name, &bytes))))
            );
        }
    }
}

#[test]
fn a_file_is_packed_as_its_name_says() {
    let packed = Arc::new(pack(FileCompression::Gzip, b"hello"));
    let server = Server::of(&packed);
    let error = Bench::new().fetch(&packed_request(&server, "a.xz", &packed)).unwrap_err();
    assert_eq!(error.to_string(), "a.xz: the file is not packed with xz, as its name says");
}

#[test]
fn b10_a_bomb_goes_off_at_its_limit() {
    let plain = vec![0; 16 << 20];
    for (packing, name) in ALL {
        let packed = Arc::new(pack(packing, &plain));
        assert!(packed.len() < plain.len() / 100);
        let server = Server::of(&packed);
        let mut bench = Bench::new();
        let mut request = packed_request(&server, name, &packed);
        request.limits.unpacked = ByteSize::mib(4);
        let error = bench.fetch(&request).unwrap_err();
        assert_eq!(error.to_string(), format!("{name}: it unpacks to more than 4MiB"));
        assert_eq!(error.kind().exit_code(), 5);
        // Nothing that came out of it is left, and nothing has its final name.
        let left = bench.files();
        assert!(
            left.iter().all(|path| path.starts_with(bench.part(&request)) && !path.ends_with("unpacked")),
            "{left:?}"
        );
        // Exactly as much as there may be is fine, and the bytes are there already.
        request.limits.unpacked = ByteSize::mib(16);
        bench.fetch(&request).unwrap();
        assert_eq!(server.seen().len(), 1);
    }
}

#[test]
fn a_mirror_that_spoils_a_packed_file_is_left_for_the_next() {
    let plain = disk();
    let packed = Arc::new(pack(FileCompression::Xz, &plain));
    let page = Server::of(&Arc::new(b"<html>log in first</html>".to_vec()));
    let spoiling = {
        let mut spoilt = packed.to_vec();
        spoilt[packed.len() / 2] ^= 1;
        Server::of(&Arc::new(spoilt))
    };
    let good = Server::of(&packed);
    let mut request = request(&[page.url("a.xz"), spoiling.url("a.xz"), good.url("a.xz")], &packed);
    request.packing = Some(FileCompression::Xz);
    let mut bench = Bench::new();
    assert_eq!(bench.fetch(&request).unwrap().sha256.to_string(), sha256(&plain));
    assert_eq!(bench.notices.iter().filter(|text| text.contains("the digest is wrong")).count(), 2);
}

#[test]
fn a_packed_file_that_broke_off_is_unpacked_from_its_first_byte() {
    let plain = noise(2 << 20);
    let packed = Arc::new(pack(FileCompression::Gzip, &plain));
    let served = packed.clone();
    let server = Server::start(move |seen, reply| {
        let from = reply.good_head(seen, served.len())?;
        reply.send(&served[from..(from + (1 << 20)).min(served.len())])
    });
    let mut request = packed_request(&server, "a.gz", &packed);
    request.limits.attempts = 1;
    let mut bench = Bench::new();
    assert!(bench.fetch(&request).is_err());
    request.limits.attempts = 3;
    assert_eq!(bench.fetch(&request).unwrap().sha256.to_string(), sha256(&plain));
    assert_eq!(server.seen()[1].from, Some(1 << 20));
}

/// Flips a bit of a file that is read-only.
pub fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[1000] ^= 1;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}
