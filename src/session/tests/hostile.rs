//! Tests of guests that misbehave: each ends in one error, in bounded time and memory.

use std::os::unix::fs::symlink;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::error::{Fault, Kind as Fails};
use crate::wire::message::{Facts, ProtocolVersion};
use crate::wire::tree::{Encoder, Entry, Head, Kind, Layout};
use crate::wire::{self, Frame, HiddenBytes, Message, Splitter, WINDOW};

/// Limits that suffice for two ends on one thread.
const LIMITS: Limits = Limits { stalled: Duration::from_millis(300), silent: Duration::from_millis(800) };

/// The guest's end, which sends what the test wants.
struct Mock {
    stream: UnixStream,
    splitter: Splitter,
}

impl Mock {
    async fn say(&mut self, stream: u32, message: &Message) {
        let mut bytes = Vec::new();
        wire::put_frame(stream, message, &mut bytes);
        self.raw(&bytes).await;
    }

    /// Sends bytes. An error is ignored, since the host may have closed the connection; the test checks that at its own end.
    async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    async fn hear(&mut self) -> Option<Frame> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.splitter.next_frame().unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut buffer).await {
                Ok(n) if n > 0 => self.splitter.push(&buffer[..n]),
                _ => return None,
            }
        }
    }

    async fn greet(&mut self, boot: &str) {
        self.say(0, &hello(boot, 1)).await;
        let Some(Frame { message: Message::Welcome { nonce, .. }, .. }) = self.hear().await else {
            panic!("no welcome");
        };
        self.splitter.trust();
        self.say(0, &Message::Ready { nonce }).await;
    }
}

fn hello(boot: &str, start: u64) -> Message {
    let facts = Facts {
        boot_id: boot.into(),
        instance_id: None,
        os: "a\x1b[2Jb".into(),
        os_id: String::new(),
        kernel: String::new(),
        arch: String::new(),
        clock: i64::MIN,
        systemd: false,
        start,
    };
    Message::Hello { origin: ProtocolVersion, facts }
}

fn pair() -> (UnixStream, Mock) {
    let (host, guest) = UnixStream::pair().unwrap();
    (host, Mock { stream: guest, splitter: Splitter::new() })
}

/// Runs both ends at once, after the greeting.
fn against<F: Future, G: Future>(host: impl FnOnce(Session) -> F, guest: impl FnOnce(Mock) -> G) -> F::Output {
    against_within(LIMITS, host, guest)
}

fn against_within<F: Future, G: Future>(
    limits: Limits,
    host: impl FnOnce(Session) -> F,
    guest: impl FnOnce(Mock) -> G,
) -> F::Output {
    run(async {
        let (stream, mut mock) = pair();
        let (accepted, ()) = tokio::join!(Session::accept(stream), mock.greet("one"));
        let session = accepted.unwrap().0.with_limits(limits);
        // However the guest ends, the host must end by itself.
        let mut told = std::pin::pin!(host(session));
        tokio::select! {
            result = &mut told => result,
            _ = guest(mock) => told.await,
        }
    })
}

/// Runs a command against a guest that answers it like this.
fn exec_against<G: Future>(guest: impl FnOnce(Mock) -> G) -> Result<Exit, GuestError> {
    against(async |mut session| session.exec(&sh("true"), &mut |_, _| {}).await, guest)
}

fn fails(result: Result<Exit, GuestError>) -> Fails {
    result.unwrap_err().kind()
}

#[test]
fn g1_bytes_that_are_no_frames_end_the_conversation() {
    let garbage: [&[u8]; 5] = [
        &u32::MAX.to_le_bytes(),
        &0x8000_0000u32.to_le_bytes(),
        &[0, 0, 0, 0],
        b"login: root\r\n[   12.345] kernel says something",
        &[6, 0, 0, 0, 12, 1, 0, 0, 0, 7],
    ];
    for bytes in garbage {
        let result = exec_against(async |mut mock| {
            mock.hear().await;
            mock.raw(bytes).await;
            mock.hear().await;
        });
        assert_eq!(fails(result), Fails::Boot, "{bytes:?}");
    }
}

#[test]
fn g1_a_port_that_closes_in_the_middle_of_a_frame_is_closed() {
    let result = exec_against(async |mut mock| {
        mock.hear().await;
        mock.raw(&[100, 0, 0, 0, 13]).await;
    });
    assert!(matches!(result, Err(GuestError::Closed)), "{result:?}");
}

#[test]
fn g2_messages_out_of_turn_are_refused() {
    let messages = [
        (1, Message::Done { entries: 0, bytes: 0 }),
        (1, Message::Welcome { origin: ProtocolVersion, nonce: 1 }),
        (1, Message::Ready { nonce: 1 }),
        (1, Message::Bye {}),
        (2, Message::Stdout { bytes: vec![1] }),
        (0, Message::Stdout { bytes: vec![1] }),
        (0, Message::Pong { token: 77, clock: 0 }),
    ];
    for (stream, message) in messages {
        let result = exec_against(async |mut mock| {
            mock.hear().await;
            mock.say(stream, &message).await;
            mock.hear().await;
        });
        assert!(matches!(result, Err(GuestError::Protocol(_))), "{message:?}: {result:?}");
    }
}

#[test]
fn g10_a_hello_of_another_boot_in_a_command_is_a_reboot() {
    let result = exec_against(async |mut mock| {
        mock.hear().await;
        mock.say(0, &hello("two", 1)).await;
        mock.hear().await;
    });
    assert_eq!(fails(result), Fails::Step);
}

#[test]
fn g7_a_hello_of_the_same_boot_is_another_agents() {
    let result = exec_against(async |mut mock| {
        mock.hear().await;
        mock.say(0, &hello("one", 2)).await;
        mock.hear().await;
    });
    assert!(matches!(result, Err(GuestError::SecondAgent)), "{result:?}");
    assert_eq!(fails(result), Fails::Boot);
}

#[test]
fn g3_output_beyond_the_credit_is_refused() {
    let result = against(
        async |mut session| {
            // The callback never returns, so nothing is granted.
            session.begin();
            loop {
                session.next().await?;
            }
        },
        async |mut mock| loop {
            mock.say(1, &Message::Stdout { bytes: vec![0; 60_000] }).await;
        },
    );
    let result: Result<(), GuestError> = result;
    assert!(matches!(result, Err(GuestError::Protocol(_))), "{result:?}");
}

#[test]
fn g3_a_flood_without_data_ends_with_the_commands_time() {
    let exec = Exec { timeout: Some(Duration::ZERO), ..sh("true") };
    let seen = std::cell::Cell::new(0usize);
    let result = against(
        async |mut session| {
            let limit = Duration::from_millis(300);
            tokio::time::timeout(limit, session.exec(&exec, &mut |_, bytes| seen.set(seen.get() + bytes.len()))).await
        },
        async |mut mock| {
            mock.hear().await;
            loop {
                mock.say(1, &Message::Stdout { bytes: vec![] }).await;
                // Lets the host look at its clock, as another thread would.
                tokio::task::yield_now().await;
            }
        },
    );
    assert!(result.is_err(), "{result:?}");
    assert_eq!(seen.get(), 0);
}

#[test]
fn g3_a_line_without_an_end_streams_through() {
    const TOTAL: usize = 256 << 20;
    let mut seen = 0;
    let before = resident();
    let result = against(
        async |mut session| session.exec(&sh("true"), &mut |_, bytes| seen += bytes.len()).await,
        async |mut mock| {
            let (mut sent, mut credit) = (0, WINDOW);
            mock.hear().await;
            let chunk = Message::Stdout { bytes: vec![0; 65_000] };
            while sent < TOTAL {
                while credit < 65_000 {
                    let Some(Frame { message: Message::Credit { bytes }, .. }) = mock.hear().await else { return };
                    credit += bytes as usize;
                }
                mock.say(1, &chunk).await;
                (sent, credit) = (sent + 65_000, credit - 65_000);
            }
            mock.say(1, &Message::Exited { exit: wire::Exit::Code { code: 0 } }).await;
            mock.hear().await;
        },
    );
    assert_eq!(result.unwrap(), Exit::Code(0));
    assert!(seen >= TOTAL);
    assert!(resident() < before + (32 << 20), "{} bytes", resident());
}

/// Returns the memory of this process, bytes.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn g9_a_guest_that_says_nothing_is_given_up() {
    let began = Instant::now();
    let result = exec_against(async |mut mock| while mock.hear().await.is_some() {});
    let took = began.elapsed().as_secs_f64();
    let Err(GuestError::Silent(limit)) = result else { panic!("{result:?}") };
    let (limit, usual) = (limit.as_secs_f64(), Limits::default().silent.as_secs());
    println!("detected: silence {took:.2} s, with a limit of {limit} s; a build's limit is {usual} s");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(fails(result), Fails::Boot);
}

/// Covers fault row H7, after SIGSTOP: a ping was sent, and for longer than any limit neither end does anything.
#[test]
fn h7_a_host_that_stood_still_gives_the_guest_its_time_again() {
    let result = exec_against(async |mut mock| {
        mock.hear().await;
        let Some(Frame { message: Message::Ping { token }, .. }) = mock.hear().await else { panic!("no ping") };
        // Both ends are on this thread.
        std::thread::sleep(2 * LIMITS.silent);
        // The host gets to see its clock first.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        mock.say(0, &Message::Pong { token, clock: 0 }).await;
        mock.say(1, &Message::Exited { exit: wire::Exit::Code { code: 4 } }).await;
        mock.hear().await;
    });
    assert_eq!(result.unwrap(), Exit::Code(4));
}

#[test]
fn h7_a_host_that_stood_still_gives_up_a_silent_guest_all_the_same() {
    let result = exec_against(async |mut mock| {
        mock.hear().await;
        std::thread::sleep(2 * LIMITS.silent);
        while mock.hear().await.is_some() {}
    });
    assert!(matches!(result, Err(GuestError::Silent(_))), "{result:?}");
}

#[test]
fn g9_a_quiet_command_is_no_silent_guest() {
    let result = exec_against(async |mut mock| {
        let began = Instant::now();
        while let Some(frame) = mock.hear().await {
            if let Message::Ping { token } = frame.message {
                mock.say(0, &Message::Pong { token, clock: 0 }).await;
            }
            if began.elapsed() > Duration::from_secs(2) {
                mock.say(1, &Message::Exited { exit: wire::Exit::Code { code: 4 } }).await;
            }
        }
    });
    assert_eq!(result.unwrap(), Exit::Code(4));
}

#[test]
fn g15_a_guest_that_stops_reading_is_given_up() {
    let temp = tempfile::tempdir().unwrap();
    let content = "x".repeat(900_000);
    let source = text(&content, &temp.path().join("to"));
    let began = Instant::now();
    let result = against(
        async |mut session| session.upload(&source, &mut |_| {}).await,
        async |mut mock| {
            // It keeps sending, so it is not silent.
            loop {
                mock.say(1, &Message::Progress { bytes: 0 }).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        },
    );
    let Err(error @ GuestError::Stalled(_)) = result else { panic!("{result:?}") };
    assert_eq!(error.kind(), Fails::Boot);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn g15_both_ends_full_is_no_deadlock() {
    let temp = tempfile::tempdir().unwrap();
    let source = text(&"x".repeat(900_000), &temp.path().join("to"));
    let result = against_within(
        Limits::default(),
        async |mut session| session.upload(&source, &mut |_| {}).await,
        async |mut mock| {
            // Writes more than the socket takes before it reads anything.
            for bytes in 0..20_000 {
                mock.say(1, &Message::Progress { bytes }).await;
            }
            while let Some(frame) = mock.hear().await {
                if frame.message.cost() == 0 {
                    continue;
                }
                mock.say(1, &Message::Done { entries: 7, bytes: 7 }).await;
            }
        },
    );
    // It got far enough to receive invalid data.
    assert!(matches!(result, Err(GuestError::Protocol(_))), "{result:?}");
}

#[test]
fn g7_a_hello_that_is_never_confirmed_is_not_accepted() {
    run(async {
        let (host, mut mock) = pair();
        let accepting = tokio::time::timeout(Duration::from_millis(300), Session::accept(host));
        let (accepted, ()) = tokio::join!(accepting, async {
            mock.say(0, &hello("one", 1)).await;
            mock.say(0, &Message::Ready { nonce: 1 }).await;
            mock.say(0, &hello("one", 1)).await;
        });
        assert!(accepted.is_err());
    });
}

#[test]
fn g7_g15_hellos_without_end_are_not_owed_an_answer_each() {
    run(async {
        let (host, mut mock) = pair();
        let flood = async {
            for start in 0..60_000 {
                // Both ends are on this thread: a byte that does not move within a second never will.
                if tokio::time::timeout(Duration::from_secs(1), mock.say(0, &hello("one", start))).await.is_err() {
                    return;
                }
            }
            panic!("the host reads on, whoever takes its answers");
        };
        tokio::select! {
            accepted = Session::accept(host) => panic!("{accepted:?}"),
            () = flood => {}
        }
    });
}

#[test]
fn g1_g2_a_greeting_behind_garbage_and_a_stale_hello_is_the_one_that_counts() {
    run(async {
        let (host, mut mock) = pair();
        let (accepted, ()) = tokio::join!(Session::accept(host), async {
            mock.raw(b"\x00\xffKILN stale").await;
            mock.say(0, &hello("old", 1)).await;
            mock.raw(&vec![7; 70_000]).await;
            let old = mock.hear().await.unwrap().message;
            mock.say(0, &hello("new", 2)).await;
            let Message::Welcome { nonce: old, .. } = old else { panic!("{old:?}") };
            mock.say(0, &Message::Ready { nonce: old }).await;
            let Message::Welcome { nonce, .. } = mock.hear().await.unwrap().message else { panic!() };
            mock.say(0, &Message::Ready { nonce }).await;
        });
        let (_, hello) = accepted.unwrap();
        assert_eq!(hello.boot_id, "new");
        assert_eq!(hello.os, "a\u{fffd}[2Jb", "nothing for a terminal to obey");
        assert_eq!(hello.clock, SystemTime::UNIX_EPOCH);
    });
}

#[test]
fn g2_after_a_reboot_only_another_boot_counts() {
    let result = against(
        async |mut session| session.reconnect().await,
        async |mut mock| {
            mock.say(0, &hello("one", 5)).await;
            mock.raw(b"half a fra").await;
            mock.splitter = Splitter::new();
            mock.greet("two").await;
            mock.hear().await;
        },
    );
    assert_eq!(result.unwrap().boot_id, "two");
}

/// Fetches from a guest that sends these entries.
fn fetched(entries: Vec<Entry>) -> (tempfile::TempDir, Result<FetchedTree, GuestError>) {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("canary"), "untouched").unwrap();
    let request = trees::fetch(Path::new("/x"), &temp.path().join("into"), 1 << 20);
    let result = against(
        async |mut session| session.fetch(request, None, &mut |_| {}).await.map(|fetched| fetched.tree),
        async |mut mock| {
            mock.hear().await;
            send_tree(&mut mock, entries).await;
            while mock.hear().await.is_some() {}
        },
    );
    assert_eq!(fs::read_to_string(temp.path().join("canary")).unwrap(), "untouched");
    (temp, result)
}

async fn send_tree(mock: &mut Mock, entries: Vec<Entry>) {
    let head = Head { to: Vec::new(), name: Vec::new(), into: false, contents: false, owner: None };
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, Layout::Packed, head).unwrap();
    for entry in entries {
        encoder.entry(entry).unwrap();
    }
    let totals = encoder.finish().unwrap();
    for chunk in bytes.chunks(60_000) {
        mock.say(1, &Message::Data { bytes: HiddenBytes(chunk.to_vec()) }).await;
    }
    mock.say(1, &Message::Done { entries: totals.entries, bytes: totals.bytes }).await;
}

fn entry(path: &str, kind: Kind) -> Entry {
    Entry { path: path.into(), mode: 0o7777, mtime: 0, xattrs: Vec::new(), kind }
}

fn link(path: &str, target: &str) -> Entry {
    entry(path, Kind::Symlink { target: target.into() })
}

#[test]
fn g5_trees_that_lead_out_are_refused() {
    let folder = || entry("", Kind::Dir {});
    let file = |path| entry(path, Kind::File { size: 3 });
    let same = |path, target: &str| entry(path, Kind::Hardlink { target: target.into() });
    let trees = [
        vec![file("a")],
        vec![folder(), link("l", "/etc"), file("l/passwd")],
        vec![folder(), link("l", ".."), file("l/canary")],
        vec![folder(), entry("d", Kind::Dir {}), link("d/l", "../d"), file("d/l/a")],
        vec![folder(), entry("d", Kind::Dir {}), link("d/l", "../x"), same("l", "d/l")],
        vec![folder(), file("a"), file("a")],
        vec![folder(), file("a"), file("a/b")],
        vec![folder(), file("d/a")],
        vec![folder(), same("l", "nothing")],
        vec![link("", "canary")],
        vec![same("", "canary")],
        vec![folder(), folder()],
    ];
    for tree in trees {
        let shown = format!("{tree:?}");
        let (_, result) = fetched(tree);
        let error = result.expect_err(&shown);
        assert!(matches!(error, GuestError::Hostile(_)), "{shown}: {error:?}");
        assert_eq!(error.kind(), Fails::Step);
    }
}

#[test]
fn g5_links_that_lead_out_are_left_out_and_named() {
    let folder = |path| entry(path, Kind::Dir {});
    for (path, target) in [
        ("l", "/etc"),
        ("l", ".."),
        ("l", "."),
        ("l", "../canary"),
        ("d/l", "../../canary"),
        ("d/l", "x/../canary"),
        ("d/l", "../d/../../canary"),
        ("l", "/xy"),
        ("l", "/x/../canary"),
    ] {
        let (temp, result) = fetched(vec![folder(""), folder("d"), link(path, target)]);
        let tree = result.unwrap();
        assert!(tree.links.is_empty() && tree.left_out_count == 1, "{target}: {tree:?}");
        assert!(tree.left_out[0].starts_with(path) && tree.left_out[0].contains(target), "{tree:?}");
        assert!(fs::symlink_metadata(temp.path().join("into").join(path)).is_err(), "{target}");
    }
    let links = [("l", "a//b", "a/b"), ("d/l", "/x/f", "../f"), ("d/m", "./../f", "../f")];
    for (path, target, kept) in links {
        let (temp, result) = fetched(vec![folder(""), folder("d"), link(path, target)]);
        assert_eq!(result.unwrap().links[&format!("into/{path}")], kept);
        assert_eq!(fs::read_link(temp.path().join("into").join(path)).unwrap(), Path::new(kept));
    }
}

#[test]
fn g5_what_is_nothing_but_a_pipe_or_a_device_is_refused() {
    for (kind, what) in [(Kind::Fifo {}, "a named pipe"), (Kind::Socket {}, "a socket"), (Kind::Device {}, "a device")]
    {
        let (temp, result) = fetched(vec![entry("", kind)]);
        let refused = result.unwrap_err().to_string();
        assert_eq!(refused, format!("`/x` cannot be kept beside the image: it is {what}"));
        assert!(!temp.path().join("into").exists());
    }
}

#[test]
fn g5_what_stands_at_the_destination_is_not_followed() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("canary"), "untouched").unwrap();
    let into = temp.path().join("into");
    symlink(temp.path().join("canary"), &into).unwrap();
    let request = trees::fetch(Path::new("/x"), &into, 1 << 20);
    let result = against(
        async |mut session| session.fetch(request, None, &mut |_| {}).await,
        async |mut mock| {
            mock.hear().await;
            send_tree(&mut mock, vec![entry("", Kind::File { size: 0 })]).await;
            while mock.hear().await.is_some() {}
        },
    );
    assert!(matches!(result, Err(GuestError::Hostile(_))), "{result:?}");
    assert_eq!(fs::read_to_string(temp.path().join("canary")).unwrap(), "untouched");
}

#[test]
fn g5_modes_are_tame_and_harmless_links_kept() {
    use std::os::unix::fs::MetadataExt;
    let folder = |path| entry(path, Kind::Dir {});
    let tree = vec![folder(""), folder("d"), link("d/l", "../f"), entry("f", Kind::File { size: 0 }), link("m", "d/l")];
    let (temp, result) = fetched(tree);
    let tree = result.unwrap();
    assert_eq!(tree.files, ["into/f"]);
    let links = [("into/d/l", "../f"), ("into/m", "d/l")].map(|(link, to)| (link.to_owned(), to.to_owned()));
    assert_eq!(tree.links, links.into());
    let mode = |path| fs::symlink_metadata(temp.path().join("into").join(path)).unwrap().mode() & 0o7777;
    assert_eq!([mode(""), mode("d"), mode("f")], [0o755; 3]);
    assert!(temp.path().join("into/m").exists());
}

#[test]
fn g5_sizes_and_counts_are_capped() {
    let (_, result) = fetched(vec![entry("", Kind::File { size: (1 << 20) + 1 })]);
    assert!(matches!(result, Err(GuestError::Beyond(_))), "{result:?}");
    let lie = against(
        async |mut session| {
            let temp = tempfile::tempdir().unwrap();
            let request = trees::fetch(Path::new("/x"), &temp.path().join("into"), 1 << 20);
            session.fetch(request, None, &mut |_| {}).await.map(|_| ())
        },
        async |mut mock| {
            mock.hear().await;
            mock.say(1, &Message::Done { entries: 3, bytes: 3 }).await;
            while mock.hear().await.is_some() {}
        },
    );
    assert_eq!(lie.unwrap_err().kind(), Fails::Step);
}
