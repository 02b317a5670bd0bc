//! A cgroup (version 2) for each command. It identifies the command's processes however they detach themselves.
//!
//! Under systemd the cgroups lie below the cgroup of the agent's unit, which is delegated to the agent; elsewhere they lie
//! below a cgroup that the agent creates, for which it mounts the hierarchy if the guest has not. Where the memory
//! controller is available, all commands together are limited to the memory that the guest itself does not need.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{read_text, sys};

/// The agent's mount point of the hierarchy if the guest has not mounted it.
const OWN_MOUNT: &str = "/run/kiln/cgroup";

/// How much of the available memory is reserved for the guest itself, in bytes.
const RESERVE: u64 = 32 << 20;

/// The cgroup that contains the cgroups of all commands.
#[derive(Debug)]
pub struct CgroupTree {
    root: PathBuf,
}

/// A process of a command, identified by its cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupMember {
    /// The process.
    pub pid: i32,
    /// The step it belongs to, from 1; 0 for a command that belongs to no step.
    pub step: u32,
}

impl CgroupTree {
    /// Finds or creates the parent of the cgroups of commands. Outside a systemd unit its name is `name`.
    ///
    /// # Errors
    /// When the kernel has no cgroups of version 2, or does not let the agent use them.
    pub fn find(name: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mounted = match mount_point(&mounts) {
            Some(path) => PathBuf::from(path),
            None => mount()?,
        };
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (parent, root) = match unit(&own) {
            Some(path) => {
                let unit = mounted.join(path.trim_start_matches('/'));
                enter(&unit.join("agent"))?;
                (unit.clone(), unit.join("steps"))
            }
            None => (mounted.clone(), mounted.join(name)),
        };
        // Only the memory limit depends on this controller, so an error is ignored.
        let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory");
        fs::create_dir_all(&root)?;
        Ok(Self { root })
    }

    /// Creates the cgroup of a command, and returns the file through which processes enter it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(&self, step: u32, stream: u32) -> io::Result<File> {
        self.remove_empty();
        self.limit_memory();
        let group = self.root.join(format!("step-{step}-{stream}"));
        fs::create_dir_all(&group)?;
        File::options().write(true).open(group.join("cgroup.procs"))
    }

    /// Limits the memory of all commands to what the guest itself does not need. A step that exhausts the memory is then
    /// ended at once; without the limit the kernel first spends minutes on reading programs again that it has just dropped.
    fn limit_memory(&self) {
        let limit = memory_limit(&read_text("/proc/meminfo"), &read_text(self.root.join("memory.stat")));
        if let Some(limit) = limit {
            let _ = fs::write(self.root.join("memory.max"), limit.to_string());
        }
    }

    /// Returns the processes that are alive in the cgroups of commands.
    pub fn members(&self) -> Vec<GroupMember> {
        let groups = self.groups().into_iter();
        groups
            .flat_map(|(step, group)| processes(&group).into_iter().map(move |pid| GroupMember { pid, step }))
            .collect()
    }

    /// Kills every process in the cgroups of commands at once, if the kernel supports it (Linux 5.14).
    pub fn kill(&self) {
        for (_, group) in self.groups() {
            let _ = fs::write(group.join("cgroup.kill"), "1");
        }
    }

    /// Removes the cgroups without processes; the kernel refuses to remove the others.
    pub fn remove_empty(&self) {
        for (_, group) in self.groups() {
            for below in folders(&group) {
                let _ = fs::remove_dir(below);
            }
            let _ = fs::remove_dir(group);
        }
    }

    fn groups(&self) -> Vec<(u32, PathBuf)> {
        folders(&self.root).into_iter().filter_map(|path| Some((step_of(&path)?, path))).collect()
    }
}

/// Moves the agent into a child cgroup: a cgroup that has processes itself cannot enable controllers for its children.
fn enter(group: &Path) -> io::Result<()> {
    fs::create_dir_all(group)?;
    fs::write(group.join("cgroup.procs"), "0")
}

/// Returns how much memory commands may use, in bytes: what they use now, by `memory.stat`, plus what is available.
fn memory_limit(meminfo: &str, stat: &str) -> Option<u64> {
    let available = number_after("MemAvailable:", meminfo)? << 10;
    (available + number_after("anon ", stat)?).checked_sub(RESERVE)
}

/// Returns the number in the first line that begins with this name.
fn number_after(name: &str, text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn mount() -> io::Result<PathBuf> {
    fs::create_dir_all(OWN_MOUNT)?;
    sys::mount_cgroup(Path::new(OWN_MOUNT))?;
    Ok(PathBuf::from(OWN_MOUNT))
}

/// Returns the mount point of the cgroup hierarchy in a mount table.
fn mount_point(mounts: &str) -> Option<&str> {
    mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find_map(|fields| match fields[..] {
        [_, path, "cgroup2", ..] => Some(path),
        _ => None,
    })
}

/// Returns the agent's own cgroup if it belongs to the agent's systemd unit.
fn unit(own: &str) -> Option<&str> {
    own.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| path.ends_with("/kiln-agent.service"))
}

fn step_of(group: &Path) -> Option<u32> {
    let name = group.file_name()?.to_str()?.strip_prefix("step-")?;
    name.split_once('-')?.0.parse().ok()
}

/// Returns the processes of a cgroup and of those below it.
pub fn processes(group: &Path) -> Vec<i32> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let below = folders(group).into_iter().flat_map(|below| processes(&below));
    own.lines().filter_map(|line| line.parse().ok()).chain(below).collect()
}

/// Returns the folders in a folder.
pub fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Only for tests: the agent itself lives as long as its guest.
impl Drop for CgroupTree {
    fn drop(&mut self) {
        self.remove_empty();
        let _ = fs::remove_dir(&self.root);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_where_it_is_mounted() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(hybrid), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mount_point("cgroup /sys/fs/cgroup/memory cgroup rw 0 0\n"), None);
    }

    #[test]
    fn only_the_cgroup_of_the_agents_unit_is_its_own() {
        assert_eq!(unit("1:cpu:/x\n0::/system.slice/kiln-agent.service\n"), Some("/system.slice/kiln-agent.service"));
        assert_eq!(unit("0::/system.slice/cloud-init-local.service\n"), None);
        assert_eq!(unit("0::/\n"), None);
    }

    #[test]
    fn commands_may_take_what_is_available_but_for_a_reserve() {
        let meminfo = "MemTotal: 500000 kB\nMemAvailable:  102400 kB\n";
        assert_eq!(memory_limit(meminfo, "anon 1048576\nfile 5\n"), Some((100 + 1 - 32) << 20));
        assert_eq!(memory_limit(meminfo, ""), None, "no memory controller");
        assert_eq!(memory_limit("MemAvailable: 1 kB\n", "anon 0\n"), None);
    }

    #[test]
    fn a_group_knows_its_step() {
        assert_eq!(step_of(Path::new("/x/step-12-77")), Some(12));
        assert_eq!(step_of(Path::new("/x/other")), None);
    }
}
