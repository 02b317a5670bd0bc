//! The user-data of a clone: the SSH keys that may log in, and what the user gives to cloud-init besides.
//!
//! Both are parts of a MIME message, which cloud-init takes apart (its `user-data` formats). It finds out the type of a plain
//! text part by its first line, as it does for user-data that is no message. A message of the user is a part as it stands:
//! cloud-init walks through messages in messages.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::error::{Fault, Kind};
use crate::fs::read_up_to;

/// Limit of the user's file, bytes. EC2 allows 16 KiB; a seed has room for more.
const LONGEST: usize = 1 << 20;
/// First lines by which cloud-init knows what a text is.
const MARKERS: [&str; 8] = [
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "#cloud-config-archive",
    "#upstart-job",
    "## template: jinja",
];
/// Length of a line of base64 (RFC 2045, 6.8), bytes of the text.
const BYTES_A_LINE: usize = 57;
/// Appends kiln's keys to those of the user's own configuration, and replaces nothing of it (cloud-init, `merge_how`).
const MERGE: &str = "list(append)+dict(no_replace,recurse_list)+str()";

/// User-data that the user gives, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserData {
    text: String,
    is_message: bool,
}

/// The reason why a file cannot be used as user-data.
#[derive(Debug, thiserror::Error)]
pub enum UserDataError {
    /// The file cannot be read.
    #[error("cannot read the user-data {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
    /// The file is too long.
    #[error("the user-data {} has more than 1 MiB", .0.display())]
    TooLong(PathBuf),
    /// The file is not UTF-8.
    #[error("the user-data {} is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// The file begins with nothing that cloud-init knows.
    #[error("the user-data {} begins with a line that cloud-init does not know: `{first}`", path.display())]
    UnknownType {
        /// The file.
        path: PathBuf,
        /// Its first line, shortened.
        first: String,
    },
}

impl Fault for UserDataError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::UnknownType { .. } => vec![
                "begin a configuration with `#cloud-config`, a script with `#!/bin/sh`, and a MIME message with \
                 `Content-Type: multipart/mixed`"
                    .into(),
            ],
            Self::NotText(_) => vec!["unpack a compressed file first".into()],
            _ => Vec::new(),
        }
    }
}

impl UserData {
    /// Reads the user's file and checks that cloud-init will know what it is.
    ///
    /// # Errors
    /// When the file cannot be read, is too long, not UTF-8, or begins with nothing that cloud-init knows.
    pub fn read(path: &Path) -> Result<Self, UserDataError> {
        let bytes = read_up_to(path, LONGEST as u64 + 1);
        let bytes = bytes.map_err(|source| UserDataError::Unreadable { path: path.to_owned(), source })?;
        if bytes.len() > LONGEST {
            return Err(UserDataError::TooLong(path.to_owned()));
        }
        let text = String::from_utf8(bytes).map_err(|_| UserDataError::NotText(path.to_owned()))?;
        Self::parse(text).map_err(|first| UserDataError::UnknownType { path: path.to_owned(), first })
    }

    /// Determines the type of a text, or returns the first line of one that cloud-init does not know.
    fn parse(text: String) -> Result<Self, String> {
        let first = text.lines().next().unwrap_or_default();
        let is_message = is_message(&text);
        if is_message || MARKERS.iter().any(|marker| first.starts_with(marker)) {
            return Ok(Self { text, is_message });
        }
        Err(first.chars().take(60).collect())
    }

    /// Returns the text as a part of a message.
    fn as_part(&self) -> String {
        if self.is_message { self.text.clone() } else { plain_part(&self.text) }
    }
}

/// Returns whether a text is a MIME message of several parts: headers up to an empty line.
fn is_message(text: &str) -> bool {
    let headers = text.lines().take_while(|line| !line.trim().is_empty());
    headers.into_iter().any(|line| {
        let line = line.to_ascii_lowercase();
        line.strip_prefix("content-type:").is_some_and(|kind| kind.trim_start().starts_with("multipart/"))
    })
}

/// Returns a part with a text in base64, which nothing in the text can end.
fn plain_part(text: &str) -> String {
    let lines = text.as_bytes().chunks(BYTES_A_LINE).map(|bytes| BASE64_STANDARD.encode(bytes) + "\n");
    let head = "Content-Type: text/plain; charset=\"utf-8\"\nContent-Transfer-Encoding: base64\n\n";
    head.to_owned() + &lines.collect::<String>()
}

/// Returns the user-data of a first boot: these SSH keys for the default user, and what the user gives. Without keys the
/// setting is left out, since cloud-init rejects an empty list.
#[must_use]
pub fn first_boot(ssh_keys: &[String], given: Option<&UserData>) -> String {
    match (ssh_keys, given) {
        (keys, None) => keys_config(keys, None),
        ([], Some(given)) => given.text.clone(),
        (keys, Some(given)) => message(&[given.as_part(), plain_part(&keys_config(keys, Some(MERGE)))]),
    }
}

fn keys_config(keys: &[String], merge: Option<&str>) -> String {
    let mut config = json!({});
    if !keys.is_empty() {
        config["ssh_authorized_keys"] = json!(keys);
    }
    if let Some(merge) = merge {
        config["merge_how"] = json!(merge);
    }
    format!("#cloud-config\n{config}\n")
}

/// Returns a message of these parts, with a boundary that is in none of them.
fn message(parts: &[String]) -> String {
    let mut boundary = "==kiln==".to_owned();
    while parts.iter().any(|part| part.contains(&boundary)) {
        boundary.insert(0, '=');
    }
    let parts = parts.iter().map(|part| format!("--{boundary}\n{}\n", part.trim_end_matches('\n')));
    let parts: String = parts.collect();
    format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n\n{parts}--{boundary}--\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn keys() -> Vec<String> {
        vec!["ssh-ed25519 AAAA a@b".to_owned()]
    }

    fn given(text: &str) -> UserData {
        UserData::parse(text.to_owned()).unwrap()
    }

    /// Takes a message apart with Python's parser, which is the one that cloud-init uses, and returns the leaves.
    fn leaves(message: &str) -> Vec<String> {
        const PARSE: &str = "import email, json, sys\n\
            parts = email.message_from_string(sys.stdin.read()).walk()\n\
            leaves = [p.get_payload(decode=True).decode() for p in parts if not p.is_multipart()]\n\
            print(json.dumps(leaves))\n";
        let mut python = Command::new("python3");
        let mut child =
            python.args(["-c", PARSE]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), message.as_bytes()).unwrap();
        serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap()
    }

    #[test]
    fn a_first_boot_without_keys_has_no_empty_list_of_them() {
        assert_eq!(first_boot(&[], None), "#cloud-config\n{}\n");
        let expected = "#cloud-config\n{\"ssh_authorized_keys\":[\"ssh-ed25519 AAAA a@b\"]}\n";
        assert_eq!(first_boot(&keys(), None), expected);
        assert_eq!(first_boot(&[], Some(&given("#!/bin/sh\ntrue\n"))), "#!/bin/sh\ntrue\n");
    }

    #[test]
    fn user_data_and_keys_are_parts_of_one_message() {
        let script = "#!/bin/sh\necho 'ü --==kiln== \u{1f980}'\n".to_owned() + &"long ".repeat(100) + "\n";
        let parts = leaves(&first_boot(&keys(), Some(&given(&script))));
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0], script);
        assert!(parts[1].starts_with("#cloud-config\n{") && parts[1].contains("list(append)"), "{}", parts[1]);
    }

    #[test]
    fn a_message_of_the_user_keeps_its_parts() {
        let own = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"==kiln==\"\n\n--==kiln==\n\
                   Content-Type: text/cloud-config\n\n#cloud-config\n{}\n--==kiln==\n\
                   Content-Type: text/x-shellscript\n\n#!/bin/sh\ntrue\n--==kiln==--\n";
        let parts = leaves(&first_boot(&keys(), Some(&given(own))));
        assert_eq!(parts[..2], ["#cloud-config\n{}", "#!/bin/sh\ntrue"]);
        assert!(parts.len() == 3 && parts[2].contains("ssh-ed25519"), "{parts:?}");
    }

    #[test]
    fn a_file_that_cloud_init_would_ignore_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let read = |content: &[u8]| {
            let path = folder.path().join("data");
            std::fs::write(&path, content).unwrap();
            UserData::read(&path).map(drop).map_err(|error| error.to_string())
        };
        assert!(read(b"users: []\n").unwrap_err().contains("does not know: `users: []`"));
        assert!(read(b"").unwrap_err().contains("does not know"));
        assert!(read(b"\x1f\x8b\x08\x00\xff").unwrap_err().contains("is not UTF-8"));
        assert!(read(&vec![b'#'; LONGEST + 1]).unwrap_err().contains("more than 1 MiB"));
        assert!(read(b"Content-Type: text/html\n\n<p>").is_err());
        read(b"## template: jinja\n#cloud-config\n{}\n").unwrap();
        read(b"#include https://example.org/data\n").unwrap();
        assert!(UserData::read(&folder.path().join("none")).is_err());
    }
}
