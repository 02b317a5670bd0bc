//! Patterns of absolute paths, as in a shell: `*` is any part of a name, `[0-9]` a digit, `{a,b}` at the end of a name one or
//! the other, and `**` before the last name any number of folders. A leading `~` is the home of any user.

/// Patterns of the usual homes of users, which are known without `/etc/passwd`.
const USUAL_HOMES: [&str; 2] = ["/root", "/home/*"];
const DIGIT: &[u8] = b"[0-9]";

/// Returns whether a path matches a pattern.
#[must_use]
pub fn matches(pattern: &str, path: &[u8]) -> bool {
    if let Some(below) = pattern.strip_prefix('~') {
        return USUAL_HOMES.iter().any(|home| matches(&format!("{home}{below}"), path));
    }
    let pattern: Vec<&[u8]> = pattern.as_bytes().split(|byte| *byte == b'/').collect();
    let path: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    match_names(&pattern, &path)
}

fn match_names(pattern: &[&[u8]], path: &[&[u8]]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((&b"**", rest)), _) => (0..=path.len()).any(|skipped| match_names(rest, &path[skipped..])),
        (Some((first, rest)), Some((name, below))) => matches_name(first, name) && match_names(rest, below),
        _ => false,
    }
}

/// Returns whether a single name matches a part of a pattern.
#[must_use]
pub fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    if let Some(rest) = pattern.strip_prefix(b"*") {
        return (0..=name.len()).any(|skipped| matches_name(rest, &name[skipped..]));
    }
    if let Some(rest) = pattern.strip_prefix(DIGIT) {
        return name.split_first().is_some_and(|(first, below)| first.is_ascii_digit() && matches_name(rest, below));
    }
    if let Some(list) = pattern.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}")) {
        return list.split(|byte| *byte == b',').any(|end| matches_name(end, name));
    }
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((wanted, rest)), Some((found, below))) => wanted == found && matches_name(rest, below),
        _ => false,
    }
}

/// A tree of files in which patterns are expanded.
pub trait FolderView {
    /// The error of a folder that cannot be read.
    type Error;

    /// Returns the names in a folder; none if the folder does not exist.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    fn names(&self, folder: &[u8]) -> Result<Vec<Vec<u8>>, Self::Error>;

    /// Returns the names in a folder, each with whether `**` descends into it: it must be no link and no mount point.
    ///
    /// # Errors
    /// As for [`FolderView::names`].
    fn entries(&self, folder: &[u8]) -> Result<Vec<(Vec<u8>, bool)>, Self::Error>;
}

/// Returns the paths that match a pattern without `~`. A name without a wildcard is not looked up, so that the last one need
/// not exist.
///
/// # Errors
/// When a folder cannot be read.
pub fn expand<V: FolderView>(pattern: &str, view: &V) -> Result<Vec<Vec<u8>>, V::Error> {
    let names: Vec<&[u8]> = pattern.as_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    let mut found = Vec::new();
    expand_names(&names, Vec::new(), view, &mut found)?;
    Ok(found)
}

fn expand_names<V: FolderView>(
    names: &[&[u8]],
    at: Vec<u8>,
    view: &V,
    found: &mut Vec<Vec<u8>>,
) -> Result<(), V::Error> {
    let Some((first, rest)) = names.split_first() else {
        found.push(at);
        return Ok(());
    };
    if *first == b"**" {
        return expand_deep(rest.concat().as_slice(), &at, view, found);
    }
    if !first.iter().any(|byte| b"*[{".contains(byte)) {
        return expand_names(rest, join(&at, first), view, found);
    }
    for name in view.names(&at)? {
        if matches_name(first, &name) {
            expand_names(rest, join(&at, &name), view, found)?;
        }
    }
    Ok(())
}

/// Finds a name in a folder, and in all folders below it.
fn expand_deep<V: FolderView>(last: &[u8], at: &[u8], view: &V, found: &mut Vec<Vec<u8>>) -> Result<(), V::Error> {
    for (name, is_folder) in view.entries(at)? {
        let path = join(at, &name);
        if is_folder {
            expand_deep(last, &path, view, found)?;
        }
        if matches_name(last, &name) {
            found.push(path);
        }
    }
    Ok(())
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    [folder, b"/", name].concat()
}

/// Returns the pattern for each of these homes; a pattern without `~` is returned as it is.
#[must_use]
pub fn in_homes(pattern: &str, homes: &[String]) -> Vec<String> {
    match pattern.strip_prefix('~') {
        Some(below) => homes.iter().map(|home| format!("{home}{below}")).collect(),
        None => vec![pattern.to_owned()],
    }
}

/// Returns the homes in the content of `/etc/passwd`, without the root directory.
#[must_use]
pub fn homes(passwd: &str) -> Vec<String> {
    let fields = passwd.lines().filter_map(|line| line.split(':').nth(5));
    let mut homes: Vec<String> =
        fields.map(|home| home.trim_end_matches('/')).filter(|home| home.starts_with('/')).map(str::to_owned).collect();
    homes.sort();
    homes.dedup();
    homes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    struct Listing(&'static [&'static str]);

    impl FolderView for Listing {
        type Error = Infallible;

        fn names(&self, folder: &[u8]) -> Result<Vec<Vec<u8>>, Infallible> {
            let below = |path: &&str| {
                let rest = path.as_bytes().strip_prefix(folder)?.strip_prefix(b"/")?;
                Some(rest.split(|byte| *byte == b'/').next()?.to_vec())
            };
            let mut names: Vec<_> = self.0.iter().filter_map(below).collect();
            names.dedup();
            Ok(names)
        }

        fn entries(&self, folder: &[u8]) -> Result<Vec<(Vec<u8>, bool)>, Infallible> {
            let is_folder = |name: &Vec<u8>| self.names(&join(folder, name)).is_ok_and(|below| !below.is_empty());
            let names = self.names(folder)?.into_iter();
            Ok(names.map(|name| (name.clone(), is_folder(&name))).collect())
        }
    }

    #[test]
    fn a_pattern_matches_as_in_a_shell() {
        for (pattern, path, expected) in [
            ("/etc/machine-id", "/etc/machine-id", true),
            ("/etc/machine-id", "/etc/machine-id-", false),
            ("/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_rsa_key", true),
            ("/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_rsa_key.pub", false),
            ("/var/lib/*", "/var/lib/a/b", false),
            ("/var/log/**/*.[0-9]", "/var/log/x.1", true),
            ("/var/log/**/*.[0-9]", "/var/log/a/b/x.1", true),
            ("/var/log/**/*.[0-9]", "/var/log/x.10", false),
            ("/var/log/**/*.{gz,[0-9]}", "/var/log/a/x.1", true),
            ("/var/log/**/*.{gz,[0-9]}", "/var/log/x.gz", true),
            ("/var/log/**/*.{gz,[0-9]}", "/var/log/x.xz", false),
            ("~/.ssh/id_rsa", "/root/.ssh/id_rsa", true),
            ("~/.ssh/id_rsa", "/home/dev/.ssh/id_rsa", true),
            ("~/.ssh/id_rsa", "/srv/dev/.ssh/id_rsa", false),
        ] {
            assert_eq!(matches(pattern, path.as_bytes()), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_is_expanded_to_what_is_there() {
        let view = Listing(&["/a/x.1", "/a/y", "/a/b/x.2", "/a/b/c/x.3"]);
        let found = |pattern: &str| {
            let found = expand(pattern, &view).unwrap_or_else(|never| match never {});
            found.into_iter().map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(found("/a/x.*"), ["/a/x.1"]);
        assert_eq!(found("/a/**/x.[0-9]"), ["/a/x.1", "/a/b/x.2", "/a/b/c/x.3"]);
        assert_eq!(found("/not/there"), ["/not/there"]);
        assert_eq!(found("/not/*"), [""; 0]);
    }

    #[test]
    fn homes_are_read_from_passwd() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbin:x:2:2::/:/bin/false\ndev:x:1000:1000::/home/dev/:/bin/sh\nbroken\n";
        assert_eq!(homes(passwd), ["/home/dev", "/root"]);
    }
}
