//! The first process of a direct boot: mounts the guest's file systems, keeps the agent running, and ends the machine.
//!
//! ```text
//! initramfs   modules -> the root's device -> mount -> becomes the root
//! guest       /dev, /run, ... -> /etc/fstab -> growth -> network -> the agent, as a child
//! at the end  every process is killed -> file systems are unmounted -> power off or reboot
//! ```
//!
//! No service runs, and programs that would start one learn that as in a chroot: by `SYSTEMD_OFFLINE` for systemctl(1), and by a
//! `policy-rc.d` for Debian's packages.

use std::ffi::CStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::boot_console::{report, run_program};
use super::folder_times::keep_time_of_folder;
use super::init_root::{DiskDevice, enter_root, grow_root, load_drivers, load_modules};
use super::login::SYSTEM_PATH;
use super::sys::{self, PowerAction};
use super::{RequestFailure, mount_table, planted};
use crate::wire::direct_boot::{BootInstructions, INSTRUCTIONS, REBOOT_REQUEST};
use crate::wire::sealing::identities::SYSTEMD_IS_INIT;

/// The argument that tells the agent that it was started by this first process.
pub const DIRECT: &str = "--direct";

/// Where Debian's `invoke-rc.d` asks whether a service may be started (policy-rc.d, in `init-system-helpers`).
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// The answer: it is not allowed.
const DENIES_ALL: &str = "#!/bin/sh\n# Written by kiln for a build without services.\nexit 101\n";
/// How often unmounting is tried: a killed process may still be ending.
const ATTEMPTS: u32 = 50;
const RETRY: Duration = Duration::from_millis(20);
/// The address that QEMU's user-mode network expects of its first guest, its gateway and its name server (QEMU's
/// "Network emulation").
const NETWORK: &str = "card=$(ls /sys/class/net | grep -v '^lo$' | head -n 1)
ip link set \"$card\" up && ip address add 10.0.2.15/24 dev \"$card\" && ip route add default via 10.0.2.2";
const NAME_SERVER: &str = "nameserver 10.0.2.3\n";
const RESOLVER: &str = "/etc/resolv.conf";

/// Returns whether this program is the guest's first process.
#[must_use]
pub fn is_first_process() -> bool {
    std::process::id() == 1
}

/// Ends the agent after a goodbye, upon which the first process powers the guest off.
pub fn power_off() {
    std::process::exit(0)
}

/// Boots the guest, and ends the machine when the agent has ended. Never returns.
pub fn run() -> ! {
    if let Err(failure) = start_guest().and_then(|()| supervise()) {
        report(&failure.text);
    }
    let action = if Path::new(REBOOT_REQUEST).exists() { PowerAction::Reboot } else { PowerAction::PowerOff };
    end_machine(action)
}

fn start_guest() -> Result<(), RequestFailure> {
    for (kind, on) in [(c"devtmpfs", "/dev"), (c"proc", "/proc"), (c"sysfs", "/sys")] {
        mount_new(kind, Path::new(on), 0, c"")?;
    }
    let text = fs::read_to_string(INSTRUCTIONS).map_err(|error| RequestFailure::io(INSTRUCTIONS, &error))?;
    let instructions = BootInstructions::parse(&text).ok_or_else(|| invalid("the instructions"))?;
    load_modules()?;
    load_drivers(&instructions.drivers);
    let disk = DiskDevice::find()?;
    enter_root(&disk, &instructions)?;
    // The initrd has the drivers of the root, and may have no others.
    load_drivers(&instructions.drivers);
    prepare_system()?;
    if instructions.grow {
        grow_root(&disk, &instructions);
    }
    if instructions.network {
        configure_network();
    }
    Ok(())
}

fn invalid(what: &str) -> RequestFailure {
    RequestFailure::io(what, &io::ErrorKind::InvalidData.into())
}

/// Mounts what an init mounts, and what `/etc/fstab` lists.
fn prepare_system() -> Result<(), RequestFailure> {
    mount_new(c"tmpfs", Path::new("/run"), sys::NO_SETUID_OR_DEVICES, c"mode=755")?;
    for folder in ["/run/lock", "/run/kiln/scripts", "/dev/pts", "/dev/shm"] {
        fs::create_dir_all(folder).map_err(|error| RequestFailure::io(folder, &error))?;
    }
    mount_new(c"devpts", Path::new("/dev/pts"), 0, c"gid=5,mode=620,ptmxmode=666")?;
    mount_new(c"tmpfs", Path::new("/dev/shm"), sys::NO_SETUID_OR_DEVICES, c"mode=1777")?;
    mount_new(c"tmpfs", Path::new("/run/kiln/scripts"), sys::NO_SETUID_OR_DEVICES, c"mode=755")?;
    // A kernel without cgroups of version 2 has none; the agent does without.
    let _ = mount_new(c"cgroup2", Path::new("/sys/fs/cgroup"), sys::NO_SETUID_OR_DEVICES, c"");
    let _ = fs::set_permissions("/run/lock", Permissions::from_mode(0o1777));
    for (name, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = symlink(Path::new("/proc/self").join(target), Path::new("/dev").join(name));
    }
    if let Ok(name) = fs::read_to_string("/etc/hostname") {
        let _ = fs::write("/proc/sys/kernel/hostname", name.trim());
    }
    if planted::is_init_systemd() {
        let _ = fs::write(SYSTEMD_IS_INIT, "");
    }
    link_disks();
    run_program("mount", &["-a"]);
    run_program("ip", &["link", "set", "lo", "up"]);
    write_policy();
    Ok(())
}

fn mount_new(kind: &CStr, on: &Path, flags: u64, options: &CStr) -> Result<(), RequestFailure> {
    sys::mount_new(kind, on, flags, options).map_err(|error| RequestFailure::io(on.display(), &error))
}

/// Creates the links to partitions that udev(7) creates: programs that write boot entries use the names that are there, and a
/// name such as `/dev/vda1` would bind the image to this machine.
fn link_disks() {
    let Ok(listed) = Command::new("blkid").env("PATH", SYSTEM_PATH).stdin(Stdio::null()).output() else { return };
    for (link, device) in disk_links(&String::from_utf8_lossy(&listed.stdout)) {
        let link = Path::new("/dev/disk").join(link);
        let _ = link.parent().map(fs::create_dir_all);
        let _ = symlink(device, link);
    }
}

/// Returns the links below `/dev/disk`, and where they lead, from the output of blkid(8).
fn disk_links(listed: &str) -> Vec<(String, String)> {
    let mut links = Vec::new();
    for (device, tags) in listed.lines().filter_map(|line| line.split_once(": ")) {
        let Some(name) = device.strip_prefix("/dev/") else { continue };
        for (folder, value) in tags.split("\" ").filter_map(disk_link) {
            links.push((format!("{folder}/{value}"), format!("../../{name}")));
        }
    }
    links
}

/// Returns the folder of the links of a tag of blkid(8), and the tag's value. A label with characters that udev(7) encodes has no
/// link.
fn disk_link(tag: &str) -> Option<(&'static str, &str)> {
    let (key, value) = tag.trim().split_once("=\"")?;
    let value = value.trim_end_matches('"');
    let folder = match key {
        "UUID" => "by-uuid",
        "PARTUUID" => "by-partuuid",
        "LABEL" => "by-label",
        "PARTLABEL" => "by-partlabel",
        _ => return None,
    };
    let is_plain = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&byte));
    (is_plain && !matches!(value, "" | "." | "..")).then_some((folder, value))
}

/// Configures the network card for QEMU's user-mode network, without writing to the disk: the name server goes into a file
/// below `/run`, or is bound over the guest's.
fn configure_network() {
    run_program("sh", &["-c", NETWORK]);
    let target = fs::canonicalize(RESOLVER).ok();
    let linked = fs::read_link(RESOLVER).ok().map(|link| Path::new("/etc").join(link));
    let written = match (&target, linked) {
        (None, Some(missing)) => write_below_run(&missing),
        (Some(file), _) => bind_name_server(file),
        (None, None) => Ok(()),
    };
    if let Err(error) = written {
        report(&format!("{RESOLVER}: {error}"));
    }
}

fn write_below_run(file: &Path) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, NAME_SERVER)
}

fn bind_name_server(over: &Path) -> io::Result<()> {
    let own = Path::new("/run/kiln/resolv.conf");
    fs::write(own, NAME_SERVER)?;
    sys::bind_mount(own, over)
}

/// Writes the policy that keeps packages from starting services, unless the guest has one.
fn write_policy() {
    let has_folder = Path::new(POLICY).parent().is_some_and(Path::is_dir);
    if !has_folder || Path::new(POLICY).exists() || !Path::new("/usr/sbin/invoke-rc.d").exists() {
        return;
    }
    let written = keep_time_of_folder(Path::new(POLICY), |policy| {
        File::options().write(true).create_new(true).open(policy).and_then(|mut file| {
            file.set_permissions(Permissions::from_mode(0o755))?;
            file.write_all(DENIES_ALL.as_bytes())
        })
    });
    if let Err(error) = written {
        report(&format!("{POLICY}: {error}"));
    }
}

/// Removes the policy that [`run`] has written, and nothing else.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_policy() -> io::Result<()> {
    if fs::read(POLICY).is_ok_and(|text| text == DENIES_ALL.as_bytes()) {
        return keep_time_of_folder(Path::new(POLICY), |policy| fs::remove_file(policy));
    }
    Ok(())
}

/// Starts the agent, and again if it fails; waits for every orphan meanwhile. Returns when the agent has ended by itself, or a
/// reboot is requested.
fn supervise() -> Result<(), RequestFailure> {
    let failed = |error: io::Error| RequestFailure::io("the agent", &error);
    let mut agent = start_agent().map_err(failed)?;
    loop {
        let ended = sys::wait_for_any().map_err(failed)?;
        if ended.pid != agent {
            continue;
        }
        if ended.is_success || Path::new(REBOOT_REQUEST).exists() {
            return Ok(());
        }
        report("the agent ended, and is started again");
        agent = start_agent().map_err(failed)?;
    }
}

/// Starts the agent from the initramfs, where it is after the change of the root as well. Returns its process.
fn start_agent() -> io::Result<u32> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(DIRECT).env("PATH", SYSTEM_PATH).stdin(Stdio::null());
    command.spawn().map(|child| child.id())
}

/// Ends every process, unmounts what is on disks, and powers the machine off or reboots it.
fn end_machine(action: PowerAction) -> ! {
    let _ = remove_policy();
    sys::send_signal(-1, sys::SIGKILL);
    while sys::wait_for_any().is_ok() {}
    sys::sync_all();
    let has_unmounted = (0..ATTEMPTS).any(|_| {
        unmount_all().is_ok() || {
            thread::sleep(RETRY);
            false
        }
    });
    if !has_unmounted {
        report("not every file system could be unmounted");
    }
    sys::sync_all();
    sys::end_machine(action)
}

/// Unmounts every file system of a disk, the newest mount first, and makes the root read-only.
fn unmount_all() -> io::Result<()> {
    let table = mount_table::read_table().map_err(|failure| io::Error::other(failure.text))?;
    let of_disks = table.iter().rev().filter(|line| line.source.starts_with(b"/dev/") && line.target != b"/");
    for line in of_disks {
        sys::unmount_now(&bytes_path(&line.target))?;
    }
    sys::make_read_only(Path::new("/"))
}

fn bytes_path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_have_the_links_of_udev() {
        let listed = "/dev/vda1: LABEL=\"root\" UUID=\"0b-1\" BLOCK_SIZE=\"4096\" TYPE=\"ext4\" PARTUUID=\"7c-2\"\n\
            /dev/vda15: SEC_TYPE=\"msdos\" UUID=\"AB-CD\" TYPE=\"vfat\" PARTLABEL=\"EFI System\" PARTUUID=\"7c-3\"\n\
            /dev/vdb: LABEL=\"../x\"\nnonsense\n";
        let expected = [
            ("by-label/root", "../../vda1"),
            ("by-uuid/0b-1", "../../vda1"),
            ("by-partuuid/7c-2", "../../vda1"),
            ("by-uuid/AB-CD", "../../vda15"),
            ("by-partuuid/7c-3", "../../vda15"),
        ];
        assert_eq!(disk_links(listed), expected.map(|(link, to)| (link.to_owned(), to.to_owned())));
    }
}
