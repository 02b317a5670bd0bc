//! `kiln gc`: frees space in the cache, and with `--keep` in the store.

use std::cmp::Reverse;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;

use clap::Args;

use crate::cache::step_cache::CACHE_LIMIT;
use crate::digest_cache::DigestCache;
use crate::download::{DownloadCache, NetworkMode};
use crate::error::{Failure, FileError, Kind};
use crate::layer::LayerCache;
use crate::layer::evict::{evict, rehearse_eviction};
use crate::output::kept_logs;
use crate::size::ByteSize;
use crate::store::{IfBase, Reference, RetentionReason, Store, StoreError, Summary};
use crate::{machine_registry, workdir};

use super::folders::Folders;
use super::list::{align, counted, unreadable};

/// Arguments of `kiln gc`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln gc --keep-cache 5GiB\n  kiln gc --keep 5 --dry-run\n  kiln gc --keep 2 web\n\n\
        Without --keep, no published version is removed. With it, tagged versions are kept as well, and so are \
        versions that a kept image was built from and those that are being read or built. Older versions that \
        a tag could be rolled back to are removed."
)]
pub struct GcArgs {
    /// Size limit of the step cache, and likewise of downloads, such as `5GiB` [default: 20GiB, or a tenth of the disk]
    #[arg(long, value_name = "SIZE")]
    pub keep_cache: Option<ByteSize>,
    /// Also remove versions from the store, except for the newest N of each image and those that are needed
    #[arg(long, value_name = "N")]
    pub keep: Option<NonZeroUsize>,
    /// Remove versions of these images only
    #[arg(value_name = "IMAGE", requires = "keep")]
    pub images: Vec<String>,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Frees space and reports on `notes`, which is standard error: there is no result.
pub fn run(args: &GcArgs, folders: &Folders, notes: &mut dyn Write) -> Result<(), Failure> {
    let removed = match args.keep {
        Some(keep) => versions(&folders.store()?, keep, args, notes),
        None => Ok(()),
    };
    // The cache is cleaned even if a version cannot be removed.
    let cache = folders.cache()?;
    let cleaned = if args.dry_run { Ok(()) } else { clean_leftovers(&cache, &folders.store_path()?) };
    let evicted = evict_cache(&cache, args, notes);
    removed.and(cleaned).and(evicted)
}

/// Removes the versions that retention does not keep, and reports the fate of each version and the reason.
fn versions(store: &Store, keep: NonZeroUsize, args: &GcArgs, notes: &mut dyn Write) -> Result<(), Failure> {
    for name in &args.images {
        // An image that does not exist is most likely a typing mistake.
        store.tags(name)?;
    }
    let listing = store.list()?;
    let mut fates = listing.fates(keep, |name| args.images.is_empty() || args.images.iter().any(|image| image == name));
    // Derived images are removed before the images that they were built from.
    fates.sort_by_key(|(summary, _)| Reverse(listing.lineage(summary).len()));
    let mut pruning = PruneRun { store, dry_run: args.dry_run, rows: Vec::new(), gone: Vec::new(), failed: Vec::new() };
    for (summary, fate) in fates {
        let (word, why) = pruning.prune(summary, &fate);
        pruning.rows.push((summary, [word.to_owned(), summary.id.to_string(), why]));
    }
    // The removal is done, even if the report cannot be printed.
    let _ = notes.write_all(pruning.told().as_bytes());
    let mut failed = pruning.failed.into_iter();
    let Some(mut first) = failed.next() else { return unreadable(listing) };
    failed.for_each(|failure| first.attach(failure));
    Err(first)
}

/// A run that removes versions.
struct PruneRun<'a> {
    store: &'a Store,
    dry_run: bool,
    /// Report lines of the versions.
    rows: Vec<(&'a Summary, [String; 3])>,
    /// Sizes of the removed versions, bytes.
    gone: Vec<u64>,
    failed: Vec<Failure>,
}

impl PruneRun<'_> {
    /// Removes a version unless it is kept; returns its fate and the reason.
    fn prune(&mut self, summary: &Summary, fate: &RetentionReason) -> (&'static str, String) {
        if *fate != RetentionReason::Goes {
            return ("kept", fate.to_string());
        }
        let removed = if self.dry_run {
            Ok(())
        } else {
            self.store.remove(&Reference::from(&summary.id), IfBase::Keep).map(drop)
        };
        match removed {
            Ok(()) => {
                self.gone.push(summary.bytes());
                (if self.dry_run { "would go" } else { "removed" }, ByteSize(summary.bytes()).to_string())
            }
            Err(error) => {
                let why = error.to_string();
                if !is_needed(&error) {
                    self.failed.push(error.into());
                }
                ("kept", why)
            }
        }
    }

    fn told(&mut self) -> String {
        self.rows.sort_by(|(one, _), (other, _)| {
            (one.id.name(), Reverse(one.sequence)).cmp(&(other.id.name(), Reverse(other.sequence)))
        });
        let rows: Vec<_> = self.rows.iter().map(|(_, row)| row.clone()).collect();
        let count = self.gone.len();
        let versions = counted(count, "version");
        let bytes = ByteSize(self.gone.iter().sum());
        let did = if self.dry_run { "would remove" } else { "removed" };
        format!("{}{did} {versions} ({bytes}); {} are left\n", align(&rows), rows.len() - count)
    }
}

/// Returns whether the version has become needed, or was removed, since the store was listed.
fn is_needed(error: &StoreError) -> bool {
    use StoreError::{BaseOf, Busy, InUse, NoImage, NoVersion, Tagged};
    matches!(error, Busy(_) | InUse(_) | Tagged { .. } | BaseOf { .. } | NoVersion { .. } | NoImage { .. })
}

/// Removes what dead builds left behind, and the logs of failed builds that are old or whose version was published since.
fn clean_leftovers(cache: &Path, store: &Path) -> Result<(), Failure> {
    let failed = FileError::of(Kind::Host, "clean the cache in", cache);
    let work = cache.join("work");
    if work.is_dir() {
        workdir::sweep(&work).map_err(&failed)?;
    }
    // Listing removes the folders of machines that are dead.
    machine_registry::list(cache)?;
    kept_logs::remove_old(cache).map_err(&failed)?;
    if store.exists() {
        let versions = Store::open(store)?.list()?.versions;
        let folders = versions.iter().map(|summary| format!("{}-{}", summary.id.name(), summary.id.version()));
        kept_logs::remove_published(cache, folders).map_err(failed)?;
    }
    Ok(())
}

/// Removes layers until the rest takes at most the wanted size, and likewise downloads, or reports what that would remove.
/// What a live build uses stays.
fn evict_cache(cache: &Path, args: &GcArgs, notes: &mut dyn Write) -> Result<(), Failure> {
    let failed = FileError::of(Kind::Host, "clean the cache in", cache);
    let layers = LayerCache::open(cache, DigestCache::load(cache).into()).map_err(&failed)?;
    let limit = args.keep_cache.map_or_else(|| layers.limit(CACHE_LIMIT), ByteSize::bytes);
    let removed = if args.dry_run { rehearse_eviction(&layers, limit) } else { evict(&layers, limit) };
    let removed = removed.map_err(failed)?;
    let did = if args.dry_run { "would remove" } else { "removed" };
    // The removal is done, even if the report cannot be printed.
    let _ = writeln!(notes, "{did} {}", describe_eviction("layer", removed.layers, removed.bytes, removed.left));
    let downloads = DownloadCache::open(cache, DigestCache::load(cache).into(), NetworkMode::Offline)?;
    let limit = ByteSize(limit);
    let removed = if args.dry_run { downloads.rehearse_eviction(limit)? } else { downloads.evict(limit)? };
    if removed.bytes > 0 || removed.left > 0 {
        let what = describe_eviction("download", removed.downloads, removed.bytes, removed.left);
        let _ = writeln!(notes, "{did} {what}");
    }
    Ok(())
}

fn describe_eviction(what: &str, count: usize, bytes: u64, left: u64) -> String {
    format!("{} ({}); {} are left", counted(count, what), ByteSize(bytes), ByteSize(left))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{TestStore, written};

    fn gc(shelf: &TestStore, keep: usize, images: &[&str], dry_run: bool) -> Result<String, Failure> {
        let keep = NonZeroUsize::new(keep).unwrap();
        let images = images.iter().map(|image| (*image).to_owned()).collect();
        let args = GcArgs { keep_cache: None, keep: Some(keep), images, dry_run };
        written(|out| versions(&shelf.store, keep, &args, out))
    }

    fn left(shelf: &TestStore) -> Vec<String> {
        shelf.store.list().unwrap().versions.iter().map(|summary| summary.id.to_string()).collect()
    }

    #[test]
    fn the_newest_and_what_is_tagged_are_kept_and_the_rest_is_told() {
        let shelf = TestStore::with(&["app@1", "web@1", "web@2", "web@3", "web@4"]);
        shelf.store.tag(&"web@2".parse().unwrap(), &"stable".parse().unwrap()).unwrap();
        let rehearsed = gc(&shelf, 1, &[], true).unwrap();
        let expected = "\
kept      app@1  among the newest
kept      web@4  among the newest
would go  web@3  4B
kept      web@2  tagged stable
would go  web@1  4B
would remove 2 versions (8B); 3 are left
";
        assert_eq!(rehearsed, expected);
        assert_eq!(left(&shelf).len(), 5);
        let done = gc(&shelf, 3, &["web"], false).unwrap();
        let expected = "\
kept     web@4  among the newest
kept     web@3  among the newest
kept     web@2  among the newest
removed  web@1  4B
removed 1 version (4B); 3 are left
";
        assert_eq!((done.as_str(), left(&shelf).len()), (expected, 4));
        let _read = shelf.store.artifact(&"web@3".parse().unwrap()).unwrap();
        assert!(gc(&shelf, 1, &[], false).unwrap().contains("kept  web@3  web@3 is in use by another kiln\n"));
        let failure = gc(&shelf, 1, &["wbe"], false).unwrap_err();
        assert_eq!(failure.hints()[0], "did you mean `web`?");
    }

    #[test]
    fn what_cannot_be_removed_is_told_after_the_rest() {
        let shelf = TestStore::with(&["app@1", "app@2", "web@1", "web@2"]);
        shelf.store.tag(&"web@1".parse().unwrap(), &"stable".parse().unwrap()).unwrap();
        shelf.overwrite("web/tags.json", "{");
        let failure = gc(&shelf, 1, &[], false).unwrap_err();
        assert_eq!(failure.kind().exit_code(), 8);
        assert_eq!(left(&shelf), ["app@2", "web@2", "web@1"], "whose tags cannot be read may be tagged");
    }
}
