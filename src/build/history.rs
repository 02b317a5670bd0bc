//! What the last build of an image was made of: `CACHE/plans/NAME.json`. Lost, it costs an explanation and nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::memo;
use crate::plan::Plan;
use crate::plan::trace::Trace;

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
pub(crate) fn remember(cache: &Path, plan: &Plan) -> io::Result<()> {
    memo::replace(&path(cache, plan), &serde_json::to_vec(&Trace::of(plan))?)
}
