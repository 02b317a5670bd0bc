//! What no agent says, by the names that scripts and fetched paths give it.

use kiln::wire::code::Code;
use kiln::wire::listing::{self, Listed, Moment};
use kiln::wire::message::ProtocolVersion;
use kiln::wire::mounts::{DiskPartition, GuestMount, MAX_MOUNTS};
use kiln::wire::tree::{Encoder, Entry, Head, Kind, Layout, Record, Totals};
use kiln::wire::{Class, Exit, MAX_DATA, Message, put_frame};

use super::guest::facts;

/// Text that moves cursors, writes clipboards and gives commands to CI services.
pub const OBEYED: &str = "\u{1b}]52;c;cm0=\u{7}\r::set-output name=x::y ##[error]no ##vso[task.complete]yes\u{202e}";

/// Output that leaves no mode of a terminal as it was, and stops in the middle of a title.
pub const MODES: &str = concat!(
    "\x1b]0;guest\x07\x1b[1;31;44m\x1b(0\x1b)0\x0e\x1b%@\x1b[4;20;2h\x1b[12l\x1b[?1h\x1b=\x1b[?5h\x1b[?7;8;25l\x1b[?45h",
    "\x1b[5 q\x1b[?9h\x1b[?1000;1001;1002;1003;1004;1005;1006;1015;1016h\x1b[?2004h\x1b[>4;2m\x1b[>1u\x1b[3g",
    // Sets of G2 and G3, eight-bit answers, protected characters, a link that never ends, lights, a locator.
    "\x1b*0\x1b+0\x1b G\x1b[1\"q\x1b]8;;https://guest.example\x1b\\\x1b[2q\x1b[1;1'z",
    // Keypad, backarrow, smooth scrolling, changes of the width, graphics, the scheme's and the size's reports, Windows' keys.
    "\x1b[?66h\x1b[?67h\x1b[?4h\x1b[?40h\x1b[?80h\x1b[?2031h\x1b[?2048h\x1b[?9001h\x1b[>1;3m\x1b[>2;3m\x1b[=1u",
    // Colours of text, background, cursor, pointer and selection, and the form of the pointer.
    "\x1b]5;0;red\x1b\\\x1b]11;red\x1b\\\x1b]12;red\x1b\\\x1b]13;red\x1b\\\x1b]14;red\x1b\\\x1b]17;red\x1b\\\x1b]19;red\x1b\\\x1b]22;wait\x1b\\",
    "\x1b[?1049h\x1b[32m\x1b[?69h\x1b[3;9s\x1b[?6h\x1b[2;5r\x1b]4;1;rgb:00/00/00\x1b\\\x1b]10;red\x1b\\\x1b[?2026h",
    // A status line, a printer, and a title without an end.
    "\x1b[2$~\x1b[1$}\x1b[?5i\x1b]2;half"
);

/// Ends that title, gives all further output to a printer, and begins a mode that knows no other sequence.
pub const DEAFENING: &str = "\x18\x1b\\\x1b[5i\x1b[?2l";

/// The code of `Exited`, which is written by hand here to hold what its type cannot.
const EXITED: u8 = 15;

/// The bytes of a message about the command that runs.
pub fn frames(what: &str, stream: u32, boots: u32) -> Vec<u8> {
    let frame = |stream, message: &Message| {
        let mut bytes = Vec::new();
        put_frame(stream, message, &mut bytes);
        bytes
    };
    match what {
        "another-agent" => frame(0, &Message::Hello { origin: ProtocolVersion, facts: facts(boots, 99) }),
        "old-nonce" => frame(0, &Message::Ready { nonce: 1 }),
        "unasked-pong" => frame(0, &Message::Pong { token: u64::MAX, clock: 0 }),
        "exit-of-another" => frame(stream + 1, &Message::Exited { exit: Exit::Code { code: 0 } }),
        "done" => frame(stream, &Message::Done { entries: 0, bytes: 0 }),
        "bye" => frame(stream, &Message::Bye {}),
        "trouble" => frame(0, &Message::Trouble { text: OBEYED.to_owned() }),
        "refusal" => frame(stream, &Message::Failed { class: Class::System {}, text: OBEYED.to_owned() }),
        "unknown" => by_hand(stream, 200, &[]),
        "exit-status-256" => by_hand(stream, EXITED, &[1, 0, 1]),
        "exit-by-no-way" => by_hand(stream, EXITED, &[9, 0]),
        "no-length" => vec![0; 4],
        "negative-length" => i32::MIN.to_le_bytes().to_vec(),
        other => panic!("nobody knows how to say `{other}`"),
    }
}

fn by_hand(stream: u32, code: u8, fields: &[u8]) -> Vec<u8> {
    let body = [&[code], &stream.to_le_bytes()[..], fields].concat();
    [&length(&body), &body[..]].concat()
}

fn length(body: &[u8]) -> [u8; 4] {
    u32::try_from(body.len()).expect("it is short").to_le_bytes()
}

/// The files of the guest, or what no file system holds.
pub fn listed(mode: &str) -> Vec<Listed> {
    let time = || Moment { seconds: 1_700_000_000, nanoseconds: 0 };
    let listed = |path: &str, kind| Listed {
        path: path.into(),
        mode: 0o755,
        uid: 0,
        gid: 0,
        kind,
        xattrs: Vec::new(),
        modified: time(),
        changed: time(),
        device: 1,
        inode: 2,
    };
    let file = |path| listed(path, listing::Kind::File { size: 3, sha256: vec![7; 32] });
    let folder = |path| listed(path, listing::Kind::Dir {});
    match mode {
        "lists-out-of-order" => vec![folder("/"), file("/b"), file("/a")],
        "lists-no-root" => vec![file("/etc/motd")],
        _ => vec![folder("/"), folder("/etc"), file("/etc/motd")],
    }
}

/// The answer to the question what is mounted: a root that kiln does not read, unless `mode` says otherwise. What is on the
/// disk of these tests, `tests/support` knows.
pub fn mounts(mode: &str) -> Vec<GuestMount> {
    let mount = |target: &str, kind: &str, number: u32| GuestMount {
        target: target.into(),
        kind: kind.into(),
        root: b"/".to_vec(),
        source: format!("/dev/vda{number}").into_bytes(),
        partitions: vec![DiskPartition { number, start: u64::from(number) << 20, length: 1 << 20 }],
        is_plain: true,
        is_original: true,
        subvolume: 0,
        default_root: None,
        features: 0,
    };
    match mode {
        "mounts-nothing" => Vec::new(),
        "mounts-whole-disk" => {
            let partition = DiskPartition { number: 0, start: 0, length: 16 << 20 };
            vec![GuestMount { partitions: vec![partition], ..mount("/", "ext4", 0) }]
        }
        "mounts-what-is-not-there" => vec![mount("/", "ext4", 7)],
        "mounts-too-many" => vec![mount("/", "xfs", 1); MAX_MOUNTS + 1],
        "mounts-no-paths" => vec![mount("srv", "ext4", 1)],
        "mounts-forged" => vec![mount("/a\n::error::x", "\u{1b}[2Jxfs", 1), mount("/", "xfs", 1)],
        _ => vec![mount("/", "xfs", 1)],
    }
}

/// What is sent for a fetch.
pub struct Tree {
    /// The stream, or its beginning.
    pub bytes: Vec<u8>,
    /// What the guest claims to have sent.
    pub totals: Totals,
    /// What follows again and again, if it has no end.
    pub then_for_ever: Option<Vec<u8>>,
}

/// The answer to a fetch of `/hostile/WHAT`.
pub fn tree(what: &str) -> Tree {
    let mut tree = Tree { bytes: Vec::new(), totals: Totals::default(), then_for_ever: None };
    let head = Head { to: Vec::new(), name: Vec::new(), into: false, contents: false, owner: None };
    Encoder::new(&mut tree.bytes, Layout::Packed, head).expect("written to memory");
    tree.add("", Kind::Dir {});
    match what {
        "path-above" => tree.add("../canary", file(0)),
        "path-through-above" => tree.add("a/../../canary", file(0)),
        "path-of-the-root" => tree.add("/etc/canary", file(0)),
        "path-beyond-4-kib" => tree.add(&"x/".repeat(2049)[..4097], file(0)),
        "name-of-256" => tree.add(&"x".repeat(256), file(0)),
        "name-with-nul" => tree.add("a\0b", file(0)),
        "link-above" => tree.add("l", link("../..")).add("l/canary", file(0)),
        "link-to-the-root" => tree.add("l", link("/etc")).add("l/canary", file(0)),
        "file-through-a-link" => tree.add("d", Kind::Dir {}).add("l", link("d")).add("l/canary", file(0)),
        "unknown" => tree.unknown("null"),
        "pipe" => tree.add("p", Kind::Fifo {}),
        "same-file-twice" => tree.add("a", file(0)).add("a", file(0)),
        "more-than-it-says" => tree.add("a", file(3)).data(0, 10),
        "larger-than-allowed" => tree.add("a", file(1 << 40)),
        "nothing-in-it-for-ever" => tree.add("a", file(0)).data(0, 0),
        "obeyed-names" => tree.add(&OBEYED.replace('/', ""), file(0)).add("a\n::stop-commands::x", file(0)),
        "long-names" => tree.long_names(700),
        "too-many-long-names" => tree.long_names(1000),
        "links" => tree
            .add("a", file(0))
            .add("empty", Kind::Dir {})
            .add("d", Kind::Dir {})
            .add("d/up", link("../a"))
            .add("d/absolute", link("/hostile/links/a"))
            .add("lib64", link("d"))
            .add("README", link("../../usr/share/doc/README"))
            .add("python", link("/usr/bin/python3"))
            .add("pipe", Kind::Fifo {})
            .add("socket", Kind::Socket {})
            .add("null", Kind::Device {}),
        "not-utf-8" => tree.record_entry(Entry { path: b"caf\xe9".to_vec(), ..entry("", file(0)) }),
        "setuid" => tree.add("d", Kind::Dir {}).add("d/tool", file(0)).add("d/sticky", Kind::Dir {}),
        "cut" => {
            tree.add("a", file(3));
            tree.bytes.truncate(tree.bytes.len() - 5);
            return tree;
        }
        "entries-for-ever" => {
            let mut leave = Vec::new();
            put(&Record::Entry { entry: entry("", Kind::Leave {}) }, &mut leave);
            tree.then_for_ever = Some(leave.repeat(MAX_DATA / leave.len()));
            return tree;
        }
        "another-count" => {
            tree.end();
            tree.lie();
            return tree;
        }
        "another-total" => tree.add("a", file(0)).lie(),
        other => match other.strip_prefix("files-").and_then(|count| count.parse().ok()) {
            Some(count) => tree.many_files(count),
            None => panic!("nobody knows the tree `{other}`"),
        },
    };
    tree.end();
    tree
}

impl Tree {
    fn add(&mut self, path: &str, kind: Kind) -> &mut Self {
        self.record_entry(entry(path, kind))
    }

    fn record_entry(&mut self, entry: Entry) -> &mut Self {
        self.totals.entries += 1;
        self.record(&Record::Entry { entry })
    }

    fn data(&mut self, offset: u64, length: u64) -> &mut Self {
        self.totals.bytes += length;
        self.record(&Record::Data { offset, length });
        self.bytes.extend(vec![b'x'; usize::try_from(length).expect("it is short")]);
        self
    }

    /// An entry of a kind that is not in the language: one more than the last.
    fn unknown(&mut self, path: &str) -> &mut Self {
        self.add(path, Kind::Device {});
        *self.bytes.last_mut().expect("the kind is the last field") += 1;
        self
    }

    /// A folder of files, each of one byte.
    fn many_files(&mut self, count: usize) -> &mut Self {
        for number in 0..count {
            self.add(&format!("{number:05}"), file(1)).data(0, 1);
        }
        self
    }

    /// Names of one file, of nearly 4 KiB each.
    fn long_names(&mut self, count: usize) -> &mut Self {
        let mut folder = "d".repeat(250);
        self.add("a", file(0));
        for _ in 0..15 {
            self.add(&folder, Kind::Dir {});
            folder = format!("{folder}/{}", "d".repeat(250));
        }
        let folder = &folder[..folder.len() - 251];
        for number in 0..count {
            self.add(&format!("{folder}/{number:0>250}"), Kind::Hardlink { target: b"a".to_vec() });
        }
        self
    }

    fn lie(&mut self) -> &mut Self {
        self.totals.entries += 1;
        self
    }

    fn end(&mut self) {
        let totals = self.totals;
        self.record(&Record::End { totals });
    }

    fn record(&mut self, record: &Record) -> &mut Self {
        put(record, &mut self.bytes);
        self
    }
}

fn put(record: &Record, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    record.put(&mut body);
    out.extend(length(&body));
    out.extend(body);
}

/// As bad as a mode can be.
fn entry(path: &str, kind: Kind) -> Entry {
    Entry { path: path.into(), mode: 0o7777, mtime: 0, xattrs: Vec::new(), kind }
}

fn file(size: u64) -> Kind {
    Kind::File { size }
}

fn link(target: &str) -> Kind {
    Kind::Symlink { target: target.into() }
}
