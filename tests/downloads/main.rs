//! Downloads from servers on this host that break off, lie, trickle and redirect; kills, mirrors, and the cache.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use kiln::digest_cache::DigestCache;
use kiln::download::{
    Download, DownloadCache, DownloadError, DownloadLimits, DownloadPin, DownloadProgress, DownloadRequest,
    DownloadWatch, FileCompression, NetworkMode, TransferError,
};
use sha2::{Digest, Sha256};

use server::Server;

mod cache;
mod network;
mod packed;
mod server;
mod sums;
mod tls;

/// A cache, and what was said about it.
struct Bench {
    folder: tempfile::TempDir,
    notices: Vec<String>,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), notices: Vec::new() }
    }

    fn downloads(&self, reach: NetworkMode) -> DownloadCache {
        DownloadCache::open(self.folder.path(), Arc::new(DigestCache::load(self.folder.path())), reach).unwrap()
    }

    fn fetch(&mut self, request: &DownloadRequest) -> Result<Download, DownloadError> {
        self.fetch_by(NetworkMode::Online, request)
    }

    fn fetch_by(&mut self, reach: NetworkMode, request: &DownloadRequest) -> Result<Download, DownloadError> {
        let downloads = self.downloads(reach);
        let notices = &mut self.notices;
        let cancel = CancellationToken::new();
        downloads.fetch(request, &mut DownloadWatch::new(&cancel, &mut |_| {}, &mut |text| notices.push(text)))
    }

    /// Every file in the cache, but for the memory of digests.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.folder.path().join("downloads")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() { folders.push(path) } else { found.push(path) }
            }
        }
        found
    }

    fn part(&self, request: &DownloadRequest) -> PathBuf {
        let DownloadPin::Checksum(checksum) = &request.pin else { unreachable!() };
        self.folder.path().join("downloads/part").join(checksum.hex())
    }
}

/// Bytes that no packing makes smaller, always the same.
fn noise(length: usize) -> Arc<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(length);
    Arc::new(bytes)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As impatient as a test may be.
fn limits() -> DownloadLimits {
    DownloadLimits { pause: Duration::from_millis(1), attempts: 3, ..DownloadLimits::default() }
}

fn request(urls: &[String], body: &[u8]) -> DownloadRequest {
    DownloadRequest {
        urls: urls.iter().map(|url| url.parse().unwrap()).collect(),
        pin: DownloadPin::Checksum(sha256(body).parse().unwrap()),
        packing: None,
        limits: limits(),
    }
}

fn problems(error: &DownloadError) -> Vec<&TransferError> {
    match error {
        DownloadError::Failed { tried, .. } => tried.iter().map(|tried| &tried.problem).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_is_downloaded_once_and_kept_read_only() {
    let body = noise(1_000_003);
    let server = Server::of(&body);
    let request = request(&[server.url("web.qcow2")], &body);
    let mut bench = Bench::new();
    for _ in 0..2 {
        let found = bench.fetch(&request).unwrap();
        assert_eq!(fs::read(&found.path).unwrap(), *body);
        assert_eq!((found.sha256.to_string(), found.bytes), (sha256(&body), body.len() as u64));
        assert_eq!(fs::metadata(&found.path).unwrap().permissions().mode() & 0o7777, 0o444);
    }
    assert_eq!(server.seen().len(), 1);
    assert_eq!(bench.files().len(), 1, "{:?}", bench.files());
    assert!(bench.fetch_by(NetworkMode::Offline, &request).is_ok());
}

/// How many bytes of the file come from a place, as it is told.
fn told_bytes(downloads: &DownloadCache, request: &DownloadRequest) -> u64 {
    let mut bytes = 0;
    let mut heard = |now: DownloadProgress| {
        if now.is_download {
            bytes = now.done;
        }
    };
    let cancel = CancellationToken::new();
    downloads.fetch(request, &mut DownloadWatch::new(&cancel, &mut heard, &mut |_| {})).unwrap();
    bytes
}

#[test]
fn only_bytes_from_a_place_are_told_as_a_download() {
    let plain = noise(1 << 20);
    let packed = Arc::new(zstd::bulk::compress(&plain, 1).unwrap());
    let server = Server::of(&packed);
    let bench = Bench::new();
    let downloads = bench.downloads(NetworkMode::Online);
    let request = request(&[server.url("a.zst")], &packed);
    assert_eq!(told_bytes(&downloads, &request), packed.len() as u64);
    assert_eq!(told_bytes(&downloads, &request), 0, "it was hashed");
    let request = DownloadRequest { packing: Some(FileCompression::Zstd), ..request };
    assert_eq!(told_bytes(&downloads, &request), 0, "it was unpacked");
    // A partial file that is whole is read again, and nobody is asked for anything.
    let bench = Bench::new();
    let downloads = bench.downloads(NetworkMode::Online);
    fs::create_dir(bench.part(&request)).unwrap();
    fs::write(bench.part(&request).join("data"), &*packed).unwrap();
    let (url, total) = (server.url("a.zst"), packed.len());
    let origin = format!(r#"{{"url":"{url}","etag":null,"last_modified":null,"total":{total}}}"#);
    fs::write(bench.part(&request).join("origin.json"), origin).unwrap();
    assert_eq!(told_bytes(&downloads, &request), 0, "it was there");
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn a_file_of_this_host_is_taken_too() {
    let body = noise(300_000);
    let mut bench = Bench::new();
    let path = bench.folder.path().join("a file");
    fs::write(&path, &*body).unwrap();
    let url = format!("file://{}/a%20file", bench.folder.path().display());
    let found = bench.fetch(&request(&[url], &body)).unwrap();
    assert_eq!(fs::read(&found.path).unwrap(), *body);
    // Neither a folder nor a FIFO is waited for.
    let fifo = bench.folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [&fifo, &bench.folder.path().to_owned()] {
        let error = bench.fetch(&request(&[format!("file://{}", path.display())], b"other")).unwrap_err();
        assert!(matches!(problems(&error)[..], [TransferError::File(_)]), "{error}");
    }
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    let body = noise(4 << 20);
    let server = {
        let body = body.clone();
        Server::start(move |seen, reply| {
            let from = reply.good_head(seen, body.len())?;
            // The first one gets a quarter and waits for ever.
            let end = if seen.number == 0 { body.len() / 4 } else { body.len() };
            reply.send(&body[from..end])?;
            if seen.number == 0 {
                thread::sleep(Duration::from_secs(60));
            }
            Ok(())
        })
    };
    let mut bench = Bench::new();
    let request = request(&[server.url("web.qcow2")], &body);
    let data = bench.part(&request).join("data");
    let mut child = child(bench.folder.path(), &server.url("web.qcow2"), &sha256(&body));
    wait_until("the child downloads", || fs::metadata(&data).is_ok_and(|data| data.len() == 1 << 20));
    child.kill().unwrap();
    child.wait().unwrap();
    let found = bench.fetch(&request).unwrap();
    assert_eq!(fs::read(&found.path).unwrap(), *body);
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[1].from, seen[1].if_range.as_deref()), (Some(1 << 20), Some("\"one\"")));
    println!("sent {} bytes before the kill, {} after it", seen[0].sent, seen[1].sent);
    assert_eq!(seen[1].sent, 3 << 20);
    assert_eq!(bench.files(), [found.path]);
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not yet");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Downloads in a process of its own.
fn child(cache: &Path, url: &str, sha256: &str) -> Child {
    child_command(cache, url, sha256).stdout(Stdio::null()).spawn().unwrap()
}

fn child_command(cache: &Path, url: &str, sha256: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_that_downloads", "--ignored"]).stderr(Stdio::null());
    command.env("KILN_TEST_DOWNLOAD", format!("{} {url} {sha256}", cache.display()));
    // What the tests' own environment says of proxies and trust is no part of them.
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command
}

#[test]
#[ignore = "a child process of other tests"]
fn child_that_downloads() {
    let Ok(task) = std::env::var("KILN_TEST_DOWNLOAD") else { return println!("skipped: it is not a child") };
    let [cache, url, sha256] = task.split(' ').collect::<Vec<_>>()[..] else { panic!("{task}") };
    let downloads =
        DownloadCache::open(Path::new(cache), Arc::new(DigestCache::load(Path::new(cache))), NetworkMode::Online)
            .unwrap();
    let pin = DownloadPin::Checksum(sha256.parse().unwrap());
    let request = DownloadRequest { urls: vec![url.parse().unwrap()], pin, packing: None, limits: limits() };
    let mut said = |text| println!("{text}");
    let cancel = CancellationToken::new();
    let result = downloads.fetch(&request, &mut DownloadWatch::new(&cancel, &mut |_| {}, &mut said));
    println!("\nresult: {}", result.map_or_else(|error| error.to_string(), |found| found.sha256.to_string()));
}

#[test]
#[ignore = "figures of 600 MB: cargo test --release --test downloads figures -- --ignored --nocapture"]
fn figures() {
    let body = noise(600_000_000);
    let packed = Arc::new(zstd::bulk::compress(&body[..body.len() / 2].repeat(2), 1).unwrap());
    let server = Server::of(&body);
    let mut bench = Bench::new();
    let mut measure = |what: &str, request: &DownloadRequest| {
        let began = Instant::now();
        let found = bench.fetch(request).unwrap();
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{what}: {:.2} s, {:.0} MB/s",
            seconds,
            f64::from(u32::try_from(found.bytes).unwrap()) / 1e6 / seconds
        );
    };
    measure("600 MB over http", &request(&[server.url("a")], &body));
    measure("found in the cache, hashed", &request(&[server.url("a")], &body));
    let packed_server = Server::of(&packed);
    let packed =
        DownloadRequest { packing: FileCompression::of("a.zst"), ..request(&[packed_server.url("a.zst")], &packed) };
    measure("600 MB, unpacked from zstd meanwhile", &packed);
}
