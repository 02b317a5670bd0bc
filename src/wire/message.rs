//! Every message of the conversation, and which end sends it.

use std::fmt;

use super::boot_mounts::BootReport;
use super::cloud_init::SeedObstacle;
use super::code::{Code, Fields, Malformed, coded_enum, coded_struct};
use super::mounts::GuestMount;
use super::{BUILD, VERSION};

/// A message and the stream it belongs to; 0 is the conversation itself. The host chooses the numbers, upwards from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The stream.
    pub stream: u32,
    /// What is said.
    pub message: Message,
}

/// The version and build at the head of a greeting. Decoding refuses any other than our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin;

impl Code for Origin {
    fn put(&self, out: &mut Vec<u8>) {
        VERSION.put(out);
        BUILD.to_owned().put(out);
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let (version, build) = (u16::get(fields)?, String::get(fields)?);
        if version == VERSION && build == BUILD { Ok(Self) } else { Err(Malformed::Version { version, build }) }
    }
}

coded_struct! {
    /// What the agent says about the guest it woke up in.
    Facts {
        /// `/proc/sys/kernel/random/boot_id`.
        boot_id: String,
        /// cloud-init's instance-id, once it has one.
        instance_id: Option<String>,
        /// `PRETTY_NAME` of os-release.
        os: String,
        /// `ID` of os-release.
        os_id: String,
        /// Kernel release.
        kernel: String,
        /// Machine architecture.
        arch: String,
        /// The guest's clock, nanoseconds since the epoch.
        clock: i64,
        /// Whether systemd is PID 1.
        systemd: bool,
        /// Differs for each start of the agent and each opening of the port.
        start: u64,
    }
}

coded_struct! {
    /// A name and its value.
    Pair {
        /// The name.
        name: String,
        /// The value.
        value: String,
    }
}

/// Bytes that no log may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(pub Vec<u8>);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hidden({} bytes)", self.0.len())
    }
}

impl Code for Hidden {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        Code::get(fields).map(Self)
    }
}

coded_struct! {
    /// A secret as a file of its own.
    Secret {
        /// File name below `$KILN_SECRETS`.
        name: String,
        /// Content.
        value: Hidden,
    }
}

coded_struct! {
    /// The size of a terminal, in characters.
    TtySize {
        /// Lines.
        rows: u16,
        /// Characters a line.
        columns: u16,
    }
}

coded_struct! {
    /// A text for a shell. The agent writes it to a file below `/run/kiln/scripts`: were it an argument, `pgrep -f` and
    /// `pkill -f` in it would find the shell that runs it.
    ShellScript {
        /// The file's name, without a folder.
        name: String,
        /// The text.
        text: String,
    }
}

coded_struct! {
    /// A command to run. Encoded, it travels in the parts of `Exec`.
    ExecRequest {
        /// Program and arguments; never empty.
        argv: Vec<String>,
        /// A script, whose path is one more argument.
        script: Option<ShellScript>,
        /// Environment on top of the user's own.
        env: Vec<Pair>,
        /// Working directory.
        dir: String,
        /// User name or number.
        user: String,
        /// Milliseconds until it is killed.
        timeout: Option<u64>,
        /// Whether stdin comes in `Data`; else it is `/dev/null`.
        stdin: bool,
        /// A terminal instead of pipes; stdin comes in `Data` then, and all output is stdout.
        tty: Option<TtySize>,
        /// For this command alone, under `$KILN_SECRETS`.
        secrets: Vec<Secret>,
        /// The step of the spec that it is, from 1. Its output is bounded by [`super::MAX_OUTPUT`], and what it leaves
        /// behind is reported by this number.
        step: Option<u32>,
        /// Whether it has the environment of a login; kiln's own commands have a bare one.
        login: bool,
    }
}

coded_struct! {
    /// A process that outlived the command that started it.
    LeftProcess {
        /// Its number.
        pid: u32,
        /// The step that started it, from 1; 0 where it was no step.
        step: u32,
        /// Its command line, shortened.
        command: String,
    }
}

coded_struct! {
    /// Output of left processes that came after their step had ended.
    LateOutput {
        /// The step, from 1; 0 where it was no step.
        step: u32,
        /// Its beginning.
        bytes: Hidden,
    }
}

coded_struct! {
    /// What the agent noticed around a command, besides its output and its end.
    #[derive(Default)]
    Aftermath {
        /// Names of the processes that the kernel's OOM killer ended meanwhile; empty for a command that succeeded.
        oom_killed: Vec<String>,
        /// Whether the guest is about to reboot or to power off.
        is_stopping: bool,
        /// Processes that it left behind.
        left: Vec<LeftProcess>,
        /// What processes of earlier commands have written since.
        late: Vec<LateOutput>,
        /// What does not work in this guest, for the debug log.
        notes: Vec<String>,
    }
}

coded_struct! {
    /// What sealing is to do.
    SealRequest {
        /// Names of the [operations](super::sealing::OPERATIONS).
        operations: Vec<String>,
        /// Times of modification that are later than this are set back to it, seconds since the epoch.
        epoch: Option<i64>,
    }
}

coded_struct! {
    /// What sealing has found and done.
    #[derive(Default)]
    SealReport {
        /// File systems that steps had left mounted, which were unmounted.
        unmounted: Vec<String>,
        /// What the debug log is to say.
        notes: Vec<String>,
    }
}

coded_enum! {
    /// How a command ended.
    Exit as "exit" {
        /// It returned this code.
        1 Code {
            /// 0 to 255.
            code: u8,
        }
        /// A signal killed it.
        2 Signal {
            /// The signal's number.
            number: u8,
        }
        /// It took too long and was killed.
        3 TimedOut {}
        /// There was nothing to run, or no way to run it.
        4 NotStarted {
            /// Why.
            text: String,
        }
    }
}

coded_enum! {
    /// What sort of failure a request met.
    Class as "class of failure" {
        /// A file, folder, user or device is not there.
        1 NotFound {}
        /// The guest's file system is full.
        2 NoSpace {}
        /// Anything else the guest's system refused.
        3 System {}
        /// The request itself makes no sense.
        4 Request {}
    }
}

coded_enum! {
    /// One message.
    Message as "message" {
        /// Guest: here I am. Repeated until the host answers.
        1 Hello {
            /// Version and build.
            origin: Origin,
            /// About the guest.
            facts: Facts,
        }
        /// Host: I heard you.
        2 Welcome {
            /// Version and build.
            origin: Origin,
            /// To be echoed.
            nonce: u64,
        }
        /// Guest: I heard that you heard me; frames from here on.
        3 Ready {
            /// The host's.
            nonce: u64,
        }
        /// Host: a part of an encoded [`ExecRequest`].
        10 Exec {
            /// The bytes.
            part: Hidden,
            /// Whether it runs now.
            last: bool,
        }
        /// Either: bytes of stdin (to an exec) or of a tree stream. Needs credit.
        11 Data {
            /// At most [`super::MAX_DATA`].
            bytes: Hidden,
        }
        /// Host: the end of stdin.
        12 Eof {}
        /// Guest: output of a command. Needs credit, the same as stderr's.
        13 Stdout {
            /// At most [`super::MAX_DATA`].
            bytes: Vec<u8>,
        }
        /// Guest: output of a command. Needs credit, the same as stdout's.
        14 Stderr {
            /// At most [`super::MAX_DATA`].
            bytes: Vec<u8>,
        }
        /// Guest: what was noticed around a command, just before its `Exited`. Left out where there is nothing to report.
        18 Aftermath {
            /// The findings.
            found: Aftermath,
        }
        /// Host: end the processes that commands left behind. Answered by `Aftermath`, with those that were ended in
        /// `left`, and `Done`.
        19 EndProcesses {}
        /// Guest: a command is over; the last message of its stream.
        15 Exited {
            /// How.
            exit: Exit,
        }
        /// Host: a signal for the command's processes.
        16 Signal {
            /// Its number.
            number: u8,
        }
        /// Host: the terminal of a command has another size.
        17 Resize {
            /// The new one.
            size: TtySize,
        }
        /// Host: a tree stream follows in `Data`.
        20 Upload {}
        /// Host: send a tree stream.
        21 Fetch {
            /// File or folder in the guest, absolute.
            path: Vec<u8>,
        }
        /// Host: read a tree stream from a block device.
        22 Unpack {
            /// The device's serial.
            serial: String,
        }
        /// Guest: how far it is.
        23 Progress {
            /// Bytes of file content so far.
            bytes: u64,
        }
        /// Guest: it worked; the last message of its stream.
        24 Done {
            /// Entries of the tree; 0 where there is none.
            entries: u64,
            /// Bytes of file content.
            bytes: u64,
        }
        /// Guest: it did not; the last message of its stream.
        25 Failed {
            /// Sort.
            class: Class,
            /// What and why.
            text: String,
        }
        /// Either: so many bytes more may be sent.
        26 Credit {
            /// Bytes.
            bytes: u32,
        }
        /// Host: are you there?
        30 Ping {
            /// To be echoed.
            token: u64,
        }
        /// Guest: I am.
        31 Pong {
            /// The host's.
            token: u64,
            /// Its clock, nanoseconds since 1970.
            clock: i64,
        }
        /// Host: tell every file of the guest's disks. The records of `listing` come in `Data`, then `Done` or `Failed`.
        38 List {}
        /// Host: say what of the image's disk is mounted. Answered by `Mounted` or `Failed`.
        39 Mounts {}
        /// Guest: what is mounted, in the order in which it nests.
        40 Mounted {
            /// At most [`super::mounts::MAX_MOUNTS`].
            mounts: Vec<GuestMount>,
            /// What the next boot mounts.
            boot: BootReport,
            /// Whether there is a database of rpm, which the host cannot read.
            has_rpm: bool,
        }
        /// Host: say what will keep cloud-init from starting the agent at the next boot. Answered by `SeedChecked`.
        50 CheckSeed {}
        /// Guest: what it found.
        51 SeedChecked {
            /// Nothing, as a rule.
            obstacles: Vec<SeedObstacle>,
        }
        /// Host: seal the image. The files whose times are set back come in `Data`, as records of `SECONDS PATH` with a NUL at
        /// the end of each; then `Sealed` and `Done`, or `Failed`.
        41 Seal {
            /// What to do.
            request: SealRequest,
        }
        /// Guest: what sealing has found and done.
        42 Sealed {
            /// The findings.
            report: SealReport,
        }
        /// Host: another time and another machine. The guest sets its clock, stirs the bytes into its random numbers and
        /// draws them anew. Answered by `Done` or `Failed`.
        32 Wake {
            /// Nanoseconds since the epoch.
            clock: i64,
            /// Random bytes, at most 512.
            entropy: Vec<u8>,
        }
        /// Host: write to the disks what waits for it, and drop the page cache if more than so much is in it. Answered by
        /// `Done` or `Failed`.
        37 Sync {
            /// Bytes.
            cached: u64,
        }
        /// Host: nothing more will come. The guest syncs its file systems, answers `Bye` and powers off.
        33 Bye {}
        /// Host: hold still for a checkpoint. The guest answers `Park` if nothing runs, and waits for `Resume` or
        /// `Welcome`.
        34 Park {
            /// To be echoed.
            token: u64,
        }
        /// Host, as a greeting: the checkpoint was loaded. The guest answers `Resume`, also as a greeting.
        35 Resume {
            /// Version and build.
            origin: Origin,
            /// To be echoed.
            nonce: u64,
        }
        /// Guest: what you said makes no sense. It hangs up.
        36 Trouble {
            /// Why.
            text: String,
        }
    }
}

impl Message {
    /// Whether a magic stands before it.
    #[must_use]
    pub fn is_greeting(&self) -> bool {
        matches!(self, Self::Hello { .. } | Self::Welcome { .. } | Self::Ready { .. } | Self::Resume { .. })
    }

    /// How many bytes of credit it needs.
    #[must_use]
    pub fn cost(&self) -> usize {
        match self {
            Self::Data { bytes: Hidden(bytes) } | Self::Stdout { bytes } | Self::Stderr { bytes } => bytes.len(),
            _ => 0,
        }
    }

    pub(super) fn put_body(&self, stream: u32, out: &mut Vec<u8>) {
        out.push(self.code());
        stream.put(out);
        self.put_fields(out);
    }
}
