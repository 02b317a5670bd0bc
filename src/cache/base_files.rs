//! The digests of the files of base images, kept in `CACHE/base-files`: a list of an image's files reads only those that the
//! build has changed.

use std::path::Path;

use serde_json::json;

use crate::disk::chain::{Chain, ChainError};
use crate::disk::known_files::{KnownFiles, LARGEST, UnchangedFiles};
use crate::event::{Events, NoticeLevel};
use crate::plan::Plan;
use crate::plan::key::CacheKey;
use crate::resolve::facts::check_base;

use super::base_records::BaseRecords;

/// Name of the folder in the cache.
const FOLDER: &str = "base-files";

/// The digests of the files of a build's base.
pub(crate) struct BaseFileDigests {
    /// `None` if the cache is not used.
    records: Option<BaseRecords>,
    plan: Plan,
}

impl BaseFileDigests {
    pub(crate) fn new(plan: &Plan, cache: Option<&Path>) -> Self {
        let records = cache.map(|cache| BaseRecords::new(cache.join(FOLDER), LARGEST));
        Self { records, plan: plan.clone() }
    }

    fn key(&self) -> CacheKey {
        CacheKey::root().then(&json!({ "files": self.plan.base.sha256 }))
    }

    /// Returns what is known of the files of a disk that is built on the base.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub(crate) fn find(&self, disk: &Chain) -> Result<UnchangedFiles, ChainError> {
        let kept = self.records.as_ref().and_then(|records| KnownFiles::parse(&records.find(self.key())?));
        UnchangedFiles::new(disk, kept.unwrap_or_default())
    }

    /// Keeps the digests that a walk has learned, if the base is still the same. If they are lost, files are read again.
    pub(crate) fn keep(&self, files: &UnchangedFiles, events: &Events) {
        let (Some(records), Some(learned)) = (&self.records, files.learned()) else { return };
        if check_base(&self.plan).is_err() {
            return;
        }
        if let Err(error) = records.keep(self.key(), &learned.to_bytes()) {
            events.notice(NoticeLevel::Debug, format!("the digests of the base's files are not kept: {error}"));
        }
    }
}
