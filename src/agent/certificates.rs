//! Makes programs trust the proxy of the locked network, without a trace on the disk: bundles of certificates that hold its
//! authority as well are mounted over those of the distribution.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

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

/// The mounted bundles; unmounted when dropped.
#[derive(Debug)]
pub struct TrustedAuthority {
    mounted: Vec<PathBuf>,
}

impl TrustedAuthority {
    /// Writes the bundles, and mounts them.
    pub fn mount(authority: &[u8]) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(FOLDER)?;
        fs::write(AUTHORITY, authority)?;
        let mut trusted = Self { mounted: Vec::new() };
        let bundles = find_bundles(Path::new("/"));
        let first = bundles.first().map(fs::read).transpose()?.unwrap_or_default();
        fs::write(BUNDLE, joined(first, authority))?;
        for (number, bundle) in bundles.into_iter().enumerate() {
            let with_ours = Path::new(FOLDER).join(format!("bundle-{number}.pem"));
            fs::write(&with_ours, joined(fs::read(&bundle)?, authority))?;
            sys::bind_mount(&with_ours, &bundle)?;
            trusted.mounted.push(bundle);
        }
        Ok(trusted)
    }
}

impl Drop for TrustedAuthority {
    fn drop(&mut self) {
        for bundle in &self.mounted {
            let _ = sys::detach(bundle);
        }
        let _ = fs::remove_dir_all(FOLDER);
    }
}

/// Returns the files of the distribution's bundles below a root, each once.
fn find_bundles(root: &Path) -> Vec<PathBuf> {
    let paths = BUNDLES.iter().filter_map(|bundle| fs::canonicalize(root.join(&bundle[1..])).ok());
    let files: BTreeSet<PathBuf> = paths.filter(|path| path.is_file()).collect();
    files.into_iter().collect()
}

/// Returns the certificates of a bundle and one more.
fn joined(mut bundle: Vec<u8>, authority: &[u8]) -> Vec<u8> {
    if bundle.last().is_some_and(|last| *last != b'\n') {
        bundle.push(b'\n');
    }
    bundle.extend_from_slice(authority);
    bundle
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_bundle_is_found_once() {
        let root = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(root.path()).unwrap();
        assert_eq!(find_bundles(&root), Vec::<PathBuf>::new());
        let target = root.join("etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem");
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::create_dir_all(root.join("etc/pki/tls/certs")).unwrap();
        fs::create_dir_all(root.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
        fs::write(&target, "certificates").unwrap();
        symlink(&target, root.join("etc/pki/tls/certs/ca-bundle.crt")).unwrap();
        assert_eq!(find_bundles(&root), [target]);
    }

    #[test]
    fn certificates_begin_on_lines_of_their_own() {
        assert_eq!(joined(b"one".to_vec(), b"two\n"), b"one\ntwo\n");
        assert_eq!(joined(b"one\n".to_vec(), b"two\n"), b"one\ntwo\n");
        assert_eq!(joined(Vec::new(), b"two\n"), b"two\n");
    }
}
