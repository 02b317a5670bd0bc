//! What builds were made of: of the last one of an image in `CACHE/plans/NAME.json`, and where the base image of a digest was in
//! `CACHE/bases/SHA256`. Lost, it costs an explanation and nothing else.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::digest_cache;
use crate::plan::Plan;
use crate::plan::trace::Trace;
use crate::specfile::Source;

/// More than a spec of thousands of steps, bytes.
const LARGEST: u64 = 16 << 20;

fn path(cache: &Path, plan: &Plan) -> PathBuf {
    cache.join("plans").join(format!("{}.json", plan.spec.image.name))
}

/// The trace of the last build, if it is known.
#[must_use]
pub fn recall(cache: &Path, plan: &Plan) -> Option<Trace> {
    let path = path(cache, plan);
    let fits = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= LARGEST);
    fits.then(|| serde_json::from_slice(&fs::read(path).ok()?).ok()).flatten()
}

/// Remembers this one.
pub(crate) fn remember(cache: &Path, plan: &Plan, trace: &Trace) -> io::Result<()> {
    digest_cache::replace(&path(cache, plan), &serde_json::to_vec(trace)?)
}

/// Where the files are that images were made from. Manifests do not say: they go to other hosts.
#[derive(Debug, Clone, Copy)]
pub struct BaseFiles<'a> {
    /// The cache.
    pub cache: &'a Path,
}

impl BaseFiles<'_> {
    fn path(self, sha256: &str) -> PathBuf {
        self.cache.join("bases").join(sha256)
    }

    /// Where the file of this digest was when an image was made from it last, if that is known here.
    #[must_use]
    pub fn find(self, sha256: &str) -> Option<PathBuf> {
        // A manifest may be anybody's.
        let is_digest = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        let file = is_digest.then(|| fs::read(self.path(sha256)).ok()).flatten()?;
        Some(PathBuf::from(OsString::from_vec(file))).filter(|file| file.is_absolute())
    }

    /// Remembers where the base image of a plan is. What is downloaded or in the store is found otherwise.
    pub(crate) fn remember(self, plan: &Plan) -> io::Result<()> {
        match &plan.spec.base.source {
            Source::File(file) if self.find(&plan.base.sha256).as_ref() != Some(file) => {
                digest_cache::replace(&self.path(&plan.base.sha256), file.as_os_str().as_bytes())
            }
            _ => Ok(()),
        }
    }
}
