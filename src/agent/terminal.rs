//! A terminal for a command (pts(4)): the agent holds the master, the command's standard streams are the slave.

use std::fs::File;
use std::io;
use std::os::unix::fs::{PermissionsExt, fchown};

use super::sys::{self, UserCredentials};
use crate::wire::message::TtySize;

/// Opens a terminal of this size that belongs to this user, and returns its master and its slave.
pub fn open(size: &TtySize, owner: &UserCredentials) -> io::Result<(File, File)> {
    let master = super::open("/dev/ptmx")?;
    let slave = super::open(format!("/dev/pts/{}", sys::unlock_terminal(&master)?))?;
    resize(&master, size)?;
    if let Err(error) = fchown(&slave, Some(owner.uid), None).and_then(|()| slave.set_permissions(mode())) {
        // An agent that may not change the owner keeps the terminal: then the command runs as the same user.
        if error.kind() != io::ErrorKind::PermissionDenied {
            return Err(error);
        }
    }
    Ok((master, slave))
}

/// Sets the size of the terminal; its foreground processes get a SIGWINCH.
pub fn resize(master: &File, size: &TtySize) -> io::Result<()> {
    sys::set_window(master, size.rows, size.columns)
}

/// Returns the mode of the slave: no other user may write to it.
fn mode() -> std::fs::Permissions {
    std::fs::Permissions::from_mode(0o600)
}
