//! Hints on commands that failed, as far as their output allows: a table of messages that programs write.
//!
//! The first row of the table that matches any line applies, so causes stand above their consequences: without a network a
//! package is not found either.

use regex_lite::Regex;

use crate::plan::machine::PlannedMachine;
use crate::specfile::NetworkBackend;

#[cfg(test)]
mod tests;

/// A cause of a command's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandTrouble {
    DiskFull,
    NoInodes,
    Quota,
    ReadOnly,
    OutOfMemory,
    NoNetwork,
    ClockBehind,
    Certificates,
    PackagesLocked,
    NotRoot,
    Unattended,
    ReleaseExpired,
    ReleaseChanged,
    KeyMissing,
    RepositoryGone,
    PackageUnknown,
    DpkgInterrupted,
    PythonManaged,
    PythonMissing,
    OtherProcessor,
    OldLibrary,
    ModuleMissing,
    NoSystemd,
    NoPassword,
    NoHostKeys,
    NoSshFolder,
    SshService,
    NeedsBash,
    CommandMissing,
}

use CommandTrouble as T;

/// Patterns of lines, each with the cause that it indicates. All of them ignore case.
const TABLE: &[(CommandTrouble, &str)] = &[
    (T::NoInodes, r"needs \d+ (more )?inodes on the|no free inodes|out of inodes"),
    (T::DiskFull, r"no space left on device|\benospc\b|not enough (free )?(disk )?space|enough free space in /"),
    (T::DiskFull, r"more space (is )?needed on the|more space on the .* filesystem|partition .* too full"),
    (T::DiskFull, r"there is not enough space|disk full|write error: no space"),
    (T::Quota, r"disk quota exceeded|\bedquot\b"),
    (T::ReadOnly, r"read-only file ?system|\berofs\b"),
    (T::OutOfMemory, r"^killed$|: killed$|[0-9] killed  |\bsigkill\b|signal: 9\b|exit (status|code) 137"),
    (T::OutOfMemory, r"out of memory|cannot allocate memory|memory exhausted|std::bad_alloc|^memoryerror"),
    (T::OutOfMemory, r"\boom-kill|heap out of memory|outofmemoryerror|\benomem\b"),
    (T::NoNetwork, r"temporary failure resolving|temporary failure in name resolution"),
    (T::NoNetwork, r"(could not|couldn't|cannot|can't|failed to) resolve ((the )?host|address|proxy|name|mirror)"),
    (T::NoNetwork, r"^(e|w|err).* could not resolve '|unable to resolve host address|getaddrinfo|bad address '"),
    (T::NoNetwork, r"unable to look up .* \(port"),
    (T::NoNetwork, r"network is unreachable|\benetunreach\b|no route to host|\behostunreach\b|network is down"),
    (T::NoNetwork, r"\beai_again\b|\benotfound\b|\betimedout\b|failed to lookup address information|dns error"),
    (T::NoNetwork, r"name or service not known|no address associated with hostname|unknown ?host"),
    (T::NoNetwork, r"dial tcp: (lookup|.* i/o timeout)|lookup .* (no such host|server misbehaving)|dial udp"),
    (T::NoNetwork, r"dns( lookup)?: transient error|dns lookup error|temporary error \(try again later\)"),
    (T::NoNetwork, r"unable to contact snap store|cannot prepare internal mirrorlist|could not retrieve mirrorlist"),
    (T::NoNetwork, r"failed retrieving file|trouble with your network connection|unable to download data from http"),
    (T::NoNetwork, r"failed to connect to .* port (80|443)\b|unable to connect to .*:https?:|connection timed out"),
    (T::NoNetwork, r"keyserver (receive|search) failed|failed to establish a new connection"),
    (T::NoNetwork, r"error sending request for url|\burlopen error\b|socket\.gaierror"),
    (T::NoNetwork, r"failed to fetch .* connection failed"),
    (T::ClockBehind, r"not yet valid|is not valid yet|notyetvalid"),
    (T::Certificates, r"certificate verif(y|ication) failed|unable to get local issuer certificate|unknown authority"),
    (T::Certificates, r"unable to locally verify the issuer|certificate is not trusted|no system certificates"),
    (T::Certificates, r"error setting certificate (file|verify locations)|self.signed certificate|certificate problem"),
    (T::NotRoot, r"are you root|must be (run as )?root|superuser privileges|requires? root|need to be root"),
    (T::NotRoot, r"(lock|dpkg|apt|rpm).*permission denied|permission denied.*(lock|dpkg|/var/lib/rpm)"),
    (T::PackagesLocked, r"could not get lock|unable to (acquire|lock).*(dpkg|directory|database|administration)"),
    (T::PackagesLocked, r"waiting for cache lock|is locked by another process|holding the yum lock|yum\.pid"),
    (T::PackagesLocked, r"waiting for process with pid|system management is locked|can't create transaction lock"),
    (T::PackagesLocked, r"dpkg frontend lock|failed to (obtain|acquire).* lock.*(rpm|dnf|zypp|apk|pacman)"),
    (T::Unattended, r"do you want to continue\?.*abort|is this ok \[y/n|operation aborted\.$"),
    (T::Unattended, r"proceed with installation\?"),
    (T::ReleaseExpired, r"release file .* is expired|valid-until|metadata .* (is|has) expired"),
    (T::ReleaseChanged, r"changed its '(suite|codename|origin|label|version|defaultpin)' value"),
    (T::KeyMissing, r"no_pubkey|public key is not available|expkeysig|keyexpired|can't check signature"),
    (T::KeyMissing, r"gpg check failed|public key for .* is not installed|untrusted signature|unknown trust"),
    (T::KeyMissing, r"signature verification failed|repository .* is not signed"),
    (T::KeyMissing, r"signature (is|from) .* (invalid|unknown)"),
    (T::RepositoryGone, r"does not have a release file|no longer has a release file|cannot find a valid baseurl"),
    (T::RepositoryGone, r"\b404\b *not found|(error|status)( code)?:? *404\b|returned error: 404|error 404"),
    (T::RepositoryGone, r"no urls in mirrorlist"),
    (T::RepositoryGone, r"failed to (download|synchronize).*(repo|metadata)|all mirrors were tried"),
    (T::RepositoryGone, r"no more mirrors to try"),
    (T::PackageUnknown, r"unable to locate package|has no installation candidate|no match for argument"),
    (T::PackageUnknown, r"unable to find a match|\(no such package\)|target not found:|no package .* available"),
    (T::PackageUnknown, r"no provider of .* found|couldn't find any package by (glob|regex)|package .* not found\.$"),
    (T::DpkgInterrupted, r"dpkg was interrupted"),
    (T::PythonManaged, r"externally-managed-environment"),
    (T::PythonMissing, r"python[0-9.]*['\u{2019}]?: ((command )?not found|no such file)"),
    (T::PythonMissing, r"interpreter .*python.* was not found"),
    (T::PythonMissing, r"no python interpreter|could not find a working python|/usr/bin/python[0-9.]* .*not found"),
    (T::PythonMissing, r"no module named '?(pip|venv|ensurepip|distutils|apt|dnf|setuptools)\b"),
    (T::PythonMissing, r"ensurepip is not available"),
    (T::OtherProcessor, r"exec format error|cannot execute binary file|wrong elf class"),
    (T::OldLibrary, r"version `?glibc(xx)?_[0-9.]+'? not found"),
    (T::ModuleMissing, r"modprobe: fatal: module .* not found|cannot open .*/lib/modules/"),
    (T::ModuleMissing, r"/lib/modules/[^ ]*: no such file"),
    (T::NoSystemd, r"not been booted with systemd|failed to connect to bus|systemctl: (command )?not found"),
    (T::NoPassword, r"a (terminal|password) is required|no tty present|the input device is not a tty"),
    (T::NoHostKeys, r"no hostkeys available|no host ?keys? (found|available)"),
    (T::NoSshFolder, r"missing privilege separation directory: /run/sshd"),
    (T::SshService, r"job for (ssh|sshd)\.service failed"),
    (
        T::NeedsBash,
        r": (line )?[0-9]+: (source|\[\[|\(\(|declare|typeset|let|pushd|popd|dirs|shopt|function|time|mapfile|readarray|compgen|complete|disown|builtin|coproc|select): (command )?not found$",
    ),
    (T::NeedsBash, r": [0-9]+: (set|read|export|printf|local|unset): illegal option -"),
    (T::NeedsBash, r": [0-9]+: (trap: (err|debug|return): bad trap|local: -[a-z]+: bad variable name)"),
    (T::NeedsBash, r": [0-9]+: (bad substitution|syntax error: bad (for loop variable|function name|fd number))"),
    (T::NeedsBash, r": [0-9]+: syntax error: (.\(. unexpected|redirection unexpected)|: syntax error: unexpected .\("),
    (T::NeedsBash, r": [0-9]+: \[: .*: unexpected operator|: [0-9]+: arithmetic expression: expecting primary"),
    (T::CommandMissing, r"(^|: )[a-z0-9_.+-]+: (command )?not found$|^(/usr/bin/)?env: .*no such file or directory"),
];

/// Commands that are not in every guest, each with the package that contains it on Debian and Ubuntu, and elsewhere if it
/// has another name there.
const PACKAGES: &[(&str, &str, Option<&str>)] = &[
    ("add-apt-repository", "software-properties-common", None),
    ("adduser", "adduser", Some("shadow-utils")),
    ("ansible-playbook", "ansible", Some("ansible-core")),
    ("bzip2", "bzip2", None),
    ("cc", "build-essential", Some("gcc")),
    ("chronyc", "chrony", None),
    ("cmake", "cmake", None),
    ("cron", "cron", Some("cronie")),
    ("crontab", "cron", Some("cronie")),
    ("curl", "curl", None),
    ("dig", "dnsutils", Some("bind-utils")),
    ("docker", "docker.io", Some("moby-engine")),
    ("envsubst", "gettext-base", Some("gettext-envsubst")),
    ("file", "file", None),
    ("firewall-cmd", "firewalld", None),
    ("g++", "build-essential", Some("gcc-c++")),
    ("gcc", "build-essential", Some("gcc")),
    ("git", "git", None),
    ("go", "golang", None),
    ("gpg", "gnupg", Some("gnupg2")),
    ("host", "bind9-host", Some("bind-utils")),
    ("htpasswd", "apache2-utils", Some("httpd-tools")),
    ("ifconfig", "net-tools", None),
    ("ip", "iproute2", Some("iproute")),
    ("iptables", "iptables", None),
    ("java", "default-jre-headless", Some("java-latest-openjdk-headless")),
    ("jq", "jq", None),
    ("killall", "psmisc", None),
    ("locale-gen", "locales", Some("glibc-langpack-en")),
    ("logrotate", "logrotate", None),
    ("lsb_release", "lsb-release", Some("redhat-lsb-core")),
    ("lsof", "lsof", None),
    ("lspci", "pciutils", None),
    ("make", "make", None),
    ("mysql", "default-mysql-client", Some("mysql")),
    ("nano", "nano", None),
    ("nc", "netcat-openbsd", Some("nmap-ncat")),
    ("netstat", "net-tools", None),
    ("nft", "nftables", None),
    ("node", "nodejs", None),
    ("npm", "npm", Some("nodejs-npm")),
    ("nslookup", "dnsutils", Some("bind-utils")),
    ("openssl", "openssl", None),
    ("patch", "patch", None),
    ("perl", "perl", None),
    ("ping", "iputils-ping", Some("iputils")),
    ("pip", "python3-pip", None),
    ("pip3", "python3-pip", None),
    ("podman", "podman", None),
    ("ps", "procps", Some("procps-ng")),
    ("psql", "postgresql-client", Some("postgresql")),
    ("rsync", "rsync", None),
    ("ruby", "ruby", None),
    ("semanage", "policycoreutils-python-utils", None),
    ("setfacl", "acl", None),
    ("snap", "snapd", None),
    ("sudo", "sudo", None),
    ("sysctl", "procps", Some("procps-ng")),
    ("tar", "tar", None),
    ("tree", "tree", None),
    ("ufw", "ufw", None),
    ("unzip", "unzip", None),
    ("update-ca-certificates", "ca-certificates", None),
    ("uuidgen", "uuid-runtime", Some("util-linux")),
    ("vim", "vim", Some("vim-enhanced")),
    ("wget", "wget", None),
    ("xz", "xz-utils", Some("xz")),
    ("yq", "yq", None),
    ("zip", "zip", None),
    ("zstd", "zstd", None),
];

/// The warning of sudo in a guest whose own name is not in /etc/hosts; sudo does its work nevertheless.
const HARMLESS_WARNING: &str = "sudo: unable to resolve host";

/// Lines of commands that need a service, in a guest in which none runs: what systemctl(1) and `invoke-rc.d` of Debian write
/// there, and what clients write of a service that does not answer. All of them ignore case.
const SERVICE_MISSING: &[&str] = &[
    r"running in chroot, ignoring (command|request)|policy-rc\.d denied execution",
    r"not been booted with systemd|failed to connect to (the )?(system )?(scope )?bus|(dbus|d-bus).*(no such file|not running)",
    r"cannot connect to the docker daemon|is the (docker )?(daemon|server) running",
    r"can't connect to (local )?(mysql|mariadb|server)|could not connect to (server|redis)",
    r"connection refused|\becon+refused\b|connect: no such file or directory",
];

/// Returns a hint on a command that failed, from the last lines that it wrote.
pub(crate) fn hint(lines: &[String], machine: &PlannedMachine) -> Option<String> {
    if machine.boots_directly() && needs_service(lines) {
        return Some("no service runs in a direct boot: build with `boot = \"full\"` under [machine]".into());
    }
    hint_of_output(lines, machine.network)
}

fn needs_service(lines: &[String]) -> bool {
    let patterns = SERVICE_MISSING.iter().filter_map(|pattern| Regex::new(&format!("(?i){pattern}")).ok());
    patterns.into_iter().any(|regex| lines.iter().any(|line| regex.is_match(line)))
}

fn hint_of_output(lines: &[String], network: NetworkBackend) -> Option<String> {
    let (trouble, line) = find_trouble(lines)?;
    Some(match trouble {
        T::CommandMissing => describe_command(line)?,
        T::NeedsBash => describe_bash(line),
        T::NoNetwork | T::PackageUnknown if network == NetworkBackend::None => {
            "the guest has no network card: set `machine.network = \"locked\"`, which records in kiln.lock what steps download, \
             or `machine.network = \"user\"` for all protocols"
                .into()
        }
        T::NoNetwork if network == NetworkBackend::Locked => {
            "the network is locked: only programs that use the proxy of `http_proxy` and `https_proxy` reach a host; others \
             need `machine.network = \"user\"`"
                .into()
        }
        T::ClockBehind | T::ReleaseExpired if network == NetworkBackend::Locked => {
            "with a locked network, a step sees the time at which it was recorded: `kiln lock --refresh SPEC` drops what was \
             recorded, and the next build records it anew, with the present time"
                .into()
        }
        _ => advice(trouble).into(),
    })
}

/// Returns the first cause of the table that applies, and the line that shows it.
fn find_trouble(lines: &[String]) -> Option<(CommandTrouble, &str)> {
    TABLE.iter().find_map(|(trouble, pattern)| {
        let regex = Regex::new(&format!("(?i){pattern}")).ok()?;
        let mut lines = lines.iter().rev().map(|line| line.trim()).filter(|line| !line.starts_with(HARMLESS_WARNING));
        Some((*trouble, lines.find(|line| regex.is_match(line))?))
    })
}

fn advice(trouble: CommandTrouble) -> &'static str {
    match trouble {
        T::DiskFull => {
            "the guest's disk is full: set `machine.disk` to a larger size; if `df` shows room, it is out of inodes (`df -i`)"
        }
        T::NoInodes => "the guest's file system is out of inodes: set `machine.disk` to a larger size",
        T::Quota => "a disk quota of the guest is used up: raise it, or write as another user",
        T::ReadOnly => {
            "the file system is mounted read-only, by design of the base image or after an error; console.log tells which"
        }
        T::OutOfMemory => "the guest ran out of memory: set `machine.memory` to a larger size",
        T::NoNetwork => {
            "the guest did not reach that host: check its name, and that this host reaches it; private addresses have to be \
             listed as `private` in `[network]`"
        }
        T::ClockBehind => "the guest's clock is behind: check the clock of this host, from which it starts",
        T::Certificates => {
            "the guest does not trust the server's certificate: install `ca-certificates`, and the certificate of a proxy or \
             private server with `update-ca-certificates` or `update-ca-trust`"
        }
        T::PackagesLocked => {
            "another package manager runs in the guest: wait for it (apt-get: `-o DPkg::Lock::Timeout=300`), or stop it in an \
             earlier step (`systemctl stop unattended-upgrades apt-daily.timer apt-daily-upgrade.timer packagekit`)"
        }
        T::NotRoot => "the command needs root: leave out the step's `user`, or use sudo",
        T::Unattended => "the command asks a question that nobody answers: give it `-y`",
        T::ReleaseExpired => {
            "the repository's release file has expired: use a repository that is updated, or for an archived one \
             `apt-get -o Acquire::Check-Valid-Until=false update`; check the guest's clock as well"
        }
        T::ReleaseChanged => {
            "the repository is another release by now: `apt-get update --allow-releaseinfo-change` accepts that"
        }
        T::KeyMissing => {
            "the guest lacks the key that signs the repository, or has an expired one: put it into /etc/apt/keyrings and name it \
             with `signed-by`, or `rpm --import` it"
        }
        T::RepositoryGone => {
            "the repository or file is not there any more: run `apt-get update` in the same step as the installation; old \
             releases move to archive.debian.org, old-releases.ubuntu.com or vault.centos.org"
        }
        T::PackageUnknown => {
            "the guest's package lists do not have it: run `apt-get update` first, and check the package's name and repository"
        }
        T::DpkgInterrupted => "an earlier installation was interrupted: run `dpkg --configure -a` first",
        T::PythonManaged => {
            "the distribution manages this Python: use a virtual environment (`python3 -m venv`) or its packages"
        }
        T::PythonMissing => {
            "the guest lacks Python or a module of it: install `python3`, `python3-pip`, `python3-venv` or `python3-apt` first"
        }
        T::OtherProcessor => {
            "the program is for another processor than the guest's, x86-64, or a script without a `#!` line"
        }
        T::OldLibrary => {
            "the program is built for a newer distribution than the guest's: use another build or base image"
        }
        T::ModuleMissing => {
            "the running kernel has no such module: after a new kernel a `reboot = true` step starts it; cloud kernels leave \
             many modules out"
        }
        T::NoSystemd => "the guest does not run systemd, or the command cannot reach it",
        T::NoPassword => {
            "nobody can type a password or use a terminal in a step: let the step run as root, without sudo and `-it`"
        }
        T::NoHostKeys => {
            "this guest has no SSH host keys, which are made at its first boot: `ssh-keygen -A` makes them for a test, and \
             sealing removes them"
        }
        T::NoSshFolder => "`mkdir -p /run/sshd` makes the folder, as the service does before it starts",
        T::SshService => {
            "`mkdir -p /run/sshd; sshd -t` tells why; if it has no host keys, which are made at the first boot, \
             `ssh-keygen -A` makes them for a test, and sealing removes them"
        }
        T::NeedsBash => {
            "the text of a `run` is run by sh, not by bash: write `run = [\"bash\", \"-euc\", \"...\"]`, or name a file that \
             begins with `#!/bin/bash` with `script`"
        }
        T::CommandMissing => "the guest does not have this command",
    }
}

/// Returns a hint on a script for bash that another shell has run, from the line that shows it.
fn describe_bash(line: &str) -> String {
    let word = missing_command(line).map_or(String::new(), |word| format!("`{word}` is a word of bash: "));
    word + advice(T::NeedsBash)
}

/// Returns a hint on a command that the guest lacks, from the line that names it.
fn describe_command(line: &str) -> Option<String> {
    let name = missing_command(line)?;
    let found = PACKAGES.iter().find(|(command, ..)| *command == name);
    Some(match found {
        Some((_, package, Some(other))) => {
            format!(
                "the guest does not have `{name}`: install the package `{package}` (`{other}` on other distributions) first"
            )
        }
        Some((_, package, None)) => format!("the guest does not have `{name}`: install the package `{package}` first"),
        None => format!(
            "the guest does not have `{name}`, or not in the PATH of the step's user: install it first, or write its path"
        ),
    })
}

/// Returns the missing command of a line such as `sh: 1: curl: not found` or `env: 'node': No such file or directory`.
fn missing_command(line: &str) -> Option<&str> {
    let lower = line.to_ascii_lowercase();
    let end =
        [": command not found", ": not found", ": no such file or directory"].iter().find_map(|end| lower.find(end))?;
    let name = line[..end].rsplit([' ', ':']).next()?;
    let name = name.trim_matches(['\'', '"', '`', '\u{2018}', '\u{2019}']);
    (!name.is_empty()).then_some(name)
}
