//! Real programs over a locked network: recorded once, and given the same again without a server.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::bench::{Bench, manifest, root, run};
use crate::locked_network::leaves_no_trace;

/// The version of npm in the guest: that of Debian needs several hundred packages.
const NPM: &str = "https://registry.npmjs.org/npm/-/npm-9.9.4.tgz";
/// The steps with pip, npm, git, curl and wget; `ORIGIN` stands for the server.
const PROGRAMS: &str = r#"
[machine]
boot = "direct"
network = "locked"
[network]
allow = ["deb.debian.org", "registry.npmjs.org", "127.0.0.2"]
[[step]]
name = "apt"
run = '''
apt-get update
apt-get install -y --no-install-recommends git nodejs python3-pip
apt-get install -y --reinstall ca-certificates
cat /run/kiln/network/authority.pem
'''
env = { DEBIAN_FRONTEND = "noninteractive" }
[[step]]
name = "curl and wget"
run = '''
curl -fsS ORIGIN/files/hello.txt >/root/found
wget -q -O - ORIGIN/files/hello.txt >>/root/found
'''
[[step]]
name = "pip"
run = '''
pip install --break-system-packages --index-url ORIGIN/simple/ kiln-hello
python3 -c 'import kiln_hello' >>/root/found
'''
[[step]]
name = "npm"
run = '''
mkdir -p /opt/npm /srv/node
curl -fsS NPM | tar -xz -C /opt/npm --strip-components 1
cd /srv/node
npm() { node /opt/npm/bin/npm-cli.js "$@" --no-audit --no-fund --registry ORIGIN/npm/; }
npm install kiln-hello
rm -r node_modules ~/.npm
npm ci
node -e 'require("kiln-hello")' >>/root/found
'''
[[step]]
name = "git"
run = '''
cd /srv
git clone --depth 1 ORIGIN/web.git shallow
git -C shallow fetch --depth 1 origin tag v7
git -C shallow show v7:hello >>/root/found
git clone ORIGIN/web.git full
git -C full log --format=%s >>/root/found
git -c protocol.version=0 clone ORIGIN/web.git old
git -C old show v40:hello >>/root/found
git clone --recurse-submodules ORIGIN/web.git tree
cat tree/lib/hello >>/root/found
! git -C full push origin main:other
'''
[[step]]
fetch = "/root/found"
to = "found"
"#;
/// The machine of steps that download from Debian alone.
const MACHINE: &str = r#"
[machine]
boot = "direct"
network = "locked"
[network]
allow = ["deb.debian.org"]
"#;
/// nginx and Docker, in an image that has nothing of the moment.
const DOCKER: &str = r#"
[[step]]
name = "install"
run = '''
[ "$(ls /sys/class/net)" = lo ]
apt-get update
apt-get install -y --no-install-recommends nginx docker.io
'''
"#;
/// The indices of Debian, some of which are valid for a week. Later, apt refuses what it has just accepted; years
/// later, the keys of the signatures have expired as well.
const INDICES: &str = r#"
[[step]]
name = "indices"
run = '''
apt-get update
date +%s >/root/time
rm -r /var/lib/apt/lists
date -s "+60 days"
! apt-get update 2>refused
cat refused
grep -q 'Release file .* is expired' refused
date -s "@$(cat /root/time)"
'''
[[step]]
fetch = "/root/time"
to = "time"
"#;
/// The number of times that nginx and Docker are installed again.
const REBUILDS: usize = 5;

/// A server with an ordinary certificate, which is stopped when it is dropped.
struct TlsServer {
    process: Child,
    origin: String,
    /// The authorities of the host and that of the server.
    authorities: PathBuf,
}

impl TlsServer {
    fn start(folder: &Path) -> Self {
        let key = "-x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2";
        let server = "-keyout key -out cert -subj /CN=server -addext subjectAltName=IP:127.0.0.2";
        for line in [
            format!("req {key} -keyout ca.key -out ca.pem -subj /CN=authority"),
            format!("req {key} {server} -addext basicConstraints=CA:FALSE -CA ca.pem -CAkey ca.key"),
        ] {
            let made = run("openssl", &line.split(' ').collect::<Vec<_>>(), folder);
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        let system =
            std::env::var_os("SSL_CERT_FILE").map_or("/etc/ssl/certs/ca-certificates.crt".into(), PathBuf::from);
        let authorities = folder.join("authorities.pem");
        let both = [fs::read(system).unwrap(), fs::read(folder.join("ca.pem")).unwrap()].concat();
        fs::write(&authorities, both).unwrap();
        let scripts = root().join("tests/vm/acceptance");
        fs::create_dir(folder.join("site")).unwrap();
        let log = fs::File::create(folder.join("server.log")).unwrap();
        let mut command = Command::new("python3");
        command.arg(scripts.join("server.py")).args(["site", "cert", "key"]).current_dir(folder);
        let mut process = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let server = Self { process, origin: format!("https://127.0.0.2:{}", port.trim()), authorities };
        let made = run("sh", &[scripts.join("index.sh").to_str().unwrap(), port.trim()], folder);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the path of the image that a build has published.
fn published(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).lines().next().unwrap())
}

/// Builds from the record alone into a new store, in a network namespace without routes.
fn rebuild_offline(bench: &Bench, spec: &Path, store: &str) -> PathBuf {
    let locked = bench.kiln(&["lock", "--offline", spec.to_str().unwrap()]);
    assert!(locked.status.success(), "{}", String::from_utf8_lossy(&locked.stderr));
    let before = fs::read(bench.path("kiln.lock")).unwrap();
    let kiln = bench.command(&["build", "--offline", "--locked", "--no-cache", spec.to_str().unwrap()]);
    let mut command = run_by(&["unshare", "--user", "--map-root-user", "--net"], &kiln);
    let image = published(&command.env("KILN_STORE", bench.path(store)).output().unwrap());
    assert_eq!(fs::read(bench.path("kiln.lock")).unwrap(), before);
    image
}

/// Returns a command that another program runs, with the same environment.
fn run_by(program: &[&str], command: &Command) -> Command {
    let mut by = Command::new(program[0]);
    by.args(&program[1..]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => by.env(name, value),
            None => by.env_remove(name),
        };
    }
    by
}

#[test]
#[ignore = "boots a VM"]
fn n20_n21_n22_pip_npm_git_curl_and_wget_get_the_same_without_their_server() {
    let bench = Bench::cold();
    let folder = bench.path("server");
    fs::create_dir(&folder).unwrap();
    let server = TlsServer::start(&folder);
    let spec = bench.spec("programs", &PROGRAMS.replace("ORIGIN", &server.origin).replace("NPM", NPM));
    let mut build = bench.command(&["build", spec.to_str().unwrap()]);
    let first = published(&build.env("SSL_CERT_FILE", &server.authorities).output().unwrap());
    drop(server);
    leaves_no_trace(&bench, &first, "hello from pip");
    let found = fs::read_to_string(first.with_file_name("found")).unwrap();
    let mut expected = vec!["hello from a file".to_owned(); 2];
    expected.extend(["hello from pip", "hello from npm", "hello 7 from git", "submodule"].map(str::to_owned));
    expected.extend((1..=40).rev().map(|number| number.to_string()));
    expected.extend(["hello 40 from git", "hello from a submodule"].map(str::to_owned));
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
    let log = fs::read_to_string(first.with_file_name("build.log")).unwrap();
    assert!(
        log.contains("/web.git/git-receive-pack is refused: the locked network has GET, HEAD and git fetches"),
        "{log}"
    );
    let lock = fs::read_to_string(bench.path("kiln.lock")).unwrap();
    let fetches = lock.lines().filter(|line| line.contains("kind = { upload-pack = \""));
    assert!(fetches.count() >= 6, "{lock}");

    let second = rebuild_offline(&bench, &spec, "second");
    assert_eq!(fs::read_to_string(second.with_file_name("found")).unwrap(), found);
    assert_eq!(manifest(&second)["downloads"], manifest(&first)["downloads"]);
}

#[test]
#[ignore = "boots a VM"]
fn n20_nginx_and_docker_are_installed_again_without_a_network_and_are_the_same() {
    let bench = Bench::cold();
    let spec = bench.spec("docker", &[MACHINE, DOCKER].concat());
    let first = bench.builds(&spec);
    let (folder, first) = (bench.folder.path(), manifest(&first));
    let packages = first["packages"].as_array().unwrap();
    for name in ["nginx", "docker.io", "containerd"] {
        assert!(packages.iter().any(|package| package["name"] == name), "{name} is not installed");
    }
    for number in 0..REBUILDS {
        let store = format!("again-{number}");
        let again = manifest(&rebuild_offline(&bench, &spec, &store));
        println!("build {number}: {}", again["content_sha256"]);
        assert_eq!(again["packages"], first["packages"]);
        assert_eq!(again["content_sha256"], first["content_sha256"], "see the stores in {}", folder.display());
        fs::remove_dir_all(bench.path(&store)).unwrap();
    }
}

#[test]
#[ignore = "boots a VM"]
fn n18_indices_that_have_expired_are_given_again_on_a_host_that_is_years_later() {
    let bench = Bench::cold();
    let spec = bench.spec("indices", &[MACHINE, INDICES].concat());
    let first = bench.builds(&spec);
    let read_time = |image: &Path| -> i64 {
        let time = fs::read_to_string(image.with_file_name("time")).unwrap();
        time.trim().parse().unwrap()
    };
    let later = bench.command(&["build", "--offline", "--no-cache", spec.to_str().unwrap()]);
    let mut later = run_by(&["faketime", "-f", "+1826d"], &later);
    let second = published(&later.env("KILN_STORE", bench.path("later")).output().unwrap());
    let started = manifest(&second)["started"].as_str().unwrap()[..4].parse::<u32>().unwrap();
    assert!(started >= manifest(&first)["started"].as_str().unwrap()[..4].parse::<u32>().unwrap() + 4, "{started}");
    let passed = read_time(&second) - read_time(&first);
    assert!(passed.abs() < 3600, "the guest has the time of the record, and not {passed} s more");
}
