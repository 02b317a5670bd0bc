//! A sandbox for a program that reads untrusted files: Landlock (landlock(7)) where the kernel supports it, and resource
//! limits everywhere.
//!
//! It is the second line of defence. The first one is that such files were inspected and that the program is given all names
//! and formats. If it is made to open another file nevertheless, the kernel refuses: it may read its input files and its own
//! libraries, write into one folder, and connect to nothing. All of that is prepared before the fork; the child makes system
//! calls only.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use nix::errno::Errno;
use nix::libc::{SYS_landlock_restrict_self, rlim_t, syscall};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The newest Landlock version that kiln supports. An older kernel enforces fewer rights.
const KNOWN: ABI = ABI::V6;
/// Folders of programs, their libraries and the settings of those. They contain no files of users.
const SYSTEM: [&str; 10] = [
    "/usr",
    "/bin",
    "/lib",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
    "/etc/gnutls",
    "/etc/crypto-policies",
    "/dev/urandom",
];

/// Permissions of a program.
#[derive(Debug, Clone)]
pub struct SandboxPolicy<'a> {
    /// Files that it may read.
    pub read: Vec<&'a Path>,
    /// The folder in which it may create, read and write files.
    pub write: &'a Path,
    /// Limit of the memory that it may map, bytes: far above its needs, as threads reserve much that they never touch.
    pub address_space: u64,
    /// Size limit of a file that it may write, bytes.
    pub file_size: u64,
}

/// The permissions, in the form in which the kernel takes them.
#[derive(Debug)]
pub struct ProcessSandbox {
    /// The Landlock rules; `None` if the kernel has no Landlock.
    ruleset: Option<OwnedFd>,
    limits: [(Resource, rlim_t); 3],
}

impl ProcessSandbox {
    /// Prepares the sandbox for `program`, which is found in `PATH`.
    ///
    /// # Errors
    /// When the kernel has Landlock, and its calls fail.
    pub fn new(program: &str, allowed: &SandboxPolicy<'_>) -> io::Result<Self> {
        let asked = [
            (Resource::RLIMIT_AS, allowed.address_space),
            (Resource::RLIMIT_FSIZE, allowed.file_size),
            (Resource::RLIMIT_CORE, 0),
        ];
        let mut limits = asked;
        for (resource, limit) in &mut limits {
            let (now, _) = getrlimit(*resource)?;
            *limit = now.min(*limit);
        }
        Ok(Self { ruleset: ruleset(program, allowed).map_err(io::Error::other)?, limits })
    }

    /// Restricts the calling process permanently.
    #[expect(unsafe_code, reason = "nix has no Landlock, and the crate's own call allocates")]
    pub(super) fn close(&self) -> io::Result<()> {
        for (resource, limit) in self.limits {
            setrlimit(resource, limit, limit)?;
        }
        if let Some(ruleset) = &self.ruleset {
            nix::sys::prctl::set_no_new_privs()?;
            // SAFETY: a system call without pointers, on a descriptor that is open.
            Errno::result(unsafe { syscall(SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })?;
        }
        Ok(())
    }
}

fn ruleset(program: &str, allowed: &SandboxPolicy<'_>) -> Result<Option<OwnedFd>, RulesetError> {
    let output = AccessFs::MakeReg | AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM, AccessFs::from_read(KNOWN)))?
        .add_rules(path_beneath_rules(files_of(program), AccessFs::from_read(KNOWN)))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(&allowed.read, AccessFs::ReadFile))?
        .add_rules(path_beneath_rules([allowed.write], output))?;
    Ok(ruleset.into())
}

/// Returns a program outside of the system's folders, and the folders of its libraries.
fn files_of(program: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(file) = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file()) else {
        return Vec::new();
    };
    let file = file.canonicalize().unwrap_or(file);
    let libraries = file.parent().and_then(Path::parent).map(|root| ["lib", "lib64"].map(|name| root.join(name)));
    libraries.into_iter().flatten().chain([file]).collect()
}
