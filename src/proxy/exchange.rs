//! Serves one connection of a program in the guest: its requests one after another, and those inside a TLS tunnel.

use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;

use rustls::{ServerConnection, StreamOwned};

use crate::download::{AnswerHead, DownloadError, IncomingAnswer};
use crate::error::Fault;

use super::ProxyCore;
use super::recorder::Refusal;
use super::request::{ByteRange, HeadError, RequestHead};

/// The size of reads and writes of a body, bytes.
const PIECE: usize = 48 << 10;

/// Whether a connection can serve another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Persistence {
    KeepOpen,
    Close,
}

impl Persistence {
    fn after(closes: bool) -> Self {
        if closes { Self::Close } else { Self::KeepOpen }
    }

    /// Returns the header that tells the client, as a line.
    fn header(self) -> &'static str {
        match self {
            Self::KeepOpen => "Connection: keep-alive\r\n",
            Self::Close => "Connection: close\r\n",
        }
    }
}

/// Serves a connection to its end. Errors are those of the client, which is gone then.
pub(super) fn serve(connection: impl Read + Write, core: &Arc<ProxyCore>) {
    let _ = serve_plain(connection, core);
}

fn serve_plain(connection: impl Read + Write, core: &Arc<ProxyCore>) -> io::Result<()> {
    let mut client = Client { stream: BufReader::with_capacity(16 << 10, connection), core };
    while let Some(head) = client.next_head()? {
        if head.method == "CONNECT" {
            return client.open_tunnel(&head);
        }
        if client.answer(&head.target, &head)? == Persistence::Close {
            break;
        }
    }
    Ok(())
}

/// A client that speaks HTTP, inside a tunnel or not.
struct Client<'a, S> {
    stream: BufReader<S>,
    core: &'a Arc<ProxyCore>,
}

impl<S: Read + Write> Client<'_, S> {
    /// Reads the head of the next request. One that is no request is refused.
    fn next_head(&mut self) -> io::Result<Option<RequestHead>> {
        match RequestHead::read(&mut self.stream) {
            Ok(head) => Ok(head),
            Err(HeadError::Io(error)) => Err(error),
            Err(HeadError::Malformed(why)) => {
                let refusal = Refusal::new(400, format!("a program sent the proxy something else than HTTP: {why}"));
                self.refuse(&refusal, Persistence::Close)?;
                Ok(None)
            }
        }
    }

    /// Serves the requests inside a TLS tunnel.
    fn open_tunnel(mut self, head: &RequestHead) -> io::Result<()> {
        let (host, _) = head.target.rsplit_once(':').unwrap_or((&head.target, ""));
        let allowed = self.core.recorder.check_host(host, &format!("https://{host}"));
        let server = allowed.and_then(|()| {
            let server = self.core.authority.server(host.trim_matches(['[', ']']));
            server.map_err(|error| Refusal::new(502, format!("https://{host} is refused: {error}")))
        });
        let server = match server {
            Ok(server) => server,
            Err(refusal) => return self.refuse(&refusal, Persistence::Close).map(drop),
        };
        self.stream.get_mut().write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        let connection = ServerConnection::new(server).map_err(io::Error::other)?;
        let core = self.core;
        let tunnel = StreamOwned::new(connection, self.stream.into_inner());
        let mut inner = Client { stream: BufReader::with_capacity(16 << 10, tunnel), core };
        let origin = format!("https://{}", head.target.strip_suffix(":443").unwrap_or(&head.target));
        let served = inner.serve_origin(&origin);
        if let Err(error) = &served
            && let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>())
        {
            core.recorder.note_refusal(&explain_tls(host, error));
        }
        served
    }

    fn serve_origin(&mut self, origin: &str) -> io::Result<()> {
        while let Some(head) = self.next_head()? {
            let url =
                if head.target.starts_with('/') { format!("{origin}{}", head.target) } else { head.target.clone() };
            if self.answer(&url, &head)? == Persistence::Close {
                break;
            }
        }
        self.stream.get_mut().flush()
    }

    /// Answers one request.
    fn answer(&mut self, url: &str, head: &RequestHead) -> io::Result<Persistence> {
        let body = head.upload_pack_length(url).map(|length| self.read_body(head, length)).transpose()?;
        // A body that was not read would be read as the next request.
        let after = Persistence::after(head.wants_close() || (head.has_body() && body.is_none()));
        let answer = match self.core.recorder.answer(url, head, body) {
            Ok(answer) => answer,
            Err(refusal) => return self.refuse(&refusal, after),
        };
        match answer.head() {
            Ok(answered) => self.give(&answer, &answered, head),
            Err(error) => self.refuse(&failed(url, head, &error), after),
        }
    }

    fn read_body(&mut self, head: &RequestHead, length: usize) -> io::Result<Vec<u8>> {
        if head.expects_continue() {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }

    fn refuse(&mut self, refusal: &Refusal, after: Persistence) -> io::Result<Persistence> {
        self.core.recorder.note_refusal(&refusal.reason);
        let body = format!("kiln: {}\n", refusal.reason);
        let connection = after.header();
        let head = format!(
            "HTTP/1.1 {} Refused by kiln\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{connection}\r\n",
            refusal.status,
            body.len(),
        );
        self.write(&[head.as_bytes(), body.as_bytes()].concat())?;
        Ok(after)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    /// Gives an answer, or the part of it that the client asks for.
    fn give(&mut self, answer: &IncomingAnswer, answered: &AnswerHead, head: &RequestHead) -> io::Result<Persistence> {
        let part = AnswerPart::choose(answered, head);
        let is_chunked = part == AnswerPart::UnknownLength && head.takes_chunks();
        let is_endless = part == AnswerPart::UnknownLength && !is_chunked;
        let after = Persistence::after(head.wants_close() || is_endless);
        let mut text =
            format!("HTTP/1.1 {} {}\r\n", part.status(answered.status), reason(part.status(answered.status)));
        let headers = answered.headers.iter().filter(|(name, _)| *name != "content-length");
        text.extend(headers.map(|(name, value)| format!("{name}: {value}\r\n")));
        text.push_str(&part.framing(answered.length, is_chunked));
        text.push_str(after.header());
        text.push_str("\r\n");
        self.write(text.as_bytes())?;
        if head.method != "HEAD" {
            self.give_body(answer, part, is_chunked)?;
        }
        Ok(after)
    }

    fn give_body(&mut self, answer: &IncomingAnswer, part: AnswerPart, is_chunked: bool) -> io::Result<()> {
        let (mut at, mut left) = part.range();
        let mut piece = vec![0; PIECE];
        while left > 0 {
            let room = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let count = answer.read_at(&mut piece[..room], at)?;
            if count == 0 {
                break;
            }
            if is_chunked {
                self.stream.get_mut().write_all(format!("{count:x}\r\n").as_bytes())?;
            }
            self.stream.get_mut().write_all(&piece[..count])?;
            if is_chunked {
                self.stream.get_mut().write_all(b"\r\n")?;
            }
            at += count as u64;
            left -= count as u64;
        }
        if is_chunked {
            self.stream.get_mut().write_all(b"0\r\n\r\n")?;
        } else if left > 0 && part != AnswerPart::UnknownLength {
            // Fewer bytes than announced: only the end of the connection tells the client.
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.stream.get_mut().flush()
    }
}

/// The part of a body that a client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AnswerPart {
    /// The whole body, of this size.
    Whole(u64),
    /// The whole body, whose size is not known yet.
    UnknownLength,
    /// So many bytes from this one on.
    Range { first: u64, count: u64, size: u64 },
    /// The client has it already.
    NotModified,
    /// The body has no such bytes.
    Unsatisfiable { size: u64 },
}

impl AnswerPart {
    fn choose(answered: &AnswerHead, head: &RequestHead) -> Self {
        let validators = ["etag", "last-modified"].map(|name| answered.headers.get(name).map(String::as_str));
        if answered.status == 200 && is_known(&validators, head) {
            return Self::NotModified;
        }
        let Some(size) = answered.length else { return Self::UnknownLength };
        let range = head.header("range").filter(|_| answered.status == 200 && head.method == "GET");
        // A client that has a part of another file needs all of this one (RFC 9110, section 13.1.5).
        let is_same = head.header("if-range").is_none_or(|validator| validators.contains(&Some(validator)));
        match range.filter(|_| is_same).and_then(ByteRange::parse) {
            None => Self::Whole(size),
            Some(range) => match range.of(size) {
                Some((first, count)) => Self::Range { first, count, size },
                None => Self::Unsatisfiable { size },
            },
        }
    }

    fn status(self, status: u16) -> u16 {
        match self {
            Self::Whole(_) | Self::UnknownLength => status,
            Self::Range { .. } => 206,
            Self::NotModified => 304,
            Self::Unsatisfiable { .. } => 416,
        }
    }

    /// Returns the headers that tell the client where the body ends.
    fn framing(self, length: Option<u64>, is_chunked: bool) -> String {
        match self {
            Self::Whole(size) => format!("Accept-Ranges: bytes\r\nContent-Length: {}\r\n", length.unwrap_or(size)),
            Self::UnknownLength if is_chunked => "Transfer-Encoding: chunked\r\n".into(),
            Self::UnknownLength | Self::NotModified => String::new(),
            Self::Range { first, count, size } => {
                let last = first + count - 1;
                format!("Content-Range: bytes {first}-{last}/{size}\r\nContent-Length: {count}\r\n")
            }
            Self::Unsatisfiable { size } => format!("Content-Range: bytes */{size}\r\nContent-Length: 0\r\n"),
        }
    }

    /// Returns the first byte and the number of bytes.
    fn range(self) -> (u64, u64) {
        match self {
            Self::Whole(size) => (0, size),
            Self::UnknownLength => (0, u64::MAX),
            Self::Range { first, count, .. } => (first, count),
            Self::NotModified | Self::Unsatisfiable { .. } => (0, 0),
        }
    }
}

/// Returns whether the client says that it has this body (RFC 9110, section 13.2.2).
fn is_known([etag, last_modified]: &[Option<&str>; 2], head: &RequestHead) -> bool {
    match (head.header("if-none-match"), head.header("if-modified-since")) {
        (Some(tags), _) => {
            let strong = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
            etag.is_some_and(|etag| tags.split(',').any(|tag| strong(tag) == strong(etag)))
        }
        (None, Some(since)) => *last_modified == Some(since),
        (None, None) => false,
    }
}

fn reason(status: u16) -> &'static str {
    let status = ureq::http::StatusCode::from_u16(status).ok();
    status.and_then(|status| status.canonical_reason()).unwrap_or("Recorded")
}

/// Explains why a server did not answer, and what can be done.
fn failed(url: &str, head: &RequestHead, error: &DownloadError) -> Refusal {
    let mut reason = error.to_string();
    if head.has_credentials() {
        let url = super::redaction::redact(url);
        reason = format!(
            "{reason}; kiln does not pass on the login that the program sent, since the answer could not be given again: \
             download {url} on the host, and copy it"
        );
    } else if let Some(hint) = error.hints().first() {
        reason = format!("{reason}; {hint}");
    }
    Refusal::new(error.status().unwrap_or(502), reason)
}

/// Explains why a program did not accept the tunnel.
fn explain_tls(host: &str, error: &rustls::Error) -> String {
    match error {
        rustls::Error::AlertReceived(alert) => format!(
            "a program does not trust the certificate that kiln made for {host} ({alert:?}): it has its own list of \
             authorities; docs/network.md tells what can be done"
        ),
        other => format!("what a program sent to {host} through the proxy is no TLS: {other}"),
    }
}
