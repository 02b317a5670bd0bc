//! Findings of a search: the secrets with their places, and the compressed files that could not be searched to their end.

use std::fmt;

use crate::error::{Fault, Kind};

use super::decoder::DecoderError;
use super::{LeakPlace, SecretLeakError};

/// Number of places and files that are named.
const MOST_NAMED: usize = 20;

/// Everything that a search found.
#[derive(Debug, Default)]
pub struct SearchFindings {
    /// The secrets that were found.
    pub leaks: SecretLeaks,
    /// The files that may contain other secrets.
    pub unsearched: UnsearchedFiles,
}

/// Secrets in places where none may be, each at least once.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SecretLeaks {
    /// The places that are named.
    pub named: Vec<SecretLeakError>,
    /// Number of further places.
    pub omitted: usize,
}

impl SecretLeaks {
    /// Adds a leak. Of a secret with many places, those beyond the limit are only counted.
    pub(crate) fn add(&mut self, leak: SecretLeakError) {
        if self.named.len() < MOST_NAMED || !self.has_secret(&leak.name) {
            self.named.push(leak);
        } else {
            self.omitted += 1;
        }
    }

    /// Adds secrets that were found on the raw disk, if no file with them was found.
    pub(crate) fn add_unnamed(&mut self, leaks: impl IntoIterator<Item = SecretLeakError>) {
        for leak in leaks {
            if !self.has_secret(&leak.name) {
                self.named.push(leak);
            }
        }
    }

    /// Fails if there are any.
    ///
    /// # Errors
    /// The secrets.
    pub(crate) fn into_result(self) -> Result<(), Self> {
        if self.named.is_empty() { Ok(()) } else { Err(self) }
    }

    fn has_secret(&self, name: &str) -> bool {
        self.named.iter().any(|leak| leak.name == name)
    }
}

impl Extend<SecretLeakError> for SecretLeaks {
    fn extend<I: IntoIterator<Item = SecretLeakError>>(&mut self, leaks: I) {
        leaks.into_iter().for_each(|leak| self.add(leak));
    }
}

/// Shows the only place, or the first one and the number of the others.
impl fmt::Display for SecretLeaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, others)) = self.named.split_first() else { return f.write_str("no secret was found") };
        match others.len() + self.omitted {
            0 => first.fmt(f),
            count => write!(f, "secrets were found in {} places: {first}", count + 1),
        }
    }
}

impl std::error::Error for SecretLeaks {}

impl Fault for SecretLeaks {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn hints(&self) -> Vec<String> {
        let cause = match self.named.first().map(|leak| &leak.place) {
            Some(LeakPlace::Disk(_)) => "a step has written it to the disk; what is removed later stays in free blocks",
            Some(LeakPlace::ImageFile(..)) => "a step has put it into a file of the image",
            _ => "a step has put it into a file that would be published",
        };
        vec![
            cause.into(),
            "read it from the file under $KILN_SECRETS, which is gone after the step, and let no program keep it"
                .into(),
        ]
    }

    fn evidence(&self) -> Vec<String> {
        if self.named.len() + self.omitted < 2 {
            return Vec::new();
        }
        let omitted = (self.omitted > 0).then(|| format!("and in {} more places", self.omitted));
        self.named.iter().map(ToString::to_string).chain(omitted).collect()
    }
}

/// Compressed files that were not searched to their end.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct UnsearchedFiles {
    /// Names of the files with the reasons, a phrase each.
    named: Vec<String>,
    omitted: usize,
}

impl UnsearchedFiles {
    pub(super) fn add(&mut self, file: &str, error: DecoderError) {
        if self.named.len() < MOST_NAMED {
            self.named.push(format!("{file} ({error})"));
        } else {
            self.omitted += 1;
        }
    }

    /// Returns the warning with their names, if there are any.
    pub(crate) fn warning(&self) -> Option<String> {
        if self.named.is_empty() {
            return None;
        }
        let omitted = if self.omitted > 0 { format!(", and {} more", self.omitted) } else { String::new() };
        let files = self.named.join(", ");
        Some(format!("compressed files were not searched for secrets to their end: {files}{omitted}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leak(name: &str, at: u64) -> SecretLeakError {
        SecretLeakError { name: name.into(), form: "as it is", place: LeakPlace::Disk(at) }
    }

    #[test]
    fn o3_each_secret_is_named_however_often_another_is_found() {
        let mut leaks = SecretLeaks::default();
        leaks.extend((0..100).map(|at| leak("one", at)).chain([leak("two", 7)]));
        let evidence = leaks.evidence();
        assert_eq!(evidence.len(), MOST_NAMED + 2);
        assert!(evidence[MOST_NAMED].contains("`two`"), "{evidence:?}");
        assert_eq!(evidence.last().unwrap(), "and in 80 more places");
        assert!(leaks.to_string().starts_with("secrets were found in 101 places: the secret `one` is in"));
        leaks.add_unnamed([leak("two", 9), leak("three", 9)]);
        assert_eq!(leaks.named.last(), Some(&leak("three", 9)));
    }

    #[test]
    fn o3_files_that_were_not_searched_are_named_up_to_a_bound() {
        let mut files = UnsearchedFiles::default();
        assert_eq!(files.warning(), None);
        (0..100).for_each(|number| files.add(&format!("/a{number}"), DecoderError::Damaged));
        let warning = files.warning().unwrap();
        assert!(warning.contains("/a0 (it cannot be unpacked any further), /a1 ("), "{warning}");
        assert!(warning.ends_with(", and 80 more"), "{warning}");
    }
}
