//! Makes programs trust the proxy of the locked network, without a trace on the disk: each bundle of certificates of the
//! distribution is covered by a bundle in memory, which holds the proxy's authority as well.
//!
//! ```text
//! ca-certificates.crt          a symbolic link to the file below
//! .ca-certificates.crt.kiln    the distribution's file; the bundle in memory is mounted over it
//! ```
//!
//! A mount point can be neither replaced nor removed, but a link can: `update-ca-certificates` and package managers work as
//! usual. A bundle that they make is covered as soon as it is there. When the command has ended, the distribution's file gets
//! its name back, unless another one has it by then.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::folder_times::keep_time_of_folder;
use super::sys;
use crate::wire::network::{AUTHORITY, BUNDLE, FOLDER};

/// The bundles that programs read, each of one family of distributions. Some of them are links to others.
const BUNDLES: [&str; 5] = [
    // Debian, Alpine, Arch.
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora and its relatives.
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    // SUSE.
    "/var/lib/ca-certificates/ca-bundle.pem",
    // OpenSSL in Alpine.
    "/etc/ssl/cert.pem",
];
/// The end of a covered file's name, which begins with a dot.
const COVERED: &[u8] = b".kiln";
/// The interval at which new bundles are looked for.
const TICK: Duration = Duration::from_millis(20);

/// The covered bundles, and a thread that covers new ones; dropping it uncovers all.
#[derive(Debug)]
pub struct TrustedAuthority {
    /// Ends the thread when it is dropped.
    running: Option<Sender<()>>,
    watcher: Option<JoinHandle<Covers>>,
}

impl TrustedAuthority {
    /// Writes the bundles, covers those of the distribution, and goes on to cover new ones.
    pub fn mount(authority: &[u8]) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(FOLDER)?;
        fs::write(AUTHORITY, authority)?;
        let first = BUNDLES.iter().find_map(|bundle| fs::read(bundle).ok());
        fs::write(BUNDLE, joined(first.unwrap_or_default(), authority))?;
        let mut covers = Covers { authority: authority.to_vec(), covers: Vec::new(), made: 0 };
        if let Err(error) = covers.cover_new() {
            covers.uncover_all();
            return Err(error);
        }
        let (running, end) = channel();
        let watcher = thread::spawn(move || covers.watch(&end));
        Ok(Self { running: Some(running), watcher: Some(watcher) })
    }

    /// Uncovers the bundles. Returns a sentence for each one that could not be restored.
    pub fn unmount(mut self) -> Vec<String> {
        self.end()
    }

    fn end(&mut self) -> Vec<String> {
        self.running = None;
        let covers = self.watcher.take().and_then(|watcher| watcher.join().ok());
        let notes = covers.map(|mut covers| covers.uncover_all()).unwrap_or_default();
        let _ = fs::remove_dir_all(FOLDER);
        notes
    }
}

impl Drop for TrustedAuthority {
    fn drop(&mut self) {
        self.end();
    }
}

/// The covered bundles.
#[derive(Debug)]
struct Covers {
    authority: Vec<u8>,
    covers: Vec<Cover>,
    /// The number of covers that were made, also of those that are gone.
    made: usize,
}

/// A bundle of the distribution, covered by one in memory.
#[derive(Debug)]
struct Cover {
    bundle: PathBuf,
    /// The distribution's file under another name. On a file system that cannot be written, it is `bundle`.
    mount_point: PathBuf,
    /// The mounted file.
    file: PathBuf,
    /// Its content when it was mounted.
    content: Vec<u8>,
    /// The device and the inode of the mounted file.
    id: (u64, u64),
}

impl Covers {
    /// Covers new bundles until the other end of the channel is dropped.
    fn watch(mut self, end: &Receiver<()>) -> Self {
        while end.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            // One that is replaced at this moment is covered later.
            let _ = self.cover_new();
        }
        self
    }

    /// Covers the bundles that are not covered.
    fn cover_new(&mut self) -> io::Result<()> {
        for path in BUNDLES.map(Path::new) {
            let Ok(found) = fs::metadata(path) else { continue };
            let id = (found.dev(), found.ino());
            if found.is_file() && !self.covers.iter().any(|cover| cover.id == id) {
                self.cover(&original_path(&fs::canonicalize(path)?))?;
            }
        }
        Ok(())
    }

    fn cover(&mut self, bundle: &Path) -> io::Result<()> {
        if let Some(earlier) = self.covers.iter().position(|cover| cover.bundle == bundle) {
            self.covers.swap_remove(earlier).remove(&self.authority)?;
        }
        restore_name(bundle)?;
        let mount_point = set_aside(bundle).unwrap_or_else(|_| bundle.to_owned());
        let covered = self.mount_over(bundle, &mount_point);
        if covered.is_err() {
            restore_name(bundle)?;
        }
        covered
    }

    fn mount_over(&mut self, bundle: &Path, mount_point: &Path) -> io::Result<()> {
        let file = Path::new(FOLDER).join(format!("bundle-{}.pem", self.made));
        self.made += 1;
        let content = joined(fs::read(mount_point)?, &self.authority);
        fs::write(&file, &content)?;
        let written = fs::metadata(&file)?;
        sys::bind_mount(&file, mount_point)?;
        self.covers.push(Cover {
            bundle: bundle.to_owned(),
            mount_point: mount_point.to_owned(),
            file,
            content,
            id: (written.dev(), written.ino()),
        });
        Ok(())
    }

    /// Uncovers all bundles, and returns a sentence for each failure.
    fn uncover_all(&mut self) -> Vec<String> {
        let mut notes = Vec::new();
        for cover in self.covers.drain(..) {
            if let Err(error) = cover.remove(&self.authority) {
                notes.push(format!("cannot restore {}: {error}", cover.bundle.display()));
            }
        }
        notes
    }
}

impl Cover {
    /// Uncovers the bundle. What programs have written into the mounted file gets into the bundle, without the authority.
    fn remove(&self, authority: &[u8]) -> io::Result<()> {
        let now = fs::read(&self.file)?;
        // The command may have unmounted it.
        let _ = sys::detach(&self.mount_point);
        if now != self.content {
            fs::write(&self.mount_point, without(&now, authority))?;
        }
        restore_name(&self.bundle)?;
        remove_authority(&self.bundle, authority)
    }
}

/// Gives a bundle another name, and makes its own name a link to that. Returns the other name.
fn set_aside(bundle: &Path) -> io::Result<PathBuf> {
    let aside = covered_path(bundle);
    keep_time_of_folder(&aside, |aside| {
        // The link has its own name for its target, which is the bundle's as soon as both are exchanged.
        symlink(aside.file_name().unwrap_or_default(), aside)?;
        sys::exchange_names(aside, bundle).inspect_err(|_| drop(fs::remove_file(aside)))
    })?;
    Ok(aside)
}

/// Gives a bundle that was set aside its name again. If another file has the name by now, or the name was removed, the bundle
/// that was set aside is removed.
fn restore_name(bundle: &Path) -> io::Result<()> {
    let aside = covered_path(bundle);
    if matches!(fs::symlink_metadata(&aside), Err(error) if error.kind() == ErrorKind::NotFound) {
        return Ok(());
    }
    let is_link = fs::read_link(bundle).is_ok_and(|target| Some(target.as_os_str()) == aside.file_name());
    keep_time_of_folder(&aside, |aside| if is_link { fs::rename(aside, bundle) } else { fs::remove_file(aside) })
}

/// Removes the authority from a bundle that a program has copied from a covered one.
fn remove_authority(bundle: &Path, authority: &[u8]) -> io::Result<()> {
    let content = match fs::read(bundle) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        content => content?,
    };
    let own = without(&content, authority);
    if own.len() < content.len() { fs::write(bundle, own) } else { Ok(()) }
}

/// Returns the path that a bundle has while it is covered.
fn covered_path(bundle: &Path) -> PathBuf {
    let name = bundle.file_name().unwrap_or_default().as_encoded_bytes();
    bundle.with_file_name(os_string(&[b".", name, COVERED].concat()))
}

/// Returns the path of a bundle, which may be covered.
fn original_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let original = name.strip_prefix(b".").and_then(|name| name.strip_suffix(COVERED));
    original.map_or_else(|| path.to_owned(), |original| path.with_file_name(os_string(original)))
}

fn os_string(bytes: &[u8]) -> OsString {
    <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes).to_owned()
}

/// Returns the certificates of a bundle and one more.
fn joined(mut bundle: Vec<u8>, authority: &[u8]) -> Vec<u8> {
    if bundle.last().is_some_and(|last| *last != b'\n') {
        bundle.push(b'\n');
    }
    bundle.extend_from_slice(authority);
    bundle
}

/// Returns the certificates of a bundle but for one.
fn without(bundle: &[u8], authority: &[u8]) -> Vec<u8> {
    match bundle.windows(authority.len().max(1)).position(|window| window == authority) {
        Some(at) => [&bundle[..at], &without(&bundle[at + authority.len()..], authority)].concat(),
        None => bundle.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUNDLE_NAME: &str = "ca-certificates.crt";

    /// A folder with a bundle from the year 2001.
    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join(BUNDLE_NAME);
        fs::write(&bundle, "certificates\n").unwrap();
        sys::set_mtime(folder.path(), 1_000_000_000_000_000_000).unwrap();
        (folder, bundle)
    }

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_bundle_that_was_set_aside_gets_its_name_back() {
        let (folder, bundle) = folder();
        let inode = fs::metadata(&bundle).unwrap().ino();
        let aside = set_aside(&bundle).unwrap();
        assert_eq!(names(folder.path()), [".ca-certificates.crt.kiln", BUNDLE_NAME]);
        assert_eq!(original_path(&fs::canonicalize(&bundle).unwrap()), bundle);
        assert!(bundle.is_symlink() && !aside.is_symlink());
        assert_eq!(fs::read_to_string(&bundle).unwrap(), "certificates\n");
        restore_name(&bundle).unwrap();
        restore_name(&bundle).unwrap();
        assert_eq!(names(folder.path()), [BUNDLE_NAME]);
        assert_eq!(fs::symlink_metadata(&bundle).unwrap().ino(), inode);
        assert_eq!(fs::metadata(folder.path()).unwrap().mtime(), 1_000_000_000);
    }

    #[test]
    fn a_bundle_that_a_program_has_replaced_or_removed_stays_so() {
        let (folder, bundle) = folder();
        set_aside(&bundle).unwrap();
        let new = folder.path().join("new");
        fs::write(&new, "others\n").unwrap();
        fs::rename(&new, &bundle).unwrap();
        restore_name(&bundle).unwrap();
        assert_eq!(
            (names(folder.path()), fs::read(&bundle).unwrap()),
            (vec![BUNDLE_NAME.into()], b"others\n".to_vec())
        );
        set_aside(&bundle).unwrap();
        fs::remove_file(&bundle).unwrap();
        restore_name(&bundle).unwrap();
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn certificates_begin_on_lines_of_their_own() {
        assert_eq!(joined(b"one".to_vec(), b"two\n"), b"one\ntwo\n");
        assert_eq!(joined(b"one\n".to_vec(), b"two\n"), b"one\ntwo\n");
        assert_eq!(joined(Vec::new(), b"two\n"), b"two\n");
    }

    #[test]
    fn an_authority_is_removed_wherever_it_is() {
        assert_eq!(without(b"one\ntwo\nthree\n", b"two\n"), b"one\nthree\n");
        assert_eq!(without(b"two\none\ntwo\n", b"two\n"), b"one\n");
        assert_eq!(without(b"one\n", b"two\n"), b"one\n");
        let (_folder, bundle) = folder();
        remove_authority(&bundle, b"two\n").unwrap();
        assert_eq!(fs::read(&bundle).unwrap(), b"certificates\n");
        fs::write(&bundle, "certificates\ntwo\nthree\n").unwrap();
        remove_authority(&bundle, b"two\n").unwrap();
        assert_eq!(fs::read(&bundle).unwrap(), b"certificates\nthree\n");
    }
}
