//! A store and a cache in which one file holds anything: it is read or refused.
//!
//! The first byte says which file the rest becomes; the others are in order.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use crate::documents;
use kiln::digest_cache::DigestCache;
use kiln::layer::LayerCache;
use kiln::plan::key::CacheKey;
use kiln::progress::Progress;
use kiln::store::{Reference, Store};
use tempfile::TempDir;

struct Place {
    folder: TempDir,
    store: Store,
    documents: Vec<(String, String)>,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(&folder.path().join("store")).expect("a store");
    let documents = documents::all().expect("a digest");
    for (path, content) in &documents {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, content).expect("written");
    }
    assert_eq!((read_store(&store), read_cache(folder.path())), (3, 1), "what is in order is read");
    Place { folder, store, documents }
});

pub fn check(input: &[u8]) {
    let Place { folder, store, documents } = &*PLACE;
    let [which, bytes @ ..] = input else { return };
    let (path, content) = &documents[usize::from(*which) % documents.len()];
    let path = folder.path().join(path);
    fs::write(&path, bytes).expect("written");
    read_store(store);
    read_cache(folder.path());
    fs::write(&path, content).expect("written");
}

/// How many of three names mean the version, which is the only one.
fn read_store(store: &Store) -> usize {
    let listing = store.list().expect("a store");
    // The version, and a failure more if it is the tags that cannot be read.
    let failures = usize::from(store.tags("web").is_err()) + usize::from(listing.versions.is_empty());
    assert!(listing.versions.len() <= 1 && listing.unreadable.len() == failures, "{listing:?}");
    let _ = (store.tag_history("web", None), listing.fates(NonZeroUsize::MIN, |_| true));
    listing.versions.iter().for_each(|summary| drop(listing.lineage(summary)));
    let means_it = |name: &&str| {
        let reference: Reference = name.parse().expect("a reference");
        let Ok(artifact) = store.artifact(&reference) else { return false };
        assert_eq!(artifact.folder(), store.path().join("web/1"), "another folder");
        let _ = (artifact.check_sizes(), artifact.verify(&Progress::unwatched()), artifact.manifest().to_json());
        true
    };
    ["web", "web@1", "web@stable"].into_iter().filter(means_it).count()
}

/// How many layers of the cache can be used.
fn read_cache(folder: &Path) -> usize {
    let cache = LayerCache::peek(folder, Arc::new(DigestCache::load(folder)));
    let stacks = cache.find(CacheKey::root(), &mut |_| {});
    stacks.iter().filter(|stack| cache.check_memory(stack.top()).is_ok()).count()
}
