//! `kiln gc`: makes room in the cache. Published images are not touched.

use std::io::Write;
use std::path::Path;

use crate::build::layers::CACHE_LIMIT;
use crate::download::{Downloads, Reach};
use crate::error::{Failure, Fault, Kind};
use crate::layer::Cache;
use crate::layer::evict::evict;
use crate::memo::Memo;
use crate::size::ByteSize;
use crate::workdir;

/// The cache cannot be cleaned.
#[derive(Debug, thiserror::Error)]
#[error("cannot clean the cache in {}", path.display())]
struct GcError {
    path: std::path::PathBuf,
    #[source]
    source: std::io::Error,
}

impl Fault for GcError {
    fn kind(&self) -> Kind {
        Kind::Host
    }
}

/// Removes what dead builds left behind, and layers until the rest takes at most `keep` bytes, and likewise downloads. What a
/// live build uses stays. `notes` is standard error.
///
/// # Errors
/// When the cache cannot be read.
pub fn run(cache: &Path, keep: Option<ByteSize>, notes: &mut dyn Write) -> Result<(), Failure> {
    let failed = |source| GcError { path: cache.to_owned(), source };
    let work = cache.join("work");
    if work.is_dir() {
        workdir::sweep(&work).map_err(failed)?;
    }
    let layers = Cache::open(cache, Memo::load(cache).into()).map_err(failed)?;
    let limit = keep.map_or_else(|| layers.limit(CACHE_LIMIT), ByteSize::bytes);
    let done = evict(&layers, limit).map_err(failed)?;
    let (freed, left) = (ByteSize(done.bytes), ByteSize(done.left));
    let plural = if done.layers == 1 { "" } else { "s" };
    // It is done whether or not anybody can be told.
    let _ = writeln!(notes, "removed {} layer{plural} ({freed}); {left} are left", done.layers);
    let downloads = Downloads::open(cache, Memo::load(cache).into(), Reach::Offline)?;
    let done = downloads.evict(ByteSize(limit))?;
    let (freed, left) = (ByteSize(done.bytes), ByteSize(done.left));
    let plural = if done.downloads == 1 { "" } else { "s" };
    if done.bytes > 0 || done.left > 0 {
        let _ = writeln!(notes, "removed {} download{plural} ({freed}); {left} are left", done.downloads);
    }
    Ok(())
}
