//! Finds images that should be built again, and the reasons: what they were built from, or what their specs bring, has
//! changed.
//!
//! An image is as up to date as what it was built from. A base image has changed if the digest of its file has, as for
//! keys: a new version with the same bytes changes nothing.

use std::fmt;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::cache::history::BaseFiles;
use crate::digest_cache::DigestCache;
use crate::plan::trace::{ChangedInput, list_inputs};
use crate::resolve::facts::base_sha256;
use crate::store::manifest::ManifestBase;
use crate::store::{Reference, StoreListing, Summary};
use crate::url::Url;

mod online;
mod specs;

pub use online::add_changed_indices;
pub use specs::of_specs;

/// The number of URLs that a reason names as text.
const NAMED_URLS: usize = 3;

/// The reason why an image should be built again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum OutdatedReason {
    /// The base image has a newer version.
    NewerBase {
        /// The `name@version` that the image was built from.
        was: String,
        /// The `name@version` that is the newest now.
        now: String,
    },
    /// The tag that the spec follows names another version.
    TagMoved {
        /// The tag, `name@tag`.
        tag: String,
        /// The `name@version` that the image was built from.
        was: String,
        /// The `name@version` that the tag names now, if the tag still exists.
        now: Option<String>,
    },
    /// The base image was built again from other inputs.
    BaseReplaced {
        /// The base image, `name@version`.
        was: String,
    },
    /// The base image is no longer in the store.
    BaseGone {
        /// The base image, `name@version`.
        was: String,
    },
    /// The base image should itself be built again.
    BaseOutdated {
        /// The base image, `name@version`.
        base: String,
    },
    /// The file that the image was built from has changed.
    FileChanged {
        /// Path of the file.
        file: String,
    },
    /// The file that the image was built from no longer exists.
    FileGone {
        /// The former path of the file.
        file: String,
    },
    /// The spec has changed, or what its steps bring.
    InputsChanged {
        /// The changes.
        what: Vec<ChangedInput>,
    },
    /// Indices that the steps downloaded have changed at their server since they were recorded, or are gone.
    IndicesChanged {
        /// The host of the server.
        host: String,
        /// The URLs of the indices.
        urls: Vec<String>,
    },
    /// There is a spec of the image, and no such version.
    NotBuilt,
}

impl OutdatedReason {
    fn file_changed(file: &Path) -> Self {
        Self::FileChanged { file: file.display().to_string() }
    }

    fn file_gone(file: &Path) -> Self {
        Self::FileGone { file: file.display().to_string() }
    }
}

/// An image that should be built again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutdatedImage {
    /// The image, `name@version`.
    pub id: String,
    /// The reasons for building it again.
    pub reasons: Vec<OutdatedReason>,
}

/// Records on this host of the files that images were built from.
pub struct KnownFiles<'a> {
    /// The paths of these files.
    pub known: BaseFiles<'a>,
    /// The cache of their digests.
    pub memo: &'a DigestCache,
}

/// Finds outdated images of a store without their specs. Only the newest version of each image, and versions that tags
/// name, are examined.
pub fn in_store(listing: &StoreListing, files: &KnownFiles<'_>) -> Vec<OutdatedImage> {
    let asked = listing.versions.iter().filter(|summary| is_asked(listing, summary));
    let outdated = asked.filter_map(|summary| {
        let reason = of_base(listing, summary, files, listing.versions.len())?;
        Some(OutdatedImage { id: summary.id.to_string(), reasons: vec![reason] })
    });
    outdated.collect()
}

/// Returns the images that were built from files whose paths are not recorded on this host, so that changes of these files
/// cannot be detected.
pub fn unknown<'a>(listing: &'a StoreListing, files: &KnownFiles<'_>) -> Vec<&'a Summary> {
    let of_files = listing.versions.iter().filter(|summary| is_asked(listing, summary) && is_file(&summary.base));
    of_files.filter(|summary| files.known.find(summary.base.sha256).is_none()).collect()
}

/// Returns whether a base image was a file of this host. A download is identified by its digest, which a spec states.
fn is_file(base: &ManifestBase) -> bool {
    base.image.is_none() && base.source.parse::<Url>().is_err()
}

/// Returns whether a version is examined: the newest of an image, and tagged ones. Older versions that no tag names are not
/// in use.
fn is_asked(listing: &StoreListing, summary: &Summary) -> bool {
    !summary.tags.is_empty() || listing.newest(summary.id.name()).is_some_and(|newest| newest.id == summary.id)
}

/// Merges the reasons of a store's images and of the images that specs make. What a spec says of its base's file takes
/// precedence over recorded paths.
pub fn merged(in_store: Vec<OutdatedImage>, of_specs: Vec<OutdatedImage>) -> Vec<OutdatedImage> {
    let mut all = in_store;
    for OutdatedImage { id, reasons } in of_specs {
        let Some(known) = all.iter_mut().find(|known| known.id == id) else {
            all.push(OutdatedImage { id, reasons });
            continue;
        };
        known
            .reasons
            .retain(|reason| !matches!(reason, OutdatedReason::FileChanged { .. } | OutdatedReason::FileGone { .. }));
        let is_explained = !known.reasons.is_empty();
        for mut reason in reasons {
            if let OutdatedReason::InputsChanged { what } = &mut reason
                && is_explained
            {
                what.retain(|input| !matches!(input, ChangedInput::Base | ChangedInput::BaseLost(_)));
            }
            let is_empty = matches!(&reason, OutdatedReason::InputsChanged { what } if what.is_empty());
            if !is_empty && !known.reasons.contains(&reason) {
                known.reasons.push(reason);
            }
        }
    }
    all.retain(|outdated| !outdated.reasons.is_empty());
    all
}

/// Returns the reason that the base of an image gives, or the base of that, to a depth that only edited manifests exceed.
fn of_base(listing: &StoreListing, summary: &Summary, files: &KnownFiles<'_>, depth: usize) -> Option<OutdatedReason> {
    let Some(image) = &summary.base.image else { return files.of_file(summary) };
    let was = format!("{}@{}", image.name, image.version);
    let stored = listing.find(&image.name, &image.version);
    // What the spec named: a name, a version, a tag, or another spec.
    let said: Option<Reference> = summary.base.source.parse().ok();
    let tag = said.as_ref().and_then(Reference::selector).filter(|selector| *selector != image.version);
    if let Some(tag) = tag {
        let now = listing.tagged(&image.name, tag);
        if now.is_none_or(|now| !has_file(now, summary)) {
            let tag = format!("{}@{tag}", image.name);
            let now = now.map(|now| now.id.to_string());
            return Some(OutdatedReason::TagMoved { tag, was, now });
        }
    } else {
        let newest = listing.newest(&image.name).filter(|newest| !has_file(newest, summary));
        match (stored, newest) {
            (Some(stored), Some(newest)) if newest.sequence > stored.sequence => {
                return Some(OutdatedReason::NewerBase { was, now: newest.id.to_string() });
            }
            (Some(stored), _) if !has_file(stored, summary) => return Some(OutdatedReason::BaseReplaced { was }),
            (None, Some(_)) => return Some(OutdatedReason::BaseGone { was }),
            (None, None) if listing.newest(&image.name).is_none() => return Some(OutdatedReason::BaseGone { was }),
            _ => {}
        }
    }
    let base = stored.filter(|_| depth > 0)?;
    of_base(listing, base, files, depth - 1).map(|_| OutdatedReason::BaseOutdated { base: was })
}

/// Returns whether a version has the very file that another was built from.
fn has_file(now: &Summary, made: &Summary) -> bool {
    now.outputs.iter().any(|output| output.format == made.base.format && output.sha256 == made.base.sha256)
}

impl KnownFiles<'_> {
    /// Returns the reason that the file gives from which an image was built; `None` if its path is not recorded here.
    fn of_file(&self, summary: &Summary) -> Option<OutdatedReason> {
        let file = self.known.find(summary.base.sha256)?;
        match base_sha256(&file, self.memo) {
            Ok(sha256) if sha256 == summary.base.sha256 => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(OutdatedReason::file_gone(&file)),
            // A file that cannot be read is not the same as before either.
            Ok(_) | Err(_) => Some(OutdatedReason::file_changed(&file)),
        }
    }
}

impl fmt::Display for OutdatedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OutdatedReason::NewerBase { was, now } => write!(f, "{now} is newer than {was}, its base"),
            OutdatedReason::TagMoved { tag, was, now: Some(now) } => {
                write!(f, "{tag} is {now} now, it was made from {was}")
            }
            OutdatedReason::TagMoved { tag, was, now: None } => write!(f, "{tag} is no more, it was made from {was}"),
            OutdatedReason::BaseReplaced { was } => write!(f, "{was}, its base, was replaced"),
            OutdatedReason::BaseGone { was } => write!(f, "{was}, its base, is no longer in the store"),
            OutdatedReason::BaseOutdated { base } => write!(f, "{base}, its base, is outdated"),
            OutdatedReason::FileChanged { file } => write!(f, "its base image has changed: {file}"),
            OutdatedReason::FileGone { file } => write!(f, "its base image is gone: {file}"),
            OutdatedReason::InputsChanged { what } => write!(f, "changed: {}", list_inputs(what)),
            OutdatedReason::IndicesChanged { host, urls } => {
                let named = urls.iter().take(NAMED_URLS).map(String::as_str).collect::<Vec<_>>().join(", ");
                let rest = urls.len().saturating_sub(NAMED_URLS);
                let more = if rest == 0 { String::new() } else { format!(" and {rest} more") };
                write!(f, "indices of {host} have changed since they were recorded: {named}{more}")
            }
            OutdatedReason::NotBuilt => f.write_str("not built yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256Digest;
    use crate::store::ImageId;
    use crate::store::manifest::{ManifestBaseImage, ManifestImage, ManifestOutput};

    /// Creates a version whose disk is `disk`, built from `source`: a file, or an image of the store with its disk.
    fn made(id: &str, sequence: u64, disk: &str, source: &str, image: Option<(&str, &str)>) -> Summary {
        let (name, version) = id.split_once('@').unwrap();
        let base_image = |(base, disk): (&str, &str)| {
            let (name, version) = base.split_once('@').unwrap();
            ManifestBaseImage {
                name: name.into(),
                version: version.into(),
                build_key: disk.into(),
                disk_sha256: None,
                disk_chunks_sha256: Some(Sha256Digest::of(disk)),
            }
        };
        Summary {
            id: ImageId::new(name, version).unwrap(),
            tags: Vec::new(),
            sequence,
            finished: jiff::Timestamp::UNIX_EPOCH,
            image: ManifestImage::default(),
            base: ManifestBase {
                source: source.into(),
                sha256: Sha256Digest::of(image.map_or("file", |(_, disk)| disk)),
                format: "qcow2".into(),
                image: image.map(base_image),
            },
            outputs: vec![ManifestOutput {
                sha256: Sha256Digest::of(disk),
                ..ManifestOutput::staged("disk", "qcow2", 1)
            }],
            build_key: disk.into(),
            disk_sha256: None,
            disk_chunks_sha256: Some(Sha256Digest::of(disk)),
            folder: "/".into(),
        }
    }

    fn debian(version: &str, sequence: u64) -> Summary {
        made(&format!("debian@{version}"), sequence, &format!("d{version}"), "debian.qcow2", None)
    }

    /// Returns the reasons for the newest versions of a store that holds these, newest first.
    fn told(versions: &[Summary]) -> Vec<String> {
        let listing = StoreListing { versions: versions.to_vec(), unreadable: Vec::new() };
        let (folder, memo) = (tempfile::tempdir().unwrap(), DigestCache::load(Path::new("/nonexistent")));
        let files = KnownFiles { known: BaseFiles { cache: folder.path() }, memo: &memo };
        let outdated = in_store(&listing, &files);
        outdated.iter().map(|outdated| format!("{}: {}", outdated.id, outdated.reasons[0])).collect()
    }

    #[test]
    fn a_newer_base_counts_if_its_file_is_another() {
        let web = |source| made("web@1", 1, "w1", source, Some(("debian@12", "d12")));
        for source in ["debian", "debian@12", "spec ../debian"] {
            let newer = told(&[debian("13", 2), debian("12", 1), web(source)]);
            assert_eq!(newer, ["web@1: debian@13 is newer than debian@12, its base"], "{source}");
            // An older version that was built again later under its own name is not newer.
            assert_eq!(told(&[debian("12", 2), debian("11", 1), web(source)]), [""; 0]);
            let same = made("debian@13", 2, "d12", "debian.qcow2", None);
            assert_eq!(told(&[same, debian("12", 1), web(source)]), [""; 0], "the same bytes are no reason");
        }
    }

    #[test]
    fn a_tag_is_followed_where_the_spec_names_one() {
        let web = made("web@1", 1, "w1", "debian@stable", Some(("debian@12", "d12")));
        let mut old = debian("12", 1);
        old.tags = vec!["stable".into()];
        assert_eq!(told(&[debian("13", 2), old.clone(), web.clone()]), [""; 0], "the newest is not what it asks for");
        let mut new = debian("13", 2);
        std::mem::swap(&mut new.tags, &mut old.tags);
        let moved = told(&[new, old.clone(), web.clone()]);
        assert_eq!(moved, ["web@1: debian@stable is debian@13 now, it was made from debian@12"]);
        assert_eq!(told(&[old, web]), ["web@1: debian@stable is no more, it was made from debian@12"]);
    }

    #[test]
    fn a_base_that_was_replaced_or_removed_is_told() {
        let web = made("web@1", 1, "w1", "debian", Some(("debian@12", "before")));
        assert_eq!(told(&[debian("12", 3), web.clone()]), ["web@1: debian@12, its base, was replaced"]);
        let gone = ["web@1: debian@12, its base, is no longer in the store"];
        assert_eq!(told(&[debian("11", 1), web.clone()]), gone);
        assert_eq!(told(&[web]), gone);
    }

    #[test]
    fn what_is_made_from_something_outdated_is_outdated() {
        let web = made("web@1", 1, "w1", "debian", Some(("debian@12", "d12")));
        let shop = made("shop@1", 1, "s1", "web", Some(("web@1", "w1")));
        let mut old = made("shop@0", 0, "s0", "web", Some(("web@1", "w1")));
        let expected = ["shop@1: web@1, its base, is outdated", "web@1: debian@13 is newer than debian@12, its base"];
        let rest = [debian("13", 2), debian("12", 1), web];
        assert_eq!(told(&[&[shop.clone(), old.clone()], &rest[..]].concat()), expected, "an old one is nobody's worry");
        old.tags = vec!["stable".into()];
        assert_eq!(told(&[&[shop, old], &rest[..]].concat()).len(), 3, "unless it is tagged");
        // Only edited manifests have such a circle.
        let circle = made("web@1", 1, "w1", "web", Some(("web@1", "w1")));
        assert_eq!(told(&[circle]), [""; 0]);
    }

    #[test]
    fn what_specs_say_is_added_and_counts_more_of_files() {
        let told = |id: &str, reason: OutdatedReason| OutdatedImage { id: id.into(), reasons: vec![reason] };
        let changed = |what: &[ChangedInput]| OutdatedReason::InputsChanged { what: what.to_vec() };
        let step = ChangedInput::Other("step 1 greet".into());
        let moved = OutdatedReason::TagMoved { tag: "d@s".into(), was: "d@1".into(), now: None };
        let in_store = vec![told("a@1", OutdatedReason::file_gone(Path::new("/old"))), told("b@1", moved.clone())];
        let of_specs = vec![
            OutdatedImage { id: "a@1".into(), reasons: Vec::new() },
            told("b@1", changed(&[ChangedInput::Base, ChangedInput::BaseLost("gone".into()), step.clone()])),
            told("c@1", OutdatedReason::NotBuilt),
        ];
        let expected = [
            OutdatedImage { id: "b@1".into(), reasons: vec![moved, changed(&[step])] },
            told("c@1", OutdatedReason::NotBuilt),
        ];
        assert_eq!(merged(in_store, of_specs), expected);
    }
}
