//! Messages of the kernel's log while a command runs: which processes the OOM killer ended.
//!
//! Every kernel since 3.5 has the log (`Documentation/ABI/testing/dev-kmsg`), whereas the counters of cgroups need a memory
//! controller.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use super::sys::O_NONBLOCK;

/// The largest record (`PRINTK_MESSAGE_MAX`), in bytes.
const RECORD: usize = 8192;
/// The most processes that are named.
const MOST_NAMED: usize = 16;

/// The kernel's log from the moment on at which it was opened.
#[derive(Debug)]
pub struct KernelLog(Option<File>);

impl KernelLog {
    /// Opens the log at its end. A guest without a log reports nothing.
    pub fn open() -> Self {
        let opened = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open("/dev/kmsg");
        Self(opened.ok().filter(|mut log| log.seek(SeekFrom::End(0)).is_ok()))
    }

    /// Returns the names of the processes that the OOM killer has ended since the log was opened.
    pub fn oom_killed(self) -> Vec<String> {
        let Some(mut log) = self.0 else { return Vec::new() };
        let mut names = Vec::new();
        let mut record = vec![0; RECORD];
        while names.len() < MOST_NAMED {
            match log.read(&mut record) {
                Ok(0) => break,
                Ok(n) => names.extend(victim(&String::from_utf8_lossy(&record[..n]))),
                // Older records were overwritten meanwhile; the next read continues after them.
                Err(error) if error.kind() == ErrorKind::BrokenPipe || error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        names
    }
}

/// Returns the name of the process in a record such as `3,812,5150,-;Out of memory: Killed process 71 (cc1) total-vm:...`.
/// Only the kernel itself writes records of facility 0, so that no program can forge one.
fn victim(record: &str) -> Option<String> {
    let (prefix, text) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    let killed = text.split_once("Killed process ").filter(|_| priority < 8)?.1;
    let name = killed.split_once('(')?.1.split_once(')')?.0;
    Some(name.replace(char::is_control, " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_killed_process_is_named_as_old_and_new_kernels_say_it() {
        let new = "3,812,5150,-;Out of memory: Killed process 71 (tail) total-vm:9kB, anon-rss:8kB, UID:0\n";
        let of_cgroup = "3,9,5,-;Memory cgroup out of memory: Killed process 8 (cc1plus) total-vm:1kB\n";
        let old = "3,9,5,-;Killed process 8 (java) total-vm:1kB, anon-rss:1kB\n";
        for (record, name) in [(new, "tail"), (of_cgroup, "cc1plus"), (old, "java")] {
            assert_eq!(victim(record).as_deref(), Some(name));
        }
    }

    #[test]
    fn a_program_that_writes_to_the_log_kills_nobody() {
        assert_eq!(victim("12,812,5150,-;Out of memory: Killed process 71 (tail) total-vm:9kB"), None);
        assert_eq!(victim("6,813,5151,-;oom_reaper: reaped process 71 (tail)"), None);
        assert_eq!(victim("nonsense"), None);
    }
}
