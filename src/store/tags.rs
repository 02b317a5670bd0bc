//! `tags.json` of an image: movable names for its versions, and the history of their changes.
//!
//! Tags and their history are one file, and each change replaces it in one rename, under the image's lock: the two cannot
//! disagree. Readers take no lock and see the file as it was before a change or after it.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::folder::Folder;
use super::manifest::{SCHEMA, check_schema};
use super::reference::{ImageId, Reference, Tag};
use super::{Store, TMP_LOCK, check_part};
use crate::fs::FileLock;
use crate::rfc3339;

/// Name of the file inside an image's folder.
pub(super) const FILE: &str = "tags.json";
/// Size limit of a file that is read or written, bytes.
const LARGEST: u64 = 1 << 20;
/// Number of changes of one tag that are kept. `candidate` may move with every build, and must not push out the history of
/// `stable`.
const OF_ONE_TAG: usize = 100;
/// Number of changes that are kept in all.
const OF_ALL_TAGS: usize = 1000;

/// The tags of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    schema: u32,
    /// The version that each tag names.
    #[serde(default, rename = "tags")]
    pub named: BTreeMap<String, String>,
    /// Changes of the tags, oldest first. The order is that of the changes, whatever their times are.
    #[serde(default)]
    pub history: Vec<TagChange>,
}

/// A change of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagChange {
    /// Time of the change, by the host's clock.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// Name of the tag.
    pub tag: String,
    /// The version that it named before, if any.
    pub from: Option<String>,
    /// The version that it names since; `None` after a deletion.
    pub to: Option<String>,
    /// Kind of the change.
    pub how: TagOperation,
    /// The tag that was promoted: `candidate` for `kiln tag web@candidate stable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<String>,
}

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TagOperation {
    /// It was set to a version.
    Set,
    /// It was restored to its previous target.
    Rollback,
    /// It was deleted.
    Delete,
}

impl TagChange {
    /// Returns whether the tag names the same version as before.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.from == self.to
    }
}

impl Default for Tags {
    /// Returns a file without tags.
    fn default() -> Self {
        Self { schema: SCHEMA, named: BTreeMap::new(), history: Vec::new() }
    }
}

impl Tags {
    /// Reads the tags of the image in this folder; without a file there are none.
    pub(super) fn read(image: &Path) -> Result<Self, StoreError> {
        match Folder::open(image).and_then(|folder| folder.read(FILE, LARGEST)) {
            Err(error) if error.is_not_found() => Ok(Self::default()),
            Err(error) => Err(error),
            Ok(text) => Self::parse(&text, &image.join(FILE)),
        }
    }

    /// Parses the file. A newer schema may have any shape, so it is refused by its number before the rest is read.
    fn parse(text: &[u8], path: &Path) -> Result<Self, StoreError> {
        check_schema(text, path)?;
        let tags: Self = serde_json::from_slice(text).map_err(StoreError::malformed(path))?;
        match tags.named.keys().find(|name| name.parse::<Tag>().is_err()) {
            // An invalid name would be printed at the beginning of a line by `kiln tag`.
            Some(name) => {
                let why = serde_json::Error::custom(format!("{name:?} is not the name of a tag"));
                Err(StoreError::malformed(path)(why))
            }
            None => Ok(tags),
        }
    }

    fn to_json(&self) -> String {
        format!("{}\n", serde_json::to_string_pretty(self).expect("tags are plain data"))
    }

    /// Returns the tags that name a version.
    #[must_use]
    pub fn of(&self, version: &str) -> Vec<&str> {
        self.named.iter().filter(|(_, named)| *named == version).map(|(tag, _)| tag.as_str()).collect()
    }

    /// Returns the past targets of a tag, oldest first, without those that a rollback has left. The last one is its current
    /// target, unless it was deleted or somebody has edited the file.
    fn past(&self, tag: &str) -> Vec<&str> {
        let mut past: Vec<&str> = Vec::new();
        for change in self.history.iter().filter(|change| change.tag == tag) {
            let named = match change.how {
                TagOperation::Rollback => {
                    let taken_back = past.iter().rposition(|version| Some(*version) == change.to.as_deref());
                    past.truncate(taken_back.unwrap_or(0));
                    [None, change.to.as_deref()]
                }
                // Its previous target is the last one, unless the file was edited or the history begins here.
                TagOperation::Set | TagOperation::Delete => [change.from.as_deref(), change.to.as_deref()],
            };
            for version in named.into_iter().flatten() {
                if past.last() != Some(&version) {
                    past.push(version);
                }
            }
        }
        past
    }

    /// Returns the targets of successive rollbacks of a tag, the first one first.
    fn before(&self, tag: &str) -> Vec<&str> {
        let mut past = self.past(tag);
        if past.last().copied() == self.named.get(tag).map(String::as_str) {
            past.pop();
        }
        past.reverse();
        past
    }

    fn change(&mut self, tag: &str, to: Option<&str>, how: TagOperation, promoted: Option<&str>) -> TagChange {
        let from = match to {
            Some(version) => self.named.insert(tag.to_owned(), version.to_owned()),
            None => self.named.remove(tag),
        };
        let change = TagChange {
            at: Timestamp::now(),
            tag: tag.to_owned(),
            from,
            to: to.map(str::to_owned),
            how,
            promoted: promoted.map(str::to_owned),
        };
        if !change.is_nothing() {
            self.history.push(change.clone());
            self.forget(tag);
        }
        change
    }

    /// Drops the oldest changes beyond the limits.
    fn forget(&mut self, tag: &str) {
        if self.history.iter().filter(|change| change.tag == tag).count() > OF_ONE_TAG
            && let Some(oldest) = self.history.iter().position(|change| change.tag == tag)
        {
            self.history.remove(oldest);
        }
        let excess = self.history.len().saturating_sub(OF_ALL_TAGS);
        self.history.drain(..excess);
    }
}

impl Store {
    /// Returns the tags of an image.
    ///
    /// # Errors
    /// When there is no such image, or they cannot be read.
    pub fn tags(&self, name: &str) -> Result<Tags, StoreError> {
        let reference = Reference::newest(name)?;
        let _image = self.share_image(name)?;
        if self.versions(name)?.is_empty() {
            return Err(self.no_version(&reference));
        }
        Tags::read(&self.image_path(name))
    }

    /// Returns the changes of a tag, or of all tags of an image, the latest first.
    ///
    /// # Errors
    /// When there is no such image, there never was such a tag, or they cannot be read.
    pub fn tag_history(&self, name: &str, tag: Option<&Tag>) -> Result<Vec<TagChange>, StoreError> {
        let tags = self.tags(name)?;
        let mut changes = tags.history.clone();
        changes.retain(|change| tag.is_none_or(|tag| tag.as_str() == change.tag));
        changes.reverse();
        match tag.filter(|tag| changes.is_empty() && !tags.named.contains_key(tag.as_str())) {
            Some(tag) => Err(no_tag(name, tag, &tags)),
            None => Ok(changes),
        }
    }

    /// Sets a tag to the version that a reference names. The reference may itself be a tag, which promotes that tag's
    /// target.
    ///
    /// # Errors
    /// When there is no such version, there is a version of the tag's name, or a call fails: then the tag names what it did
    /// before, or the new version.
    pub fn tag(&self, image: &Reference, tag: &Tag) -> Result<TagChange, StoreError> {
        self.change_tags(image, |tags| {
            let id = self.resolve_locked(image)?;
            if !self.version_path(&id).is_dir() {
                return Err(self.missing(image, &id));
            }
            let rival = ImageId::new(image.name(), tag.as_str())?;
            if self.version_path(&rival).is_dir() {
                return Err(StoreError::TagIsVersion(rival));
            }
            let promoted = image.selector().filter(|selector| *selector != id.version());
            Ok(tags.change(tag.as_str(), Some(id.version()), TagOperation::Set, promoted))
        })
    }

    /// Restores a tag's previous target; repeating it steps further back. A deleted tag comes back.
    ///
    /// # Errors
    /// When it has named no other, that one is not there any more, or a call fails.
    pub fn roll_back(&self, name: &str, tag: &Tag) -> Result<TagChange, StoreError> {
        self.change_tags(&Reference::newest(name)?, |tags| {
            let before = tags.before(tag.as_str());
            let mut ids = before.iter().map(|version| ImageId::new(name, *version).ok());
            let there = ids.position(|id| id.is_some_and(|id| self.has_version(&id)));
            match before.first() {
                Some(version) if there == Some(0) => {
                    let version = (*version).to_owned();
                    Ok(tags.change(tag.as_str(), Some(&version), TagOperation::Rollback, None))
                }
                Some(gone) => Err(StoreError::NoWayBack {
                    name: name.to_owned(),
                    tag: tag.to_string(),
                    gone: (*gone).to_owned(),
                    earlier: there.map(|there| before[there].to_owned()),
                }),
                None if tags.named.contains_key(tag.as_str()) => {
                    Err(StoreError::NothingBefore { name: name.to_owned(), tag: tag.to_string() })
                }
                None => Err(no_tag(name, tag, tags)),
            }
        })
    }

    /// Deletes a tag.
    ///
    /// # Errors
    /// When there is none, or a call fails.
    pub fn untag(&self, name: &str, tag: &Tag) -> Result<TagChange, StoreError> {
        self.change_tags(&Reference::newest(name)?, |tags| {
            if !tags.named.contains_key(tag.as_str()) {
                return Err(no_tag(name, tag, tags));
            }
            Ok(tags.change(tag.as_str(), None, TagOperation::Delete, None))
        })
    }

    /// Changes the tags of an image under its lock.
    fn change_tags(
        &self,
        image: &Reference,
        change: impl FnOnce(&mut Tags) -> Result<TagChange, StoreError>,
    ) -> Result<TagChange, StoreError> {
        let path = self.image_path(image.name());
        if !path.is_dir() {
            return Err(self.no_version(image));
        }
        check_part(&path)?;
        // Taken before the image's lock, in the same order as by processes that clear tmp.
        let guard = self.lock_file(TMP_LOCK, FileLock::shared)?;
        let _image = self.lock_image(image.name())?;
        let mut tags = Tags::read(&path)?;
        let done = change(&mut tags)?;
        if !done.is_nothing() {
            let text = tags.to_json();
            if text.len() as u64 > LARGEST {
                return Err(StoreError::TooLarge { path: path.join(FILE), limit: LARGEST });
            }
            self.replace_file(&path.join(FILE), text.as_bytes(), &guard)?;
        }
        Ok(done)
    }

    /// Fails if a tag has the name of a new version: its meaning would depend on when it is resolved.
    pub(super) fn refuse_tag(&self, id: &ImageId) -> Result<(), StoreError> {
        let tags = Tags::read(&self.image_path(id.name()))?;
        if tags.named.contains_key(id.version()) { Err(StoreError::VersionIsTag(id.clone())) } else { Ok(()) }
    }
}

fn no_tag(name: &str, tag: &Tag, tags: &Tags) -> StoreError {
    let known = tags.named.keys().cloned().collect();
    StoreError::NoTag { name: name.to_owned(), tag: tag.to_string(), known }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the targets of successive rollbacks of `t`, after these changes of it.
    fn before(changes: &[(TagOperation, Option<&str>)]) -> Vec<String> {
        let mut tags = Tags::default();
        for (how, to) in changes {
            tags.change("t", *to, *how, None);
            tags.change("other", Some("9"), TagOperation::Set, None);
        }
        tags.before("t").into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn a_rollback_leads_to_what_was_named_before_and_again_further_back() {
        use TagOperation::{Delete, Rollback, Set};
        let (one, two, three) = ((Set, Some("1")), (Set, Some("2")), (Set, Some("3")));
        assert_eq!(before(&[]), [""; 0]);
        assert_eq!(before(&[one]), [""; 0]);
        assert_eq!(before(&[one, two, three]), ["2", "1"]);
        assert_eq!(before(&[one, two, three, (Rollback, Some("2"))]), ["1"]);
        assert_eq!(before(&[one, two, three, (Rollback, Some("2")), (Rollback, Some("1"))]), [""; 0]);
        assert_eq!(before(&[one, two, (Rollback, Some("1")), three]), ["1"], "what was taken back is not gone back to");
        assert_eq!(before(&[one, two, one]), ["2", "1"], "a step back that was made by hand is a step");
        assert_eq!(before(&[one, two, (Delete, None)]), ["2", "1"], "what was taken off comes back");
        assert_eq!(before(&[one, (Delete, None), two]), ["1"]);
    }

    #[test]
    fn a_file_without_a_history_or_with_another_one_is_what_it_says() {
        let text = br#"{"schema": 1, "tags": {"t": "5"}, "later": {}, "history": []}"#;
        let mut tags = Tags::parse(text, Path::new(FILE)).unwrap();
        assert_eq!(tags.before("t"), [""; 0]);
        tags.change("t", Some("6"), TagOperation::Set, None);
        assert_eq!(tags.before("t"), ["5"]);
        tags.named.insert("t".into(), "7".into());
        assert_eq!(tags.before("t"), ["6", "5"]);
    }

    #[test]
    fn the_history_is_bounded_and_one_tag_does_not_push_out_another() {
        let mut tags = Tags::default();
        tags.change("stable", Some("1"), TagOperation::Set, None);
        for version in 0..2 * OF_ALL_TAGS {
            tags.change("candidate", Some(&version.to_string()), TagOperation::Set, None);
        }
        assert_eq!((tags.history.len(), tags.history[0].tag.as_str()), (1 + OF_ONE_TAG, "stable"));
        for number in 0..2 * OF_ALL_TAGS {
            let tag = format!("{number:064}");
            tags.change(&tag, Some(&tag), TagOperation::Set, Some(&tag));
            tags.change(&tag, None, TagOperation::Delete, None);
        }
        assert_eq!(tags.history.len(), OF_ALL_TAGS);
        assert!((tags.to_json().len() as u64) < LARGEST);
        assert_eq!(Tags::parse(tags.to_json().as_bytes(), Path::new(FILE)).unwrap().named, tags.named);
    }
}
