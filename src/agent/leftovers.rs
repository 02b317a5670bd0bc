//! What commands leave behind: processes that live on, what those write, and mounts.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::cgroup::{self, CgroupTree, GroupMember};
use super::link::lock;
use super::mounts::MountLine;
use super::user_managers::UserManagers;
use super::{mounts, next_boot, sys};
use crate::wire::{Hidden, LateOutput, LeftProcess};

/// How long a process has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(5);
/// How often it is looked whether they have ended.
const TICK: Duration = Duration::from_millis(20);
/// The most late output that is kept until the host hears of it, in bytes.
const LATE_LIMIT: usize = 8 << 10;
/// The most processes that are reported by name.
const MOST_NAMED: usize = 16;
/// Longer command lines are cut, in bytes: the host looks for secrets in them before it cuts them to a line.
const LONGEST: usize = 1024;
/// Where sessions of logind are, such as those that `su` opens in a step.
const USER_SLICE: &str = "/sys/fs/cgroup/user.slice";

/// The processes that commands have left behind, and their output.
#[derive(Debug, Default)]
pub struct Leftovers {
    groups: Option<CgroupTree>,
    /// Sessions of commands, and their steps: all there is to know processes by where there are no cgroups.
    sessions: Mutex<Vec<(i32, u32)>>,
    late: Mutex<Vec<LateOutput>>,
    /// What was mounted before the first step.
    mounts: OnceLock<FirstMounts>,
    /// The managers of systemd for the users of commands.
    pub managers: UserManagers,
}

/// What a guest had mounted before the first step.
#[derive(Debug)]
struct FirstMounts {
    lines: HashSet<MountIdentity>,
    /// The mount points of the next boot, by the files of that time.
    planned: HashSet<Vec<u8>>,
}

/// What tells a mount from all that are made in its place: the kernel gives a number again when it is free.
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
        let lines = mounts::read_table().unwrap_or_default().iter().map(MountIdentity::new).collect();
        let planned = next_boot::read_mounts().unwrap_or_default().into_iter().map(|mount| mount.target).collect();
        Self { lines, planned }
    }
}

impl Leftovers {
    /// Knows processes by their cgroups, or without those by their sessions.
    pub fn new(groups: Option<CgroupTree>) -> Arc<Self> {
        Arc::new(Self { groups, ..Self::default() })
    }

    /// Makes a cgroup for a command, and returns the file through which its first process enters it.
    pub fn admit(&self, step: u32, stream: u32) -> Option<fs::File> {
        self.groups.as_ref()?.create(step, stream).ok()
    }

    /// Explains how processes are known where it is not by their cgroups.
    pub fn limitation(&self) -> Option<String> {
        let missing = "the guest has no cgroups of version 2: processes that leave their session are not found";
        self.groups.is_none().then(|| missing.to_owned())
    }

    /// Remembers the session of a command that has started.
    pub fn note_session(&self, leader: i32, step: u32) {
        lock(&self.sessions).push((leader, step));
    }

    /// Remembers what is mounted before the first step.
    pub fn note_mounts(&self) {
        self.mounts.get_or_init(FirstMounts::read);
    }

    /// Returns whether this was mounted before the first step, and no step has changed the files that have it mounted. `planned`
    /// are the mount points of the next boot.
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

    /// Ends all processes that were left behind: politely, then for good. Returns those that were there.
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

    /// Keeps the beginning of what the processes of a step write after its end.
    pub fn keep_late(&self, step: u32, bytes: &[u8]) {
        let mut late = lock(&self.late);
        let kept: usize = late.iter().map(|late| late.bytes.0.len()).sum();
        let room = bytes.len().min(LATE_LIMIT.saturating_sub(kept));
        if room == 0 {
            return;
        }
        match late.iter_mut().find(|late| late.step == step) {
            Some(late) => late.bytes.0.extend_from_slice(&bytes[..room]),
            None => late.push(LateOutput { step, bytes: Hidden(bytes[..room].to_vec()) }),
        }
    }

    /// Returns what was written late since the last call.
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
        let member = |pid| {
            let session = session_of(pid)?;
            let (_, step) = sessions.iter().find(|(leader, _)| *leader == session)?;
            Some(GroupMember { pid, step: *step })
        };
        every_process().filter_map(member).collect()
    }
}

/// Returns the processes that PAM moved from a step's cgroup into a session of logind. No guest has other sessions.
fn sessions_of_users() -> Vec<GroupMember> {
    let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_session = |path: &Path| path.extension().is_some_and(|extension| extension == "scope");
    let scopes = folders(Path::new(USER_SLICE)).flat_map(|slice| folders(&slice)).filter(|path| is_session(path));
    scopes.flat_map(|scope| cgroup::processes(&scope)).map(|pid| GroupMember { pid, step: 0 }).collect()
}

/// Returns the number of every process.
pub fn every_process() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Returns the session of a process.
pub fn session_of(pid: i32) -> Option<i32> {
    session(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Returns the session in a `/proc/PID/stat`; the name before it is in parentheses and may hold anything.
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
    // One that has ended meanwhile has no name.
    all.filter(|process| !process.command.is_empty()).take(MOST_NAMED).collect()
}

/// Returns the command line of a process on one line, or its name where it has none.
fn command(pid: i32) -> String {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let mut line = read("cmdline");
    if line.is_empty() {
        line = read("comm");
    }
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
