//! Which versions are kept when there are too many: the newest of each image, what tags name, and what was needed to make
//! those.

use std::fmt;
use std::num::NonZeroUsize;

use super::{ImageId, Listing, Summary};

/// What becomes of a version, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is among the newest of its image.
    Newest,
    /// Tags name it.
    Tagged(Vec<String>),
    /// This one, which is kept, was made from it.
    BaseOf(ImageId),
    /// Nothing speaks for it.
    Goes,
}

impl Listing {
    /// What becomes of the versions of the images that `is_asked` names, if so many of each are kept; in the listing's order.
    /// Those of other images are all kept, and so is what they were made from.
    #[must_use]
    pub fn fates(&self, keep: NonZeroUsize, is_asked: impl Fn(&str) -> bool) -> Vec<(&Summary, Fate)> {
        let mut fates: Vec<Fate> = Vec::with_capacity(self.versions.len());
        for (index, summary) in self.versions.iter().enumerate() {
            // The versions of an image stand together, newest first.
            let newer = self.versions[..index].iter().filter(|other| other.id.name() == summary.id.name()).count();
            fates.push(match () {
                () if newer < keep.get() || !is_asked(summary.id.name()) => Fate::Newest,
                () if !summary.tags.is_empty() => Fate::Tagged(summary.tags.clone()),
                () => Fate::Goes,
            });
        }
        for index in 0..fates.len() {
            self.keep_bases(index, &mut fates);
        }
        let all = self.versions.iter().zip(fates);
        all.filter(|(summary, _)| is_asked(summary.id.name())).collect()
    }

    /// Keeps what a version that is kept was made from.
    fn keep_bases(&self, index: usize, fates: &mut [Fate]) {
        let mut kept = index;
        while fates[kept] != Fate::Goes {
            let base = self.versions[kept].base.image.as_ref().and_then(|base| self.stored(base));
            let Some(base) = base.and_then(|base| self.versions.iter().position(|other| other.id == base.id)) else {
                break;
            };
            if fates[base] != Fate::Goes {
                // What that was made from is kept on its own account.
                break;
            }
            fates[base] = Fate::BaseOf(self.versions[kept].id.clone());
            kept = base;
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fate::Newest => f.write_str("among the newest"),
            Fate::Tagged(tags) => write!(f, "tagged {}", tags.join(", ")),
            Fate::BaseOf(id) => write!(f, "base of {id}"),
            Fate::Goes => f.write_str("no longer kept"),
        }
    }
}
