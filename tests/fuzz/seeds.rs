//! Writes what fuzzing begins with into a folder: frames, trees and documents of this very kiln, since the language of
//! the port names the sources it was built from.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kiln::disk::qcow2::create_overlay;
use kiln::wire::listing::{self, Listed, Moment};
use kiln::wire::message::{Aftermath, Class, Exit, Facts, HiddenBytes, Message, ProtocolVersion};
use kiln::wire::put_frame;
use kiln::wire::tree::{Encoder, Entry, Head, Kind, Layout};
use libfuzzer_sys::fuzz_target;

mod documents;

// It is built as the targets are, and so needs their runtime, which needs a target.
fuzz_target!(|_input: &[u8]| {});

fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).expect("usage: seeds FOLDER");
    for target in ["frame", "session", "tree", "manifest", "qcow2_header", "kernel_file", "spec"] {
        fs::create_dir_all(folder.join(target))?;
    }
    create_overlay(&folder.join("qcow2_header/overlay"), 1 << 20)?;
    fs::write(folder.join("kernel_file/elf"), elf_kernel())?;
    fs::write(folder.join("kernel_file/bzimage"), bz_image())?;
    let tree = tree()?;
    fs::write(folder.join("tree/whole"), &tree)?;
    for (which, (_, content)) in (0_u8..).zip(documents::all()?) {
        put(&folder.join("manifest"), which, &[&[which], content.as_bytes()])?;
    }
    for (which, message) in (0_u8..).zip(messages()) {
        let mut frame = Vec::new();
        put_frame(0, &message, &mut frame);
        put(&folder.join("frame"), which, &[&[u8::from(!message.is_greeting()), 3], &frame])?;
    }
    for (which, (request, answer)) in (0_u8..).zip(conversations(&tree)) {
        put(&folder.join("session"), which, &[&[request, 1], &answer])?;
    }
    Ok(())
}

fn put(folder: &Path, name: u8, parts: &[&[u8]]) -> io::Result<()> {
    fs::write(folder.join(name.to_string()), parts.concat())
}

/// Returns an ELF kernel with one segment, of one note with a PVH entry, and its banner.
fn elf_kernel() -> Vec<u8> {
    let mut elf = vec![0; 160];
    elf[..5].copy_from_slice(b"\x7fELF\x02");
    // e_machine, e_phoff, e_phentsize, e_phnum; p_type, p_offset, p_filesz; the lengths and the type of the note.
    for (at, value) in
        [(18, 62), (32, 64), (54, 56), (56, 1), (64, 4), (72, 128), (96, 20), (128, 4), (132, 4), (136, 18)]
    {
        elf[at] = value;
    }
    elf[140..144].copy_from_slice(b"Xen\0");
    elf.extend(b"Linux version 6.1.9-fc (build@host) #1");
    elf
}

/// Returns the beginning of a bzImage, with the string of its version.
fn bz_image() -> Vec<u8> {
    let mut image = vec![0; 0x300];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x80_u16.to_le_bytes());
    image.extend([0; 16]);
    image[0x280..0x28d].copy_from_slice(b"6.1.0-1-amd64");
    image
}

/// One of every kind of entry.
fn tree() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let head = Head { to: Vec::new(), name: b"srv".to_vec(), into: false, contents: false, owner: None };
    let mut encoder = Encoder::new(&mut bytes, Layout::Packed, head)?;
    let entry = |path: &str, kind| Entry { path: path.into(), mode: 0o755, mtime: 1, xattrs: Vec::new(), kind };
    encoder.entry(entry("", Kind::Dir {}))?;
    encoder.entry(entry("a", Kind::File { size: 9 }))?;
    encoder.data(2, 5)?;
    encoder.content(b"hello")?;
    encoder.entry(entry("b", Kind::Dir {}))?;
    encoder.entry(entry("b/c", Kind::Symlink { target: b"../a".to_vec() }))?;
    encoder.entry(entry("b/d", Kind::Hardlink { target: b"a".to_vec() }))?;
    encoder.entry(entry("b", Kind::Leave {}))?;
    encoder.entry(entry("", Kind::Leave {}))?;
    encoder.finish()?;
    Ok(bytes)
}

/// A guest's files: a directory with one in it.
fn listed() -> Vec<u8> {
    let time = || Moment { seconds: 1, nanoseconds: 0 };
    let kinds = [("/", listing::Kind::Dir {}), ("/a", listing::Kind::File { size: 9, sha256: vec![7; 32] })];
    let mut bytes = Vec::new();
    for (path, kind) in kinds {
        let (xattrs, modified, changed) = (Vec::new(), time(), time());
        let path = path.as_bytes().to_vec();
        let listed = Listed { path, mode: 0o755, uid: 0, gid: 0, kind, xattrs, modified, changed, device: 1, inode: 2 };
        listing::put(&listed, &mut bytes).expect("written to memory");
    }
    bytes
}

/// One of every kind of message that a guest sends.
fn messages() -> Vec<Message> {
    let facts = Facts {
        boot_id: "one".into(),
        instance_id: Some("two".into()),
        os: "Debian".into(),
        os_id: "debian".into(),
        kernel: "6.1".into(),
        arch: "x86_64".into(),
        clock: 1,
        systemd: true,
        start: 1,
    };
    vec![
        Message::Hello { origin: ProtocolVersion, facts },
        Message::Ready { nonce: 1 },
        Message::Resume { origin: ProtocolVersion, nonce: 1 },
        Message::Stdout { bytes: b"out".to_vec() },
        Message::Stderr { bytes: b"err".to_vec() },
        Message::Data { bytes: HiddenBytes(b"data".to_vec()) },
        Message::Exited { exit: Exit::Code { code: 0 } },
        Message::Exited { exit: Exit::NotStarted { text: "no".into() } },
        Message::Aftermath { found: Aftermath { oom_killed: vec!["cc1".into()], ..Aftermath::default() } },
        Message::Progress { bytes: 1 },
        Message::Done { entries: 1, bytes: 4 },
        Message::Failed { class: Class::NoSpace {}, text: "full".into() },
        Message::Credit { bytes: 1 },
        Message::Pong { token: 1, clock: 0 },
        Message::Park { token: 1 },
        Message::Bye {},
        Message::Trouble { text: "no".into() },
    ]
}

/// Requests as `session.rs` counts them, with an answer in kind.
fn conversations(tree: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let exited = || Message::Exited { exit: Exit::Code { code: 0 } };
    let done = |entries, bytes| Message::Done { entries, bytes };
    let output = || Message::Stdout { bytes: b"out".to_vec() };
    let pong = (0, Message::Pong { token: 1, clock: 0 });
    let answers = [
        (0, vec![(1, output()), (1, exited()), pong.clone()]),
        (1, vec![pong.clone(), (2, exited())]),
        (2, vec![(1, done(0, 0)), pong.clone()]),
        (3, vec![(1, Message::Progress { bytes: 1 }), (1, done(1, 1)), pong.clone()]),
        (4, vec![(1, Message::Credit { bytes: 9 }), (1, done(1, 4)), pong.clone()]),
        (5, vec![(1, Message::Data { bytes: HiddenBytes(tree.to_vec()) }), (1, done(5, 5)), pong.clone()]),
        (6, vec![(1, output()), (1, exited()), pong.clone()]),
        (7, vec![(1, done(0, 0)), pong]),
        (8, vec![(1, Message::Park { token: 1 })]),
        (
            10,
            vec![
                (1, Message::Data { bytes: HiddenBytes(listed()) }),
                (1, done(2, 9)),
                (0, Message::Pong { token: 1, clock: 0 }),
            ],
        ),
        (9, messages().into_iter().map(|message| (0, message)).collect()),
    ];
    let written = |said: Vec<(u32, Message)>| {
        let mut bytes = Vec::new();
        for (stream, message) in said {
            put_frame(stream, &message, &mut bytes);
        }
        bytes
    };
    answers.into_iter().map(|(request, said)| (request, written(said))).collect()
}
