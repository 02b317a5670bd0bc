//! What a copy leaves out of its source: by `exclude` of the step, and by the `.kilnignore` beside the spec.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::ignore_patterns::IgnoreRules;

/// Decides which files of a copied file or folder are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopyFilter {
    /// The patterns of the step, relative to the copied folder.
    exclude: IgnoreRules,
    /// The patterns of the ignore file, if the source lies below its folder.
    ignored: Option<IgnoredSource>,
}

/// A source below the folder of an ignore file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct IgnoredSource {
    rules: IgnoreRules,
    /// Path of the source below that folder; empty for the folder itself.
    path: Vec<u8>,
}

impl CopyFilter {
    /// Creates the filter of a source. `ignored` has the patterns of an ignore file, and `folder` is where that lies.
    #[must_use]
    pub fn new(source: &Path, exclude: IgnoreRules, ignored: &IgnoreRules, folder: &Path) -> Self {
        let below = path_below(source, folder).filter(|_| *ignored != IgnoreRules::default());
        let ignored = below.map(|path| IgnoredSource { rules: ignored.clone(), path });
        Self { exclude, ignored }
    }

    /// Returns whether an entry of the copied folder is left out, given its path in that folder. `exclude` has precedence.
    #[must_use]
    pub fn leaves_out(&self, path: &[u8], is_folder: bool) -> bool {
        let ignored = || self.ignored.as_ref()?.verdict(path, is_folder);
        self.exclude.verdict(path, is_folder).or_else(ignored).unwrap_or(false)
    }

    /// Returns whether the source as a whole is left out. `exclude` matches the name of a file that is copied alone.
    #[must_use]
    pub fn leaves_out_source(&self, name: &[u8], is_folder: bool) -> bool {
        let excluded = if is_folder { None } else { self.exclude.verdict(name, false) };
        let is_ignored = || self.ignored.as_ref().is_some_and(|ignored| ignored.leaves_out_source(is_folder));
        excluded.unwrap_or_else(is_ignored)
    }
}

impl IgnoredSource {
    /// Returns whether the source is left out; no pattern is about the folder of the ignore file itself.
    fn leaves_out_source(&self, is_folder: bool) -> bool {
        !self.path.is_empty() && self.rules.leaves_out(&self.path, is_folder)
    }

    fn verdict(&self, path: &[u8], is_folder: bool) -> Option<bool> {
        let slash: &[u8] = if self.path.is_empty() { b"" } else { b"/" };
        self.rules.verdict(&[&self.path, slash, path].concat(), is_folder)
    }
}

/// Returns the path of a file below a folder, without `.` and `..`; `None` if it does not lie there. Links are not followed:
/// patterns are about the paths that a spec has.
fn path_below(file: &Path, folder: &Path) -> Option<Vec<u8>> {
    let mut below = PathBuf::new();
    for component in file.strip_prefix(folder).ok()?.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                if !below.pop() {
                    return None;
                }
            }
            other => below.push(other),
        }
    }
    Some(below.as_os_str().as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> IgnoreRules {
        IgnoreRules::parse(text).unwrap()
    }

    fn filter(source: &str, exclude: &str, ignored: &str) -> CopyFilter {
        CopyFilter::new(Path::new(source), rules(exclude), &rules(ignored), Path::new("/project"))
    }

    #[test]
    fn patterns_of_the_step_are_relative_to_the_copied_folder() {
        let filter = filter("/project/site", "/a\n*.swp", "");
        for (path, left_out) in [("a", true), ("x/a", false), ("x/y.swp", true), ("b", false)] {
            assert_eq!(filter.leaves_out(path.as_bytes(), false), left_out, "{path}");
        }
    }

    #[test]
    fn patterns_of_the_file_are_relative_to_the_specs_folder() {
        for source in ["/project/site", "/project/./other/../site"] {
            let filter = filter(source, "!kept", "/site/a\n/b\nkept");
            for (path, left_out) in [("a", true), ("b", false), ("x/a", false), ("kept", false)] {
                assert_eq!(filter.leaves_out(path.as_bytes(), false), left_out, "{source}: {path}");
            }
        }
        assert!(filter("/project", "", "/b").leaves_out(b"b", false));
        for outside in ["/other/site", "/project/../site"] {
            assert!(!filter(outside, "", "*").leaves_out(b"a", false), "{outside}");
        }
    }

    #[test]
    fn a_source_can_be_left_out_as_a_whole() {
        assert!(filter("/project/a.swp", "*.swp", "").leaves_out_source(b"a.swp", false));
        assert!(!filter("/project/site", "site", "").leaves_out_source(b"site", true), "the folder itself is meant");
        assert!(filter("/project/vendor/lib", "", "vendor/").leaves_out_source(b"lib", true));
        assert!(filter("/project/a.log", "", "*.log").leaves_out_source(b"a.log", false));
        assert!(!filter("/project/a.log", "!a.log", "*.log").leaves_out_source(b"a.log", false));
        assert!(!filter("/project", "", "*").leaves_out_source(b"project", true), "the spec's own folder");
    }
}
