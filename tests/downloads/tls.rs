//! `https`: whom it trusts, where it follows, and through which proxy it goes. Each download is a process of its own, since
//! trust and proxies are told by the environment.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Mutex;

use super::*;

/// openssl(1) serves the files of a folder as whole answers, each with its head.
struct Https {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Drop for Https {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Https {
    /// Answers by name, and an authority in `ca.pem` that vouches for the server.
    fn start(answers: &[(&str, Vec<u8>)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, answer) in answers {
            fs::write(folder.path().join(name), answer).unwrap();
        }
        let make = |line: &str| {
            let mut command = Command::new("openssl");
            command.args(line.split(' ')).current_dir(folder.path()).stderr(Stdio::null());
            assert!(command.status().expect("scripts/setup installs openssl").success(), "openssl {line}");
        };
        let key = "-x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2";
        make(&format!("req {key} -keyout ca.key -out ca.pem -subj /CN=authority"));
        let server = "-keyout key -out cert -subj /CN=server -addext subjectAltName=IP:127.0.0.1";
        make(&format!("req {key} {server} -addext basicConstraints=CA:FALSE -CA ca.pem -CAkey ca.key"));
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0", "-cert", "cert", "-key", "key", "-HTTP"]);
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
        let accept = said.find_map(|line| Some(line.ok()?.strip_prefix("ACCEPT 127.0.0.1:")?.parse().unwrap()));
        // It must not find the pipe closed.
        thread::spawn(move || said.for_each(drop));
        Self { process, folder, port: accept.unwrap() }
    }

    fn url(&self, name: &str) -> String {
        format!("https://127.0.0.1:{}/{name}", self.port)
    }

    fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }
}

/// What a child that downloads says at its end.
fn download(url: &str, body: &[u8], environment: &[(&str, &str)]) -> String {
    let cache = tempfile::tempdir().unwrap();
    let mut command = child_command(cache.path(), url, &sha256(body));
    command.arg("--nocapture").envs(environment.iter().copied());
    let said = String::from_utf8(command.stdout(Stdio::piped()).output().unwrap().stdout).unwrap();
    said.lines().find_map(|line| line.strip_prefix("result: ")).expect(&said).to_owned()
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.0 {head}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

#[test]
fn https_needs_an_authority_and_never_leads_to_http() {
    let body = noise(100_000);
    let plain = Server::of(&body);
    let server = Https::start(&[
        ("web.img", answer("200 OK", &body)),
        ("there", answer("302 Found\r\nLocation: web.img", b"")),
        ("down", answer(&format!("302 Found\r\nLocation: {}", plain.url("web.img")), b"")),
    ]);
    let authority = server.authority();
    let trust = [("SSL_CERT_FILE", authority.to_str().unwrap())];
    for name in ["web.img", "there"] {
        assert_eq!(download(&server.url(name), &body, &trust), sha256(&body), "{name}");
    }
    let stranger = download(&server.url("web.img"), &body, &[]);
    assert!(stranger.contains("UnknownIssuer"), "{stranger}");
    let elsewhere = server.url("web.img").replace("127.0.0.1", "localhost");
    let other_name = download(&elsewhere, &body, &trust);
    assert!(other_name.contains("not valid for name"), "{other_name}");
    let down = download(&server.url("down"), &body, &trust);
    assert!(down.contains("it redirects from https to http://127.0.0.1:"), "{down}");
    assert!(plain.seen().is_empty());
}

/// A proxy that opens tunnels, and the hosts it was asked for.
fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let hosts = asked.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let hosts = hosts.clone();
            thread::spawn(move || {
                // Nothing comes behind the head before the answer.
                let mut head = BufReader::new(&client).lines().map(Result::unwrap);
                let host = head.next().unwrap().split(' ').nth(1).unwrap().to_owned();
                while head.next().is_some_and(|line| !line.is_empty()) {}
                let server = TcpStream::connect(&host).unwrap();
                hosts.lock().unwrap().push(host);
                (&client).write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                pump(&client, &server);
            });
        }
    });
    (format!("http://{address}"), asked)
}

/// Both ways, until both have ended.
fn pump(one: &TcpStream, other: &TcpStream) {
    thread::scope(|scope| {
        for (mut from, mut to) in [(one, other), (other, one)] {
            scope.spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    });
}

#[test]
fn a_proxy_is_gone_through_unless_the_host_is_left_out() {
    let body = noise(100_000);
    let server = Https::start(&[("web.img", answer("200 OK", &body))]);
    let plain = Server::of(&body);
    let authority = server.authority();
    let trust = ("SSL_CERT_FILE", authority.to_str().unwrap());
    let (proxy, asked) = proxy();
    for (url, variable) in [(server.url("web.img"), "https_proxy"), (plain.url("web.img"), "http_proxy")] {
        assert_eq!(download(&url, &body, &[trust, (variable, &proxy)]), sha256(&body));
        assert_eq!(asked.lock().unwrap().drain(..).count(), 1, "{variable}");
        assert_eq!(download(&url, &body, &[trust, (variable, &proxy), ("no_proxy", "127.0.0.1")]), sha256(&body));
        assert_eq!(asked.lock().unwrap().len(), 0, "{variable}");
    }
}
