//! The guest's end of the protocol: finds its port, says hello, and carries out the host's requests.
//!
//! ```text
//! main thread   reads the port, cuts frames, answers pings, hands messages to lanes      serve
//! one lane      for each request: a thread that works and owns what it started           exec, pack, unpack, list, mounts, device, seal
//! leftovers     what commands leave behind, over all lanes                               leftovers, cgroup
//! the link      one lock around writing; credit for each lane                            link
//! the tunnel    connections of a command's programs, over a port of their own            tunnel, certificates
//! ```
//!
//! The module is compiled twice: into the agent's executable and into the library, where tests run it in process and the
//! host shares its [`pack`]. It uses only the standard library and `wire`.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use crate::wire::{self, Class};
use cgroup::CgroupTree;
use leftovers::Leftovers;
use tunnel::Tunnel;

pub mod accounts;
mod boot_console;
pub mod boot_mode;
mod bus;
mod certificates;
mod cgroup;
mod device;
mod disk_view;
mod exec;
mod facts;
mod folder_times;
mod guest_files;
pub mod init;
mod init_root;
mod kernel_log;
mod leftovers;
pub(crate) mod link;
pub mod list;
mod login;
mod mount_table;
mod mounts;
mod next_boot;
mod output;
pub mod pack;
pub mod planted;
mod processes;
mod seal;
mod secrets;
pub mod serve;
mod sha256;
pub mod shutdown;
mod silent_program;
mod sys;
mod terminal;
pub(crate) mod tunnel;
mod unpack;
mod user_managers;

#[cfg(test)]
pub(crate) mod testing;

/// The pause before the port is looked for or opened again.
const RETRY: Duration = Duration::from_secs(1);

/// The reason of a failed request, as the protocol reports it.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestFailure {
    /// The class of the error.
    pub class: Class,
    /// What failed, and why.
    pub text: String,
}

impl RequestFailure {
    fn new(class: Class, text: impl Into<String>) -> Self {
        Self { class, text: text.into() }
    }

    /// Returns a conversion of an error to the failure of `what`.
    fn at(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::io(what, &error)
    }

    fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        let class = match error.kind() {
            io::ErrorKind::NotFound => Class::NotFound {},
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::NoSpace {},
            io::ErrorKind::InvalidData => Class::Request {},
            _ => Class::System {},
        };
        Self { class, text: format!("{what}: {error}") }
    }
}

/// Serves hosts on the port for ever. However a conversation ends, the next one starts without any state. After a goodbye
/// `power_off` is called.
pub fn run(port: Option<&Path>, power_off: fn()) {
    sys::survive();
    let left = Leftovers::new(CgroupTree::find("kiln").ok());
    let tunnel = Arc::new(Tunnel::default());
    loop {
        let opened = port.map(Path::to_owned).or_else(|| find_port(wire::PORT)).and_then(|path| open(path).ok());
        if let Some(Err(error)) = opened.map(|file| serve::converse(&file, &left, &tunnel, power_off)) {
            // The message goes to the journal or the console; there is no other reader.
            eprintln!("kiln-agent: {error}");
        }
        sleep(RETRY);
    }
}

/// Opens a character device for reading and writing. A terminal does not become that of the agent.
fn open(path: impl AsRef<Path>) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(sys::O_NOCTTY).open(path)
}

/// Returns the device of the virtio-serial port with this name.
fn find_port(wanted: &str) -> Option<PathBuf> {
    let mut ports = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    let ours =
        ports.find(|port| fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim_end() == wanted))?;
    Some(Path::new("/dev").join(ours.file_name()))
}

/// Reads a file as a string, empty if it does not exist. Invalid UTF-8 is replaced.
fn read_text(path: impl AsRef<Path>) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// Returns the names in a folder, in any order.
fn folder_names(folder: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect()
}
