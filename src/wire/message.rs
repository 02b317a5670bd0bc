//! The messages of the protocol, and which end sends each of them.

use std::fmt;

use super::boot_mounts::BootReport;
use super::cloud_init::SeedObstacle;
use super::code::{Code, DecodeError, Fields, coded_enum, coded_struct};
use super::mounts::GuestMount;
use super::network::ProxyAccess;
use super::{BUILD, VERSION};

/// A message and the number of its stream; 0 is the conversation itself. The host chooses the numbers, upwards from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The number of the stream.
    pub stream: u32,
    /// The message.
    pub message: Message,
}

/// The version and build at the head of a greeting. Decoding refuses any other than our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProtocolVersion;

impl Code for ProtocolVersion {
    fn put(&self, out: &mut Vec<u8>) {
        VERSION.put(out);
        BUILD.to_owned().put(out);
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let version = u16::get(fields)?;
        let build = String::get(fields)?;
        if version == VERSION && build == BUILD { Ok(Self) } else { Err(DecodeError::Version { version, build }) }
    }
}

coded_struct! {
    /// Facts about the guest that the agent runs in.
    Facts {
        /// The content of `/proc/sys/kernel/random/boot_id`.
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
        /// systemd is PID 1.
        systemd: bool,
        /// A number that differs for each start of the agent and each opening of the port.
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
pub struct HiddenBytes(pub Vec<u8>);

impl fmt::Debug for HiddenBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hidden({} bytes)", self.0.len())
    }
}

impl Code for HiddenBytes {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Code::get(fields).map(Self)
    }
}

coded_struct! {
    /// A secret, which is passed in a file of its own.
    Secret {
        /// The file name below `$KILN_SECRETS`.
        name: String,
        /// The content of the file.
        value: HiddenBytes,
    }
}

coded_struct! {
    /// The size of a terminal, in characters.
    TtySize {
        /// The number of lines.
        rows: u16,
        /// The number of characters per line.
        columns: u16,
    }
}

coded_struct! {
    /// A script for a shell. The agent writes it to a file below `/run/kiln/scripts`: if it were an argument, `pgrep -f` and
    /// `pkill -f` in it would find the shell that runs it.
    ShellScript {
        /// The name of the file, without a folder.
        name: String,
        /// The content of the script.
        text: String,
    }
}

coded_struct! {
    /// A command to run. Its encoding is sent in the parts of `Exec`.
    ExecRequest {
        /// Program and arguments; never empty.
        argv: Vec<String>,
        /// A script, whose path is one more argument.
        script: Option<ShellScript>,
        /// Environment variables in addition to the user's own.
        env: Vec<Pair>,
        /// Working directory.
        dir: String,
        /// User name or number.
        user: String,
        /// The time-out in milliseconds, after which the command is killed.
        timeout: Option<u64>,
        /// Stdin is sent in `Data`; otherwise it is `/dev/null`.
        stdin: bool,
        /// Uses a terminal instead of pipes; stdin is then sent in `Data`, and all output is stdout.
        tty: Option<TtySize>,
        /// Secrets for this command alone, in files below `$KILN_SECRETS`.
        secrets: Vec<Secret>,
        /// The step of the spec to which the command belongs, from 1. Its output is limited by [`super::MAX_OUTPUT`], and
        /// the processes that it leaves behind are reported with this number.
        step: Option<u32>,
        /// The command has the environment of a login; kiln's own commands have a bare one.
        login: bool,
        /// The command may use the locked network.
        network: Option<ProxyAccess>,
    }
}

coded_struct! {
    /// A process that outlived the command that started it.
    LeftProcess {
        /// The number of the process.
        pid: u32,
        /// The step that started it, from 1; 0 for a command that belongs to no step.
        step: u32,
        /// Its command line, shortened.
        command: String,
    }
}

coded_struct! {
    /// Output of left processes that was written after their step had ended.
    LateOutput {
        /// The step, from 1; 0 for a command that belongs to no step.
        step: u32,
        /// The beginning of the output.
        bytes: HiddenBytes,
    }
}

coded_struct! {
    /// Observations of the agent about a command, besides its output and its exit.
    #[derive(Default)]
    Aftermath {
        /// The names of the processes that the kernel's OOM killer ended meanwhile; empty for a command that succeeded.
        oom_killed: Vec<String>,
        /// The guest is about to reboot or to power off.
        is_stopping: bool,
        /// The processes that the command left behind.
        left: Vec<LeftProcess>,
        /// The late output of earlier commands' processes since the last report.
        late: Vec<LateOutput>,
        /// Limitations of this guest, for the debug log.
        notes: Vec<String>,
    }
}

coded_struct! {
    /// A request to seal the image.
    SealRequest {
        /// The names of the [operations](super::sealing::OPERATIONS).
        operations: Vec<String>,
        /// The epoch in seconds: later modification times are set back to it.
        epoch: Option<i64>,
    }
}

coded_struct! {
    /// The results of sealing.
    #[derive(Default)]
    SealReport {
        /// Mount points that steps had left mounted, and that were unmounted.
        unmounted: Vec<String>,
        /// Whether an agent was planted on the disk, which sealing has removed.
        had_agent: bool,
        /// Notes for the debug log.
        notes: Vec<String>,
    }
}

coded_enum! {
    /// The way in which a command ended.
    Exit as "exit" {
        /// The command returned this code.
        1 Code {
            /// The code, 0 to 255.
            code: u8,
        }
        /// A signal killed the command.
        2 Signal {
            /// The signal's number.
            number: u8,
        }
        /// The command exceeded its time-out and was killed.
        3 TimedOut {}
        /// The command could not be started.
        4 NotStarted {
            /// The reason.
            text: String,
        }
    }
}

coded_enum! {
    /// The class of a request's failure.
    Class as "class of failure" {
        /// A file, folder, user or device does not exist.
        1 NotFound {}
        /// The guest's file system is full.
        2 NoSpace {}
        /// The guest's system refused the operation for any other reason.
        3 System {}
        /// The request itself is invalid.
        4 Request {}
    }
}

coded_enum! {
    /// A message of the protocol.
    Message as "message" {
        /// Guest: announces itself. Repeated until the host answers.
        1 Hello {
            /// The guest's version and build.
            origin: ProtocolVersion,
            /// Facts about the guest.
            facts: Facts,
        }
        /// Host: answers a `Hello`.
        2 Welcome {
            /// The host's version and build.
            origin: ProtocolVersion,
            /// A number that the guest echoes.
            nonce: u64,
        }
        /// Guest: confirms the `Welcome`; only frames follow.
        3 Ready {
            /// The number from the `Welcome`.
            nonce: u64,
        }
        /// Host: a part of an encoded [`ExecRequest`].
        10 Exec {
            /// The bytes of the part.
            part: HiddenBytes,
            /// The last part: the command is run.
            last: bool,
        }
        /// Either: bytes of stdin (to an exec) or of a tree stream. Needs credit.
        11 Data {
            /// The bytes, at most [`super::MAX_DATA`].
            bytes: HiddenBytes,
        }
        /// Host: the end of stdin.
        12 Eof {}
        /// Guest: output of a command. Needs credit, which it shares with stderr.
        13 Stdout {
            /// The bytes, at most [`super::MAX_DATA`].
            bytes: Vec<u8>,
        }
        /// Guest: output of a command. Needs credit, which it shares with stdout.
        14 Stderr {
            /// The bytes, at most [`super::MAX_DATA`].
            bytes: Vec<u8>,
        }
        /// Guest: observations about a command, just before its `Exited`. Left out if there is nothing to report.
        18 Aftermath {
            /// The observations.
            found: Aftermath,
        }
        /// Host: requests to end the processes that commands left behind. Answered by `Aftermath`, with those that were
        /// ended in `left`, and `Done`.
        19 EndProcesses {}
        /// Guest: a command has ended; the last message of its stream.
        15 Exited {
            /// How the command ended.
            exit: Exit,
        }
        /// Host: sends a signal to the command's processes.
        16 Signal {
            /// The number of the signal.
            number: u8,
        }
        /// Host: reports a new size of a command's terminal.
        17 Resize {
            /// The new size.
            size: TtySize,
        }
        /// Host: begins an upload; a tree stream follows in `Data`.
        20 Upload {}
        /// Host: requests a tree stream.
        21 Fetch {
            /// The absolute path of a file or folder in the guest.
            path: Vec<u8>,
        }
        /// Host: requests to read a tree stream from a block device.
        22 Unpack {
            /// The serial number of the device.
            serial: String,
        }
        /// Guest: reports the progress of a request.
        23 Progress {
            /// How many bytes of file content were processed so far.
            bytes: u64,
        }
        /// Guest: a request succeeded; the last message of its stream.
        24 Done {
            /// The number of the tree's entries; 0 if there is no tree.
            entries: u64,
            /// The number of bytes of file content.
            bytes: u64,
        }
        /// Guest: a request failed; the last message of its stream.
        25 Failed {
            /// The class of the failure.
            class: Class,
            /// What failed, and why.
            text: String,
        }
        /// Either: allows the other end to send more bytes.
        26 Credit {
            /// How many more bytes may be sent.
            bytes: u32,
        }
        /// Host: checks whether the agent is alive.
        30 Ping {
            /// A number that the guest echoes.
            token: u64,
        }
        /// Guest: answers a `Ping`.
        31 Pong {
            /// The number from the `Ping`.
            token: u64,
            /// The guest's clock, in nanoseconds since 1970.
            clock: i64,
        }
        /// Host: requests a list of every file on the guest's disks. The records of `listing` are sent in `Data`, then
        /// `Done` or `Failed`.
        38 List {}
        /// Host: requests a list of the mounts of the image's disk. Answered by `Mounted` or `Failed`.
        39 Mounts {}
        /// Guest: lists the mounts, in the order in which they are nested.
        40 Mounted {
            /// The mounts, at most [`super::mounts::MAX_MOUNTS`].
            mounts: Vec<GuestMount>,
            /// The mounts of the next boot.
            boot: BootReport,
            /// The guest has a database of rpm, which the host cannot read.
            has_rpm: bool,
        }
        /// Host: requests a check for obstacles that keep cloud-init from starting the agent at the next boot. Answered by
        /// `SeedChecked`.
        50 CheckSeed {}
        /// Guest: the result of a `CheckSeed`.
        51 SeedChecked {
            /// The obstacles; usually none.
            obstacles: Vec<SeedObstacle>,
        }
        /// Host: requests to seal the image. The files whose times are set back are sent in `Data`, as records of
        /// `SECONDS PATH` with a NUL at the end of each; then `Sealed` and `Done`, or `Failed`.
        41 Seal {
            /// The parameters of sealing.
            request: SealRequest,
        }
        /// Guest: the results of sealing.
        42 Sealed {
            /// The report.
            report: SealReport,
        }
        /// Host: tells the guest that it is another time, and the machine another one. The guest sets its clock, adds the
        /// bytes to its entropy and reseeds its random number generator, if there are any. Answered by `Done` or `Failed`.
        32 Wake {
            /// The time in nanoseconds since the epoch.
            clock: i64,
            /// Random bytes, at most 512.
            entropy: Vec<u8>,
        }
        /// Host: requests to write pending data to the disks, and to drop the page cache if it is larger than this. Answered
        /// by `Done` or `Failed`.
        37 Sync {
            /// The size of the page cache in bytes.
            cached: u64,
        }
        /// Host: ends the conversation. The guest syncs its file systems, answers `Bye` and powers off.
        33 Bye {}
        /// Host: requests to hold still for a checkpoint. The guest answers `Park` if nothing runs, and waits for `Resume`
        /// or `Welcome`.
        34 Park {
            /// A number that the guest echoes.
            token: u64,
        }
        /// Host, as a greeting: the checkpoint was loaded. The guest answers `Resume`, also as a greeting.
        35 Resume {
            /// Version and build of the sender.
            origin: ProtocolVersion,
            /// A number that the guest echoes.
            nonce: u64,
        }
        /// Guest: reports an invalid message of the host, and ends the conversation.
        36 Trouble {
            /// The reason.
            text: String,
        }
        /// Either, as a greeting on the port of the network: connections of an earlier conversation are gone. The guest
        /// begins, and the host answers with the same number.
        60 Tunnel {
            /// Version and build of the sender.
            origin: ProtocolVersion,
            /// A number that the guest has chosen.
            nonce: u64,
        }
        /// Guest: a program has connected to the proxy. Opens a stream for `Data` in both directions; `Eof` ends one of them.
        61 Connect {}
        /// Either: ends the connection in both directions; the last message of its stream from this end.
        62 Close {}
    }
}

impl Message {
    /// Returns whether the message is a greeting, which a magic precedes.
    #[must_use]
    pub fn is_greeting(&self) -> bool {
        matches!(
            self,
            Self::Hello { .. } | Self::Welcome { .. } | Self::Ready { .. } | Self::Resume { .. } | Self::Tunnel { .. }
        )
    }

    /// Returns how many bytes of credit the message needs.
    #[must_use]
    pub fn cost(&self) -> usize {
        match self {
            Self::Data { bytes: HiddenBytes(bytes) } | Self::Stdout { bytes } | Self::Stderr { bytes } => bytes.len(),
            _ => 0,
        }
    }

    pub(super) fn put_body(&self, stream: u32, out: &mut Vec<u8>) {
        out.push(self.code());
        stream.put(out);
        self.put_fields(out);
    }
}
