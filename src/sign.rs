//! Signatures of a version's `SHA256SUMS`, made and verified by the tools that people have: OpenSSH's `ssh-keygen -Y` (its
//! PROTOCOL.sshsig; namespace `kiln`), or minisign. Nothing here needs a network.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::error::{Fault, Kind};
use crate::process;

pub mod openpgp;

/// Purpose of the signatures: one that was made for another purpose is not valid (ssh-keygen(1), `-n`).
const NAMESPACE: &str = "kiln";
/// Name of a single key where OpenSSH requires one.
const SIGNER: &str = "kiln";
/// Size limit of keys and signatures, bytes; real ones have a few kilobytes.
pub const LARGEST: u64 = 64 << 10;

/// The tool of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// OpenSSH's `ssh-keygen`.
    Ssh,
    /// The tool `minisign`.
    Minisign,
}

impl Tool {
    /// All tools.
    pub const ALL: [Self; 2] = [Self::Ssh, Self::Minisign];

    /// Returns the name of the signature's file beside `SHA256SUMS`.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Ssh => "SHA256SUMS.sig",
            Self::Minisign => "SHA256SUMS.minisig",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Ssh => "ssh-keygen",
            Self::Minisign => "minisign",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Ssh => "openssh-client",
            Self::Minisign => "minisign",
        }
    }
}

/// Signing or checking failed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Path of the key or the list of signers.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// Neither an OpenSSH nor a minisign key.
    #[error("{} is neither an OpenSSH nor a minisign key", .0.display())]
    NoKey(PathBuf),
    /// A tool is missing or cannot be executed.
    #[error("cannot run {}", tool.program())]
    NoTool {
        /// The tool.
        tool: Tool,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The tool refused to sign.
    #[error("{} cannot sign with {}: {why}", tool.program(), key.display())]
    Refused {
        /// The tool.
        tool: Tool,
        /// Path of the key.
        key: PathBuf,
        /// The tool's message.
        why: String,
    },
    /// There is no signature that this key could have made.
    #[error("{} is missing", .0.file())]
    Missing(Tool),
    /// The signature is not valid, or not by a trusted key.
    #[error("{} does not hold: {why}", tool.file())]
    Bad {
        /// The tool of the signature.
        tool: Tool,
        /// The tool's message.
        why: String,
    },
}

impl Fault for SignError {
    fn kind(&self) -> Kind {
        match self {
            SignError::Unreadable { .. } | SignError::NoKey(_) => Kind::Usage,
            SignError::NoTool { .. } | SignError::Refused { .. } => Kind::Host,
            SignError::Missing(_) | SignError::Bad { .. } => Kind::Output,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            SignError::NoTool { tool, .. } => vec![format!("apt-get install {}", tool.package())],
            SignError::NoKey(_) => vec!["`ssh-keygen -t ed25519 -f release` makes one".into()],
            SignError::Missing(_) => vec!["`kiln build --sign KEY` signs an image that is there already, too".into()],
            _ => Vec::new(),
        }
    }
}

/// A private key for signatures.
#[derive(Debug, Clone)]
pub struct Signer {
    tool: Tool,
    key: PathBuf,
}

impl Signer {
    /// Opens a private key of OpenSSH or minisign, or the public key of one that an SSH agent holds, and makes a test
    /// signature.
    ///
    /// # Errors
    /// When it is not such a key, its passphrase is not given, or the tool is missing.
    pub fn open(key: &Path) -> Result<Self, SignError> {
        let key = std::path::absolute(key).map_err(unreadable(key))?;
        let text = read(&key)?;
        let is_ssh = text.contains("PRIVATE KEY-----") || is_ssh_public(&text);
        let tool = match (is_ssh, text.starts_with("untrusted comment:") && text.contains("secret key")) {
            (true, _) => Tool::Ssh,
            (_, true) => Tool::Minisign,
            _ => return Err(SignError::NoKey(key)),
        };
        let signer = Self { tool, key };
        signer.sign(b"", "kiln")?;
        Ok(signer)
    }

    /// Returns the tool that signs.
    #[must_use]
    pub fn tool(&self) -> Tool {
        self.tool
    }

    /// Signs `SHA256SUMS`. minisign also signs the comment, which names the version.
    ///
    /// # Errors
    /// When the tool refuses or cannot be run.
    pub fn sign(&self, sums: &[u8], comment: &str) -> Result<Vec<u8>, SignError> {
        let tool = self.tool;
        let (folder, message) = staged(tool, sums)?;
        let signature = message.with_file_name(tool.file());
        let mut command = tool_command(tool, &folder);
        command.envs(KEY_VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        match tool {
            Tool::Ssh => command.args(["-Y", "sign", "-n", NAMESPACE, "-f"]).arg(&self.key).arg(&message),
            Tool::Minisign => {
                let files = [OsStr::new("-m"), message.as_ref(), OsStr::new("-x"), signature.as_ref()];
                command.args(["-S", "-t", comment, "-s"]).arg(&self.key).args(files)
            }
        };
        let output = run(tool, &mut command)?;
        if !output.status.success() {
            return Err(self.refused(said(&output)));
        }
        std::fs::read(&signature).map_err(|error| self.refused(error.to_string()))
    }

    fn refused(&self, why: String) -> SignError {
        SignError::Refused { tool: self.tool, key: self.key.clone(), why }
    }
}

/// The trusted signers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignatureTrust {
    /// One public key, of OpenSSH or minisign.
    Key(PathBuf),
    /// OpenSSH's list of signers (ssh-keygen(1), ALLOWED SIGNERS).
    AllowedSigners(PathBuf),
}

impl SignatureTrust {
    /// Returns the tool whose signatures can be verified with these signers.
    ///
    /// # Errors
    /// When the key is not valid.
    pub fn tool(&self) -> Result<Tool, SignError> {
        let SignatureTrust::Key(path) = self else { return Ok(Tool::Ssh) };
        let text = read(path)?;
        if is_ssh_public(&text) {
            Ok(Tool::Ssh)
        } else if text.starts_with("untrusted comment:") && !text.contains("secret key") {
            Ok(Tool::Minisign)
        } else {
            Err(SignError::NoKey(path.clone()))
        }
    }

    /// Verifies a signature of [`SignatureTrust::tool`], and returns the signer.
    ///
    /// # Errors
    /// When it is not valid, or not by a trusted signer.
    pub fn check(&self, sums: &[u8], signature: &[u8]) -> Result<String, SignError> {
        let tool = self.tool()?;
        if tool == Tool::Ssh && !is_armour(signature) {
            return Err(SignError::Bad { tool, why: "it is not what ssh-keygen writes".into() });
        }
        let (folder, message) = staged(tool, sums)?;
        let file = message.with_file_name(tool.file());
        std::fs::write(&file, signature).map_err(unreadable(&file))?;
        match (tool, self) {
            (Tool::Ssh, SignatureTrust::Key(key)) => {
                let signers = folder.path().join("signers");
                let line = format!("{SIGNER} namespaces=\"{NAMESPACE}\" {}\n", read(key)?.trim());
                std::fs::write(&signers, line).map_err(unreadable(&signers))?;
                verify_ssh(&folder, &signers, SIGNER, &message, &file)?;
                Ok(key.display().to_string())
            }
            (_, SignatureTrust::AllowedSigners(signers)) => {
                let signers = std::path::absolute(signers).map_err(unreadable(signers))?;
                read(&signers)?;
                let mut command = tool_command(Tool::Ssh, &folder);
                command.args(["-Y", "find-principals", "-f"]).arg(&signers).arg("-s").arg(&file);
                let output = run(tool, &mut command)?;
                let names = String::from_utf8_lossy(&output.stdout).into_owned();
                let name =
                    names.lines().next().filter(|_| output.status.success()).ok_or_else(|| bad(tool, &output))?;
                verify_ssh(&folder, &signers, name, &message, &file)?;
                Ok(name.to_owned())
            }
            (Tool::Minisign, SignatureTrust::Key(key)) => {
                let key = std::path::absolute(key).map_err(unreadable(key))?;
                let mut command = tool_command(tool, &folder);
                command.arg("-V").arg("-p").arg(&key).arg("-m").arg(&message).arg("-x").arg(&file);
                let output = run(tool, &mut command)?;
                if output.status.success() { Ok(key.display().to_string()) } else { Err(bad(tool, &output)) }
            }
        }
    }
}

fn verify_ssh(folder: &TempDir, signers: &Path, name: &str, message: &Path, signature: &Path) -> Result<(), SignError> {
    let mut command = tool_command(Tool::Ssh, folder);
    command.args(["-Y", "verify", "-n", NAMESPACE, "-I", name, "-f"]).arg(signers).arg("-s").arg(signature);
    let input = File::open(message).map_err(unreadable(message))?;
    let output = run(Tool::Ssh, command.stdin(input))?;
    if output.status.success() { Ok(()) } else { Err(bad(Tool::Ssh, &output)) }
}

/// Writes the text to a file in a private folder, since both tools require files.
fn staged(tool: Tool, sums: &[u8]) -> Result<(TempDir, PathBuf), SignError> {
    let folder = tempfile::tempdir().map_err(no_tool(tool))?;
    let message = folder.path().join("SHA256SUMS");
    let written = File::create_new(&message).and_then(|mut file| file.write_all(sums));
    written.map_err(no_tool(tool))?;
    Ok((folder, message))
}

/// Returns the command of a tool. It asks for a passphrase on the terminal, if there is one, and never in a window.
fn tool_command(tool: Tool, folder: &TempDir) -> Command {
    let mut command = Command::new(tool.program());
    command
        .env_clear()
        .envs(process::environment())
        .current_dir(folder.path())
        .env("SSH_ASKPASS_REQUIRE", "never")
        .stdin(Stdio::null());
    command
}

fn run(tool: Tool, command: &mut Command) -> Result<Output, SignError> {
    command.output().map_err(no_tool(tool))
}

fn no_tool(tool: Tool) -> impl FnOnce(io::Error) -> SignError {
    move |source| SignError::NoTool { tool, source }
}

fn bad(tool: Tool, output: &Output) -> SignError {
    SignError::Bad { tool, why: said(output) }
}

/// Returns the last line of the output that is not empty.
fn said(output: &Output) -> String {
    let text = [&output.stdout[..], b"\n", &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it does not say why").to_owned()
}

/// Variables by which ssh-keygen finds keys in an agent or on a token, and the program that asks for the passphrase
/// (ssh-keygen(1)).
const KEY_VARIABLES: [&str; 4] = ["SSH_AUTH_SOCK", "SSH_SK_PROVIDER", "SSH_SK_HELPER", "GPG_TTY"];
/// `SSHSIG` and the version 1 in base64.
const SSHSIG_1: &[u8] = b"U1NIU0lHAAAAAQ";

/// Returns whether a signature is armoured exactly as in PROTOCOL.sshsig: OpenSSH ignores white space of all kinds, and
/// accepts version 0 for 1.
fn is_armour(signature: &[u8]) -> bool {
    let body = signature.strip_prefix(b"-----BEGIN SSH SIGNATURE-----\n");
    let body = body.and_then(|body| body.strip_suffix(b"\n-----END SSH SIGNATURE-----\n"));
    let body = body.filter(|body| body.starts_with(SSHSIG_1));
    body.is_some_and(|body| {
        let mut lines = body.split(|byte| *byte == b'\n');
        lines.all(|line| {
            !line.is_empty() && line.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(byte))
        })
    })
}

fn is_ssh_public(text: &str) -> bool {
    let kind = text.split_whitespace().next().unwrap_or_default();
    kind.starts_with("ssh-") || kind.starts_with("ecdsa-sha2-") || kind.starts_with("sk-")
}

fn read(path: &Path) -> Result<String, SignError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST).read_to_string(&mut text));
    read.map_err(unreadable(path))?;
    Ok(text)
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> SignError + use<> {
    let path = path.to_owned();
    |source| SignError::Unreadable { path, source }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Creates an OpenSSH key without a passphrase in a folder, with its public half.
    pub(crate) fn ssh_key(folder: &Path, name: &str) -> PathBuf {
        let key = folder.join(name);
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&key);
        assert!(command.status().expect("ssh-keygen is there: scripts/setup").success());
        key
    }

    /// Creates a minisign key without a passphrase in a folder, with its public half.
    pub(crate) fn minisign_key(folder: &Path, name: &str) -> PathBuf {
        let (key, public) = (folder.join(name), folder.join(name).with_extension("pub"));
        let mut command = Command::new("minisign");
        command.args(["-G", "-W", "-f", "-s"]).arg(&key).arg("-p").arg(public).stdout(Stdio::null());
        assert!(command.status().expect("minisign is there: scripts/setup").success());
        key
    }

    fn public(key: &Path) -> SignatureTrust {
        SignatureTrust::Key(key.with_extension("pub"))
    }

    #[test]
    fn what_one_key_signs_only_that_key_verifies() {
        let folder = tempfile::tempdir().unwrap();
        for make in [ssh_key, minisign_key] {
            let (key, other) = (make(folder.path(), "one"), make(folder.path(), "two"));
            let signer = Signer::open(&key).unwrap();
            let signature = signer.sign(b"sums", "web@1").unwrap();
            assert_eq!(public(&key).tool().unwrap(), signer.tool());
            public(&key).check(b"sums", &signature).unwrap();
            for (trust, sums, signature) in [
                (public(&other), &b"sums"[..], signature.clone()),
                (public(&key), b"sumz", signature.clone()),
                (public(&key), b"sums", signature[..signature.len() / 2].to_vec()),
                (public(&key), b"sums", b"no signature".to_vec()),
            ] {
                let error = trust.check(sums, &signature).unwrap_err();
                assert!(matches!(error, SignError::Bad { .. }), "{error:?}");
                assert_eq!(error.kind().exit_code(), 8);
            }
            for name in ["one", "one.pub", "two", "two.pub"] {
                std::fs::remove_file(folder.path().join(name)).unwrap();
            }
        }
    }

    #[test]
    fn signers_are_looked_up_by_name_and_namespace() {
        let folder = tempfile::tempdir().unwrap();
        let key = ssh_key(folder.path(), "one");
        let signature = Signer::open(&key).unwrap().sign(b"sums", "").unwrap();
        let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
        let signers = folder.path().join("signers");
        let check = |line: &str| {
            std::fs::write(&signers, line).unwrap();
            SignatureTrust::AllowedSigners(signers.clone()).check(b"sums", &signature)
        };
        assert_eq!(check(&format!("release@team {public}")).unwrap(), "release@team");
        assert!(check(&format!("release@team namespaces=\"git\" {public}")).is_err());
        assert!(check("# nobody\n").is_err());
    }

    #[test]
    fn what_is_no_key_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert_eq!(Signer::open(&path).unwrap_err().kind(), Kind::Usage);
        std::fs::write(&path, "hello").unwrap();
        assert!(matches!(Signer::open(&path), Err(SignError::NoKey(_))));
        assert!(matches!(SignatureTrust::Key(path.clone()).tool(), Err(SignError::NoKey(_))));
        // A public key whose private half no agent holds.
        let key = ssh_key(folder.path(), "one");
        std::fs::remove_file(&key).unwrap();
        let error = Signer::open(&key.with_extension("pub")).unwrap_err();
        assert!(matches!(error, SignError::Refused { .. }), "{error:?}");
    }
}
