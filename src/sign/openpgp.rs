//! `OpenPGP` signatures of distributions' lists of checksums, verified by `gpgv`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::error::{Fault, Kind};
use crate::fs::read_up_to;
use crate::process;

const PROGRAM: &str = "gpgv";
/// Size limit of a keyring, bytes: distributions' keyrings contain a few dozen keys.
const LARGEST_KEYRING: u64 = 4 << 20;
const ARMOUR: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";

/// A signature is not valid, or cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum OpenPgpError {
    /// The keyring cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Path of the keyring.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The keyring's armour is not valid.
    #[error("the armour of {} is damaged", .0.display())]
    Armour(PathBuf),
    /// The tool is missing or cannot be executed.
    #[error("cannot run {PROGRAM}")]
    NoTool(#[source] io::Error),
    /// The signature is not valid, or not by one of these keys.
    #[error("the signature does not hold: {0}")]
    Bad(String),
}

impl Fault for OpenPgpError {
    fn kind(&self) -> Kind {
        match self {
            OpenPgpError::Unreadable { .. } | OpenPgpError::Armour(_) => Kind::Usage,
            OpenPgpError::NoTool(_) => Kind::Host,
            OpenPgpError::Bad(_) => Kind::Base,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            OpenPgpError::NoTool(_) => vec!["apt-get install gpgv".into()],
            OpenPgpError::Armour(path) => vec![format!("`gpg --export KEY > {}` makes a plain one", path.display())],
            _ => Vec::new(),
        }
    }
}

/// Returns whether a file contains public keys of `OpenPGP`, armoured or not: a first packet of that tag (RFC 9580, 4.2 and
/// 5.5), or a keybox.
#[must_use]
pub fn is_keyring(head: &[u8]) -> bool {
    let is_packet = head.first().is_some_and(|tag| matches!(tag, 0x98..=0x9b | 0xc6));
    is_packet || head.starts_with(ARMOUR.as_bytes()) || head.get(8..12) == Some(b"KBXf")
}

/// Verifies a detached signature by the keys of a keyring, and returns the fingerprint of the key that made it. An expired
/// or revoked key or signature is not valid.
///
/// # Errors
/// When it is not valid, or cannot be verified.
pub fn check(keyring: &Path, text: &[u8], signature: &[u8]) -> Result<String, OpenPgpError> {
    let output = run_gpgv(&plain_keys(keyring)?, text, signature).map_err(OpenPgpError::NoTool)?;
    let status = String::from_utf8_lossy(&output.stdout);
    let mut spoilers = ["BADSIG ", "ERRSIG ", "EXPSIG ", "EXPKEYSIG ", "REVKEYSIG "].into_iter();
    let spoiled = spoilers.find(|keyword| find_status(&status, keyword).is_some());
    let fingerprint = find_status(&status, "VALIDSIG ").and_then(|rest| rest.split(' ').next());
    let is_good = output.status.success() && find_status(&status, "GOODSIG ").is_some();
    match (fingerprint, spoiled) {
        (Some(fingerprint), None) if is_good => Ok(fingerprint.to_owned()),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
            Err(OpenPgpError::Bad(last.or(spoiled).unwrap_or("gpgv does not say why").trim().to_owned()))
        }
    }
}

/// Runs `gpgv` in a private folder with these files.
fn run_gpgv(keys: &[u8], text: &[u8], signature: &[u8]) -> io::Result<Output> {
    let folder = tempfile::tempdir()?;
    for (name, content) in [("keys.gpg", keys), ("text", text), ("signature", signature)] {
        File::create_new(folder.path().join(name))?.write_all(content)?;
    }
    let mut command = Command::new(PROGRAM);
    command.args(["--status-fd", "1", "--homedir", ".", "--keyring", "./keys.gpg", "signature", "text"]);
    command.current_dir(folder.path()).env_clear().envs(process::environment()).stdin(Stdio::null()).output()
}

/// Returns what follows a keyword in the lines that `gpgv` writes for programs (`doc/DETAILS` of `GnuPG`).
fn find_status<'s>(status: &'s str, keyword: &str) -> Option<&'s str> {
    status.lines().find_map(|line| line.strip_prefix("[GNUPG:] ")?.strip_prefix(keyword))
}

/// Returns the keys of a keyring without armour, which `gpgv` cannot read.
fn plain_keys(keyring: &Path) -> Result<Vec<u8>, OpenPgpError> {
    let keys = read_up_to(keyring, LARGEST_KEYRING)
        .map_err(|source| OpenPgpError::Unreadable { path: keyring.to_owned(), source })?;
    match std::str::from_utf8(&keys) {
        Ok(text) if text.starts_with(ARMOUR) => without_armour(text).ok_or(OpenPgpError::Armour(keyring.to_owned())),
        _ => Ok(keys),
    }
}

/// Decodes every armoured block of a text (RFC 9580, 6.2): headers up to an empty line, base64, and perhaps a checksum
/// behind `=`.
fn without_armour(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    let mut keys = Vec::new();
    for block in text.split(ARMOUR).skip(1) {
        let mut lines = block.lines().map(str::trim_end).skip(1).skip_while(|line| !line.is_empty()).skip(1);
        let body: String = lines.by_ref().take_while(|line| !line.starts_with(['=', '-'])).collect();
        keys.extend(base64::prelude::BASE64_STANDARD.decode(body).ok()?);
    }
    (!keys.is_empty()).then_some(keys)
}
