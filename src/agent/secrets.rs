//! The secrets of one command, as files on a tmpfs that is unmounted with it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use super::RequestFailure;
use super::sys::{self, UserCredentials};
use crate::wire::tree::is_name;
use crate::wire::{Class, Secret};

const BASE: &str = "/run/kiln";

/// A mounted folder of secrets; unmounted when dropped.
#[derive(Debug)]
pub struct SecretMount {
    folder: PathBuf,
}

impl SecretMount {
    /// Mounts a folder that only this user can read and writes the secrets to it; returns `None` if there are none.
    pub fn mount(id: u32, secrets: &[Secret], owner: &UserCredentials) -> Result<Option<Self>, RequestFailure> {
        if secrets.is_empty() {
            return Ok(None);
        }
        if let Some(bad) = secrets.iter().find(|secret| !is_name(secret.name.as_bytes())) {
            let text = format!("`{}` cannot be the name of a secret", bad.name);
            return Err(RequestFailure::new(Class::Request {}, text));
        }
        let folder = Path::new(BASE).join(format!("secrets-{id}"));
        mount(&folder, secrets, owner).map(Some).map_err(RequestFailure::at("cannot hand over the secrets"))
    }

    /// Returns the folder with the secrets, the value of `$KILN_SECRETS`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for SecretMount {
    fn drop(&mut self) {
        let _ = sys::unmount(&self.folder);
        // Fails while another file system is mounted there. That is harmless: the tmpfs itself is detached.
        let _ = fs::remove_dir(&self.folder);
    }
}

fn mount(folder: &Path, secrets: &[Secret], owner: &UserCredentials) -> io::Result<SecretMount> {
    DirBuilder::new().recursive(true).mode(0o755).create(BASE)?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // Each file takes whole pages.
    let size: usize = secrets.iter().map(|secret| secret.value.0.len().next_multiple_of(4096) + 4096).sum();
    let options = format!("size={},mode=0700,uid={},gid={}", size + 65536, owner.uid, owner.gid);
    // Linux before 6.4 does not know `noswap`.
    sys::mount_tmpfs(folder, &format!("{options},noswap")).or_else(|_| sys::mount_tmpfs(folder, &options))?;
    let mounted = SecretMount { folder: folder.to_owned() };
    for secret in secrets {
        write(&folder.join(&secret.name), &secret.value.0, owner)?;
    }
    chown(folder, Some(owner.uid), Some(owner.gid))?;
    Ok(mounted)
}

fn write(path: &Path, value: &[u8], owner: &UserCredentials) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
    file.write_all(value)?;
    fchown(&file, Some(owner.uid), Some(owner.gid))
}
