//! Calls of the C library that std does not offer. This is the only unsafe code of the agent.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The signal that asks a process to end.
pub const SIGTERM: u8 = 15;
/// The signal that kills a process.
pub const SIGKILL: u8 = 9;
/// The first real-time signal that a program may use, as glibc counts them: systemd's numbers begin here.
pub const SIGRTMIN: u8 = 34;
/// `O_DIRECT` of x86-64.
pub const O_DIRECT: i32 = 0o40_000;
/// `O_NOFOLLOW` of x86-64.
pub const O_NOFOLLOW: i32 = 0o400_000;
/// `O_NOCTTY` of x86-64.
pub const O_NOCTTY: i32 = 0o400;
/// `O_NONBLOCK`.
pub const O_NONBLOCK: i32 = 0o4000;
/// `MS_NOSUID` and `MS_NODEV`.
pub const NO_SETUID_OR_DEVICES: u64 = 2 | 4;

const SIGHUP: c_int = 1;
/// The last one that is not a real-time signal.
const LAST_SIGNAL: c_int = 31;
const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;
const AT_FDCWD: c_int = -100;
const AT_SYMLINK_NOFOLLOW: c_int = 0x100;
const UTIME_OMIT: i64 = (1 << 30) - 2;
const SEEK_DATA: c_int = 3;
const SEEK_HOLE: c_int = 4;
const ENXIO: i32 = 6;
const CLOCK_REALTIME: c_int = 0;
const MS_NOSUID_NODEV_NOEXEC: u64 = 2 | 4 | 8;
const MS_RDONLY_NOATIME: u64 = 1 | 1024;
const MS_RDONLY: u64 = 1;
const MS_REMOUNT: u64 = 32;
const MS_BIND: u64 = 4096;
const MS_MOVE: u64 = 8192;
const MS_REC: u64 = 16_384;
const MS_PRIVATE: u64 = 1 << 18;
const MNT_DETACH: c_int = 2;
const UMOUNT_NOFOLLOW: c_int = 8;
const CLONE_NEWNS: c_int = 0x2_0000;
const OOM_SCORE: &CStr = c"/proc/self/oom_score_adj";
/// No process with this score is ever chosen by the OOM killer (`OOM_SCORE_ADJ_MIN`).
const NEVER_CHOSEN: &str = "-1000";
/// `MCL_CURRENT`, `MCL_FUTURE` and `MCL_ONFAULT`: what was used once stays.
const LOCK_USED: c_int = 1 | 2 | 4;
const O_WRONLY_CLOEXEC: c_int = 0o1 | 0o2_000_000;
const POLLIN: i16 = 1;
const FIONREAD: u64 = 0x541b;
/// File systems whose files the kernel generates when they are read: `f_type` in statfs(2), and the kernel's `magic.h`.
const MADE_UP: [u64; 16] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6265_6570, // configfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0xde5e_81e4, // efivarfs
    0x6165_676c, // pstorefs
    0xcafe_4a11, // bpf
    0x4249_4e4d, // binfmt_misc
    0x6573_5543, // fusectl
    0x6e73_6673, // nsfs
];
/// `struct statfs` has 120 bytes.
const STATFS_WORDS: usize = 16;
const TIOCSCTTY: u64 = 0x540e;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTN: u64 = 0x8004_5430;
const FS_IOC_GETFLAGS: u64 = 0x8008_6601;
const FS_IOC_SETFLAGS: u64 = 0x4008_6602;
const FITRIM: u64 = 0xc018_5879;
const RNDADDENTROPY: u64 = 0x4008_5203;
const RNDRESEEDCRNG: u64 = 0x5207;
const SECOND: i64 = 1_000_000_000;
/// `init_module` of x86-64 (syscalls(2)), which the C library does not offer.
const SYS_INIT_MODULE: c_long = 175;
/// `renameat2` of x86-64, which older C libraries do not offer.
const SYS_RENAMEAT2: c_long = 316;
const RENAME_EXCHANGE: u32 = 2;

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

#[repr(C)]
struct PollRequest {
    fd: c_int,
    events: i16,
    found: i16,
}

#[expect(unsafe_code, reason = "declarations of libc functions, with the types of x86-64 Linux")]
unsafe extern "C" {
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn setsid() -> c_int;
    fn setgroups(count: usize, groups: *const u32) -> c_int;
    fn setgid(gid: u32) -> c_int;
    fn setuid(uid: u32) -> c_int;
    fn umask(mask: u32) -> u32;
    fn signal(signal: c_int, action: usize) -> usize;
    fn sync();
    fn mlockall(flags: c_int) -> c_int;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize;
    fn close(fd: c_int) -> c_int;
    fn poll(wanted: *mut PollRequest, count: u64, timeout: c_int) -> c_int;
    fn mkfifo(path: *const c_char, mode: u32) -> c_int;
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    fn utimensat(dir: c_int, path: *const c_char, times: *const Timespec, flags: c_int) -> c_int;
    fn ioctl(fd: c_int, request: u64, ...) -> c_int;
    fn clock_settime(clock: c_int, time: *const Timespec) -> c_int;
    fn llistxattr(path: *const c_char, list: *mut c_char, size: usize) -> isize;
    fn lgetxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: usize) -> isize;
    fn lsetxattr(path: *const c_char, name: *const c_char, value: *const c_void, size: usize, flags: c_int) -> c_int;
    fn mount(source: *const c_char, on: *const c_char, kind: *const c_char, flags: u64, data: *const c_void) -> c_int;
    fn umount2(on: *const c_char, flags: c_int) -> c_int;
    fn statfs(path: *const c_char, about: *mut u64) -> c_int;
    fn unshare(flags: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

/// The numbers of a user, as the kernel uses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserCredentials {
    /// User number.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Detaches the agent from the terminal or service manager that started it, exempts it from the kernel's OOM killer, and
/// makes it create files with predictable modes.
#[expect(unsafe_code, reason = "libc")]
pub fn survive() {
    // Only root may do this; an agent that is not root runs without it.
    let _ = std::fs::write("/proc/self/oom_score_adj", NEVER_CHOSEN);
    // SAFETY: plain system calls without pointers; setsid fails harmlessly where the agent already leads a session.
    unsafe {
        // A guest that is short of memory would drop the agent's program and read it again for each ping.
        mlockall(LOCK_USED);
        signal(SIGHUP, SIG_IGN);
        setsid();
        umask(0o022);
    }
}

/// The attributes that a command's first process gets between fork and exec.
#[derive(Debug)]
pub struct ProcessStart {
    /// The user that it runs as.
    pub identity: UserCredentials,
    /// Its stdin is a terminal, which becomes the controlling terminal of its session.
    pub has_terminal: bool,
    /// The `cgroup.procs` of the cgroup that it enters.
    pub group: Option<File>,
}

/// Gives the command a session of its own, the umask 022, default signals, the default OOM score and the attributes in
/// `start`.
#[expect(unsafe_code, reason = "libc between fork and exec")]
pub fn on_start(command: &mut Command, start: ProcessStart) {
    // SAFETY: the call allocates nothing and takes no lock.
    unsafe { command.pre_exec(move || start.apply()) };
}

impl ProcessStart {
    /// Changes the calling process, which was just forked.
    #[expect(unsafe_code, reason = "libc between fork and exec")]
    fn apply(&self) -> io::Result<()> {
        // SAFETY: single-threaded here after fork; only system calls; the vector and the file live in `self`.
        unsafe {
            // An ignored signal would stay ignored across exec, and the starter of the agent may have ignored any: a shell
            // does so with SIGINT for what it puts into the background. The kernel refuses the two signals that cannot be
            // set.
            for number in 1..=LAST_SIGNAL {
                signal(number, SIG_DFL);
            }
            umask(0o022);
            setsid();
            if self.has_terminal {
                check(ioctl(0, TIOCSCTTY, 0))?;
            }
            // Errors do not matter to the command itself: a process that its cgroup does not identify is identified by its
            // session.
            if let Some(group) = &self.group {
                write(group.as_raw_fd(), c"0".as_ptr().cast(), 1);
            }
            let score = open(OOM_SCORE.as_ptr(), O_WRONLY_CLOEXEC);
            write(score, c"0".as_ptr().cast(), 1);
            close(score);
            let UserCredentials { uid, gid, groups } = &self.identity;
            check(setgroups(groups.len(), groups.as_ptr()))?;
            check(setgid(*gid))?;
            check(setuid(*uid))
        }
    }
}

/// Waits until there is something to read, or the other end is closed.
#[expect(unsafe_code, reason = "libc")]
pub fn wait_readable(file: &File) {
    let mut wanted = PollRequest { fd: file.as_raw_fd(), events: POLLIN, found: 0 };
    // SAFETY: one valid structure, as many as it says. A caller that finds nothing to read repeats an interrupted wait.
    unsafe { poll(&raw mut wanted, 1, -1) };
}

/// Returns how many bytes of a pipe or a terminal can be read without waiting.
#[expect(unsafe_code, reason = "libc")]
pub fn readable_bytes(file: &File) -> usize {
    let mut bytes: c_int = 0;
    // SAFETY: a pointer to an int, as the call wants.
    let asked = unsafe { ioctl(file.as_raw_fd(), FIONREAD, &raw mut bytes) };
    if asked < 0 { 0 } else { usize::try_from(bytes).unwrap_or(0) }
}

/// Sends a signal to a process, or to the group `-pid`.
#[expect(unsafe_code, reason = "libc")]
pub fn send_signal(pid: i32, number: u8) {
    // SAFETY: no pointers. A process that has already ended is no error for any caller.
    unsafe { kill(pid, c_int::from(number)) };
}

/// Unlocks the slave of a terminal's master, and returns its number in `/dev/pts`.
#[expect(unsafe_code, reason = "libc")]
pub fn unlock_terminal(master: &File) -> io::Result<u32> {
    let locked: c_int = 0;
    let mut number: u32 = 0;
    // SAFETY: both calls take a pointer to an int that outlives them.
    unsafe {
        check(ioctl(master.as_raw_fd(), TIOCSPTLCK, &raw const locked))?;
        check(ioctl(master.as_raw_fd(), TIOCGPTN, &raw mut number))?;
    }
    Ok(number)
}

/// Sets the size of a terminal, in characters.
#[expect(unsafe_code, reason = "libc")]
pub fn set_window(master: &File, rows: u16, columns: u16) -> io::Result<()> {
    // struct winsize: the size in pixels is not known.
    let size = [rows, columns, 0, 0];
    // SAFETY: a pointer to four shorts, as the call wants.
    check(unsafe { ioctl(master.as_raw_fd(), TIOCSWINSZ, size.as_ptr()) })
}

/// Writes everything that the page cache holds.
#[expect(unsafe_code, reason = "libc")]
pub fn sync_all() {
    // SAFETY: no arguments.
    unsafe { sync() };
}

/// Sets the system clock to nanoseconds since the epoch.
#[expect(unsafe_code, reason = "libc")]
pub fn set_clock(clock: i64) -> io::Result<()> {
    let time = timespec(clock);
    // SAFETY: the pointer is valid for the call.
    check(unsafe { clock_settime(CLOCK_REALTIME, &raw const time) })
}

/// Credits bytes to the kernel's entropy and reseeds its random number generator (random(4)).
#[expect(unsafe_code, reason = "libc")]
pub fn stir(entropy: &[u8]) -> io::Result<()> {
    let bytes = i32::try_from(entropy.len()).ok().filter(|bytes| *bytes <= 512);
    let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
    // struct rand_pool_info: the bits to credit, the size, the bytes.
    let mut pool = [(8 * bytes).to_ne_bytes(), bytes.to_ne_bytes()].concat();
    pool.extend(entropy);
    let random = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the buffer is as long as it says.
    check(unsafe { ioctl(random.as_raw_fd(), RNDADDENTROPY, pool.as_ptr().cast::<c_void>()) })?;
    // SAFETY: no pointers. Kernels before 4.14 do not know it, and draw anew within five minutes.
    let _ = unsafe { ioctl(random.as_raw_fd(), RNDRESEEDCRNG, std::ptr::null::<c_void>()) };
    Ok(())
}

/// Returns the attributes of a file that chattr(1) sets.
#[expect(unsafe_code, reason = "libc")]
pub fn inode_flags(file: &File) -> io::Result<u64> {
    let mut flags = 0_u64;
    // SAFETY: the kernel writes an int into a long.
    check(unsafe { ioctl(file.as_raw_fd(), FS_IOC_GETFLAGS, &raw mut flags) })?;
    Ok(flags)
}

/// Sets the attributes of a file that chattr(1) sets.
#[expect(unsafe_code, reason = "libc")]
pub fn set_inode_flags(file: &File, flags: u64) -> io::Result<()> {
    // SAFETY: the kernel reads an int from a long.
    check(unsafe { ioctl(file.as_raw_fd(), FS_IOC_SETFLAGS, &raw const flags) })
}

/// Discards the free blocks of the file system that a folder is in.
#[expect(unsafe_code, reason = "libc")]
pub fn trim(folder: &File) -> io::Result<()> {
    // struct fstrim_range: start, length and the least length of an extent, in bytes.
    let mut range = [0, u64::MAX, 0];
    // SAFETY: a pointer to three numbers, as the call wants; it writes the second.
    check(unsafe { ioctl(folder.as_raw_fd(), FITRIM, range.as_mut_ptr()) })
}

/// Creates a named pipe.
#[expect(unsafe_code, reason = "libc")]
pub fn make_fifo(path: &Path, mode: u32) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: a valid C string.
    check(unsafe { mkfifo(path.as_ptr(), mode) })
}

/// Exchanges two names of one file system, in one step.
#[expect(unsafe_code, reason = "libc")]
pub fn exchange_names(one: &Path, other: &Path) -> io::Result<()> {
    let (one, other) = (c_path(one)?, c_path(other)?);
    // SAFETY: valid C strings, and the arguments that the call wants.
    let result = unsafe { syscall(SYS_RENAMEAT2, AT_FDCWD, one.as_ptr(), AT_FDCWD, other.as_ptr(), RENAME_EXCHANGE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the modification time, in nanoseconds since the epoch; symbolic links are not followed.
#[expect(unsafe_code, reason = "libc")]
pub fn set_mtime(path: &Path, mtime: i64) -> io::Result<()> {
    let path = c_path(path)?;
    let times = [Timespec { seconds: 0, nanoseconds: UTIME_OMIT }, timespec(mtime)];
    // SAFETY: a valid C string and two times, as the call wants.
    check(unsafe { utimensat(AT_FDCWD, path.as_ptr(), times.as_ptr(), AT_SYMLINK_NOFOLLOW) })
}

/// Returns the start and end of the next data at or after `from`; `None` if only a hole follows. A file system without holes
/// reports everything as data.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match seek(file, from, SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(ENXIO) => return Ok(None),
        other => other?,
    };
    Ok(Some((start, seek(file, start, SEEK_HOLE)?)))
}

#[expect(unsafe_code, reason = "libc")]
fn seek(file: &File, from: u64, whence: c_int) -> io::Result<u64> {
    let from = i64::try_from(from).map_err(io::Error::other)?;
    // SAFETY: an open descriptor and no pointers.
    let at = unsafe { lseek(file.as_raw_fd(), from, whence) };
    u64::try_from(at).map_err(|_| io::Error::last_os_error())
}

/// Returns whether the kernel generates the files of the file system that a path is on.
#[expect(unsafe_code, reason = "libc")]
pub fn is_made_up(path: &Path) -> io::Result<bool> {
    let path = c_path(path)?;
    let mut about = [0u64; STATFS_WORDS];
    // SAFETY: a valid C string, and more room than the structure takes.
    check(unsafe { statfs(path.as_ptr(), about.as_mut_ptr()) })?;
    // The first word is the type; some types are 32-bit numbers with a sign.
    Ok(MADE_UP.contains(&(about[0] & 0xffff_ffff)))
}

/// Returns the names of the extended attributes; symbolic links are not followed.
#[expect(unsafe_code, reason = "libc")]
pub fn xattr_names(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let path = c_path(path)?;
    // SAFETY: a valid C string; the buffer is as large as its stated size.
    let list = fill(|buffer| unsafe { llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) })?;
    Ok(list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Returns the value of an extended attribute.
#[expect(unsafe_code, reason = "libc")]
pub(crate) fn xattr(path: &Path, name: &[u8]) -> io::Result<Vec<u8>> {
    let path = c_path(path)?;
    let name = CString::new(name)?;
    // SAFETY: valid C strings; the buffer is as large as its stated size.
    fill(|buffer| unsafe { lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// Sets an extended attribute.
#[expect(unsafe_code, reason = "libc")]
pub(crate) fn set_xattr(path: &Path, name: &[u8], value: &[u8]) -> io::Result<()> {
    let path = c_path(path)?;
    let name = CString::new(name)?;
    // SAFETY: valid C strings, and a value of the stated size.
    check(unsafe { lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

/// Mounts a new tmpfs, without programs, devices and setuid.
pub fn mount_tmpfs(on: &Path, options: &str) -> io::Result<()> {
    mount_data(c"tmpfs", on, c"tmpfs", Some(&CString::new(options)?))
}

/// Mounts a device, without programs, devices and setuid.
pub fn mount_device(device: &Path, on: &Path, kind: &str) -> io::Result<()> {
    mount_data(&c_path(device)?, on, &CString::new(kind)?, None)
}

/// Mounts the hierarchy of cgroups of version 2.
pub fn mount_cgroup(on: &Path) -> io::Result<()> {
    mount_data(c"cgroup2", on, c"cgroup2", None)
}

/// Mounts a file system whose files are data alone: without programs, devices and setuid.
#[expect(unsafe_code, reason = "libc")]
fn mount_data(source: &CStr, on: &Path, kind: &CStr, options: Option<&CStr>) -> io::Result<()> {
    let on = c_path(on)?;
    let options = options.map_or(std::ptr::null(), |options| options.as_ptr().cast());
    // SAFETY: valid C strings, or null for no options.
    check(unsafe { mount(source.as_ptr(), on.as_ptr(), kind.as_ptr(), MS_NOSUID_NODEV_NOEXEC, options) })
}

/// Gives the calling thread, and those it starts, a mount namespace of its own: what it mounts and unmounts there does not
/// affect other processes.
#[expect(unsafe_code, reason = "libc")]
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { unshare(CLONE_NEWNS) })?;
    change_mount(None, Path::new("/"), MS_REC | MS_PRIVATE)
}

/// Makes a mount, and all mounts in it, private: changes to them no longer propagate to those they were copied from.
pub fn make_private(on: &Path) -> io::Result<()> {
    change_mount(None, on, MS_REC | MS_PRIVATE)
}

/// Moves a mount with all mounts in it.
pub fn move_mount(from: &Path, to: &Path) -> io::Result<()> {
    change_mount(Some(from), to, MS_MOVE)
}

/// Makes a mount read only, without updates of access times.
pub fn protect_mount(on: &Path) -> io::Result<()> {
    change_mount(None, on, MS_REMOUNT | MS_BIND | MS_RDONLY_NOATIME)
}

#[expect(unsafe_code, reason = "libc")]
fn change_mount(from: Option<&Path>, on: &Path, flags: u64) -> io::Result<()> {
    let from = from.map(c_path).transpose()?;
    let on = c_path(on)?;
    let nothing = std::ptr::null();
    let from = from.as_ref().map_or(nothing, |from| from.as_ptr());
    // SAFETY: valid C strings or null; the kernel reads no other argument of these calls.
    check(unsafe { mount(from, on.as_ptr(), nothing, flags, nothing.cast()) })
}

/// Unmounts a mount with all mounts in it: from the tree at once, and for good when its last user has ended. An automount is
/// not triggered.
pub fn detach(on: &Path) -> io::Result<()> {
    unmount_with(on, MNT_DETACH | UMOUNT_NOFOLLOW)
}

/// Unmounts a mount: from the tree at once, and for good when its last user has ended.
pub fn unmount(on: &Path) -> io::Result<()> {
    unmount_with(on, MNT_DETACH)
}

#[expect(unsafe_code, reason = "libc")]
fn unmount_with(on: &Path, flags: c_int) -> io::Result<()> {
    let on = c_path(on)?;
    // SAFETY: a valid C string.
    check(unsafe { umount2(on.as_ptr(), flags) })
}

/// Mounts a file system that is on no device.
#[expect(unsafe_code, reason = "libc")]
pub fn mount_new(kind: &CStr, on: &Path, flags: u64, options: &CStr) -> io::Result<()> {
    let on = c_path(on)?;
    // SAFETY: valid C strings all.
    check(unsafe { mount(kind.as_ptr(), on.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) })
}

/// Mounts the device of a root file system, writable, with programs and devices.
#[expect(unsafe_code, reason = "libc")]
pub fn mount_root(device: &Path, on: &Path, kind: &str) -> io::Result<()> {
    let (device, on, kind) = (c_path(device)?, c_path(on)?, CString::new(kind)?);
    // SAFETY: valid C strings; no options.
    check(unsafe { mount(device.as_ptr(), on.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) })
}

/// Shows a file or folder at a second place.
pub fn bind_mount(from: &Path, on: &Path) -> io::Result<()> {
    change_mount(Some(from), on, MS_BIND)
}

/// Makes a file system read-only: everything is written first.
///
/// # Errors
/// When a file is open for writing.
pub fn make_read_only(on: &Path) -> io::Result<()> {
    change_mount(None, on, MS_REMOUNT | MS_RDONLY)
}

/// Unmounts a file system that nothing uses.
pub fn unmount_now(on: &Path) -> io::Result<()> {
    unmount_with(on, UMOUNT_NOFOLLOW)
}

/// Loads a module of the kernel without parameters. One that is loaded already is no error.
#[expect(unsafe_code, reason = "the C library has no init_module")]
pub fn load_module(module: &[u8]) -> io::Result<()> {
    // SAFETY: a buffer with its length, and an empty C string.
    let result = unsafe { syscall(SYS_INIT_MODULE, module.as_ptr(), module.len(), c"".as_ptr()) };
    let error = io::Error::last_os_error();
    if result == 0 || error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

/// A process that has ended.
#[derive(Debug)]
pub struct EndedProcess {
    /// Its number.
    pub pid: u32,
    /// Whether it exited with 0.
    pub is_success: bool,
}

/// Waits until any child ends.
///
/// # Errors
/// When there is none.
#[expect(unsafe_code, reason = "std waits for its own children alone")]
pub fn wait_for_any() -> io::Result<EndedProcess> {
    let mut status = 0;
    loop {
        // SAFETY: a pointer to a number, which the call writes.
        let pid = unsafe { waitpid(-1, &raw mut status, 0) };
        match u32::try_from(pid) {
            Ok(pid) => return Ok(EndedProcess { pid, is_success: status == 0 }),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
}

/// How a machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerAction {
    /// It is powered off.
    PowerOff,
    /// It restarts.
    Reboot,
}

/// Ends the machine at once (reboot(2)). Only the first process may do so unconditionally.
#[expect(unsafe_code, reason = "libc")]
pub fn end_machine(action: PowerAction) -> ! {
    let command: u32 = match action {
        PowerAction::PowerOff => 0x4321_fedc,
        PowerAction::Reboot => 0x0123_4567,
    };
    // SAFETY: no pointers.
    let _ = unsafe { reboot(command.cast_signed()) };
    // The kernel panics when its first process ends, which the host notices.
    std::process::exit(1)
}

fn timespec(nanoseconds: i64) -> Timespec {
    Timespec { seconds: nanoseconds.div_euclid(SECOND), nanoseconds: nanoseconds.rem_euclid(SECOND) }
}

/// Calls a function with an empty buffer to get the size, then with a buffer of that size.
fn fill(call: impl Fn(&mut [u8]) -> isize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; check_size(call(&mut []))?];
    if !buffer.is_empty() {
        let n = check_size(call(&mut buffer))?;
        buffer.truncate(n);
    }
    Ok(buffer)
}

fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns the major number of a device, as glibc's `gnu_dev_major` does.
pub fn major(device: u64) -> u32 {
    low(device >> 8 & 0xfff | device >> 32 & 0xffff_f000)
}

/// Returns the minor number of a device, as glibc's `gnu_dev_minor` does.
pub fn minor(device: u64) -> u32 {
    low(device & 0xff | device >> 12 & 0xffff_ff00)
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}
