//! Paths of the store and the cache, from options, environment or the XDG base folders.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::digest_cache::DigestCache;
use crate::download::NetworkMode;
use crate::error::Failure;
use crate::event::Events;
use crate::ownership::open_cache;
use crate::resolve::base::BaseResolver;
use crate::resolve::path_policy::FileReach;
use crate::store::Store;

use super::HostSetupError;
use super::args::{GlobalArgs, SourceArgs};

/// The folders of one command.
pub struct Folders {
    store: Option<PathBuf>,
    cache: Option<PathBuf>,
}

impl Folders {
    /// Takes the paths from the options, from `KILN_STORE` and `KILN_CACHE`, or from XDG's folders. The variables are read
    /// here: clap would name the options of those that are set in each usage line.
    #[must_use]
    pub fn new(global: &GlobalArgs) -> Self {
        let data = || xdg("XDG_DATA_HOME", ".local/share").map(|data| data.join("kiln/store"));
        let caches = || xdg("XDG_CACHE_HOME", ".cache").map(|cache| cache.join("kiln"));
        let store = global.store.clone().or_else(|| set_path("KILN_STORE")).or_else(data);
        let cache = global.cache.clone().or_else(|| set_path("KILN_CACHE")).or_else(caches);
        Self { store, cache }
    }

    /// Opens the store.
    ///
    /// # Errors
    /// When its path is not known or it cannot be used.
    pub fn store(&self) -> Result<Store, Failure> {
        Ok(Store::open(&self.store_path()?)?)
    }

    /// Returns the path of the store.
    ///
    /// # Errors
    /// When neither an option nor the environment gives one.
    pub fn store_path(&self) -> Result<PathBuf, Failure> {
        absolute(self.store.as_ref(), "the store", "--store")
    }

    /// Returns the path of the folder for caches and scratch disks, without checking that it is usable.
    ///
    /// # Errors
    /// When neither an option nor the environment gives one.
    pub fn cache_path(&self) -> Result<PathBuf, Failure> {
        absolute(self.cache.as_ref(), "the cache", "--cache")
    }

    /// Returns the folder of caches and scratch disks, created if missing, after checking that nobody else can write to it.
    ///
    /// # Errors
    /// When its path is not known, or it is not to be trusted.
    pub fn cache(&self) -> Result<PathBuf, Failure> {
        let cache = self.cache_path()?;
        open_cache(&cache)?;
        Ok(cache)
    }

    /// Returns the places to look for base images.
    ///
    /// # Errors
    /// When the path of the store or the cache is not known.
    pub fn bases(
        &self,
        sources: SourceArgs,
        files: FileReach,
        events: &Events,
        cancel: CancellationToken,
    ) -> Result<BaseResolver, Failure> {
        Ok(BaseResolver {
            store: self.store_path()?,
            cache: self.cache()?,
            memo: self.memo()?,
            events: events.clone(),
            locking: sources.locking(),
            reach: if sources.offline { NetworkMode::Offline } else { NetworkMode::Online },
            files,
            cancel,
        })
    }

    /// Returns the digest cache.
    ///
    /// # Errors
    /// When the path of the cache is not known.
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
    let home =
        || std::env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(below_home));
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home)
}
