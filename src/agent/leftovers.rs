//! Leftovers of commands: processes that live on, the output of those, and mounts.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::cgroup::{CgroupTree, GroupMember, folders, processes};
use super::link::lock;
use super::mount_table::{MountLine, read_table};
use super::processes::every_process;
use super::user_managers::UserManagers;
use super::{next_boot, sys};
use crate::wire::{HiddenBytes, LateOutput, LeftProcess};

/// How long a process has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
/// How long a killed process may take to disappear.
const GONE: Duration = Duration::from_secs(5);
/// The interval at which processes are checked for having ended.
const TICK: Duration = Duration::from_millis(20);
/// The most late output that is kept until it is reported to the host, in bytes.
const LATE_LIMIT: usize = 8 << 10;
/// The most processes that are reported by name.
const MOST_NAMED: usize = 16;
/// The longest command line in bytes; longer ones are cut. The host searches them for secrets before it shortens them to a
/// line.
const LONGEST: usize = 1024;
/// The cgroup of logind's sessions, such as those that `su` opens in a step.
const USER_SLICE: &str = "/sys/fs/cgroup/user.slice";

/// The processes that commands have left behind, and their output.
#[derive(Debug, Default)]
pub struct Leftovers {
    groups: Option<CgroupTree>,
    /// Sessions of commands, and their steps: they identify processes where there are no cgroups.
    sessions: Mutex<Vec<(i32, u32)>>,
    late: Mutex<Vec<LateOutput>>,
    /// The mounts before the first step.
    mounts: OnceLock<FirstMounts>,
    /// The managers of systemd for the users of commands.
    pub managers: UserManagers,
}

/// The mounts of a guest before the first step.
#[derive(Debug)]
struct FirstMounts {
    lines: HashSet<MountIdentity>,
    /// The mount points of the next boot, by the files before the first step.
    planned: HashSet<Vec<u8>>,
}

/// Identifies a mount among all that are later made in its place: the kernel reuses the number of a mount when it is free.
#[derive(Debug, PartialEq, Eq, Hash)]
struct MountIdentity {
    id: u32,
    device: (u32, u32),
    root: Vec<u8>,
    target: Vec<u8>,
}

impl MountIdentity {
    fn new(line: &MountLine) -> Self {
        Self { id: line.id, device: line.device, root: line.root.clone(), target: line.target.clone() }
    }
}

impl FirstMounts {
    fn read() -> Self {
        let lines = read_table().unwrap_or_default().iter().map(MountIdentity::new).collect();
        let planned = next_boot::read_mounts().unwrap_or_default().into_iter().map(|mount| mount.target).collect();
        Self { lines, planned }
    }
}

impl Leftovers {
    /// Creates an empty record, which identifies processes by their cgroups, or by their sessions if there are none.
    pub fn new(groups: Option<CgroupTree>) -> Arc<Self> {
        Arc::new(Self { groups, ..Self::default() })
    }

    /// Creates a cgroup for a command, and returns the file through which its first process enters it.
    pub fn admit(&self, step: u32, stream: u32) -> Option<fs::File> {
        self.groups.as_ref()?.create(step, stream).ok()
    }

    /// Describes what is not detected if processes cannot be identified by their cgroups; `None` if they can.
    pub fn limitation(&self) -> Option<String> {
        let missing = "the guest has no cgroups of version 2: processes that leave their session are not found";
        self.groups.is_none().then(|| missing.to_owned())
    }

    /// Remembers the session of a command that has started.
    pub fn note_session(&self, leader: i32, step: u32) {
        lock(&self.sessions).push((leader, step));
    }

    /// Records the mounts before the first step, if that was not done yet.
    pub fn note_mounts(&self) {
        self.mounts.get_or_init(FirstMounts::read);
    }

    /// Returns whether this was mounted before the first step, and no step has changed the files that cause the mount.
    /// `planned` are the mount points of the next boot.
    pub fn is_original(&self, line: &MountLine, planned: &[&[u8]]) -> bool {
        let Some(first) = self.mounts.get() else { return true };
        let was_planned = first.planned.contains(&line.target) && !next_boot::is_esp(line);
        first.lines.contains(&MountIdentity::new(line)) && (!was_planned || planned.contains(&line.target.as_slice()))
    }

    /// Returns the processes that this step has left behind.
    pub fn of_step(&self, step: u32) -> Vec<LeftProcess> {
        let members = self.members();
        describe(members.into_iter().filter(|member| member.step == step))
    }

    /// Ends all processes that were left behind, with SIGTERM first and then with SIGKILL. Returns those that were found.
    pub fn end_all(&self) -> Vec<LeftProcess> {
        let members: Vec<GroupMember> = self.members().into_iter().chain(sessions_of_users()).collect();
        let found = describe(members.iter().copied());
        for member in &members {
            sys::send_signal(member.pid, sys::SIGTERM);
        }
        if !self.are_gone_within(GRACE) {
            if let Some(groups) = &self.groups {
                groups.kill();
            }
            for member in self.members().into_iter().chain(sessions_of_users()) {
                sys::send_signal(member.pid, sys::SIGKILL);
            }
            self.are_gone_within(GONE);
        }
        lock(&self.sessions).clear();
        if let Some(groups) = &self.groups {
            groups.remove_empty();
        }
        found
    }

    /// Stores the beginning of what the processes of a step write after its end.
    pub fn keep_late(&self, step: u32, bytes: &[u8]) {
        let mut late = lock(&self.late);
        let kept: usize = late.iter().map(|late| late.bytes.0.len()).sum();
        let room = bytes.len().min(LATE_LIMIT.saturating_sub(kept));
        if room == 0 {
            return;
        }
        match late.iter_mut().find(|late| late.step == step) {
            Some(late) => late.bytes.0.extend_from_slice(&bytes[..room]),
            None => late.push(LateOutput { step, bytes: HiddenBytes(bytes[..room].to_vec()) }),
        }
    }

    /// Returns the late output since the last call.
    pub fn take_late(&self) -> Vec<LateOutput> {
        std::mem::take(&mut *lock(&self.late))
    }

    fn are_gone_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if self.members().is_empty() && sessions_of_users().is_empty() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            sleep(TICK);
        }
    }

    fn members(&self) -> Vec<GroupMember> {
        let living = match &self.groups {
            Some(groups) => groups.members(),
            None => self.members_by_session(),
        };
        living.into_iter().filter(|member| !is_zombie(member.pid)).collect()
    }

    fn members_by_session(&self) -> Vec<GroupMember> {
        let sessions = lock(&self.sessions);
        let members = every_process().filter_map(|pid| {
            let session = session_of(pid)?;
            let (_, step) = sessions.iter().find(|(leader, _)| *leader == session)?;
            Some(GroupMember { pid, step: *step })
        });
        members.collect()
    }
}

/// Returns the processes that PAM moved from a step's cgroup into a session of logind. A guest has no other sessions.
fn sessions_of_users() -> Vec<GroupMember> {
    let groups = folders(Path::new(USER_SLICE)).into_iter().flat_map(|slice| folders(&slice));
    let scopes = groups.filter(|group| group.extension().is_some_and(|extension| extension == "scope"));
    scopes.flat_map(|scope| processes(&scope)).map(|pid| GroupMember { pid, step: 0 }).collect()
}

/// Returns the session number of a process.
pub fn session_of(pid: i32) -> Option<i32> {
    session(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses the session number in a `/proc/PID/stat`; the name before it is in parentheses and may contain anything.
fn session(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(3)?.parse().ok()
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('Z' | 'X') | None))
}

fn describe(members: impl Iterator<Item = GroupMember>) -> Vec<LeftProcess> {
    let mut seen = HashSet::new();
    let all = members.filter(|member| seen.insert(member.pid)).map(|GroupMember { pid, step }| {
        let command = command(pid);
        LeftProcess { pid: pid.unsigned_abs(), step, command }
    });
    // A process that has ended meanwhile has no name.
    all.filter(|process| !process.command.is_empty()).take(MOST_NAMED).collect()
}

/// Returns the command line of a process as one line, or its name if it has no command line.
fn command(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|line| !line.is_empty());
    let mut line = line.or_else(|| fs::read(format!("/proc/{pid}/comm")).ok()).unwrap_or_default();
    line.truncate(LONGEST);
    String::from_utf8_lossy(&line).replace(char::is_control, " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_is_found_behind_any_name() {
        assert_eq!(session("12 (a) b) 4 (c) S 1 12 7 0 -1"), Some(7));
        assert_eq!(session("12 (a"), None);
    }

    #[test]
    fn late_output_is_kept_by_step_and_bounded() {
        let left = Leftovers::new(None);
        left.keep_late(1, b"one ");
        left.keep_late(2, b"two");
        left.keep_late(1, &[b'x'; 2 * LATE_LIMIT]);
        let late = left.take_late();
        let sizes: Vec<_> = late.iter().map(|late| (late.step, late.bytes.0.len())).collect();
        assert_eq!(sizes, [(1, LATE_LIMIT - 3), (2, 3)]);
        assert!(left.take_late().is_empty());
    }
}
