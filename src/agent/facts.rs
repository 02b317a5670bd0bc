//! Facts about the guest that the agent reports to the host.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use super::boot_mode;
use crate::wire::message::Facts;

/// The longest value in bytes; longer ones are cut, so that the hello stays small.
const LONGEST: usize = 256;

/// Reads all facts anew: cloud-init may have written more since the last call. `start` is passed through.
pub fn gather(start: u64) -> Facts {
    let release = fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
    let release = release.unwrap_or_default();
    Facts {
        boot_id: first_line("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        instance_id: instance_id(),
        os: field(&release, "PRETTY_NAME"),
        os_id: field(&release, "ID"),
        kernel: first_line("/proc/sys/kernel/osrelease").unwrap_or_default(),
        arch: std::env::consts::ARCH.into(),
        clock: now(),
        systemd: Path::new("/run/systemd/system").is_dir(),
        start,
    }
}

/// Returns the instance whose seed has started the agent; `None` if the agent was started in another way.
fn instance_id() -> Option<String> {
    // The first file is of this boot; the second survives in an image that ran cloud-init before.
    let files = ["/run/cloud-init/.instance-id", "/var/lib/cloud/data/instance-id"];
    files.into_iter().filter(|_| boot_mode::is_from_seed()).find_map(first_line)
}

/// Returns the current time in nanoseconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Returns the size of the page cache in bytes, from the content of `/proc/meminfo` (`proc_meminfo(5)`).
pub fn page_cache(meminfo: &str) -> u64 {
    let fields = meminfo.lines().filter_map(|line| line.split_once(':'));
    let cached = fields.filter(|(name, _)| matches!(*name, "Buffers" | "Cached"));
    cached.filter_map(|(_, size)| size.trim().trim_end_matches(" kB").parse::<u64>().ok()).sum::<u64>() * 1024
}

fn first_line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next().map(|line| short(line.trim())).filter(|line| !line.is_empty())
}

fn field(release: &str, name: &str) -> String {
    let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    short(value.unwrap_or_default().trim().trim_matches(['"', '\'']))
}

fn short(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_cache_is_what_files_and_devices_have_in_memory() {
        let text = "MemTotal:  994232 kB\nBuffers:   2048 kB\nCached:   131072 kB\nSwapCached:  5 kB\n";
        assert_eq!(page_cache(text), (2048 + 131_072) * 1024);
        assert_eq!(page_cache("nonsense"), 0);
    }

    #[test]
    fn os_release_is_read_with_and_without_quotes() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID='12'\n";
        assert_eq!(field(text, "PRETTY_NAME"), "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(field(text, "ID"), "debian");
        assert_eq!(field(text, "VERSION_ID"), "12");
        assert_eq!(field(text, "NAME"), "");
    }
}
