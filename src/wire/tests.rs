use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::boot_mount::{BootMount, MountPolicy};
use super::boot_mounts::BootReport;
use super::message::{Facts, Pair, ProtocolVersion, ShellScript, TtySize};
use super::mounts::{DiskPartition, GuestMount};
use super::network::ProxyAccess;
use super::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..300)
}

fn facts() -> impl Strategy<Value = Facts> {
    let texts = ("[0-9a-f-]{36}", option::of(".{0,40}"), ".{0,40}", "[a-z]{0,9}", ".{0,20}", "x86_64");
    (texts, any::<i64>(), any::<bool>(), any::<u64>()).prop_map(
        |((boot_id, instance_id, os, os_id, kernel, arch), clock, systemd, start)| Facts {
            boot_id,
            instance_id,
            os,
            os_id,
            kernel,
            arch,
            clock,
            systemd,
            start,
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let exit = prop_oneof![
        any::<u8>().prop_map(|code| Exit::Code { code }),
        any::<u8>().prop_map(|number| Exit::Signal { number }),
        Just(Exit::TimedOut {}),
        ".*".prop_map(|text| Exit::NotStarted { text }),
    ];
    let class =
        prop_oneof![Just(Class::NotFound {}), Just(Class::NoSpace {}), Just(Class::System {}), Just(Class::Request {})];
    let greetings = prop_oneof![
        facts().prop_map(|facts| Message::Hello { origin: ProtocolVersion, facts }),
        any::<u64>().prop_map(|nonce| Message::Welcome { origin: ProtocolVersion, nonce }),
        any::<u64>().prop_map(|nonce| Message::Ready { nonce }),
        any::<u64>().prop_map(|nonce| Message::Resume { origin: ProtocolVersion, nonce }),
    ];
    let requests = prop_oneof![
        (bytes(), any::<bool>()).prop_map(|(part, last)| Message::Exec { part: HiddenBytes(part), last }),
        Just(Message::Upload {}),
        bytes().prop_map(|path| Message::Fetch { path }),
        ".*".prop_map(|serial| Message::Unpack { serial }),
        any::<u64>().prop_map(|token| Message::Ping { token }),
        (any::<i64>(), any::<Vec<u8>>()).prop_map(|(clock, entropy)| Message::Wake { clock, entropy }),
        any::<u64>().prop_map(|cached| Message::Sync { cached }),
        Just(Message::Bye {}),
        Just(Message::List {}),
        Just(Message::Mounts {}),
        any::<u64>().prop_map(|token| Message::Park { token }),
    ];
    let rest = prop_oneof![
        bytes().prop_map(|bytes| Message::Data { bytes: HiddenBytes(bytes) }),
        Just(Message::Eof {}),
        bytes().prop_map(|bytes| Message::Stdout { bytes }),
        bytes().prop_map(|bytes| Message::Stderr { bytes }),
        exit.prop_map(|exit| Message::Exited { exit }),
        aftermath().prop_map(|found| Message::Aftermath { found }),
        Just(Message::EndProcesses {}),
        any::<u8>().prop_map(|number| Message::Signal { number }),
        tty().prop_map(|size| Message::Resize { size }),
        any::<u64>().prop_map(|bytes| Message::Progress { bytes }),
        (any::<u64>(), any::<u64>()).prop_map(|(entries, bytes)| Message::Done { entries, bytes }),
        (class, ".*").prop_map(|(class, text)| Message::Failed { class, text }),
        any::<u32>().prop_map(|bytes| Message::Credit { bytes }),
        (any::<u64>(), any::<i64>()).prop_map(|(token, clock)| Message::Pong { token, clock }),
        ".*".prop_map(|text| Message::Trouble { text }),
        (vec(mount(), 0..3), boot_report(), any::<bool>()).prop_map(|(mounts, boot, has_rpm)| Message::Mounted {
            mounts,
            boot,
            has_rpm
        }),
    ];
    let texts = || vec(".*", 0..3);
    let sealing = prop_oneof![
        (texts(), option::of(any::<i64>()))
            .prop_map(|(operations, epoch)| Message::Seal { request: SealRequest { operations, epoch } }),
        (texts(), any::<bool>(), texts()).prop_map(|(unmounted, had_agent, notes)| {
            let report = SealReport { unmounted, had_agent, notes };
            Message::Sealed { report }
        }),
    ];
    prop_oneof![greetings, requests, rest, sealing]
}

fn boot_report() -> impl Strategy<Value = BootReport> {
    let mount = (bytes(), bytes(), ".*", ".*").prop_map(|(target, source, kind, options)| {
        let policy = MountPolicy::Optional;
        BootMount { target, source, kind, options, policy }
    });
    (vec(mount, 0..3), vec(".*", 0..3)).prop_map(|(mounts, root_options)| BootReport { mounts, root_options })
}

fn mount() -> impl Strategy<Value = GuestMount> {
    let partition = (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(number, start, length)| DiskPartition {
        number,
        start,
        length,
    });
    let names = (bytes(), ".*", bytes(), bytes());
    (names, vec(partition, 0..3), any::<bool>(), any::<u32>(), any::<u64>(), option::of(bytes())).prop_map(
        |((target, kind, root, source), partitions, is_plain, features, subvolume, default_root)| GuestMount {
            is_original: !is_plain,
            subvolume,
            default_root,
            target,
            kind,
            root,
            source,
            partitions,
            is_plain,
            features,
        },
    )
}

fn aftermath() -> impl Strategy<Value = Aftermath> {
    let left = (any::<u32>(), any::<u32>(), ".*").prop_map(|(pid, step, command)| LeftProcess { pid, step, command });
    let late = (any::<u32>(), bytes()).prop_map(|(step, bytes)| LateOutput { step, bytes: HiddenBytes(bytes) });
    (vec(".*", 0..3), any::<bool>(), vec(left, 0..3), vec(late, 0..3), vec(".*", 0..3)).prop_map(
        |(oom_killed, is_stopping, left, late, notes)| Aftermath { oom_killed, is_stopping, left, late, notes },
    )
}

fn tty() -> impl Strategy<Value = TtySize> {
    (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| TtySize { rows, columns })
}

fn request() -> impl Strategy<Value = ExecRequest> {
    let pair = (".*", ".*").prop_map(|(name, value)| Pair { name, value });
    let secret = (".*", bytes()).prop_map(|(name, value)| Secret { name, value: HiddenBytes(value) });
    let first = (vec(".*", 0..4), vec(pair, 0..4), ".*", ".*");
    let script = (".*", ".*").prop_map(|(name, text)| ShellScript { name, text });
    let access = bytes().prop_map(|authority| ProxyAccess { authority });
    let kind = (option::of(script), option::of(any::<u32>()), any::<bool>(), option::of(access));
    (first, option::of(any::<u64>()), any::<bool>(), option::of(tty()), vec(secret, 0..3), kind).prop_map(
        |((argv, env, dir, user), timeout, stdin, tty, secrets, (script, step, login, network))| ExecRequest {
            argv,
            script,
            env,
            dir,
            user,
            timeout,
            stdin,
            tty,
            secrets,
            step,
            login,
            network,
        },
    )
}

fn encoded(stream: u32, message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    put_frame(stream, message, &mut out);
    out
}

fn hello() -> Message {
    let facts = Facts {
        boot_id: "b".into(),
        instance_id: None,
        os: "Debian".into(),
        os_id: "debian".into(),
        kernel: "6.1".into(),
        arch: "x86_64".into(),
        clock: 1,
        systemd: true,
        start: 9,
    };
    Message::Hello { origin: ProtocolVersion, facts }
}

/// Returns all frames of a port that delivered its bytes in pieces of this size.
fn cut(mut splitter: Splitter, bytes: &[u8], piece: usize) -> Result<Vec<Frame>, DecodeError> {
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        splitter.push(piece);
        while let Some(frame) = splitter.next_frame()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

fn trusting() -> Splitter {
    let mut splitter = Splitter::new();
    splitter.trust();
    splitter
}

proptest! {
    #[test]
    fn frames_survive_the_port_in_pieces_of_any_size(
        messages in vec((any::<u32>(), message()), 1..6),
        piece in 1usize..200,
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(|(stream, message)| encoded(*stream, message)).collect();
        let frames = cut(trusting(), &bytes, piece).unwrap();
        let expected: Vec<Frame> = messages.into_iter().map(|(stream, message)| Frame { stream, message }).collect();
        prop_assert_eq!(frames, expected);
    }

    #[test]
    fn commands_survive_a_round_trip(request in request()) {
        let mut out = Vec::new();
        request.put(&mut out);
        let mut fields = Fields::new(&out);
        prop_assert_eq!(ExecRequest::get(&mut fields), Ok(request));
        prop_assert_eq!(fields.end(), Ok(()));
    }

    #[test]
    fn g1_no_bytes_make_the_decoders_panic(bytes in vec(any::<u8>(), 0..2000), code in 0u8..40) {
        let mut body = vec![code, 0, 0, 0, 0];
        body.extend_from_slice(&bytes);
        let _ = Frame::decode(&body);
        let _ = ExecRequest::get(&mut Fields::new(&bytes));
        let _ = cut(trusting(), &bytes, 100);
        let _ = cut(Splitter::new(), &bytes, 100);
    }

    #[test]
    fn a_changed_byte_is_another_frame_or_an_error(message in message(), at: prop::sample::Index, flip in 1u8..=255) {
        let mut bytes = encoded(7, &message);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(frames) = cut(trusting(), &bytes, 64) {
            let same = frames.contains(&Frame { stream: 7, message });
            prop_assert!(!same);
        }
    }

    #[test]
    fn what_is_cut_short_is_never_a_message(message in message(), at: prop::sample::Index) {
        let mut out = Vec::new();
        message.put_body(7, &mut out);
        let short = &out[..at.index(out.len())];
        prop_assert!(Frame::decode(short).is_err());
        out.push(0);
        prop_assert!(Frame::decode(&out).is_err());
    }

    #[test]
    fn a_greeting_is_found_behind_any_garbage(garbage in vec(any::<u8>(), 0..500), piece in 1usize..100) {
        let mut bytes = garbage;
        // A stale magic whose length covers the true greeting, and one that is cut short.
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&4000u32.to_le_bytes());
        bytes.extend_from_slice(&MAGIC[..9]);
        bytes.extend_from_slice(&encoded(0, &hello()));
        let frames = cut(Splitter::new(), &bytes, piece).unwrap();
        prop_assert_eq!(frames, vec![Frame { stream: 0, message: hello() }]);
    }
}

#[test]
fn g1_what_is_no_frame_is_an_error_once_the_port_is_trusted() {
    let refused = |bytes: &[u8]| cut(trusting(), bytes, 1000).unwrap_err();
    assert_eq!(refused(&u32::MAX.to_le_bytes()), DecodeError::Length(u32::MAX as usize));
    assert_eq!(refused(&65537u32.to_le_bytes()), DecodeError::Length(65537));
    assert_eq!(refused(&[0; 4]), DecodeError::Short);
    assert_eq!(refused(&[5, 0, 0, 0, 99, 0, 0, 0, 0]), DecodeError::Unknown("message", 99));
    assert_eq!(refused(&encoded(0, &hello())[MAGIC.len()..]), DecodeError::Misplaced);
}

#[test]
fn g2_frames_of_an_earlier_boot_are_thrown_away() {
    let mut bytes = encoded(3, &Message::Stdout { bytes: vec![b'x'; 1000] })[500..].to_vec();
    bytes.extend(encoded(3, &Message::Exited { exit: Exit::Code { code: 0 } }));
    bytes.extend(encoded(0, &hello()));
    assert_eq!(cut(Splitter::new(), &bytes, 77).unwrap(), [Frame { stream: 0, message: hello() }]);
}

#[test]
fn g7_another_build_is_told_by_name() {
    let mut bytes = encoded(0, &Message::Welcome { origin: ProtocolVersion, nonce: 1 });
    let at = bytes.windows(BUILD.len()).position(|window| window == BUILD.as_bytes()).unwrap();
    bytes[at] = b'z';
    let build = format!("z{}", &BUILD[1..]);
    let expected = DecodeError::Version { version: VERSION, build };
    assert_eq!(cut(Splitter::new(), &bytes, 9), Err(expected.clone()));
    assert_eq!(cut(trusting(), &bytes, 9), Err(expected));
}

#[test]
fn a_splitter_keeps_no_garbage() {
    let mut splitter = Splitter::new();
    for _ in 0..100 {
        splitter.push(&vec![b'K'; 60_000]);
        assert_eq!(splitter.next_frame(), Ok(None));
        assert!(splitter.waiting() < MAGIC.len());
    }
}

#[test]
fn the_largest_data_fits_into_a_frame() {
    let bytes = encoded(u32::MAX, &Message::Data { bytes: HiddenBytes(vec![1; MAX_DATA]) });
    assert!(bytes.len() - LENGTH <= MAX_FRAME);
    assert_eq!(cut(trusting(), &bytes, bytes.len()).unwrap()[0].message.cost(), MAX_DATA);
}

#[test]
fn secrets_do_not_show() {
    let secret = Secret { name: "token".into(), value: HiddenBytes(b"hunter2".to_vec()) };
    assert_eq!(format!("{secret:?}"), r#"Secret { name: "token", value: Hidden(7 bytes) }"#);
}
