//! Records of earlier builds: the trace of an image's last build in `CACHE/plans/NAME.json`, and the path of the base image
//! with a digest in `CACHE/bases/SHA256`. If they are lost, only an explanation is lost.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::digest::Sha256Digest;
use crate::digest_cache;
use crate::plan::Plan;
use crate::plan::trace::Trace;
use crate::specfile::BaseSource;

/// The size of the largest trace that is read, bytes: more than a spec of thousands of steps needs.
const LARGEST: u64 = 16 << 20;

fn path(cache: &Path, plan: &Plan) -> PathBuf {
    cache.join("plans").join(format!("{}.json", plan.spec.image.name))
}

/// Reads the trace of the last build, if there is one.
#[must_use]
pub fn recall(cache: &Path, plan: &Plan) -> Option<Trace> {
    let path = path(cache, plan);
    let fits = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= LARGEST);
    fits.then(|| serde_json::from_slice(&fs::read(path).ok()?).ok()).flatten()
}

/// Writes the trace of a build.
pub(crate) fn remember(cache: &Path, plan: &Plan, trace: &Trace) -> io::Result<()> {
    digest_cache::replace(&path(cache, plan), &serde_json::to_vec(trace)?)
}

/// Paths of the base images that images were built on. Manifests do not record them, because they go to other hosts.
#[derive(Debug, Clone, Copy)]
pub struct BaseFiles<'a> {
    /// Path of the cache.
    pub cache: &'a Path,
}

impl BaseFiles<'_> {
    fn path(self, sha256: Sha256Digest) -> PathBuf {
        self.cache.join("bases").join(sha256.to_string())
    }

    /// Returns the path that the file of this digest had when an image was last built on it, if that is recorded here.
    #[must_use]
    pub fn find(self, sha256: Sha256Digest) -> Option<PathBuf> {
        let file = fs::read(self.path(sha256)).ok()?;
        Some(PathBuf::from(OsString::from_vec(file))).filter(|file| file.is_absolute())
    }

    /// Records the path of a plan's base image. Downloads and images of the store are located in other ways.
    pub(crate) fn remember(self, plan: &Plan) -> io::Result<()> {
        match &plan.spec.base.source {
            BaseSource::File(file) if self.find(plan.base.sha256).as_ref() != Some(file) => {
                digest_cache::replace(&self.path(plan.base.sha256), file.as_os_str().as_bytes())
            }
            _ => Ok(()),
        }
    }
}
