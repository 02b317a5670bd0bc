//! The identifiers that formats ask for, which others draw at random: here the same version has the same ones.

use sha2::{Digest, Sha256};

/// What all identifiers of one version come from.
#[derive(Debug, Clone, Copy)]
pub struct Identity([u8; 32]);

impl Identity {
    /// Made of whatever makes the version what it is.
    #[must_use]
    pub fn new(of: &[&str]) -> Self {
        let mut sha = Sha256::new();
        for part in of {
            sha.update(part);
            sha.update([0]);
        }
        Self(sha.finalize().into())
    }

    /// A UUID of the version that RFC 9562 leaves to whoever makes it (8), in network order; another one for each purpose.
    pub(super) fn uuid(&self, purpose: &str) -> [u8; 16] {
        let digest = Sha256::new().chain_update(self.0).chain_update(purpose).finalize();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&digest[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }

    /// The same as GUIDs lie in files: the first three parts little-endian.
    pub(super) fn guid(&self, purpose: &str) -> [u8; 16] {
        let mut guid = self.uuid(purpose);
        for part in [0..4, 4..6, 6..8] {
            guid[part].reverse();
        }
        guid
    }
}
