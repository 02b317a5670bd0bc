//! Removes a version, unless it is needed: by a tag that names it, or by an image that was built from it.

use super::folder::Folder;
use super::tags::{self, Tags};
use super::{ImageId, Manifest, Reference, Store, StoreError, check_part, entries};
use crate::fs::try_lock;

/// Handling of a version that others of the store were built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfBase {
    /// Keep it: the others could not be rebuilt without it.
    Keep,
    /// Remove it. The others work without it.
    Remove,
}

impl Store {
    /// Removes a version: its name is removed in one step, and its files after that. Removing the last version of an image
    /// also removes the image's folder, and with it the history of its tags.
    ///
    /// # Errors
    /// When there is none, a tag names it, another image needs it, somebody builds or reads it, or a call fails.
    pub fn remove(&self, reference: &Reference, if_base: IfBase) -> Result<ImageId, StoreError> {
        let id = self.resolve(reference)?;
        let image = self.image_path(id.name());
        let path = self.version_path(&id);
        check_part(&image)?;
        let Some(_version) = self.try_version_lock(&id)? else { return Err(StoreError::Busy(id)) };
        self.recover(&id)?;
        let image_lock = self.lock_image(id.name())?;
        let folder = Folder::open(&path)
            .map_err(|error| if error.is_not_found() { self.missing(reference, &id) } else { error })?;
        if !try_lock(folder.file()).map_err(StoreError::io("lock", &path))? {
            return Err(StoreError::InUse(id));
        }
        // Under both locks: until they are released, no tag can be set to it, and no build can use it.
        self.refuse_needed(&id, if_base)?;
        let is_last = entries(&image)?.iter().all(|name| name == id.version() || name == tags::FILE);
        let (gone, parent) = if is_last { (&image, self.path()) } else { (&path, &*image) };
        let doomed = self.fresh_tmp(&id);
        self.fs.rename(gone, &doomed).map_err(StoreError::io("remove", gone))?;
        self.sync_dir(parent)?;
        drop(image_lock);
        self.fs.remove(&doomed).map_err(StoreError::io("remove", &doomed))?;
        Ok(id)
    }

    fn refuse_needed(&self, id: &ImageId, if_base: IfBase) -> Result<(), StoreError> {
        let tags = Tags::read(&self.image_path(id.name()))?;
        let named = tags.of(id.version());
        if !named.is_empty() {
            return Err(StoreError::Tagged { id: id.clone(), tags: named.into_iter().map(str::to_owned).collect() });
        }
        let others = match if_base {
            IfBase::Keep => self.made_from(id)?,
            IfBase::Remove => Vec::new(),
        };
        if others.is_empty() { Ok(()) } else { Err(StoreError::BaseOf { id: id.clone(), others }) }
    }

    /// Returns the versions that were built from this one, and not from one that it has replaced. Unreadable versions are
    /// ignored.
    fn made_from(&self, id: &ImageId) -> Result<Vec<ImageId>, StoreError> {
        let build_key = self.manifest(id).ok().map(|manifest| manifest.build_key);
        let mut found = Vec::new();
        for name in self.names()? {
            for other in self.versions(&name)? {
                let base = self.manifest(&other).ok().and_then(|manifest| manifest.base.image);
                if base.is_some_and(|base| {
                    (base.name.as_str(), base.version.as_str()) == (id.name(), id.version())
                        && build_key.as_ref().is_none_or(|key| *key == base.build_key)
                }) {
                    found.push(other);
                }
            }
        }
        Ok(found)
    }

    /// Reads a manifest without taking the version's lock, which may be held by the caller, or by another process that
    /// removes a version and looks at this one.
    fn manifest(&self, id: &ImageId) -> Result<Manifest, StoreError> {
        Manifest::read(&Folder::open(self.version_path(id))?)
    }
}
