//! Identifies the distribution of a guest, by its `/etc/os-release`.

use super::tree::{Tree, TreeError};

/// The largest os-release file in bytes. It is usually a page of text.
const LIMIT: u64 = 64 << 10;

/// The fields of os-release(5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsRelease {
    /// `ID`: `debian`, `ubuntu`, `alpine`; `linux` if it is missing.
    pub id: String,
    /// `VERSION_ID`; may be empty.
    pub version: String,
    /// `PRETTY_NAME`; may be empty.
    pub name: String,
    /// `VERSION_CODENAME`; may be empty.
    pub codename: String,
    /// `ID_LIKE`, word by word.
    pub like: Vec<String>,
}

/// Reads the distribution of a tree; `None` if it has no os-release file.
///
/// # Errors
/// When the file system is damaged or cannot be read.
pub fn os(tree: &Tree<'_>) -> Result<Option<OsRelease>, TreeError> {
    for path in ["/etc/os-release", "/usr/lib/os-release"] {
        if let Some(text) = tree.read(path, LIMIT)? {
            return Ok(Some(parse(&text)));
        }
    }
    Ok(None)
}

/// Parses the assignments of an os-release file.
#[must_use]
pub fn parse(text: &[u8]) -> OsRelease {
    let text = String::from_utf8_lossy(text);
    let keys = ["ID", "VERSION_ID", "PRETTY_NAME", "VERSION_CODENAME", "ID_LIKE"];
    let [id, version, name, codename, like] = keys.map(|key| value(&text, key).unwrap_or_default());
    let id = if id.is_empty() { "linux".into() } else { id };
    OsRelease { id, version, name, codename, like: like.split_whitespace().map(str::to_owned).collect() }
}

/// Returns the value of an assignment; the last counts, as in a shell.
pub(super) fn value(text: &str, key: &str) -> Option<String> {
    let mut lines = text.lines().rev().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
    lines.next().map(unquoted)
}

/// Removes the quotes and backslashes from a value, as a shell does; nothing else needs to be expanded.
fn unquoted(value: &str) -> String {
    let value = value.trim();
    if let Some(plain) = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')) {
        return plain.to_owned();
    }
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    let mut text = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        text.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_and_without_quotes() {
        let text =
            b"# comment\nPRETTY_NAME=\"Debian \\\"12\\\" \\$x\"\nNAME=Debian\nID=debian\nVERSION_ID='12'\nID_LIKE=\"x y\"\n\
              VERSION_CODENAME=bookworm\n";
        let expected = OsRelease {
            id: "debian".into(),
            version: "12".into(),
            name: "Debian \"12\" $x".into(),
            codename: "bookworm".into(),
            like: vec!["x".into(), "y".into()],
        };
        assert_eq!(parse(text), expected);
        assert_eq!(parse(b"\xff\nID=\n"), OsRelease { id: "linux".into(), ..OsRelease::default() });
    }
}
