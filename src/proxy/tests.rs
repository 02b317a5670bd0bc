//! Tests of the proxy against servers on this host, and clients that behave in any way.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream as Socket;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::*;
use crate::digest::Sha256Digest;
use crate::digest_cache::DigestCache;
use crate::download::NetworkMode;
use crate::network_record::{RecordedAnswer, RequestKind};

mod faults;

/// A server that answers each request with the bytes that a function returns for its path, and counts the requests.
struct Server {
    port: u16,
    asked: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counted, kept, answer) = (Arc::clone(&asked), Arc::clone(&heads), Arc::new(answer));
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (counted, kept, answer) = (Arc::clone(&counted), Arc::clone(&kept), Arc::clone(&answer));
                thread::spawn(move || {
                    let head = read_request(&socket);
                    counted.fetch_add(1, Ordering::SeqCst);
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    kept.lock().unwrap().push(head);
                    let _ = (&socket).write_all(&answer(&path));
                    let _ = socket.shutdown(Shutdown::Both);
                });
            }
        });
        Self { port, asked, heads }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn read_head(mut socket: &TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Reads a request with its body.
fn read_request(mut socket: &TcpStream) -> String {
    let mut request = read_head(socket);
    let lower = request.to_lowercase();
    let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    let _ = socket.read_exact(&mut body);
    request.push_str(&String::from_utf8_lossy(&body));
    request
}

fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: \"e\"\r\nContent-Type: text/plain\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The options of a proxy that may reach this host.
fn options(cache: &Path, reach: NetworkMode) -> ProxyOptions<'static> {
    let memo = Arc::new(DigestCache::load(cache));
    ProxyOptions {
        cache: DownloadCache::open(cache, memo, reach).unwrap(),
        record: None,
        allow: vec!["127.0.0.1".parse().unwrap(), "localhost".parse().unwrap()],
        is_strict: false,
        holds_secret: Box::new(|text| text.contains("hunter2")),
        cancel: CancellationToken::new(),
    }
}

fn proxy(cache: &Path) -> Proxy {
    Proxy::new(options(cache, NetworkMode::Online)).unwrap()
}

/// Sends bytes to the proxy as a program would, and returns everything that comes back.
fn talk(proxy: &Proxy, sent: &str) -> String {
    String::from_utf8_lossy(&talk_bytes(proxy, sent.as_bytes())).into_owned()
}

fn talk_bytes(proxy: &Proxy, sent: &[u8]) -> Vec<u8> {
    let (ours, theirs) = Socket::pair().unwrap();
    let core = Arc::clone(&proxy.core);
    let thread = thread::spawn(move || exchange::serve(theirs, &core));
    (&ours).write_all(sent).unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let mut came = Vec::new();
    let _ = (&ours).read_to_end(&mut came);
    thread.join().unwrap();
    came
}

fn get(url: &str, headers: &str) -> String {
    format!("GET {url} HTTP/1.1\r\nHost: a\r\n{headers}\r\n")
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

/// Returns the record of what a step got.
fn record(proxy: &Proxy) -> NetworkRecord {
    NetworkRecord { answers: proxy.end_step().answers, ..NetworkRecord::default() }
}

#[test]
fn n20_an_answer_is_recorded_once_and_given_again_without_the_server() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|path| ok(&format!("the file {path}")));
    let url = server.url("/a/b?c=1");
    let first = proxy(cache.path());
    first.begin_step();
    let answer = talk(&first, &(get(&url, "") + &get(&url, "")));
    assert_eq!(answer.matches("the file /a/b?c=1").count(), 2, "{answer}");
    assert!(answer.contains("etag: \"e\"") && answer.contains("content-type: text/plain"), "{answer}");
    assert_eq!(server.asked(), 1);
    let record = record(&first);
    let [RecordedAnswer { request, status: 200, sha256, bytes: 17, .. }] = &record.answers[..] else {
        panic!("{record:?}");
    };
    assert_eq!((request.url.as_str(), *sha256), (url.as_str(), Sha256Digest::of("the file /a/b?c=1")));

    let again = ProxyOptions { record: Some(&record), is_strict: true, ..options(cache.path(), NetworkMode::Offline) };
    let again = Proxy::new(again).unwrap();
    again.begin_step();
    let second = talk(&again, &get(&url, ""));
    assert_eq!(body(&second), "the file /a/b?c=1");
    let other = talk(&again, &get(&server.url("/other"), ""));
    assert!(other.starts_with("HTTP/1.1 403") && other.contains("is not in kiln.lock"), "{other}");
    let traffic = again.end_step();
    assert_eq!(traffic.answers, record.answers);
    assert_eq!(traffic.refusals.len(), 1);
    assert!(matches!(&traffic.unanswered[..], [UnansweredError::Unrecorded(url)] if url.ends_with("/other")));
    assert_eq!(server.asked(), 1);
}

#[test]
fn n5_a_body_that_is_lost_is_downloaded_again_and_must_be_the_same() {
    let cache = tempfile::tempdir().unwrap();
    let text = Arc::new(Mutex::new("a".repeat(200_000)));
    let served = Arc::clone(&text);
    let server = Server::start(move |_| ok(&served.lock().unwrap()));
    let url = server.url("/a");
    let first = proxy(cache.path());
    talk(&first, &get(&url, ""));
    let record = record(&first);
    let digest = record.answers[0].sha256;
    for (content, is_same) in [("a", true), ("b", false)] {
        let other = tempfile::tempdir().unwrap();
        *text.lock().unwrap() = content.repeat(200_000);
        let again = ProxyOptions { record: Some(&record), ..options(other.path(), NetworkMode::Online) };
        let again = Proxy::new(again).unwrap();
        let answer = talk(&again, &get(&url, ""));
        assert_eq!(body(&answer).len() == 200_000, is_same);
        let traffic = again.end_step();
        assert_eq!(traffic.answers.len(), usize::from(is_same));
        let kept = other.path().join("downloads/sha256").join(digest.to_string()).join("data");
        assert_eq!(kept.exists(), is_same);
    }
}

/// Returns a request by which git fetches, with further headers.
fn upload_pack(url: &str, headers: &str, body: &str) -> String {
    let kind = "Content-Type: application/x-git-upload-pack-request";
    let length = body.len();
    format!("POST {url} HTTP/1.1\r\nHost: a\r\n{kind}\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
}

#[test]
fn n20_n21_a_fetch_of_git_is_recorded_by_its_body_and_given_again() {
    let cache = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_| ok(&format!("pack {}", count.fetch_add(1, Ordering::SeqCst))));
    let url = server.url("/a.git/git-upload-pack");
    let first = proxy(cache.path());
    first.begin_step();
    let gzip = upload_pack(&url, "Git-Protocol: version=2\r\nContent-Encoding: gzip\r\n", "want 2");
    let sent = [upload_pack(&url, "", "want 1"), upload_pack(&url, "", "want 1"), gzip.clone()].concat();
    let answers = talk(&first, &sent);
    assert_eq!((answers.matches("pack 0").count(), answers.matches("pack 1").count()), (2, 1), "{answers}");
    let seen = server.heads.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    assert!(seen[0].ends_with("\r\n\r\nwant 1") && !seen[0].to_lowercase().contains("git-protocol"), "{seen:?}");
    for header in ["git-protocol: version=2", "content-encoding: gzip", "content-type: application/x-git-upload-pack"] {
        assert!(seen[1].to_lowercase().contains(header), "{header}: {seen:?}");
    }
    let record = record(&first);
    let kinds: Vec<_> = record.answers.iter().map(|answer| answer.request.kind).collect();
    assert_eq!(kinds.len(), 2);
    for body in ["want 1", "want 2"] {
        assert!(kinds.contains(&RequestKind::UploadPack(Sha256Digest::of(body))), "{kinds:?}");
    }

    let again = ProxyOptions { record: Some(&record), is_strict: true, ..options(cache.path(), NetworkMode::Offline) };
    let again = Proxy::new(again).unwrap();
    again.begin_step();
    assert_eq!(body(&talk(&again, &gzip)), "pack 1");
    assert_eq!(body(&talk(&again, &upload_pack(&url, "Expect: 100-continue\r\n", "want 1"))[25..]), "pack 0");
    assert_eq!(again.end_step().answers, record.answers);
    for other in [upload_pack(&url, "", "want 3"), upload_pack(&url, "Git-Protocol: version=1\r\n", "want 2")] {
        assert!(talk(&again, &other).starts_with("HTTP/1.1 403"), "{other}");
    }
    assert_eq!(server.asked(), 2);
}

#[test]
fn n15_n21_other_posts_of_git_are_refused_with_their_url() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| ok("taken"));
    let proxy = proxy(cache.path());
    let url = server.url("/a.git/git-upload-pack");
    let fetch = upload_pack(&url, "", "want 1");
    for (sent, shown) in [
        (fetch.replace("upload-pack", "receive-pack"), "/a.git/git-receive-pack"),
        (fetch.replace("/git-upload-pack", "/info/lfs/objects/batch"), "/a.git/info/lfs/objects/batch"),
        (fetch.replace("x-git-upload-pack-request", "json"), "/a.git/git-upload-pack"),
        (fetch.replace("/git-upload-pack", "/a?b=/git-upload-pack"), "/a.git/a?b=/git-upload-pack"),
        (fetch.replace("Content-Length: 6", "Content-Length: 1048577"), "/a.git/git-upload-pack"),
        (fetch.replace("Content-Length: 6", "Content-Length: -1"), "/a.git/git-upload-pack"),
        (upload_pack(&url, "Content-Encoding: br\r\n", "want 1"), "/a.git/git-upload-pack"),
        (upload_pack(&url, "Transfer-Encoding: chunked\r\n", "want 1"), "/a.git/git-upload-pack"),
    ] {
        let answer = talk(&proxy, &(sent.clone() + &get(&server.url("/b"), "")));
        assert!(answer.starts_with("HTTP/1.1 405"), "{sent}: {answer}");
        assert!(answer.contains(&format!("{shown} is refused")) && answer.contains("git fetches alone"), "{answer}");
        assert!(!answer.contains("taken"), "{answer}");
    }
    // A body that breaks off is no request.
    let broken = talk(&proxy, &fetch[..fetch.len() - 1]);
    assert_eq!((broken.as_str(), server.asked()), ("", 0));
}

#[test]
fn clients_get_the_parts_that_they_ask_for() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| ok("0123456789"));
    let proxy = proxy(cache.path());
    let url = server.url("/a");
    for (headers, status, expected) in [
        ("Range: bytes=2-4\r\n", "206", "234"),
        ("Range: bytes=8-\r\nIf-Range: \"e\"\r\n", "206", "89"),
        ("Range: bytes=8-\r\nIf-Range: \"other\"\r\n", "200", "0123456789"),
        ("Range: bytes=10-\r\n", "416", ""),
        ("If-None-Match: \"x\", W/\"e\"\r\n", "304", ""),
        ("If-None-Match: \"x\"\r\n", "200", "0123456789"),
    ] {
        let answer = talk(&proxy, &get(&url, headers));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{headers}: {answer}");
        assert_eq!(body(&answer), expected, "{headers}");
    }
    assert_eq!(server.asked(), 1);
    let head = talk(&proxy, &format!("HEAD {url} HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert!(head.contains("Content-Length: 10") && body(&head).is_empty(), "{head}");
}

#[test]
fn n6_n15_errors_and_redirections_are_answers_too() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|path| match path {
        "/moved" => b"HTTP/1.1 302 Found\r\nLocation: http://other.example/a\r\nContent-Length: 2\r\n\r\nno".to_vec(),
        "/login" => b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone".to_vec(),
    });
    let proxy = proxy(cache.path());
    let moved = talk(&proxy, &get(&server.url("/moved"), ""));
    assert!(moved.starts_with("HTTP/1.1 302") && moved.contains("location: http://other.example/a"), "{moved}");
    assert!(talk(&proxy, &get(&server.url("/none"), "")).starts_with("HTTP/1.1 404"));
    let login = talk(&proxy, &get(&server.url("/login"), "Authorization: Basic aHVudGVyMg==\r\n"));
    assert!(login.starts_with("HTTP/1.1 401") && login.contains("copy it"), "{login}");
    let traffic = proxy.end_step();
    let statuses: Vec<u16> = traffic.answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [302, 404]);
    assert!(!server.heads.lock().unwrap().iter().any(|head| head.to_lowercase().contains("authorization")));
}

#[test]
fn n12_n13_n15_n17_what_cannot_be_given_again_is_refused_with_its_url() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| ok("secret"));
    let proxy = proxy(cache.path());
    let url = server.url("/a");
    for (sent, status, words) in [
        (format!("POST {url} HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"), 405, "/a is refused"),
        (format!("GET {url} HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"), 400, "a GET with a body"),
        (get("file:///etc/passwd", ""), 403, "only http and https"),
        (get("ftp://example.org/a", ""), 403, "only http and https"),
        (get("/origin/form", ""), 403, "only http and https"),
        (get("http://169.254.169.254/latest", ""), 403, "does not list this host"),
        (get("http://user:word@127.0.0.1/", ""), 403, "a URL with a user name"),
        (get(&format!("{url}?a=hunter2"), ""), 403, "the URL holds a secret"),
        ("CONNECT 10.0.0.1:443 HTTP/1.1\r\n\r\n".into(), 403, "does not list this host"),
        ("\x16\x03\x01garbage\r\n\r\n".into(), 400, "something else than HTTP"),
    ] {
        let answer = talk(&proxy, &sent);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{sent}: {answer}");
        assert!(answer.contains(words), "{sent}: {answer}");
        assert!(!answer.contains("hunter2") && !answer.contains("word@"), "{answer}");
    }
    assert_eq!(server.asked(), 0);
    assert_eq!(proxy.end_step().refusals.len(), 10);
}

#[test]
fn n13_n14_a_name_that_leads_to_a_private_address_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| ok("inner"));
    let open = ProxyOptions { allow: Vec::new(), ..options(cache.path(), NetworkMode::Online) };
    let proxy = Proxy::new(open).unwrap();
    for host in ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "192.168.0.1"] {
        let answer = talk(&proxy, &get(&format!("http://{host}:{}/a", server.port), ""));
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("no public address"), "{host}: {answer}");
    }
    assert_eq!(server.asked(), 0);
}

#[test]
fn n1_n3_servers_that_break_off_or_lie_end_in_bounded_time() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|path| match path {
        "/short" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc".to_vec(),
        "/long" => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nabcdef".to_vec(),
        "/garbage" => b"hello\r\n\r\n".to_vec(),
        "/unknown" => b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc".to_vec(),
        _ => Vec::new(),
    });
    let mut fast = Proxy::new(options(cache.path(), NetworkMode::Online)).unwrap();
    let core = Arc::get_mut(&mut fast.core).unwrap();
    let limits = &mut Arc::get_mut(&mut core.recorder).unwrap().limits;
    (limits.attempts, limits.pause) = (2, Duration::from_millis(1));
    let short = talk(&fast, &get(&server.url("/short"), ""));
    assert!(body(&short).len() < 100, "{short}");
    assert_eq!(body(&talk(&fast, &get(&server.url("/long"), ""))), "ab", "the rest belongs to no answer");
    for path in ["/garbage", "/closed"] {
        let answer = talk(&fast, &get(&server.url(path), ""));
        assert!(answer.starts_with("HTTP/1.1 502"), "{path}: {answer}");
    }
    let unknown = talk(&fast, &get(&server.url("/unknown"), ""));
    assert!(unknown.contains("Transfer-Encoding: chunked") && unknown.ends_with("3\r\nabc\r\n0\r\n\r\n"), "{unknown}");
    let traffic = fast.end_step();
    let urls: Vec<_> = traffic.answers.iter().map(|answer| answer.request.url.rsplit('/').next().unwrap()).collect();
    assert_eq!(urls, ["long", "unknown"]);
}

#[test]
fn requests_in_a_tunnel_are_recorded_as_https() {
    use rustls::pki_types::pem::PemObject;
    let cache = tempfile::tempdir().unwrap();
    let proxy = proxy(cache.path());
    let mut roots = rustls::RootCertStore::empty();
    let authority = rustls::pki_types::CertificateDer::from_pem_slice(&proxy.access().authority).unwrap();
    roots.add(authority).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let (ours, theirs) = Socket::pair().unwrap();
    let core = Arc::clone(&proxy.core);
    thread::spawn(move || exchange::serve(theirs, &core));
    (&ours).write_all(b"CONNECT localhost:9 HTTP/1.1\r\nHost: localhost:9\r\n\r\n").unwrap();
    let mut established = [0; 39];
    (&ours).read_exact(&mut established).unwrap();
    assert!(established.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&established));
    let name = "localhost".try_into().unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut tunnel = rustls::StreamOwned::new(connection, ours);
    tunnel.write_all(b"GET /a HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    let _ = tunnel.read_to_string(&mut answer);
    // Nothing listens on that port.
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("https://localhost:9/a"), "{answer}");
}

#[test]
fn a_program_that_trusts_others_is_told_by_the_name_of_its_host() {
    let cache = tempfile::tempdir().unwrap();
    let proxy = proxy(cache.path());
    let sent = b"CONNECT localhost:22 HTTP/1.1\r\n\r\nSSH-2.0-OpenSSH_9.2\r\n";
    let answer = talk_bytes(&proxy, sent);
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    let refusals = proxy.end_step().refusals;
    assert!(refusals.is_empty() || refusals[0].contains("localhost"), "{refusals:?}");
}

#[test]
fn n16_n27_credentials_in_urls_are_neither_recorded_nor_taken_for_each_other() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|path| match path {
        "/signed" => {
            b"HTTP/1.1 302 Found\r\nLocation: /a?v=1&X-Amz-Signature=f00\r\nContent-Length: 0\r\n\r\n".to_vec()
        }
        _ => ok(path),
    });
    let proxy = proxy(cache.path());
    let moved = talk(&proxy, &get(&server.url("/signed"), ""));
    assert!(moved.contains("X-Amz-Signature=f00"), "the program itself gets it: {moved}");
    assert_eq!(body(&talk(&proxy, &get(&server.url("/a?v=1&X-Amz-Signature=f00"), ""))), "/a?v=1&X-Amz-Signature=f00");
    let other = talk(&proxy, &get(&server.url("/a?v=1&X-Amz-Signature=bad"), ""));
    assert!(other.starts_with("HTTP/1.1 409") && other.contains("/a?v=1&X-Amz-Signature=- was requested"), "{other}");
    let traffic = proxy.end_step();
    let [UnansweredError::Ambiguous(url)] = &traffic.unanswered[..] else { panic!("{traffic:?}") };
    assert_eq!(*url, server.url("/a?v=1&X-Amz-Signature=-"));
    let record = NetworkRecord { answers: traffic.answers, ..NetworkRecord::default() };
    assert!(!format!("{record:?}").contains("f00"), "{record:?}");

    let again = ProxyOptions { record: Some(&record), ..options(cache.path(), NetworkMode::Offline) };
    let again = Proxy::new(again).unwrap();
    let moved = talk(&again, &get(&server.url("/signed"), ""));
    assert!(moved.contains("location: /a?v=1&X-Amz-Signature=-"), "{moved}");
    let followed = talk(&again, &get(&server.url("/a?v=1&X-Amz-Signature=-"), ""));
    assert!(body(&followed).starts_with("/a?v=1"), "{followed}");
}

/// A server of releases, as the big ones have it: `/get` redirects to a signed URL, another one each time, and only the
/// newest one is valid.
fn releases(content: &Arc<Mutex<String>>) -> Server {
    let (newest, content) = (AtomicUsize::new(0), Arc::clone(content));
    Server::start(move |path| {
        if path == "/get" {
            let number = newest.fetch_add(1, Ordering::SeqCst) + 1;
            let to = format!("store/file?se={number}&code=Zk3vQ9xT1bLm8RsWp0Yc{number}");
            return format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").into_bytes();
        }
        let valid = format!("code=Zk3vQ9xT1bLm8RsWp0Yc{}", newest.load(Ordering::SeqCst));
        if path.starts_with("/store/file?") && path.ends_with(&valid) {
            return ok(&content.lock().unwrap());
        }
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\n\r\nexpired".to_vec()
    })
}

/// Asks for the release as a program does, and returns the answer to which the redirection leads.
fn follow(proxy: &Proxy, server: &Server) -> String {
    let moved = talk(proxy, &get(&server.url("/get"), ""));
    let to = moved.lines().find_map(|line| line.strip_prefix("location: ")).expect("a redirection");
    talk(proxy, &get(&server.url(&format!("/{to}")), ""))
}

#[test]
fn n25_n26_a_redirection_to_a_url_that_is_signed_anew_each_time_is_recorded_and_given_again() {
    let cache = tempfile::tempdir().unwrap();
    let content = Arc::new(Mutex::new("release".to_owned()));
    let server = releases(&content);
    let first = proxy(cache.path());
    for _ in 0..2 {
        assert_eq!(body(&follow(&first, &server)), "release");
    }
    assert_eq!(server.asked(), 2);
    let record = record(&first);
    assert!(!format!("{record:?}").contains("Zk3v"), "{record:?}");
    let urls: Vec<_> = record.answers.iter().map(|answer| answer.request.url.clone()).collect();
    assert_eq!(urls, [server.url("/get"), server.url("/store/file?se=1&code=-")]);
    // The URL that was recorded has expired.
    talk(&proxy(tempfile::tempdir().unwrap().path()), &get(&server.url("/get"), ""));

    let later = |cache: &Path, reach| {
        let options = ProxyOptions { record: Some(&record), is_strict: true, ..options(cache, reach) };
        let proxy = Proxy::new(options).unwrap();
        let answer = follow(&proxy, &server);
        (answer, proxy.end_step())
    };
    let (offline, traffic) = later(cache.path(), NetworkMode::Offline);
    assert_eq!((body(&offline), &traffic.answers), ("release", &record.answers));
    // Another host has the lock and an empty cache.
    let other = tempfile::tempdir().unwrap();
    let (elsewhere, traffic) = later(other.path(), NetworkMode::Online);
    assert_eq!((body(&elsewhere), &traffic.answers), ("release", &record.answers));
    assert!(traffic.unanswered.is_empty() && !traffic.has_gaps, "{traffic:?}");

    *content.lock().unwrap() = "other bytes".to_owned();
    let empty = tempfile::tempdir().unwrap();
    let (changed, traffic) = later(empty.path(), NetworkMode::Online);
    assert!(!changed.contains("other bytes"), "{changed}");
    let [UnansweredError::Recorded { url, .. }] = &traffic.unanswered[..] else { panic!("{traffic:?}") };
    assert_eq!(*url, urls[1]);
}

#[test]
fn n26_an_expired_signature_says_nothing_about_the_file() {
    let cache = tempfile::tempdir().unwrap();
    let server = releases(&Arc::new(Mutex::new("release".to_owned())));
    let proxy = proxy(cache.path());
    let answer = talk(&proxy, &get(&server.url("/store/file?se=0&sig=expired"), ""));
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let traffic = proxy.end_step();
    assert!(traffic.answers.is_empty() && traffic.has_gaps, "{traffic:?}");
    // Without credentials, it does.
    talk(&proxy, &get(&server.url("/store/file?se=0"), ""));
    assert_eq!(proxy.end_step().answers.len(), 1);
}

#[test]
fn n16_n25_a_message_about_a_url_has_no_credentials() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|path| {
        let is_limited = path.starts_with("/limited");
        if is_limited { b"HTTP/1.1 429 X\r\nContent-Length: 0\r\n\r\n".to_vec() } else { b"no HTTP\r\n\r\n".to_vec() }
    });
    for method in ["GET", "HEAD"] {
        for path in ["/garbage?sig=hunter3", "/limited?code=Zk3vQ9xT1bLm8RsWp0Yc"] {
            for reach in [NetworkMode::Online, NetworkMode::Offline] {
                let mut proxy = Proxy::new(options(cache.path(), reach)).unwrap();
                let recorder = &mut Arc::get_mut(&mut proxy.core).unwrap().recorder;
                Arc::get_mut(recorder).unwrap().limits.pause = Duration::from_millis(1);
                let answer = talk(&proxy, &format!("{method} {} HTTP/1.1\r\n\r\n", server.url(path)));
                let told = format!("{answer} {:?}", proxy.end_step());
                assert!(told.contains("=-") && !told.contains("hunter3") && !told.contains("Zk3v"), "{told}");
            }
        }
    }
}

#[test]
fn n30_an_error_in_place_of_a_recorded_body_ends_the_build() {
    let content = Arc::new(Mutex::new(ok("file")));
    let served = Arc::clone(&content);
    let server = Server::start(move |_| served.lock().unwrap().clone());
    let (cache, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = proxy(cache.path());
    talk(&first, &get(&server.url("/a"), ""));
    let record = record(&first);
    *content.lock().unwrap() = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
    let again = ProxyOptions { record: Some(&record), ..options(other.path(), NetworkMode::Online) };
    let again = Proxy::new(again).unwrap();
    let answer = talk(&again, &get(&server.url("/a"), ""));
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    let traffic = again.end_step();
    assert!(traffic.answers.is_empty(), "{traffic:?}");
    let [UnansweredError::Recorded { why, .. }] = &traffic.unanswered[..] else { panic!("{traffic:?}") };
    assert!(why.to_string().contains("404"), "{why}");
}

#[test]
fn what_is_answered_can_be_recorded_and_nothing_else() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| ok("file"));
    let proxy = proxy(cache.path());
    for (accept, is_accepted) in [
        ("a/b".to_owned(), true),
        ("a/b;\tq=1".to_owned(), true),
        (format!("a/{}", "b".repeat(2000)), true),
        ("a/\u{e4}".to_owned(), true),
        (format!("a/{}", "b".repeat(9000)), false),
        ("a\u{85}/b".to_owned(), false),
    ] {
        let answer = talk(&proxy, &get(&server.url("/a"), &format!("Accept: {accept}\r\n")));
        let traffic = proxy.end_step();
        assert_eq!(answer.starts_with("HTTP/1.1 200"), is_accepted, "{accept}: {answer}");
        assert_eq!(traffic.answers.len(), usize::from(is_accepted), "{accept}: {traffic:?}");
        assert!(traffic.answers.iter().all(|answer| answer.check().is_ok()), "{traffic:?}");
        assert!(is_accepted || traffic.refusals[0].contains("no value of a header"), "{traffic:?}");
        proxy.begin_step();
    }
}

#[test]
fn n20_a_recorded_answer_that_is_lost_ends_an_offline_build() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| ok("file"));
    let url = server.url("/a");
    let first = proxy(cache.path());
    talk(&first, &get(&url, ""));
    let record = record(&first);
    let other = tempfile::tempdir().unwrap();
    let offline = ProxyOptions { record: Some(&record), ..options(other.path(), NetworkMode::Offline) };
    let offline = Proxy::new(offline).unwrap();
    talk(&offline, &(get(&url, "") + &get(&server.url("/new"), "")));
    let traffic = offline.end_step();
    let errors: Vec<String> = traffic.unanswered.iter().map(ToString::to_string).collect();
    let [lost, new] = &errors[..] else { panic!("{errors:?}") };
    assert!(lost.contains(&url) && lost.contains("had no more"), "{lost}");
    assert!(new.contains("/new") && new.contains("not in kiln.lock"), "{new}");
    assert!(traffic.answers.is_empty() && !traffic.has_gaps);
}
