//! Decides which versions are kept: the newest of each image, those that tags name, and those that kept versions were built
//! from.

use std::fmt;
use std::num::NonZeroUsize;

use super::{ImageId, StoreListing, Summary};

/// The decision about a version, and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetentionReason {
    /// Kept: it is among the newest of its image.
    Newest,
    /// Kept: these tags name it.
    Tagged(Vec<String>),
    /// Kept: this version, which is kept, was built from it.
    BaseOf(ImageId),
    /// Removed: there is no reason to keep it.
    Goes,
}

impl StoreListing {
    /// Decides about the versions of the images that `is_asked` names, if `keep` versions of each are kept; in the listing's
    /// order. All versions of other images are kept, and so are their bases.
    #[must_use]
    pub fn fates(&self, keep: NonZeroUsize, is_asked: impl Fn(&str) -> bool) -> Vec<(&Summary, RetentionReason)> {
        let mut fates: Vec<RetentionReason> = Vec::with_capacity(self.versions.len());
        for (index, summary) in self.versions.iter().enumerate() {
            // The versions of an image stand together, newest first.
            let newer = self.versions[..index].iter().filter(|other| other.id.name() == summary.id.name()).count();
            fates.push(match () {
                () if newer < keep.get() || !is_asked(summary.id.name()) => RetentionReason::Newest,
                () if !summary.tags.is_empty() => RetentionReason::Tagged(summary.tags.clone()),
                () => RetentionReason::Goes,
            });
        }
        for index in 0..fates.len() {
            self.keep_bases(index, &mut fates);
        }
        let all = self.versions.iter().zip(fates);
        all.filter(|(summary, _)| is_asked(summary.id.name())).collect()
    }

    /// Keeps the versions that a kept version was built from.
    fn keep_bases(&self, index: usize, fates: &mut [RetentionReason]) {
        let mut kept = index;
        while fates[kept] != RetentionReason::Goes {
            let base = self.versions[kept].base.image.as_ref().and_then(|base| self.stored(base));
            let Some(base) = base.and_then(|base| self.versions.iter().position(|other| other.id == base.id)) else {
                break;
            };
            if fates[base] != RetentionReason::Goes {
                // The bases of that version are kept for its own sake.
                break;
            }
            fates[base] = RetentionReason::BaseOf(self.versions[kept].id.clone());
            kept = base;
        }
    }
}

impl fmt::Display for RetentionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RetentionReason::Newest => f.write_str("among the newest"),
            RetentionReason::Tagged(tags) => write!(f, "tagged {}", tags.join(", ")),
            RetentionReason::BaseOf(id) => write!(f, "base of {id}"),
            RetentionReason::Goes => f.write_str("no longer kept"),
        }
    }
}
