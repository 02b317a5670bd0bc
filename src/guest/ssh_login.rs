//! Logs in to a clone with the host's own SSH client, through a forwarded port.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Fault, Kind};
use crate::process::supervised;
use crate::size::format_duration;

/// Port of the guest's SSH server.
pub const SSH_PORT: u16 = 22;
/// Name of the key in the machine's folder.
const KEY: &str = "id_ed25519";
/// Name of the file with the guest's host keys.
const KNOWN_HOSTS: &str = "known_hosts";
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a server that has taken a connection may take for its first line; QEMU takes connections before the guest does.
const GREETING: Duration = Duration::from_secs(10);
/// How long a server that answers may refuse the key: cloud-init may still install it, and a system that boots refuses users.
const REFUSALS: Duration = Duration::from_secs(120);
/// Status of an SSH client that could not connect or log in (ssh(1)).
const NOT_CONNECTED: i32 = 255;

/// The way to log in to a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshAccess {
    /// Port of this host that leads to the guest's server.
    pub port: u16,
    /// The user, if the image's default user is known.
    pub user: Option<&'static str>,
    /// The key that was made for the clone, if one was.
    pub key: Option<PathBuf>,
    /// Path of the file with the guest's host keys.
    pub known_hosts: PathBuf,
}

/// The reason why nobody is logged in.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// A program of OpenSSH cannot be started.
    #[error("cannot run `{program}`")]
    NoClient {
        /// Name of the program.
        program: &'static str,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// No key can be made.
    #[error("`ssh-keygen` cannot make a key for the clone: {0}")]
    NoKey(String),
    /// The guest's server did not answer.
    #[error("the guest's SSH server did not answer within {}", format_duration(*after))]
    Silent {
        /// How long the guest had.
        after: Duration,
        /// The last lines of the console.
        console: Vec<String>,
    },
    /// The guest's server answers, and lets the user not in.
    #[error("the guest's SSH server does not let `{user}` in: {reason}")]
    Refused {
        /// The user.
        user: &'static str,
        /// What the client wrote.
        reason: String,
    },
}

impl Fault for SshError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoClient { .. } | Self::NoKey(_) => Kind::Host,
            Self::Silent { .. } | Self::Refused { .. } => Kind::Boot,
        }
    }

    fn hints(&self) -> Vec<String> {
        let agent = "`kiln shell IMAGE` opens a shell in a clone without SSH";
        match self {
            Self::NoClient { .. } => vec!["install the OpenSSH client (openssh-client)".into(), agent.into()],
            Self::NoKey(_) => vec![agent.into()],
            Self::Silent { .. } => {
                vec!["the image needs an SSH server that starts at boot, and a network by DHCP".into(), agent.into()]
            }
            Self::Refused { .. } => {
                vec!["the image needs a cloud-init that installs keys for its default user".into(), agent.into()]
            }
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            Self::Silent { console, .. } => console.clone(),
            _ => Vec::new(),
        }
    }
}

/// Creates a key for a clone in its folder, which is removed with the clone. Returns its path and its public half.
///
/// # Errors
/// When `ssh-keygen` is not installed or fails.
pub async fn make_key(folder: &Path, id: &str) -> Result<(PathBuf, String), SshError> {
    let key = folder.join(KEY);
    let mut command = supervised("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", &format!("kiln-{id}"), "-f", KEY]).current_dir(folder);
    let made = command.output().await.map_err(|source| SshError::NoClient { program: "ssh-keygen", source })?;
    let public = std::fs::read_to_string(key.with_extension("pub"));
    match public {
        Ok(public) if made.status.success() => Ok((key, public.trim().to_owned())),
        Ok(_) => Err(SshError::NoKey(last_line(&made))),
        Err(error) => Err(SshError::NoKey(format!("{} {error}", last_line(&made)))),
    }
}

/// Returns the path of the file with the host keys of a clone.
#[must_use]
pub fn known_hosts(folder: &Path) -> PathBuf {
    folder.join(KNOWN_HOSTS)
}

impl SshAccess {
    /// Returns the command that logs in. It uses nothing of the user's configuration, and a file of known hosts of its own:
    /// each clone has new host keys.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        let mut command = vec!["ssh".to_owned(), "-F".into(), "none".into(), "-p".into(), self.port.to_string()];
        if let Some(key) = &self.key {
            command.extend(["-i".to_owned(), escape_percent(key), "-o".into(), "IdentitiesOnly=yes".into()]);
        }
        let known = format!("UserKnownHostsFile=\"{}\"", escape_percent(&self.known_hosts));
        for option in [&known, "GlobalKnownHostsFile=none", "StrictHostKeyChecking=accept-new", "LogLevel=ERROR"] {
            command.extend(["-o".to_owned(), option.to_owned()]);
        }
        command.push(format!("{}@127.0.0.1", self.user.unwrap_or("USER")));
        command
    }

    /// Waits until the guest lets this user in. The caller limits the wait by the machine's life; `console` returns the last
    /// lines of its console.
    ///
    /// # Errors
    /// When the server does not answer within `patience`, or answers and refuses for long.
    pub async fn wait(
        &self,
        user: &'static str,
        patience: Duration,
        console: impl Fn() -> Vec<String>,
    ) -> Result<(), SshError> {
        let began = Instant::now();
        while !self.is_answered().await {
            if began.elapsed() > patience {
                return Err(SshError::Silent { after: patience, console: console() });
            }
            sleep(PAUSE).await;
        }
        let answered = Instant::now();
        loop {
            let tried = self.try_login().await?;
            if tried.status.success() {
                return Ok(());
            }
            if answered.elapsed() > REFUSALS.max(patience.saturating_sub(began.elapsed())) {
                return Err(SshError::Refused { user, reason: last_line(&tried) });
            }
            sleep(PAUSE).await;
        }
    }

    /// Returns whether a server of SSH sends its first line (RFC 4253, 4.2).
    async fn is_answered(&self) -> bool {
        let greeting = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            let mut begin = [0; 4];
            stream.read_exact(&mut begin).await?;
            Ok::<_, io::Error>(begin)
        };
        matches!(timeout(GREETING, greeting).await, Ok(Ok(begin)) if &begin == b"SSH-")
    }

    /// Logs in, does nothing, and never asks the user for anything.
    async fn try_login(&self) -> Result<Output, SshError> {
        let command = self.command();
        let mut probe = supervised(&command[0]);
        probe.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]).args(&command[1..]).arg("true");
        // A key with a passphrase is in the user's agent.
        probe.envs(std::env::var_os("SSH_AUTH_SOCK").map(|socket| ("SSH_AUTH_SOCK", socket)));
        probe.output().await.map_err(|source| SshError::NoClient { program: "ssh", source })
    }

    /// Logs in on this terminal, with the user's environment, and returns the status of the client.
    ///
    /// # Errors
    /// When the client cannot be started.
    pub async fn log_in(&self) -> Result<ExitStatus, SshError> {
        let command = self.command();
        let mut client = Command::new(&command[0]);
        client.args(&command[1..]).stdin(Stdio::inherit()).kill_on_drop(true);
        client.status().await.map_err(|source| SshError::NoClient { program: "ssh", source })
    }
}

/// Returns whether a client has ended because the connection broke, or was never there.
#[must_use]
pub fn is_disconnected(status: ExitStatus) -> bool {
    status.code() == Some(NOT_CONNECTED)
}

/// Formats a path for an option of ssh, in which `%` begins a token (`ssh_config(5)`).
fn escape_percent(path: &Path) -> String {
    path.display().to_string().replace('%', "%%")
}

fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_key_is_made_for_a_clone() {
        let folder = tempfile::tempdir().unwrap();
        let (key, public) = make_key(folder.path(), "web-1").await.unwrap();
        assert!(public.starts_with("ssh-ed25519 ") && public.ends_with(" kiln-web-1"), "{public}");
        assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(make_key(Path::new("/nowhere"), "web-1").await, Err(SshError::NoClient { .. })));
    }

    /// Asks the client itself what it makes of the command.
    #[tokio::test]
    async fn the_client_reads_the_command_as_it_is_meant() {
        let folder = Path::new("/a b/100%/machines/web-1");
        let access = SshAccess {
            port: 2222,
            user: Some("debian"),
            key: Some(folder.join(KEY)),
            known_hosts: known_hosts(folder),
        };
        let command = access.command();
        let shown = supervised("ssh").arg("-G").args(&command[1..]).output().await.unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        for line in [
            "user debian",
            "hostname 127.0.0.1",
            "port 2222",
            "identitiesonly yes",
            "stricthostkeychecking accept-new",
            "userknownhostsfile /a b/100%/machines/web-1/known_hosts",
        ] {
            let unescaped = shown.replace("%%", "%").replace('"', "");
            assert!(unescaped.lines().any(|shown| shown == line), "{line} is not in:\n{shown}");
        }
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_or_something_else_does_not_answer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let access = SshAccess { port, user: None, key: None, known_hosts: "/dev/null".into() };
        let serve = async |greeting: &'static [u8]| {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, greeting).await.unwrap();
        };
        let (answered, ()) = tokio::join!(access.is_answered(), serve(b"SSH-2.0-test\r\n"));
        assert!(answered);
        let (answered, ()) = tokio::join!(access.is_answered(), serve(b"HTTP/1.1 400\r\n"));
        assert!(!answered);
        let (answered, ()) = tokio::join!(access.is_answered(), serve(b""));
        assert!(!answered);
        drop(listener);
        assert!(!access.is_answered().await);
        assert!(access.command().ends_with(&["USER@127.0.0.1".to_owned()]));
    }
}
