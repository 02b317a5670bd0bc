//! Servers and guests that misbehave: each ends in bounded time, and neither the record nor the cache keeps half of a body.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::*;
use crate::download::{AddressGuard, GuestClient};
use crate::size::ByteSize;
use crate::wire::message::ProtocolVersion;
use crate::wire::network::MOST_CONNECTIONS;
use crate::wire::{Message, put_frame};

/// The time in which each of these must end.
const BOUND: Duration = Duration::from_secs(20);

/// Returns a proxy that gives servers little time and little room.
fn impatient(cache: &Path) -> Proxy {
    let mut proxy = proxy(cache);
    let recorder = Arc::get_mut(&mut Arc::get_mut(&mut proxy.core).unwrap().recorder).unwrap();
    let limits = &mut recorder.limits;
    (limits.attempts, limits.pause, limits.silence) = (2, Duration::from_millis(1), Duration::from_millis(200));
    limits.download = ByteSize::mib(1);
    let guard: Arc<AddressGuard> = Arc::new(|_, _| true);
    recorder.client = GuestClient::new(&guard, limits).unwrap();
    proxy
}

/// Asks for a URL, and returns the answer and what was recorded of it. Panics if that takes too long.
fn ask(proxy: &Proxy, sent: &str) -> (String, StepTraffic) {
    let began = Instant::now();
    proxy.begin_step();
    let answer = talk(proxy, sent);
    let traffic = proxy.end_step();
    assert!(began.elapsed() < BOUND, "{sent} took {:?}", began.elapsed());
    (answer, traffic)
}

/// Checks that nothing was recorded, and that the cache has no body.
fn kept_nothing(traffic: &StepTraffic, cache: &Path) {
    assert!(traffic.answers.is_empty(), "{traffic:?}");
    assert!(traffic.has_gaps || !traffic.unanswered.is_empty(), "{traffic:?}");
    assert_eq!(files_of(&cache.join("downloads")), BTreeSet::new());
}

/// Returns the files with bytes below a folder, by their content.
fn files_of(folder: &Path) -> BTreeSet<Vec<u8>> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let mut contents: BTreeSet<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    contents.extend(folders.iter().flat_map(|folder| files_of(folder)));
    contents.remove(&Vec::new());
    contents
}

#[test]
fn n2_a_server_that_stalls_is_given_up() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| {
        thread::sleep(Duration::from_secs(2));
        ok("too late")
    });
    let (answer, traffic) = ask(&impatient(cache.path()), &get(&server.url("/a"), ""));
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(traffic.refusals[0].contains(&server.url("/a")), "{traffic:?}");
    kept_nothing(&traffic, cache.path());
}

#[test]
fn n4_a_body_that_changes_while_it_is_resumed_is_not_recorded() {
    let cache = tempfile::tempdir().unwrap();
    let times = AtomicUsize::new(0);
    let server = Server::start(move |_| {
        let (tag, sent) = if times.fetch_add(1, Ordering::SeqCst) == 0 { ("old", 100) } else { ("new", 200) };
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 200\r\nETag: \"{tag}\"\r\n\r\n{}",
            tag.repeat(67)[..sent].to_owned()
        )
        .into_bytes()
    });
    let (answer, traffic) = ask(&impatient(cache.path()), &get(&server.url("/a"), ""));
    assert!(server.asked() > 1, "the rest was not asked for");
    assert!(!body(&answer).contains("new"), "{answer}");
    kept_nothing(&traffic, cache.path());
}

#[test]
fn n7_a_body_beyond_the_limit_is_cut_off_and_not_recorded() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|path| {
        let length = if path == "/announced" { "Content-Length: 10737418240\r\n" } else { "Connection: close\r\n" };
        format!("HTTP/1.1 200 OK\r\n{length}\r\n{}", "a".repeat(3 << 20)).into_bytes()
    });
    let proxy = impatient(cache.path());
    for path in ["/announced", "/endless"] {
        let (answer, traffic) = ask(&proxy, &get(&server.url(path), ""));
        assert!(answer.len() < 2 << 20, "{path}: {} bytes", answer.len());
        assert!(!answer.ends_with("0\r\n\r\n"), "{path}: the answer looks whole");
        kept_nothing(&traffic, cache.path());
    }
}

#[test]
fn n8_a_compressed_body_is_passed_on_and_recorded_as_it_is() {
    let cache = tempfile::tempdir().unwrap();
    let bomb = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03bomb".to_vec();
    let sent =
        [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 14\r\n\r\n".to_vec(), bomb.clone()].concat();
    let server = Server::start(move |_| sent.clone());
    let proxy = impatient(cache.path());
    let answer = talk_bytes(&proxy, get(&server.url("/a"), "").as_bytes());
    assert!(answer.ends_with(&bomb), "{}", String::from_utf8_lossy(&answer));
    let record = record(&proxy);
    assert_eq!((record.answers[0].sha256, record.answers[0].bytes), (Sha256Digest::of(&bomb), 14));
    assert_eq!(record.answers[0].headers.get("content-encoding").map(String::as_str), Some("gzip"));
    assert!(files_of(&cache.path().join("downloads")).contains(&bomb));
}

#[test]
fn n9_a_server_that_breaks_tls_off_is_an_error_inside_the_tunnel() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| b"\x16\x03\x03\x00\x7agarbage".to_vec());
    let proxy = impatient(cache.path());
    proxy.begin_step();
    let answer = talk_in_tunnel(&proxy, server.port, "GET /a HTTP/1.0\r\n\r\n");
    let url = format!("https://localhost:{}/a", server.port);
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains(&url), "{answer}");
    kept_nothing(&proxy.end_step(), cache.path());
}

/// Sends a request through a TLS tunnel to `localhost`, and returns the answer.
fn talk_in_tunnel(proxy: &Proxy, port: u16, sent: &str) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&proxy.access().authority).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let (ours, theirs) = Socket::pair().unwrap();
    let core = Arc::clone(&proxy.core);
    thread::spawn(move || exchange::serve(theirs, &core));
    write!(&ours, "CONNECT localhost:{port} HTTP/1.1\r\n\r\n").unwrap();
    let mut established = [0; 39];
    (&ours).read_exact(&mut established).unwrap();
    let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut tunnel = StreamOwned::new(connection, ours);
    tunnel.write_all(sent.as_bytes()).unwrap();
    let mut answer = String::new();
    // The proxy closes without a goodbye of TLS.
    let _ = tunnel.read_to_string(&mut answer);
    answer
}

/// The guest's end of a port, and the connections that the host has accepted over it.
struct GuestPort {
    port: Socket,
    accepted: Receiver<tunnel::Connection>,
}

impl GuestPort {
    fn start() -> Self {
        let (port, theirs) = Socket::pair().unwrap();
        port.set_read_timeout(Some(BOUND)).unwrap();
        let (sender, accepted) = channel();
        tunnel::start(theirs, move |connection| drop(sender.send(connection))).unwrap();
        Self { port, accepted }
    }

    fn send(&self, stream: u32, message: &Message) {
        let mut bytes = Vec::new();
        put_frame(stream, message, &mut bytes);
        (&self.port).write_all(&bytes).unwrap();
    }

    /// Greets the host, and waits for its greeting; what it has sent before is thrown away.
    fn greet(&self, nonce: u64) {
        let greeting = Message::Tunnel { origin: ProtocolVersion, nonce };
        self.send(0, &greeting);
        let mut expected = Vec::new();
        put_frame(0, &greeting, &mut expected);
        let (mut came, mut byte) = (Vec::new(), [0]);
        while !came.ends_with(&expected) {
            (&self.port).read_exact(&mut byte).unwrap();
            came.push(byte[0]);
        }
    }
}

#[test]
fn n10_a_flood_of_connections_ends_them_all_and_the_next_greeting_begins_anew() {
    let guest = GuestPort::start();
    guest.greet(1);
    for stream in 1..=10_000 {
        guest.send(stream, &Message::Connect {});
    }
    guest.greet(2);
    let accepted: Vec<_> = guest.accepted.try_iter().collect();
    assert!(accepted.len() <= 2 * MOST_CONNECTIONS, "{} connections", accepted.len());
    for mut connection in accepted {
        assert!(connection.read(&mut [0]).is_err(), "a connection of before the greeting is open");
    }
    guest.send(20_000, &Message::Connect {});
    guest.accepted.recv_timeout(BOUND).expect("a connection after the greeting");
}

#[test]
fn n11_garbage_on_the_port_ends_its_connections_until_the_next_greeting() {
    let guest = GuestPort::start();
    guest.greet(1);
    guest.send(1, &Message::Connect {});
    let mut connection = guest.accepted.recv_timeout(BOUND).unwrap();
    (&guest.port).write_all(&[0xff; 4096]).unwrap();
    assert!(connection.read(&mut [0]).is_err());
    guest.greet(2);
    guest.send(2, &Message::Connect {});
    guest.accepted.recv_timeout(BOUND).expect("a connection after the greeting");
}

#[test]
fn n11_a_request_without_an_end_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let (answer, traffic) = ask(&proxy(cache.path()), &format!("GET http://127.0.0.1/{}", "a".repeat(100 << 10)));
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(traffic.answers.is_empty() && traffic.refusals[0].contains("too long"), "{traffic:?}");
}

#[test]
fn n16_no_credential_of_a_request_is_recorded_or_kept() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| ok("public"));
    let proxy = proxy(cache.path());
    let headers = "Authorization: Bearer canary-1\r\nCookie: session=canary-2\r\nX-Api-Key: canary-3\r\n";
    let url = server.url("/a?access_token=canary-4&v=1#canary-5");
    let (answer, traffic) = ask(&proxy, &get(&url, headers));
    assert_eq!(body(&answer), "public");
    assert_eq!(traffic.answers[0].request.url, server.url("/a?access_token=-&v=1"));
    assert!(!format!("{traffic:?}").contains("canary"), "{traffic:?}");
    assert!(files_of(cache.path()).iter().all(|file| !String::from_utf8_lossy(file).contains("canary")));
    let heads = server.heads.lock().unwrap().join("");
    let leaked: Vec<_> = ["1", "2", "3", "5"].into_iter().filter(|n| heads.contains(&format!("canary-{n}"))).collect();
    assert!(leaked.is_empty() && heads.contains("canary-4"), "{heads}");
}

#[test]
fn n20_a_body_that_is_missing_offline_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| ok("here"));
    let url = server.url("/a");
    let first = proxy(cache.path());
    talk(&first, &get(&url, ""));
    let record = record(&first);
    let empty = tempfile::tempdir().unwrap();
    let offline = ProxyOptions { record: Some(&record), ..options(empty.path(), NetworkMode::Offline) };
    let (answer, traffic) = ask(&Proxy::new(offline).unwrap(), &get(&url, ""));
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains(&url) && answer.contains("--offline"), "{answer}");
    kept_nothing(&traffic, empty.path());
    assert_eq!(server.asked(), 1);
}
