//! Messages of real programs, and the cause that each of them indicates.

use super::*;

/// Lines as programs write them, each with the expected cause.
const WORDS: &[(CommandTrouble, &str)] = &[
    // apt, its parts and PPAs.
    (T::NoNetwork, "  Temporary failure resolving 'deb.debian.org'"),
    (
        T::NoNetwork,
        "W: Failed to fetch http://deb.debian.org/debian/dists/bookworm/InRelease  Temporary failure resolving 'deb.debian.org'",
    ),
    (T::NoNetwork, "Err:1 http://deb.debian.org/debian bookworm InRelease Could not resolve 'deb.debian.org'"),
    (
        T::NoNetwork,
        "  Cannot initiate the connection to archive.ubuntu.com:80 (2620:2d:4002:1::101). - connect (101: Network is unreachable)",
    ),
    (
        T::NoNetwork,
        "E: Failed to fetch http://archive.ubuntu.com/ubuntu/pool/main/n/nginx.deb  Unable to connect to archive.ubuntu.com:http:",
    ),
    (T::NoNetwork, "socket.gaierror: [Errno -3] Temporary failure in name resolution"),
    // dnf, dnf5, yum, zypper, apk, pacman.
    (
        T::NoNetwork,
        "  - Curl error (6): Couldn't resolve host name for https://mirrors.fedoraproject.org/metalink?repo=fedora-40&arch=x86_64 [Could not resolve host: mirrors.fedoraproject.org]",
    ),
    (T::NoNetwork, ">>> Curl error (6): Could not resolve hostname for https://mirror.example/repodata/repomd.xml"),
    (
        T::NoNetwork,
        "Error: Failed to download metadata for repo 'fedora': Cannot prepare internal mirrorlist: Curl error (6)",
    ),
    (
        T::NoNetwork,
        "Could not retrieve mirrorlist http://mirrorlist.centos.org/?release=7&arch=x86_64&repo=os error was",
    ),
    (T::NoNetwork, "14: curl#6 - \"Could not resolve host: mirrorlist.centos.org; Unknown error\""),
    (T::NoNetwork, "Error message: Could not resolve host: download.opensuse.org"),
    (T::NoNetwork, "ERROR: http://dl-cdn.alpinelinux.org/alpine/v3.6/main: temporary error (try again later)"),
    (
        T::NoNetwork,
        "WARNING: fetching https://dl-cdn.alpinelinux.org/alpine/v3.22/main: DNS: transient error (try again later)",
    ),
    (T::NoNetwork, "ERROR: unable to select packages: DNS lookup error"),
    (
        T::NoNetwork,
        "error: failed retrieving file 'core.db' from geo.mirror.pkgbuild.com : Could not resolve host: geo.mirror.pkgbuild.com",
    ),
    // curl, wget, git, ssh, rsync, ping, gpg, flatpak.
    (T::NoNetwork, "curl: (6) Could not resolve host: example.org"),
    (T::NoNetwork, "curl: (7) Failed to connect to example.org port 443 after 2 ms: Couldn't connect to server"),
    (T::NoNetwork, "curl: (28) Failed to connect to 203.0.113.7 port 80 after 134010 ms: Connection timed out"),
    (T::NoNetwork, "wget: unable to resolve host address \u{2018}example.org\u{2019}"),
    (T::NoNetwork, "wget: bad address 'example.org'"),
    (T::NoNetwork, "Resolving example.org (example.org)... failed: Name or service not known."),
    (T::NoNetwork, "fatal: unable to access 'https://github.com/o/r.git/': Could not resolve host: github.com"),
    (T::NoNetwork, "fatal: unable to look up git.example.org (port 9418) (Name or service not known)"),
    (T::NoNetwork, "ssh: Could not resolve hostname github.com: Temporary failure in name resolution"),
    (T::NoNetwork, "rsync: getaddrinfo: mirror.example 873: Temporary failure in name resolution"),
    (T::NoNetwork, "ping: connect: Network is unreachable"),
    (T::NoNetwork, "ssh: connect to host web: Name or service not known"),
    (T::NoNetwork, "gpg: keyserver receive failed: No name"),
    (
        T::NoNetwork,
        "error: Unable to load summary from remote flathub: While fetching https://dl.flathub.org/repo/summary.idx: [6] Could not resolve hostname",
    ),
    // pip, uv, npm, yarn, go, cargo, rustup, gem, composer, maven, Galaxy.
    (
        T::NoNetwork,
        "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object>: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution')': /simple/flask/",
    ),
    (
        T::NoNetwork,
        "  Caused by: dns error: failed to lookup address information: Temporary failure in name resolution",
    ),
    (
        T::NoNetwork,
        "npm ERR! request to https://registry.npmjs.org/left-pad failed, reason: getaddrinfo EAI_AGAIN registry.npmjs.org",
    ),
    (T::NoNetwork, "npm error code ENOTFOUND"),
    (T::NoNetwork, "info There appears to be trouble with your network connection. Retrying..."),
    (
        T::NoNetwork,
        "go: example.org/m@v1.0.0: Get \"https://proxy.golang.org/example.org/m\": dial tcp: lookup proxy.golang.org on 127.0.0.53:53: server misbehaving",
    ),
    (
        T::NoNetwork,
        "warning: spurious network error (3 tries remaining): [6] Couldn't resolve host name (Could not resolve host: index.crates.io)",
    ),
    (
        T::NoNetwork,
        "error: could not download file from 'https://static.rust-lang.org/dist/channel-rust-stable.toml.sha256': error sending request for url",
    ),
    (
        T::NoNetwork,
        "ERROR:  Could not find a valid gem 'rails' (>= 0), here is why: Unable to download data from https://rubygems.org/ - Failed to open TCP connection",
    ),
    (
        T::NoNetwork,
        "curl error 6 while downloading https://repo.packagist.org/packages.json: Could not resolve host: repo.packagist.org",
    ),
    (T::NoNetwork, "[ERROR] Unknown host repo.maven.apache.org: Temporary failure"),
    (T::NoNetwork, "java.net.UnknownHostException: repo.maven.apache.org"),
    (
        T::NoNetwork,
        "[WARNING]: Unknown error when attempting to call Galaxy at 'https://galaxy.ansible.com/api/': <urlopen error [Errno -2] Name or service not known>",
    ),
    // snap, docker, podman.
    (T::NoNetwork, "error: unable to contact snap store"),
    (
        T::NoNetwork,
        "error: cannot install \"vlc\": Post https://api.snapcraft.io/v2/snaps/refresh: dial tcp: lookup api.snapcraft.io: no such host",
    ),
    (
        T::NoNetwork,
        "Error response from daemon: Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: Temporary failure in name resolution",
    ),
    (
        T::NoNetwork,
        "Error: initializing source docker://alpine:latest: pinging container registry registry-1.docker.io: dial tcp 203.0.113.7:443: connect: network is unreachable",
    ),
    // Locks.
    (
        T::PackagesLocked,
        "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1234 (unattended-upgr)",
    ),
    (
        T::PackagesLocked,
        "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?",
    ),
    (T::PackagesLocked, "E: Unable to lock directory /var/lib/apt/lists/"),
    (T::PackagesLocked, "dpkg: error: dpkg frontend lock was locked by another process with pid 812"),
    (T::PackagesLocked, "Waiting for process with pid 812 to finish."),
    (T::PackagesLocked, "Another app is currently holding the yum lock; waiting for it to exit..."),
    (T::PackagesLocked, "System management is locked by the application with pid 812 (zypper)."),
    (T::PackagesLocked, "ERROR: Unable to lock database: Resource temporarily unavailable"),
    (
        T::PackagesLocked,
        "error: can't create transaction lock on /var/lib/rpm/.rpm.lock (Resource temporarily unavailable)",
    ),
    // Repositories and their keys.
    (
        T::ReleaseExpired,
        "E: Release file for http://snapshot.debian.org/archive/debian/20230101T000000Z/dists/sid/InRelease is expired (invalid since 300d 2h). Updates for this repository will not be applied.",
    ),
    (
        T::ReleaseChanged,
        "E: Repository 'http://deb.debian.org/debian bullseye InRelease' changed its 'Suite' value from 'stable' to 'oldstable'",
    ),
    (
        T::RepositoryGone,
        "E: The repository 'http://deb.debian.org/debian buster Release' does not have a Release file.",
    ),
    (
        T::RepositoryGone,
        "E: The repository 'http://archive.ubuntu.com/ubuntu eoan Release' no longer has a Release file.",
    ),
    (
        T::RepositoryGone,
        "E: Failed to fetch http://deb.debian.org/debian/pool/main/c/curl/curl_7.88.1-10.deb  404  Not Found [IP: 151.101.2.132 80]",
    ),
    (T::RepositoryGone, "  - Status code: 404 for https://vault.example/repodata/repomd.xml (IP: 203.0.113.7)"),
    (T::RepositoryGone, "curl: (22) The requested URL returned error: 404"),
    (T::RepositoryGone, "2026-01-01 00:00:00 ERROR 404: Not Found."),
    (T::RepositoryGone, "Cannot find a valid baseurl for repo: base/7/x86_64"),
    (
        T::KeyMissing,
        "W: GPG error: https://repo.example.com stable InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 871920D1991BC93C",
    ),
    (T::KeyMissing, "  The following signatures were invalid: EXPKEYSIG 871920D1991BC93C Example <a@example.com>"),
    (T::KeyMissing, "E: The repository 'https://repo.example.com stable InRelease' is not signed."),
    (T::KeyMissing, "Public key for nginx-1.24.0-1.x86_64.rpm is not installed"),
    (T::KeyMissing, "Error: GPG check FAILED"),
    (T::KeyMissing, "ERROR: https://pkgs.example/x86_64: UNTRUSTED signature"),
    (T::PackageUnknown, "E: Unable to locate package nginx"),
    (T::PackageUnknown, "E: Package 'python' has no installation candidate"),
    (T::PackageUnknown, "No match for argument: nginxx"),
    (T::PackageUnknown, "  nginxx (no such package):"),
    (T::PackageUnknown, "error: target not found: nginxx"),
    (
        T::DpkgInterrupted,
        "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem.",
    ),
    (T::NotRoot, "E: Could not open lock file /var/lib/dpkg/lock-frontend - open (13: Permission denied)"),
    (T::NotRoot, "Error: This command has to be run with superuser privileges (under the root user on most systems)."),
    (T::Unattended, "Do you want to continue? [Y/n] Abort."),
    (T::Unattended, "Is this ok [y/N]: Operation aborted."),
    // Disk and memory.
    (T::DiskFull, "tar: ./big: Cannot write: No space left on device"),
    (T::DiskFull, "E: You don't have enough free space in /var/cache/apt/archives/."),
    (T::DiskFull, "  At least 120MB more space needed on the / filesystem."),
    (T::DiskFull, "\tinstalling package linux-firmware needs 52MB more space on the / filesystem"),
    (T::DiskFull, "error: Partition / too full: 52224 blocks needed, 0 blocks free"),
    (T::DiskFull, "npm ERR! code ENOSPC"),
    (T::NoInodes, "\tinstalling package tzdata-2024a needs 12 inodes on the / filesystem"),
    (T::Quota, "cp: error writing 'x': Disk quota exceeded"),
    (T::ReadOnly, "touch: cannot touch '/usr/x': Read-only file system"),
    (T::OutOfMemory, "Killed"),
    (T::OutOfMemory, "sh: line 1:   812 Killed                  tail /dev/zero"),
    (T::OutOfMemory, "c++: fatal error: Killed signal terminated program cc1plus: cannot allocate memory"),
    (T::OutOfMemory, "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory"),
    (T::OutOfMemory, "  process didn't exit successfully: `rustc` (signal: 9, SIGKILL: kill)"),
    // Python.
    (T::PythonMissing, "/bin/sh: 1: /usr/bin/python: not found"),
    (T::PythonMissing, "/usr/bin/env: \u{2018}python3\u{2019}: No such file or directory"),
    (T::PythonMissing, "The module interpreter '/usr/bin/python3' was not found."),
    (T::PythonMissing, "/usr/bin/python3: No module named pip"),
    (T::PythonManaged, "error: externally-managed-environment"),
    // Programs.
    (T::OtherProcessor, "sh: 1: ./tool: Exec format error"),
    (T::OtherProcessor, "bash: ./tool: cannot execute binary file: Exec format error"),
    (T::OldLibrary, "./tool: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by ./tool)"),
    (T::ModuleMissing, "modprobe: FATAL: Module nf_tables not found in directory /lib/modules/6.1.0-40-cloud-amd64"),
    (T::NoSystemd, "System has not been booted with systemd as init system (PID 1). Can't operate."),
    (
        T::NoPassword,
        "sudo: a terminal is required to read the password; either use the -S option to read from standard input",
    ),
    // Syntax of bash, as dash and busybox report it.
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: set: Illegal option -o pipefail"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 2: source: not found"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: [[: not found"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: line 1: source: not found"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: declare: not found"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 3: function: not found"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: time: not found"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: local: -a: bad variable name"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: read: Illegal option -a"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: trap: ERR: bad trap"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: Syntax error: \"(\" unexpected"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 2: Syntax error: \"(\" unexpected (expecting \"}\")"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: Syntax error: redirection unexpected"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: Syntax error: Bad for loop variable"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: Syntax error: Bad fd number"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: line 1: syntax error: unexpected \"(\""),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: Bad substitution"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: [: a: unexpected operator"),
    (T::NeedsBash, "/run/kiln/scripts/step-1: 1: arithmetic expression: expecting primary: \"i++\""),
    // sshd.
    (T::NoHostKeys, "sshd: no hostkeys available -- exiting."),
    (T::NoSshFolder, "Missing privilege separation directory: /run/sshd"),
    (T::SshService, "Job for ssh.service failed because the control process exited with error code."),
    (T::CommandMissing, "sh: 1: curl: not found"),
    (T::CommandMissing, "/tmp/setup.sh: line 3: jq: command not found"),
    (T::CommandMissing, "env: 'node': No such file or directory"),
    // Clock and certificates.
    (T::ClockBehind, "curl: (60) SSL certificate problem: certificate is not yet valid"),
    (
        T::ClockBehind,
        "E: Release file for http://deb.debian.org/debian/dists/bookworm/InRelease is not valid yet (invalid for another 2h 3min 5s).",
    ),
    (T::Certificates, "curl: (60) SSL certificate problem: unable to get local issuer certificate"),
    (T::Certificates, "tls: failed to verify certificate: x509: certificate signed by unknown authority"),
    (
        T::Certificates,
        "  Certificate verification failed: The certificate is NOT trusted. The certificate issuer is unknown.",
    ),
];

/// Lines of programs that work, or that fail for a reason of their own.
const HARMLESS: [&str; 14] = [
    "setup.sh: line 3: ${a.b}: bad substitution",
    "  File \"x.py\", line 1: SyntaxError: invalid syntax",
    "sudo: unable to resolve host web: Name or service not known",
    "Could not resolve dependency: peer react@\"^17\" from x@1.0.0",
    "0 killed, 3 passed",
    "Setting up libnss-resolve (252) ...",
    "psql: error: connection to server on socket \"/var/run/postgresql/.s.PGSQL.5432\" failed",
    "debconf: unable to initialize frontend: Dialog",
    "configure: error: C compiler cannot create executables",
    "warning: 404 tests were skipped",
    "locale: Cannot set LC_ALL to default locale: No such file or directory",
    "Get:1 http://deb.debian.org/debian bookworm InRelease [151 kB]",
    "cp: cannot stat 'x': No such file or directory",
    "checking for python... not found, ignoring",
];

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn the_words_of_real_programs_are_known() {
    let wrong: Vec<_> = WORDS
        .iter()
        .map(|(expected, line)| (expected, line, find_trouble(&lines(&[line])).map(|(found, _)| found)))
        .filter(|(expected, _, found)| found.as_ref() != Some(*expected))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let wrong: Vec<_> = HARMLESS.iter().filter(|line| find_trouble(&lines(&[line])).is_some()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_pattern_can_be_read() {
    let unreadable: Vec<_> = TABLE.iter().filter(|(_, pattern)| Regex::new(pattern).is_err()).collect();
    assert!(unreadable.is_empty(), "{unreadable:?}");
}

#[test]
fn a_cause_wins_over_what_follows_from_it() {
    let apt = lines(&["  Temporary failure resolving 'deb.debian.org'", "E: Unable to locate package nginx"]);
    assert_eq!(find_trouble(&apt).unwrap().0, T::NoNetwork);
    let without = hint_of_output(&apt, NetworkBackend::None).unwrap();
    let locked = without.find("machine.network = \"locked\"").unwrap();
    assert!(locked < without.find("machine.network = \"user\"").unwrap(), "{without}");
    assert!(hint_of_output(&apt, NetworkBackend::Locked).unwrap().contains("use the proxy"));
    assert!(hint_of_output(&apt, NetworkBackend::User).unwrap().contains("did not reach that host"));
    let early =
        lines(&["E: Release file for http://a.example/InRelease is not valid yet (invalid for another 2d 3h)."]);
    assert!(hint_of_output(&early, NetworkBackend::Locked).unwrap().contains("kiln lock --refresh"));
    assert!(hint_of_output(&early, NetworkBackend::User).unwrap().contains("clock of this host"));
    let unknown = lines(&["E: Unable to locate package nginx"]);
    assert!(hint_of_output(&unknown, NetworkBackend::None).unwrap().contains("machine.network"));
    assert!(hint_of_output(&unknown, NetworkBackend::User).unwrap().contains("apt-get update"));
}

#[test]
fn a_missing_command_is_named_with_its_package() {
    let of = |line: &str| hint_of_output(&lines(&[line]), NetworkBackend::User).unwrap();
    assert_eq!(of("sh: 1: curl: not found"), "the guest does not have `curl`: install the package `curl` first");
    assert!(of("bash: line 1: ps: command not found").contains("`procps` (`procps-ng` on other distributions)"));
    assert!(of("sh: frobnicate: not found").contains("`frobnicate`, or not in the PATH"));
    assert!(
        of("env: \u{2018}node\u{2019}: No such file or directory").contains("`node`: install the package `nodejs`")
    );
}

#[test]
fn a_word_of_bash_is_named_with_the_way_to_bash() {
    for (line, expected) in [
        ("step-1: 1: source: not found", "`source` is a word of bash: the text"),
        ("step-1: 1: [[: not found", "`[[` is a word of bash: the text"),
        ("step-1: 1: Bad substitution", "the text of a `run` is run by sh"),
    ] {
        let hint = hint_of_output(&lines(&[line]), NetworkBackend::User).unwrap();
        assert!(hint.starts_with(expected) && hint.contains("[\"bash\", \"-euc\""), "{hint}");
    }
}

#[test]
fn all_other_output_has_no_hint() {
    assert_eq!(hint_of_output(&lines(&["all is well", ""]), NetworkBackend::None), None);
}

#[test]
fn output_that_asks_for_a_service_is_known() {
    for line in [
        "Running in chroot, ignoring command 'start'",
        "Running in chroot, ignoring request: start",
        "/usr/sbin/policy-rc.d returned 101, not running 'start nginx.service'\ninvoke-rc.d: policy-rc.d denied execution of start.",
        "System has not been booted with systemd as init system (PID 1). Can't operate.",
        "Failed to connect to bus: No such file or directory",
        "Failed to connect to system scope bus via local transport: No such file or directory",
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
        "psql: error: connection to server on socket \"/run/.s.PGSQL.5432\" failed: No such file or directory\n\tIs the server running locally and accepting connections on that socket?",
        "ERROR 2002 (HY000): Can't connect to local MySQL server through socket '/run/mysqld/mysqld.sock' (2)",
        "Could not connect to Redis at 127.0.0.1:6379: Connection refused",
        "curl: (7) Failed to connect to 127.0.0.1 port 80 after 0 ms: Connection refused",
    ] {
        assert!(needs_service(&lines(&[line])), "{line}");
    }
    for line in ["E: Unable to locate package nginx", "the service is running", "No such file or directory"] {
        assert!(!needs_service(&lines(&[line])), "{line}");
    }
}
