//! Names of images: [`ImageId`] for one version, [`Tag`] for a movable name, [`Reference`] for what a user types.
//!
//! They can only hold names that are safe as one path component; everything below the store builds paths from them.

use crate::error::{Fault, Kind};
use std::fmt;
use std::str::FromStr;

/// Longest name or version, bytes.
const LONGEST: usize = 64;
/// Name of a file beside the versions, so not a valid version.
const RESERVED: &str = "tags.json";

/// A name that the store does not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Not a valid image name.
    #[error(
        "{0:?} is not an image name: up to 64 of a-z 0-9 . _ - and a letter or digit first \
         (an image is given as name, name@version or name@tag)"
    )]
    Name(String),
    /// Not a valid version or tag.
    #[error("{0:?} is neither a version nor a tag: up to 64 of A-Z a-z 0-9 . _ + - and a letter or digit first")]
    Version(String),
    /// A version that would collide with the store's own files.
    #[error("`tags.json` can be neither a version nor a tag: the store has a file of that name beside the versions")]
    Reserved,
}

impl Fault for ReferenceError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// Returns whether a string consists of letters of this kind, digits and `marks`, and does not begin with a mark.
fn is_well_formed(text: &str, is_letter: fn(&u8) -> bool, marks: &[u8]) -> bool {
    text.len() <= LONGEST
        && text.bytes().next().is_some_and(|byte| !marks.contains(&byte))
        && text.bytes().all(|byte| is_letter(&byte) || byte.is_ascii_digit() || marks.contains(&byte))
}

fn check_name(name: &str) -> Result<(), ReferenceError> {
    let is_name = is_well_formed(name, u8::is_ascii_lowercase, b"._-");
    if is_name { Ok(()) } else { Err(ReferenceError::Name(name.to_owned())) }
}

fn check_version(version: &str) -> Result<(), ReferenceError> {
    if version == RESERVED {
        return Err(ReferenceError::Reserved);
    }
    let is_version = is_well_formed(version, u8::is_ascii_alphabetic, b"._+-");
    if is_version { Ok(()) } else { Err(ReferenceError::Version(version.to_owned())) }
}

/// One version of one image. Written `name@version`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId {
    name: String,
    version: String,
}

impl ImageId {
    /// Checks both parts and creates the id.
    ///
    /// # Errors
    /// When a part is not what the spec allows for `image.name` and `image.version`.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Result<Self, ReferenceError> {
        let name = name.into();
        let version = version.into();
        check_name(&name)?;
        check_version(&version)?;
        Ok(Self { name, version })
    }

    /// Returns the image's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the version's string.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// What a user types to name an image: `name`, `name@version` or `name@tag`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    name: String,
    selector: Option<String>,
}

impl Reference {
    /// Creates a reference to an image's newest version.
    ///
    /// # Errors
    /// When the name is not valid.
    pub fn newest(name: impl Into<String>) -> Result<Self, ReferenceError> {
        let name = name.into();
        check_name(&name)?;
        Ok(Self { name, selector: None })
    }

    /// Returns the image's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the version or tag; `None` means the newest version.
    #[must_use]
    pub fn selector(&self) -> Option<&str> {
        self.selector.as_deref()
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (name, selector) = text.split_once('@').map_or((text, None), |(name, selector)| (name, Some(selector)));
        check_name(name)?;
        selector.map_or(Ok(()), check_version)?;
        Ok(Self { name: name.to_owned(), selector: selector.map(str::to_owned) })
    }
}

impl From<&ImageId> for Reference {
    fn from(id: &ImageId) -> Self {
        Self { name: id.name.clone(), selector: Some(id.version.clone()) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.selector.as_ref().map_or(Ok(()), |selector| write!(f, "@{selector}"))
    }
}

/// A movable name for a version of an image. It has the form of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(String);

impl Tag {
    /// Returns the name of the tag.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        check_version(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_read_and_refused() {
        let bare: Reference = "web".parse().unwrap();
        assert_eq!((bare.name(), bare.selector()), ("web", None));
        let exact: Reference = "web@1.4.0+deb12".parse().unwrap();
        assert_eq!((exact.name(), exact.selector()), ("web", Some("1.4.0+deb12")));
        let long = "a".repeat(65);
        for bad in ["", "@1", "Web", "-x", ".kiln", "a/b", "web@", "web@..", "web@a/b", "web@1@2", "web@-x", &long] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_version_cannot_be_the_tags_file() {
        assert_eq!(ImageId::new("web", "tags.json"), Err(ReferenceError::Reserved));
    }

    proptest! {
        /// Covers fault row S9: every accepted string is one plain path component.
        #[test]
        fn s9_what_passes_is_one_path_component(name in ".{0,70}", version in "[.]{0,2}.{0,70}") {
            if let Ok(id) = ImageId::new(name, version) {
                for part in [id.name(), id.version()] {
                    let components: Vec<_> = std::path::Path::new(part).components().collect();
                    prop_assert_eq!(components, vec![std::path::Component::Normal(part.as_ref())]);
                    prop_assert!(part.len() <= 64 && !part.starts_with(['.', '-']));
                }
            }
        }

        #[test]
        fn a_reference_survives_a_round_trip(text in "[a-z0-9][a-z0-9._-]{0,9}(@[A-Za-z0-9][A-Za-z0-9._+-]{0,9})?") {
            prop_assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
    }
}
