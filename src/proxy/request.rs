//! The heads of HTTP/1.1 requests (RFC 9112), as far as a proxy needs them.

use std::io::{self, BufRead};

/// The longest head, bytes.
const LONGEST_HEAD: usize = 64 << 10;
/// The longest body of a request by which git fetches: git sends longer ones in chunks, after a request that probes.
const LONGEST_BODY: usize = 1 << 20;
/// The most headers.
const MOST_HEADERS: usize = 100;

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestHead {
    pub(super) method: String,
    pub(super) target: String,
    /// Whether the client speaks HTTP/1.1, rather than 1.0.
    is_1_1: bool,
    headers: Vec<(String, String)>,
}

/// The reason why no head was read.
#[derive(Debug)]
pub(super) enum HeadError {
    /// The connection is broken.
    Io(io::Error),
    /// The bytes are not the head of a request.
    Malformed(&'static str),
}

impl From<io::Error> for HeadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl RequestHead {
    /// Reads the next head; `None` if the client has closed the connection before it.
    pub(super) fn read(from: &mut impl BufRead) -> Result<Option<Self>, HeadError> {
        let mut bytes = Vec::new();
        loop {
            let before = bytes.len();
            read_line(from, &mut bytes)?;
            let line = &bytes[before..];
            if line.is_empty() {
                return if before == 0 { Ok(None) } else { Err(HeadError::Malformed("the request breaks off")) };
            }
            if matches!(line, b"\r\n" | b"\n") {
                if before > 0 {
                    return Self::parse(&bytes).map(Some);
                }
                // Empty lines may precede a request (RFC 9112, section 2.2).
                bytes.clear();
            }
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, HeadError> {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            _ => return Err(HeadError::Malformed("this is no HTTP request")),
        }
        let headers = request
            .headers
            .iter()
            .map(|header| (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).trim().to_owned()));
        Ok(Self {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            is_1_1: request.version == Some(1),
            headers: headers.collect(),
        })
    }

    /// Returns the value of a header, whose name is in lower case; that of the first one of several.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Returns whether the client wants the connection closed after the answer (RFC 9112, section 9.3).
    pub(super) fn wants_close(&self) -> bool {
        let options = ["connection", "proxy-connection"].into_iter().filter_map(|name| self.header(name));
        let mut options = options.flat_map(|value| value.split(',')).map(str::trim);
        if self.is_1_1 {
            options.any(|option| option.eq_ignore_ascii_case("close"))
        } else {
            !options.any(|option| option.eq_ignore_ascii_case("keep-alive"))
        }
    }

    /// Returns whether the client understands a body in chunks.
    pub(super) fn takes_chunks(&self) -> bool {
        self.is_1_1
    }

    /// Returns whether a body follows the head.
    pub(super) fn has_body(&self) -> bool {
        self.header("transfer-encoding").is_some() || self.header("content-length").is_some_and(|length| length != "0")
    }

    /// Returns the length of the body if the request is one by which git fetches objects (git-http-backend(1)). It changes
    /// nothing, and its answer depends on the body alone.
    pub(super) fn upload_pack_length(&self, url: &str) -> Option<usize> {
        let path = url.split(['?', '#']).next().unwrap_or_default();
        let is_fetch = self.method == "POST"
            && path.ends_with("/git-upload-pack")
            && self.header("content-type") == Some("application/x-git-upload-pack-request")
            && self.header("content-encoding").is_none_or(|encoding| encoding == "gzip")
            && self.header("transfer-encoding").is_none();
        let length = self.header("content-length").filter(|_| is_fetch)?;
        length.parse().ok().filter(|length| *length <= LONGEST_BODY)
    }

    /// Returns the version of git's protocol that the client asks for (gitprotocol-http(5)).
    pub(super) fn git_protocol(&self) -> Option<&str> {
        let version = self.header("git-protocol")?;
        version.strip_prefix("version=")?.parse::<u8>().is_ok().then_some(version)
    }

    /// Returns whether the client waits for an answer before it sends the body (RFC 9110, section 10.1.1).
    pub(super) fn expects_continue(&self) -> bool {
        self.is_1_1 && self.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
    }

    /// Returns whether the request bears the name of a user.
    pub(super) fn has_credentials(&self) -> bool {
        ["authorization", "cookie", "x-api-key", "private-token", "job-token"]
            .into_iter()
            .any(|name| self.header(name).is_some())
    }
}

/// Appends a line with its end, or less at the end of the connection.
fn read_line(from: &mut impl BufRead, bytes: &mut Vec<u8>) -> Result<(), HeadError> {
    loop {
        let there = from.fill_buf()?;
        if there.is_empty() {
            return Ok(());
        }
        let end = there.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let count = end.unwrap_or(there.len());
        if bytes.len() + count > LONGEST_HEAD {
            return Err(HeadError::Malformed("the head of the request is too long"));
        }
        bytes.extend_from_slice(&there[..count]);
        from.consume(count);
        if end.is_some() {
            return Ok(());
        }
    }
}

/// A range of bytes that a client asks for: `bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-COUNT` (RFC 9110, section 14.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteRange {
    From { first: u64, last: Option<u64> },
    Last(u64),
}

impl ByteRange {
    /// Parses a header; `None` for several ranges and other units, which a server may ignore.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (first, last) = header.strip_prefix("bytes=")?.trim().split_once('-')?;
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        Some(match (first, last) {
            ("", last) => Self::Last(number(last)?),
            (first, "") => Self::From { first: number(first)?, last: None },
            (first, last) => Self::From { first: number(first)?, last: Some(number(last)?) },
        })
    }

    /// Returns the first byte and the number of bytes, of a body of this size; `None` if it has none of them.
    pub(super) fn of(self, size: u64) -> Option<(u64, u64)> {
        match self {
            Self::From { first, last } => {
                let end = last.map_or(size, |last| last.saturating_add(1).min(size));
                (first < end).then(|| (first, end - first))
            }
            Self::Last(count) => {
                let count = count.min(size);
                (count > 0).then(|| (size - count, count))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(text: &str) -> RequestHead {
        RequestHead::read(&mut text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_head_ends_with_an_empty_line() {
        let text = "\r\nGET http://a/b HTTP/1.1\r\nHost: a\r\nAccept:  text/*  \r\n\r\nrest";
        let mut from = text.as_bytes();
        let head = RequestHead::read(&mut from).unwrap().unwrap();
        assert_eq!((head.method.as_str(), head.target.as_str()), ("GET", "http://a/b"));
        assert_eq!(head.header("accept"), Some("text/*"));
        assert_eq!(from, b"rest");
        assert!(RequestHead::read(&mut &b""[..]).unwrap().is_none());
        for bad in ["GET", "GET http://a HTTP/1.1\r\nHost: a\r\n", "\x16\x03\x01\x02\r\n\r\n", "a b c d\r\n\r\n"] {
            assert!(matches!(RequestHead::read(&mut bad.as_bytes()), Err(HeadError::Malformed(_))), "{bad}");
        }
        let endless = "a".repeat(LONGEST_HEAD + 1);
        assert!(matches!(RequestHead::read(&mut endless.as_bytes()), Err(HeadError::Malformed(_))));
    }

    #[test]
    fn connections_stay_open_unless_a_client_says_otherwise() {
        for (version, header, closes) in [
            ("1.1", "A: b", false),
            ("1.1", "Connection: Close", true),
            ("1.1", "Connection: a, close", true),
            ("1.0", "A: b", true),
            ("1.0", "Connection: keep-alive", false),
            ("1.0", "Proxy-Connection: Keep-Alive", false),
        ] {
            let head = head(&format!("GET / HTTP/{version}\r\n{header}\r\n\r\n"));
            assert_eq!(head.wants_close(), closes, "{version} {header}");
        }
    }

    #[test]
    fn a_range_is_cut_to_the_body() {
        let of = |header, size| ByteRange::parse(header).and_then(|range| range.of(size));
        assert_eq!(of("bytes=0-", 10), Some((0, 10)));
        assert_eq!(of("bytes=2-3", 10), Some((2, 2)));
        assert_eq!(of("bytes=2-99", 10), Some((2, 8)));
        assert_eq!(of("bytes=-3", 10), Some((7, 3)));
        assert_eq!(of("bytes=-30", 10), Some((0, 10)));
        for bad in ["bytes=10-", "bytes=-0", "bytes=3-2", "bytes=0-1,3-4", "lines=0-", "bytes=a-", "bytes=+1-", ""] {
            assert_eq!(of(bad, 10), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), size: u64, range in "bytes=[0-9-]{0,45}") {
            let _ = RequestHead::read(&mut bytes.as_slice());
            if let Some((first, count)) = ByteRange::parse(&range).and_then(|range| range.of(size)) {
                prop_assert!(count > 0 && first + count <= size);
            }
        }
    }
}
