//! Identifiers that formats require. Other tools draw them at random; here the same version always gets the same ones.

use sha2::{Digest, Sha256};

use crate::digest::Sha256Digest;

/// The digest from which all identifiers of one version are derived.
#[derive(Debug, Clone, Copy)]
pub struct DiskIdentity(Sha256Digest);

impl DiskIdentity {
    /// Creates the identity of a version from everything that determines it.
    #[must_use]
    pub fn new(of: &[&str]) -> Self {
        let mut sha = Sha256::new();
        for part in of {
            sha.update(part);
            sha.update([0]);
        }
        Self(sha.into())
    }

    /// Returns a UUID of the version (RFC 9562, version 8: custom), in network order; each purpose has another one.
    pub(super) fn uuid(&self, purpose: &str) -> [u8; 16] {
        let digest = Sha256::new_with_prefix(self.0.as_bytes()).chain_update(purpose).finalize();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&digest[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }

    /// Returns [`Self::uuid`] as GUIDs are stored in files: the first three parts are little-endian.
    pub(super) fn guid(&self, purpose: &str) -> [u8; 16] {
        let mut guid = self.uuid(purpose);
        for part in [0..4, 4..6, 6..8] {
            guid[part].reverse();
        }
        guid
    }
}
