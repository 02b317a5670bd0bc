//! The cache: shared by processes, damaged, emptied, and without a network.

use super::packed::damage;
use super::*;
use kiln::error::Fault;
use kiln::size::ByteSize;

/// A server whose first answer stops in the middle until the gate is opened.
fn gated(body: &Arc<Vec<u8>>) -> (Server, Arc<std::sync::Barrier>) {
    let gate = Arc::new(std::sync::Barrier::new(2));
    let (body, inner) = (body.clone(), gate.clone());
    let server = Server::start(move |seen, reply| {
        let from = reply.good_head(seen, body.len())?;
        let middle = from.max(body.len() / 2);
        reply.send(&body[from..middle])?;
        if seen.number == 0 {
            inner.wait();
        }
        reply.send(&body[middle..])
    });
    (server, gate)
}

#[test]
fn of_two_that_want_the_same_one_downloads_and_the_other_waits() {
    let body = noise(1 << 20);
    let (server, gate) = gated(&body);
    let request = request(&[server.url("a")], &body);
    let mut bench = Bench::new();
    let data = bench.part(&request).join("data");
    let mut child = child(bench.folder.path(), &server.url("a"), &sha256(&body));
    wait_until("the child downloads", || fs::metadata(&data).is_ok_and(|data| data.len() == 1 << 19));
    // The gate opens when this one says that it waits.
    let downloads = bench.downloads(NetworkMode::Online);
    let mut notices = Vec::new();
    let mut heard = |text: String| {
        notices.push(text);
        gate.wait();
    };
    let cancel = CancellationToken::new();
    let found = downloads.fetch(&request, &mut DownloadWatch::new(&cancel, &mut |_| {}, &mut heard)).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(notices, ["waiting for another kiln that downloads the same file"]);
    assert_eq!((server.seen().len(), found.sha256.to_string()), (1, sha256(&body)));
    assert_eq!(bench.files(), [found.path]);
    bench.notices.clear();
}

#[test]
fn who_waited_for_one_that_was_killed_goes_on_with_its_bytes() {
    let body = noise(1 << 20);
    let (server, _gate) = gated(&body);
    let request = request(&[server.url("a")], &body);
    let bench = Bench::new();
    let data = bench.part(&request).join("data");
    let mut child = child(bench.folder.path(), &server.url("a"), &sha256(&body));
    wait_until("the child downloads", || fs::metadata(&data).is_ok_and(|data| data.len() == 1 << 19));
    let mut kill = |_| child.kill().unwrap();
    let downloads = bench.downloads(NetworkMode::Online);
    let cancel = CancellationToken::new();
    downloads.fetch(&request, &mut DownloadWatch::new(&cancel, &mut |_| {}, &mut kill)).unwrap();
    child.wait().unwrap();
    assert_eq!(server.seen()[1].from, Some(1 << 19));
}

#[test]
fn a_caller_that_waits_for_another_can_stop() {
    let body = noise(1 << 20);
    let (server, _gate) = gated(&body);
    let request = request(&[server.url("a")], &body);
    let bench = Bench::new();
    let data = bench.part(&request).join("data");
    let mut child = child(bench.folder.path(), &server.url("a"), &sha256(&body));
    wait_until("the child downloads", || fs::metadata(&data).is_ok_and(|data| data.len() == 1 << 19));
    let cancel = CancellationToken::new();
    cancel.cancel();
    let stopped = bench
        .downloads(NetworkMode::Online)
        .fetch(&request, &mut DownloadWatch::new(&cancel, &mut |_| {}, &mut |_| {}))
        .unwrap_err();
    assert_eq!(stopped.kind().exit_code(), 130);
    assert!(data.exists(), "what the other one has is not touched");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn many_at_once_get_one_file() {
    let body = noise(1 << 20);
    let server = Server::of(&body);
    let request = request(&[server.url("a")], &body);
    let bench = Bench::new();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let downloads = bench.downloads(NetworkMode::Online);
                let cancel = CancellationToken::new();
                let (mut unheard, mut quiet) = (|_| {}, |_| {});
                let mut watch = DownloadWatch::new(&cancel, &mut unheard, &mut quiet);
                let found = downloads.fetch(&request, &mut watch).unwrap();
                assert_eq!(found.sha256.to_string(), sha256(&body));
            });
        }
    });
    assert_eq!((server.seen().len(), bench.files().len()), (1, 1));
}

#[test]
fn a_damaged_file_is_downloaded_again() {
    let body = noise(100_000);
    let server = Server::of(&body);
    let request = request(&[server.url("a")], &body);
    let mut bench = Bench::new();
    let path = bench.fetch(&request).unwrap().path;
    damage(&path);
    let error = bench.fetch_by(NetworkMode::Offline, &request).unwrap_err();
    assert!(matches!(error, DownloadError::Offline(_)), "{error}");
    assert!(!path.exists());
    bench.fetch(&request).unwrap();
    // While another uses it, it is not taken away.
    let used = bench.fetch(&request).unwrap();
    damage(&path);
    let error = bench.fetch(&request).unwrap_err();
    assert_eq!(error.kind().exit_code(), 4, "{error}");
    drop(used);
    bench.fetch(&request).unwrap();
    assert_eq!((fs::read(&path).unwrap(), server.seen().len()), (body.to_vec(), 3));
}

#[test]
fn a_damaged_partial_file_costs_an_attempt_and_no_mirror() {
    let body = noise(1 << 20);
    let served = body.clone();
    let server = Server::start(move |seen, reply| {
        let from = reply.good_head(seen, served.len())?;
        reply.send(&served[from..if seen.number == 0 { served.len() / 2 } else { served.len() }])
    });
    let mut request = request(&[server.url("a")], &body);
    request.limits.attempts = 1;
    let mut bench = Bench::new();
    assert!(bench.fetch(&request).is_err());
    let part = bench.part(&request);
    damage(&part.join("data"));
    request.limits.attempts = 2;
    bench.fetch(&request).unwrap();
    let asked: Vec<_> = server.seen().iter().map(|seen| seen.from).collect();
    assert_eq!(asked, [None, Some(1 << 19), None]);
    // One whose origin is torn, longer than the file, or of a size of its own is not continued at all.
    for (length, origin) in [
        (1 << 19, "{"),
        (1 << 19, ""),
        (2 << 20, &format!(r#"{{"url":"{}","etag":null,"last_modified":null,"total":1048576}}"#, server.url("a"))),
    ] {
        let mut bench = Bench::new();
        bench.downloads(NetworkMode::Online);
        fs::create_dir(bench.part(&request)).unwrap();
        fs::write(bench.part(&request).join("data"), vec![1; length]).unwrap();
        fs::write(bench.part(&request).join("origin.json"), origin).unwrap();
        bench.fetch(&request).unwrap();
        assert_eq!(server.seen().last().unwrap().from, None);
    }
}

#[test]
fn a_partial_file_that_is_whole_asks_nobody() {
    let body = noise(1 << 20);
    let server = Server::of(&body);
    let request = request(&[server.url("a")], &body);
    let mut bench = Bench::new();
    bench.downloads(NetworkMode::Online);
    fs::create_dir(bench.part(&request)).unwrap();
    fs::write(bench.part(&request).join("data"), &*body).unwrap();
    let origin = format!(r#"{{"url":"{}","etag":null,"last_modified":null,"total":1048576}}"#, server.url("a"));
    fs::write(bench.part(&request).join("origin.json"), origin).unwrap();
    bench.fetch(&request).unwrap();
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn offline_means_the_cache_alone() {
    let body = noise(1000);
    let server = Server::of(&body);
    let mut bench = Bench::new();
    let request = request(&[server.url("a")], &body);
    let error = bench.fetch_by(NetworkMode::Offline, &request).unwrap_err();
    assert_eq!(error.kind().exit_code(), 5);
    assert!(error.to_string().starts_with(&server.url("a")) && error.hints()[0].contains("kiln lock"), "{error}");
    assert_eq!((server.seen().len(), bench.files().len()), (0, 0));
}

#[test]
fn eviction_takes_what_was_used_longest_ago_and_nothing_in_use() {
    let bodies: Vec<_> = (1..=4).map(|n| Arc::new(noise(100_000 * n).to_vec())).collect();
    let mut bench = Bench::new();
    let servers: Vec<_> = bodies.iter().map(Server::of).collect();
    let requests: Vec<_> =
        servers.iter().zip(&bodies).map(|(server, body)| request(&[server.url("a")], body)).collect();
    let mut found: Vec<_> = requests.iter().map(|request| bench.fetch(request).unwrap()).collect();
    // A partial one of a dead kiln, older than all others.
    let part = bench.part(&request(&[servers[0].url("x")], b"x"));
    fs::create_dir(&part).unwrap();
    fs::write(part.join("data"), [1; 5000]).unwrap();
    let set_used = |folder: &Path, ago| {
        let when = std::time::SystemTime::now() - Duration::from_secs(ago);
        fs::File::open(folder).unwrap().set_modified(when).unwrap();
    };
    set_used(&part, 100);
    for (number, found) in (0..).zip(&found) {
        set_used(found.path.parent().unwrap(), 50 - number);
    }
    let in_use = found.remove(0);
    let paths: Vec<_> = found.drain(..).map(|found| found.path.clone()).collect();
    bench.fetch(&requests[1]).unwrap();
    let downloads = bench.downloads(NetworkMode::Offline);
    let all = downloads.evict(ByteSize::gib(1)).unwrap();
    assert_eq!((all.downloads, all.bytes), (0, 0));
    let evicted = downloads.evict(ByteSize(all.left - 5000)).unwrap();
    assert_eq!(evicted.downloads, 1, "{evicted:?}");
    assert!(!part.exists());
    // The third was used longest ago: the first is in use, the second was just asked for.
    downloads.evict(ByteSize(evicted.left - 1)).unwrap();
    assert_eq!(
        [in_use.path.exists(), paths[0].exists(), paths[1].exists(), paths[2].exists()],
        [true, true, false, true]
    );
    let rest = downloads.evict(ByteSize(0)).unwrap();
    assert!(in_use.path.exists() && rest.left > 0);
    drop(in_use);
    assert_eq!(downloads.evict(ByteSize(0)).unwrap().left, 0);
    assert!(bench.files().is_empty(), "{:?}", bench.files());
}
