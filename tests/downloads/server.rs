//! A small HTTP/1.1 server that does what a test wants of it, right or wrong.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request, and what was sent for it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// From 0, in the order in which they came.
    pub number: usize,
    pub path: String,
    /// The first byte of `Range: bytes=N-`.
    pub from: Option<usize>,
    pub if_range: Option<String>,
    /// Bytes of the body.
    pub sent: usize,
}

/// A server on this host, until the test is over.
pub struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// The way back to the client.
pub struct Reply<'a> {
    stream: TcpStream,
    seen: &'a Mutex<Vec<Seen>>,
    number: usize,
}

impl Server {
    /// `answer` is called for each request, in a thread of its own; then the connection is closed.
    pub fn start(answer: impl Fn(&Seen, &mut Reply<'_>) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, all) = (Arc::new(answer), seen.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, all) = (answer.clone(), all.clone());
                // A client that has gone is no fault of the server's.
                thread::spawn(move || drop(talk(stream, &all, &*answer)));
            }
        });
        Self { port, seen }
    }

    /// Serves one file well.
    pub fn of(body: &Arc<Vec<u8>>) -> Self {
        let body = body.clone();
        Self::start(move |seen, reply| reply.file(seen, &body))
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn talk(
    stream: TcpStream,
    all: &Mutex<Vec<Seen>>,
    answer: &(dyn Fn(&Seen, &mut Reply<'_>) -> io::Result<()> + Send + Sync),
) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    let mut seen = Seen { path: first.split(' ').nth(1).unwrap_or_default().to_owned(), ..Seen::default() };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => seen.from = value.trim_start_matches("bytes=").trim_end_matches('-').parse().ok(),
            "if-range" => seen.if_range = Some(value.to_owned()),
            _ => {}
        }
    }
    {
        let mut all = all.lock().unwrap();
        seen.number = all.len();
        all.push(seen.clone());
    }
    let mut reply = Reply { stream, seen: all, number: seen.number };
    answer(&seen, &mut reply)
}

impl Reply<'_> {
    pub fn head(&mut self, status: u16, headers: &[(&str, &str)]) -> io::Result<()> {
        write!(self.stream, "HTTP/1.1 {status} Whatever\r\nConnection: close\r\n")?;
        for (name, value) in headers {
            write!(self.stream, "{name}: {value}\r\n")?;
        }
        self.stream.write_all(b"\r\n")
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(64 << 10) {
            self.stream.write_all(piece)?;
            self.seen.lock().unwrap()[self.number].sent += piece.len();
        }
        Ok(())
    }

    /// The head of a good answer; tells from which byte on the body is to be sent.
    pub fn good_head(&mut self, seen: &Seen, length: usize) -> io::Result<usize> {
        let Some(from) = seen.from.filter(|from| *from < length) else {
            self.head(200, &[("Content-Length", &length.to_string()), ("ETag", "\"one\"")])?;
            return Ok(0);
        };
        let range = format!("bytes {from}-{}/{length}", length - 1);
        let rest = (length - from).to_string();
        self.head(206, &[("Content-Length", &rest), ("Content-Range", &range), ("ETag", "\"one\"")])?;
        Ok(from)
    }

    pub fn file(&mut self, seen: &Seen, body: &[u8]) -> io::Result<()> {
        let from = self.good_head(seen, body.len())?;
        self.send(&body[from..])
    }
}
