//! The locked network: what a step downloads is recorded, and given again without the server.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::bench::{Bench, manifest, run};

/// The steps; `PORT` stands for the server's port. The `POST` shows that curl trusts the proxy, which answers it by itself.
const STEPS: &str = r#"
[machine]
boot = "direct"
memory = "512MiB"
network = "locked"
[network]
allow = ["127.0.0.1"]
[[step]]
name = "download"
run = '''
unset no_proxy NO_PROXY
[ "$(ls /sys/class/net)" = lo ]
curl -fsS -o /root/file http://127.0.0.1:PORT/file
curl -sS -X POST https://127.0.0.1:1/ | grep -q 'GET, HEAD and git fetches alone'
cat /run/kiln/network/authority.pem
date +%s >/root/time
'''
[[step]]
name = "later"
run = "unset no_proxy; NO_PROXY= curl -fsS http://127.0.0.1:PORT/file | cmp /root/file && date +%s >>/root/time"
[[step]]
name = "present"
run = "date +%s >>/root/time"
[[step]]
name = "authorities"
run = '''
unset no_proxy NO_PROXY
cd /etc/ssl/certs
# Without the variables, curl reads the file of the distribution.
trusts() {
    env -u CURL_CA_BUNDLE -u SSL_CERT_FILE curl -sS -X POST https://127.0.0.1:1/ | grep -q 'git fetches alone'
}
# A new list is covered in a moment.
soon() { for try in $(seq 50); do "$@" 2>/dev/null && return; sleep 0.1; done; "$@"; }
trusts
count=$(grep -c BEGIN ca-certificates.crt)
sed -i '0,/^mozilla/s/^mozilla/!mozilla/' /etc/ca-certificates.conf
update-ca-certificates --fresh
soon trusts
[ "$(grep -c BEGIN ca-certificates.crt)" = $((count - 1)) ]
# Copies and additions are the image's, but for the certificate of the proxy.
cp ca-certificates.crt copy
rm ca-certificates.crt
sleep 0.1
mv copy ca-certificates.crt
soon trusts
sleep 0.5
echo '# added' >>ca-certificates.crt
grep -q '# added' ca-certificates.crt
'''
[[step]]
name = "authorities again"
run = '''
unset no_proxy NO_PROXY
env -u CURL_CA_BUNDLE -u SSL_CERT_FILE curl -sS -X POST https://127.0.0.1:1/ | grep -q 'git fetches alone'
'''
[[step]]
fetch = "/etc/ssl/certs/ca-certificates.crt"
to = "authorities"
[[step]]
fetch = "/root/file"
to = "file"
[[step]]
fetch = "/root/time"
to = "time"
"#;
/// What the server answers before and after its change.
const BODIES: [&str; 2] = ["as it was\n", "as it is now\n"];
/// The SHA-256 digests of these.
const DIGESTS: [&str; 2] = [
    "ba500d3dbc53099f0fdf200762d128ca6769ab4672defd7ee4067dbe528b8f39",
    "f9ca239130e15819787f63656db1224e35b2ccd350b11425602772e07e45df8c",
];

/// A server that answers every request alike, until it is dropped.
struct Server {
    port: u16,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server; with port 0, the system chooses one.
    fn start(port: u16, body: &'static str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                answer(socket, body);
            }
        });
        Self { port, is_over, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(mut socket: TcpStream, body: &str) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    let length = body.len();
    let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
}

#[test]
#[ignore = "boots a VM"]
fn n5_n18_n20_n22_n31_a_download_is_recorded_and_given_again_without_its_server() {
    let bench = Bench::cold();
    let server = Server::start(0, BODIES[0]);
    let port = server.port;
    let spec = bench.spec("locked", &STEPS.replace("PORT", &port.to_string()));
    let first = bench.builds(&spec);
    downloads_in_a_shell(&bench, &spec, port);
    drop(server);
    assert_eq!(fs::read_to_string(first.with_file_name("file")).unwrap(), BODIES[0]);
    let lock = fs::read_to_string(bench.path("kiln.lock")).unwrap();
    let line =
        format!("url = \"http://127.0.0.1:{port}/file\", sha256 = \"{}\", bytes = {}", DIGESTS[0], BODIES[0].len());
    assert!(lock.contains(&line), "{lock}");
    assert!(!lock.contains("https:"), "{lock}");
    leaves_no_trace(&bench, &first, BODIES[0].trim());
    has_own_authorities(&first);

    fs::write(bench.path("kiln.lock"), set_times_of_record(&lock)).unwrap();
    assert!(bench.kiln(&["lock", "--offline", spec.to_str().unwrap()]).status.success());
    let year_ago = fs::read_to_string(bench.path("kiln.lock")).unwrap();
    assert!(year_ago.contains("{ name = \"later\", recorded = \""), "{year_ago}");
    let again = rebuild(&bench, &spec, "second", &["--offline", "--locked"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let second = PathBuf::from(String::from_utf8(again.stdout).unwrap().lines().next().unwrap());
    assert_eq!(fs::read_to_string(second.with_file_name("file")).unwrap(), BODIES[0]);
    assert_eq!(fs::read_to_string(bench.path("kiln.lock")).unwrap(), year_ago);
    let [before, after] = [&first, &second].map(|image| seconds_of_steps(image));
    assert_eq!((before.len(), after.len()), (3, 3));
    assert!(after[0] < before[0] - 300 * 86_400, "the guest has the time of the record: {before:?} {after:?}");
    let month_ago = after[2] - 30 * 86_400;
    assert!((month_ago - 3600..month_ago + 3600).contains(&after[1]), "a step has its own time: {after:?}");
    assert!(after[2] > before[2], "a step without a record has the present: {before:?} {after:?}");
    assert_eq!(manifest(&second)["network"], manifest(&first)["network"]);

    fs::remove_dir_all(bench.cache.join("downloads")).unwrap();
    let _changed = Server::start(port, BODIES[1]);
    let failed = rebuild(&bench, &spec, "third", &[]);
    let stderr = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(failed.status.code(), Some(5), "{stderr}");
    for said in [&format!("http://127.0.0.1:{port}/file"), DIGESTS[0], DIGESTS[1], "kiln lock --refresh"] {
        assert!(stderr.contains(said), "{said}: {stderr}");
    }
}

/// Checks that the list of authorities is the one that a step has made, and an ordinary file.
fn has_own_authorities(image: &Path) {
    let authorities = fs::read_to_string(image.with_file_name("authorities")).unwrap();
    assert!(authorities.ends_with("-----END CERTIFICATE-----\n# added\n"), "{authorities}");
    let files = run("zstd", &["-dc", "files.zst"], image.parent().unwrap()).stdout;
    let files = String::from_utf8(files).unwrap();
    let listed: Vec<&str> =
        files.lines().filter(|line| line.starts_with("path=/etc/ssl/certs/ca-certificates.crt ")).collect();
    let [file] = listed[..] else { panic!("{listed:?}") };
    assert!(file.contains(" type=file mode=0644 "), "{file}");
    assert!(!files.contains(".kiln "), "a covered bundle is left");
}

/// Checks that a shell has the network, and that what is downloaded there is not recorded.
fn downloads_in_a_shell(bench: &Bench, spec: &Path, port: u16) {
    let before = fs::read_to_string(bench.path("kiln.lock")).unwrap();
    let typed = format!("unset no_proxy NO_PROXY; curl -fsS http://127.0.0.1:{port}/shell\n");
    fs::write(bench.path("typed"), typed).unwrap();
    let mut shell = bench.command(&["shell"]);
    shell.arg(spec).stdin(fs::File::open(bench.path("typed")).unwrap());
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains(BODIES[0].trim_end()));
    assert_eq!(fs::read_to_string(bench.path("kiln.lock")).unwrap(), before);
}

/// Builds into a new store, without the step cache.
fn rebuild(bench: &Bench, spec: &Path, store: &str, options: &[&str]) -> std::process::Output {
    let mut command = bench.command(&["build", "--no-cache"]);
    command.args(options).arg(spec).env("KILN_STORE", bench.path(store)).output().unwrap()
}

/// Returns the times that the steps have written, in seconds since 1970.
fn seconds_of_steps(image: &Path) -> Vec<i64> {
    let times = fs::read_to_string(image.with_file_name("time")).unwrap();
    times.lines().map(|time| time.parse().unwrap()).collect()
}

/// Returns a lock file whose recording is from a year ago, but for the step "later", which was recorded a month ago.
fn set_times_of_record(lock: &str) -> String {
    let (before, after) = lock.split_once("recorded = \"").unwrap();
    let (recorded, after) = after.split_once('"').unwrap();
    let year: u32 = recorded[..4].parse().unwrap();
    let month_ago = run("date", &["-u", "+%FT%TZ", "-d", "now - 30 days"], Path::new("/")).stdout;
    let month_ago = String::from_utf8(month_ago).unwrap();
    let later = format!("steps = [{{ name = \"later\", recorded = \"{}\" }}]", month_ago.trim());
    format!("{before}recorded = \"{}{}\"\n{later}{after}", year - 1, &recorded[4..])
}

/// Searches the raw disk for the proxy's address, its folder, and the certificate of its authority, as it was in the guest.
/// `known` is a text that is on the disk.
pub(crate) fn leaves_no_trace(bench: &Bench, image: &Path, known: &str) {
    let log = fs::read_to_string(image.with_file_name("build.log")).unwrap();
    let certificate = log.lines().skip_while(|line| !line.contains("BEGIN CERTIFICATE"));
    let certificate = certificate.skip(1).take_while(|line| !line.contains("END CERTIFICATE"));
    let mut traces: Vec<&str> = certificate.map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert!(traces.len() > 3 && traces[..3].iter().all(|line| line.len() == 64), "{traces:?}");
    traces.truncate(3);
    traces.extend(["127.0.0.1:61128", "kiln, for one build", "/run/kiln/network"]);
    fs::write(bench.path("traces"), traces.join("\n")).unwrap();
    let image = image.to_str().unwrap();
    assert!(run("qemu-img", &["convert", "-O", "raw", image, "raw"], bench.folder.path()).status.success());
    let search = |file: &str| run("grep", &["-a", "-c", "-F", "-f", "traces", file], bench.folder.path());
    assert_eq!(search("traces").stdout, b"6\n", "the search finds what is there");
    let found = run("grep", &["-a", "-q", "-F", "-e", known, "raw"], bench.folder.path());
    assert!(found.status.success(), "{known:?} is not found on the disk");
    assert_eq!(search("raw").stdout, b"0\n", "the disk has traces of the proxy");
}
