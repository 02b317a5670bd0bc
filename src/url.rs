//! URLs of files: `https`, `http` and `file`, checked before any request.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use ureq::http::Uri;

/// Length limit of a URL, bytes.
const LONGEST: usize = 4096;

/// Scheme of a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP over TLS.
    Https,
    /// HTTP without encryption.
    Http,
    /// A file of this host.
    File,
}

/// A URL that names one file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Url(String);

/// A string that is not a URL of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// The scheme is unknown or missing.
    #[error("a URL begins with https://, http:// or file:///")]
    Scheme,
    /// It has spaces, control characters or a fragment, or lacks a required host.
    #[error("`{0}` is not a URL")]
    Malformed(String),
    /// It has credentials, which everybody who reads a spec, a log or a manifest would see.
    #[error("a URL must not hold a user name or a password")]
    Credentials,
    /// It names a folder: it ends with a slash.
    #[error("`{0}` names a folder, not a file")]
    Folder(String),
}

impl Url {
    /// Returns the URL as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses the URL of any resource: unlike that of a file, it may end with a slash.
    ///
    /// # Errors
    /// As for the URL of a file otherwise.
    pub fn of_resource(text: &str) -> Result<Self, UrlError> {
        parse(text).map(|(url, _)| Self(url))
    }

    /// Returns the scheme of the URL.
    pub fn scheme(&self) -> Scheme {
        match self.0.split_once(':') {
            Some(("https", _)) => Scheme::Https,
            Some(("http", _)) => Scheme::Http,
            // No URL with another scheme is ever created.
            _ => Scheme::File,
        }
    }

    /// Returns the host, in lower case and without a port; empty for a `file` URL.
    pub fn host(&self) -> String {
        let uri: Option<Uri> = self.0.parse().ok();
        uri.and_then(|uri| Some(uri.host()?.to_ascii_lowercase())).unwrap_or_default()
    }

    /// Returns the last component of its path, decoded: the file's name at its source.
    pub fn file_name(&self) -> String {
        let path = self.0.split('?').next().unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        percent_decode_str(last).decode_utf8_lossy().into_owned()
    }

    /// Returns the path of the file on this host, for a `file` URL.
    pub fn to_path(&self) -> Option<PathBuf> {
        let path = self.0.strip_prefix("file://")?;
        Some(PathBuf::from(OsString::from_vec(percent_decode_str(path).collect())))
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (url, path) = parse(text)?;
        if path.ends_with('/') { Err(UrlError::Folder(text.to_owned())) } else { Ok(Self(url)) }
    }
}

/// Checks a URL, and returns it in the form that is kept, with its path.
fn parse(text: &str) -> Result<(String, String), UrlError> {
    let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
    if text.len() > LONGEST || rest.contains(|c: char| c.is_control() || c.is_whitespace() || c == '#') {
        return Err(malformed(text));
    }
    let path = match scheme {
        "file" => rest.strip_prefix("localhost").unwrap_or(rest).to_owned(),
        "https" | "http" => {
            let uri: Uri = text.parse().map_err(|_| malformed(text))?;
            let authority = uri.authority().filter(|_| !uri.host().unwrap_or_default().is_empty());
            if authority.ok_or_else(|| malformed(text))?.as_str().contains('@') {
                return Err(UrlError::Credentials);
            }
            uri.path().to_owned()
        }
        _ => return Err(UrlError::Scheme),
    };
    // A file has no query; in a path a `?` is written `%3F` (RFC 8089, section 2).
    if !path.starts_with('/') || scheme == "file" && path.contains('?') {
        return Err(malformed(text));
    }
    let url = if scheme == "file" { format!("file://{path}") } else { text.to_owned() };
    Ok((url, path))
}

fn malformed(text: &str) -> UrlError {
    UrlError::Malformed(text.chars().take(80).collect())
}

impl TryFrom<String> for Url {
    type Error = UrlError;

    fn try_from(text: String) -> Result<Self, UrlError> {
        text.parse()
    }
}

impl From<Url> for String {
    fn from(url: Url) -> Self {
        url.0
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_url_names_one_file() {
        for (text, scheme, name) in [
            ("https://example.org/images/web.qcow2", Scheme::Https, "web.qcow2"),
            ("http://[::1]:8080/a%20b.xz?version=1/2", Scheme::Http, "a b.xz"),
            ("file:///srv/a%20b.img", Scheme::File, "a b.img"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!((url.as_str(), url.scheme(), url.file_name()), (text, scheme, name.to_owned()));
        }
        let url: Url = "file://localhost/srv/a%20b.img".parse().unwrap();
        assert_eq!(url.to_path(), Some("/srv/a b.img".into()));
    }

    #[test]
    fn anything_else_is_refused() {
        for (text, error) in [
            ("ftp://example.org/a", UrlError::Scheme),
            ("HTTPS://example.org/a", UrlError::Scheme),
            ("/srv/a", UrlError::Scheme),
            ("https://user:secret@example.org/a", UrlError::Credentials),
            ("https://example.org/", UrlError::Folder("https://example.org/".into())),
            ("https://example.org", UrlError::Folder("https://example.org".into())),
        ] {
            assert_eq!(text.parse::<Url>(), Err(error), "{text}");
        }
        for text in [
            "https:///a",
            "file://other/a",
            "file://a",
            "file:///a?b",
            "file:///?",
            "https://h/a b",
            "https://h/a#b",
            "http://h/a\r\nX: y",
        ] {
            assert_eq!(text.parse::<Url>(), Err(UrlError::Malformed(text.into())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(https?|file)://.{0,20}") {
            if let Ok(url) = text.parse::<Url>() {
                prop_assert!(!url.file_name().is_empty());
                prop_assert_eq!(url.to_path().is_some(), url.scheme() == Scheme::File);
            }
        }
    }
}
