//! Paths in a spec: on the host, relative to the spec's folder; in the guest, absolute; and owners of files there.

use std::path::{Component, Path, PathBuf};

use serde_json::json;

use crate::ignore_patterns::IgnorePattern;

use super::FileOwner;
use super::document::SpannedValue;
use super::value_kinds::{Text, ValueProblem, Word, matching, quoted};

/// The longest path that Linux accepts, without its NUL.
const MAX_PATH: usize = 4095;
/// The longest name of a file, bytes.
const MAX_NAME: usize = 255;

/// A path, and whether it was written with a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlashedPath<P> {
    /// The path without the slash.
    pub path: P,
    /// Whether it ends with a slash, or with `/.`, which means the same to cp.
    pub slash: bool,
}

fn has_slash(text: &str) -> bool {
    text.ends_with('/') || text.ends_with("/.") || text == "."
}

fn check(text: &str) -> Result<(), ValueProblem> {
    if text.is_empty() {
        return Err("a path cannot be empty".into());
    }
    if let Some(c) = text.chars().find(|c| c.is_control()) {
        return Err(format!("the character {} is not allowed in a path", c.escape_unicode()).into());
    }
    if text.len() > MAX_PATH || text.split('/').any(|name| name.len() > MAX_NAME) {
        Err("longer than a path or a file name can be".into())
    } else {
        Ok(())
    }
}

/// Accepts the path of a file or folder on this host, as written: relative ones start at the spec's folder.
pub(super) fn host_path() -> Text<SlashedPath<PathBuf>> {
    let schema = json!({ "type": "string", "minLength": 1 });
    Text::new("a path on this host, absolute or from the spec's folder", schema, |text| {
        check(text)?;
        Ok(SlashedPath { path: Path::new(text).components().collect(), slash: has_slash(text) })
    })
}

fn absolute(text: &str) -> Result<SlashedPath<String>, ValueProblem> {
    check(text)?;
    if !text.starts_with('/') {
        return Err(format!("{} is not absolute: a path in the guest begins with `/`", quoted(text)).into());
    }
    let names: Vec<&str> = text.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    if names.contains(&"..") {
        Err(format!("{} has `..` in it; write where it leads", quoted(text)).into())
    } else {
        Ok(SlashedPath { path: format!("/{}", names.join("/")), slash: has_slash(text) })
    }
}

/// Accepts a path in the guest that may end with a slash.
pub(super) fn guest_path() -> Text<SlashedPath<String>> {
    Text::new("an absolute path in the guest", matching("/.*"), absolute)
}

/// Accepts the path of a folder in the guest.
pub(super) fn guest_folder() -> Text<String> {
    Text::new("an absolute path in the guest", matching("/.*"), |text| absolute(text).map(|folder| folder.path))
}

/// Accepts the path of a file in the guest, name included.
pub(super) fn guest_file() -> Text<String> {
    Text::new("an absolute path of a file in the guest", matching("/.*[^/]"), |text| match absolute(text)? {
        SlashedPath { slash: true, .. } => Err("a slash at the end names a folder: add the file's name".into()),
        SlashedPath { path, .. } => Ok(path),
    })
}

/// Accepts the path of a fetched file: always below the version's folder.
pub(super) fn kept_path() -> Text<PathBuf> {
    Text::new("a relative path below the image's folder in the store", matching("[^/].*"), |text| {
        check(text)?;
        let path: PathBuf = Path::new(text).components().collect();
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!("{} leads elsewhere: write a relative path without `..`", quoted(text)).into());
        }
        if has_slash(text) { Err("a slash at the end names a folder: add the file's name".into()) } else { Ok(path) }
    })
}

/// A user or group in the guest, by name or number.
pub(super) const ACCOUNT: Word = Word::new("A-Za-z0-9_", "A-Za-z0-9_.-", 32);

/// Accepts `user` or `user:group`.
pub(super) fn owner() -> Text<FileOwner> {
    let name = ACCOUNT.pattern();
    let schema = matching(&format!("{name}(?::{name})?"));
    Text::new("`user` or `user:group`, by name or number", schema, |text| {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        std::iter::once(user).chain(group).try_for_each(|name| ACCOUNT.check(name))?;
        Ok(FileOwner { user: user.to_owned(), group: group.map(str::to_owned) })
    })
}

/// Resolves a path of a spec, which starts at the spec's folder unless it is absolute. `..` is kept, because what it leads
/// to depends on symbolic links.
pub(crate) fn from_folder_of(spec: &Path, path: &Path) -> PathBuf {
    spec.parent().map_or_else(|| path.to_owned(), |folder| folder.join(path).components().collect())
}

/// Returns the absolute path of a file or folder on this host.
pub(super) fn host_file(written: &SpannedValue<SlashedPath<PathBuf>>, spec: &Path) -> PathBuf {
    from_folder_of(spec, &written.value.path)
}

/// Accepts a pattern of files below a folder, in git's syntax.
pub(super) fn ignore_pattern() -> Text<IgnorePattern> {
    Text::new("a pattern in the syntax of .gitignore", json!({ "type": "string", "minLength": 1 }), |text| {
        Ok(IgnorePattern::parse(text)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T>(shape: &Text<T>, text: &str) -> Option<T> {
        (shape.parse)(text).ok()
    }

    #[test]
    fn trailing_slashes_are_remembered() {
        let host = |text| parse(&host_path(), text).map(|p| (p.path.to_str().unwrap().to_owned(), p.slash));
        assert_eq!(host("site/"), Some(("site".into(), true)));
        assert_eq!(host("./site/."), Some(("./site".into(), true)));
        assert_eq!(host("../site"), Some(("../site".into(), false)));
        let guest = |text| parse(&guest_path(), text).map(|p| (p.path, p.slash));
        assert_eq!(guest("/srv//www/./"), Some(("/srv/www".into(), true)));
        assert_eq!(guest("/"), Some(("/".into(), true)));
        assert_eq!(guest("/srv/../etc"), None);
        assert_eq!(guest("srv"), None);
    }

    #[test]
    fn what_is_kept_stays_in_its_folder() {
        assert_eq!(parse(&kept_path(), "a/b.json"), Some("a/b.json".into()));
        for bad in ["", ".", "..", "../a", "a/../../b", "/a", "a/", "a/.", "a\nb", &"x".repeat(256)] {
            assert_eq!(parse(&kept_path(), bad), None, "{bad}");
        }
    }

    #[test]
    fn owners_are_one_or_two_accounts() {
        let group = |text| parse(&owner(), text).map(|owner| owner.group);
        assert_eq!(group("www-data"), Some(None));
        assert_eq!(group("33:0"), Some(Some("0".into())));
        for bad in ["", ":", "root:", ":root", "a:b:c", "-x", "a b"] {
            assert_eq!(group(bad), None, "{bad}");
        }
    }
}
