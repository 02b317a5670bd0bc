//! The host's end against a guest that greets in kind and then says anything: every request comes to an end.
//!
//! The first byte is the request, the second the one that follows if that goes well.

use std::ops::ControlFlow;
use std::sync::LazyLock;
use std::time::SystemTime;

use kiln::disk::guest_listing::GuestListing;
use kiln::session::{Exec, FetchLimits, FetchRequest, Session, StageContent, StageSource, TerminalInput, TerminalLine};
use kiln::specfile::FileOwner;
use kiln::wire::message::{Facts, ProtocolVersion};
use kiln::wire::{Frame, Message, Splitter, put_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

pub fn check(input: &[u8]) {
    let [first, second, bytes @ ..] = input else { return };
    RUNTIME.block_on(async {
        let (host, guest) = UnixStream::pair().expect("a pair of sockets");
        let (session, guest) = tokio::join!(Session::accept(host), greet(guest));
        let session = session.expect("greeted in kind").0;
        // What the guest says ends, so that no request may wait for a time-out.
        tokio::join!(ask(session, *first, *second), say(guest, bytes));
    });
}

/// The guest's part of the greeting.
async fn greet(mut port: UnixStream) -> UnixStream {
    let facts = Facts {
        boot_id: "one".into(),
        instance_id: None,
        os: String::new(),
        os_id: String::new(),
        kernel: String::new(),
        arch: String::new(),
        clock: 0,
        systemd: false,
        start: 1,
    };
    send(&mut port, &Message::Hello { origin: ProtocolVersion, facts }).await;
    let (mut splitter, mut buffer) = (Splitter::new(), [0; 4096]);
    loop {
        let n = port.read(&mut buffer).await.expect("the host speaks");
        splitter.push(&buffer[..n]);
        if let Some(Frame { message: Message::Welcome { nonce, .. }, .. }) = splitter.next_frame().expect("a frame") {
            send(&mut port, &Message::Ready { nonce }).await;
            return port;
        }
    }
}

async fn send(port: &mut UnixStream, message: &Message) {
    let mut frame = Vec::new();
    put_frame(0, message, &mut frame);
    port.write_all(&frame).await.expect("the host listens");
}

async fn say(mut port: UnixStream, bytes: &[u8]) {
    // The host may hang up at any byte.
    let _ = port.write_all(bytes).await;
    let _ = port.shutdown().await;
    let mut rest = [0; 4096];
    while matches!(port.read(&mut rest).await, Ok(n) if n > 0) {}
}

async fn ask(mut session: Session, first: u8, second: u8) {
    for request in [first, second] {
        if !is_answered(&mut session, request).await {
            return;
        }
    }
    let _ = session.bye().await;
}

async fn is_answered(session: &mut Session, request: u8) -> bool {
    let command = Exec { stdin: Some(vec![0; 100]), ..Exec::new(["true"]) };
    match request % 11 {
        0 => session.exec(&command, &mut |_, _| {}).await.is_ok(),
        1 => session.ping().await.is_ok(),
        2 => session.sync(0).await.is_ok(),
        3 => session.unpack_device("serial", &mut |_| {}).await.is_ok(),
        4 => session.upload(&text(), &mut |_| {}).await.is_ok(),
        5 => {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let (root, limits) = (folder.path().to_owned(), FetchLimits::new(1 << 20));
            let request = FetchRequest { from: "/srv".into(), root, to: "srv".into(), limits };
            session.fetch(request, None, &mut |_| {}).await.is_ok()
        }
        6 => shell(session).await,
        7 => session.wake(SystemTime::UNIX_EPOCH, &[0; 64]).await.is_ok(),
        10 => {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let Ok((file, entries)) = session.list(&folder.path().join("files"), 1 << 20).await else { return false };
            GuestListing::new(file, entries).walk(&mut |_| ControlFlow::Continue(())).is_ok()
        }
        8 => session.park().await.is_ok() && session.resume().await.is_ok(),
        _ => session.reconnect().await.is_ok(),
    }
}

async fn shell(session: &mut Session) -> bool {
    let (typing, typed) = mpsc::channel(4);
    let (showing, mut shown) = mpsc::channel(4);
    typing.send(TerminalInput::Bytes(b"true\n".to_vec())).await.expect("room");
    let mut line = TerminalLine { size: None, typed, shown: showing };
    drop(typing);
    let command = Exec::new(["sh"]);
    let watching = async { while shown.recv().await.is_some() {} };
    tokio::select! {
        exit = session.shell(&command, &mut line) => exit.is_ok(),
        () = watching => false,
    }
}

fn text() -> StageSource {
    StageSource {
        what: StageContent::Text { content: b"text".to_vec(), mtime: SystemTime::UNIX_EPOCH },
        to: "/etc/motd".into(),
        into: false,
        owner: FileOwner { user: "root".into(), group: None },
        mode: None,
    }
}
