//! Paths of the store and the cache, from options, environment or the XDG base folders.

use std::path::PathBuf;
use std::sync::Arc;

use crate::digest_cache::DigestCache;
use crate::error::Failure;
use crate::ownership::open_cache;
use crate::store::Store;

use super::HostSetupError;
use super::args::GlobalArgs;

/// The folders of one command.
pub struct Folders {
    store: Option<PathBuf>,
    cache: Option<PathBuf>,
}

impl Folders {
    /// Takes the paths from the options, from `KILN_STORE` and `KILN_CACHE`, or from XDG's folders. The variables are read
    /// here: clap would name the options of those that are set in each usage line.
    pub fn new(global: &GlobalArgs) -> Self {
        let store = global.store.clone().or_else(|| set_path("KILN_STORE"));
        let cache = global.cache.clone().or_else(|| set_path("KILN_CACHE"));
        Self {
            store: store.or_else(|| Some(xdg("XDG_DATA_HOME", ".local/share")?.join("kiln/store"))),
            cache: cache.or_else(|| Some(xdg("XDG_CACHE_HOME", ".cache")?.join("kiln"))),
        }
    }

    /// Opens the store.
    pub fn store(&self) -> Result<Store, Failure> {
        Ok(Store::open(&self.store_path()?)?)
    }

    /// Returns the path of the store.
    pub fn store_path(&self) -> Result<PathBuf, Failure> {
        absolute(self.store.as_ref(), "the store", "--store")
    }

    /// Returns the path of the folder for caches and scratch disks, without checking that it is usable.
    pub fn cache_path(&self) -> Result<PathBuf, Failure> {
        absolute(self.cache.as_ref(), "the cache", "--cache")
    }

    /// Returns the folder of caches and scratch disks, created if missing, after checking that nobody else can write to it.
    pub fn cache(&self) -> Result<PathBuf, Failure> {
        let cache = self.cache_path()?;
        open_cache(&cache)?;
        Ok(cache)
    }

    /// Returns the digest cache.
    pub fn memo(&self) -> Result<Arc<DigestCache>, Failure> {
        Ok(Arc::new(DigestCache::load(&self.cache()?)))
    }
}

fn absolute(path: Option<&PathBuf>, what: &'static str, option: &'static str) -> Result<PathBuf, Failure> {
    let path = path.ok_or(HostSetupError::NoHome { what, option })?;
    Ok(std::path::absolute(path).map_err(HostSetupError::Runtime)?)
}

/// Reads a path from the environment; an empty variable counts as unset.
fn set_path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Returns a folder of the XDG base directory specification, which requires that a relative path in a variable is ignored.
pub(super) fn xdg(variable: &str, below_home: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    folder.or_else(|| Some(set_path("HOME")?.join(below_home)))
}
