//! The environment that a user gets at a login.
//!
//! PAM is not used, since a static program cannot load its modules; its files are read instead.

use std::collections::BTreeMap;
use std::path::Path;

use super::accounts::User;
use super::{boot_mode, read_text};

/// The search path of root where login.defs(5) sets neither `ENV_SUPATH` nor `ENV_PATH`.
pub(super) const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const USER_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// The search path for programs of an init system that kiln runs itself.
pub(super) const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";
/// The value of `LANG` in a shell if the guest sets none: people type more than ASCII.
const SHELL_LANGUAGE: &str = "C.UTF-8";

/// Variables and their values.
pub type Environment = BTreeMap<String, String>;

/// Returns the environment that a login gives this user, from the files below `etc`. A shell for a person also gets the
/// guest's language.
pub fn environment(user: &User, etc: &Path, is_shell: bool) -> Environment {
    let is_root = user.identity.uid == 0;
    let mut environment = Environment::new();
    environment.insert("PATH".into(), search_path(&read_text(etc.join("login.defs")), is_root));
    if is_shell {
        environment.insert("LANG".into(), SHELL_LANGUAGE.into());
        environment.extend(assignments(&read_text(etc.join("locale.conf"))));
        environment.extend(assignments(&read_text(etc.join("default/locale"))));
    }
    environment.extend(assignments(&read_text(etc.join("environment"))));
    environment.extend(own_variables(user));
    environment.extend(without_init());
    environment
}

/// Returns the variable that tells systemctl(1) that no systemd runs: it changes files alone.
fn without_init() -> Option<(String, String)> {
    boot_mode::is_direct().then(|| ("SYSTEMD_OFFLINE".to_owned(), "1".to_owned()))
}

/// Returns the environment of kiln's own commands, which does not depend on the guest's files.
pub fn bare_environment(user: &User) -> Environment {
    let mut environment = own_variables(user);
    environment.insert("PATH".into(), search_path("", user.identity.uid == 0));
    environment
}

fn own_variables(user: &User) -> Environment {
    let own = [("HOME", &user.home), ("USER", &user.name), ("LOGNAME", &user.name), ("SHELL", &user.shell)];
    own.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// Returns the search path that login.defs(5) sets, or the default one.
fn search_path(defaults: &str, is_root: bool) -> String {
    let (key, usual) = if is_root { ("ENV_SUPATH", ROOT_PATH) } else { ("ENV_PATH", USER_PATH) };
    let value = defaults.lines().find_map(|line| {
        let (name, value) = line.trim().split_once(char::is_whitespace)?;
        (name == key).then(|| value.trim())
    });
    let path = value.map(|value| value.strip_prefix("PATH=").unwrap_or(value));
    path.filter(|path| path.starts_with('/')).unwrap_or(usual).to_owned()
}

/// Returns the file that sets the search path of a login, if any does.
pub fn path_file(etc: &Path) -> Option<&'static str> {
    if assignments(&read_text(etc.join("environment"))).iter().any(|(name, _)| name == "PATH") {
        return Some("/etc/environment");
    }
    let defaults = read_text(etc.join("login.defs"));
    let mut lines = defaults.lines().map(str::trim_start);
    let is_set = lines.any(|line| line.starts_with("ENV_PATH") || line.starts_with("ENV_SUPATH"));
    is_set.then_some("/etc/login.defs")
}

/// Parses the assignments of a file such as /etc/environment, as `pam_env(8)` does: nothing is expanded, and `export` may
/// precede a name.
fn assignments(text: &str) -> Vec<(String, String)> {
    let lines = join_lines(text);
    let assignments = lines.iter().filter_map(|line| {
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        is_name.then(|| (name.to_owned(), unquote(value).to_owned()))
    });
    assignments.collect()
}

/// Returns the lines of such a file without comments, which begin with any `#`. A line that ends with a backslash continues
/// in the next one; a continued line at the end of the file is dropped.
fn join_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        let content = line.trim_start_matches([' ', '\t']);
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let begun = open.take();
        let whole = match begun {
            Some(begun) => begun + line,
            None => content.to_owned(),
        };
        let continued = whole.trim_end_matches([' ', '\t']).strip_suffix('\\');
        match (whole.split_once('#'), continued) {
            (Some((before, _)), _) => lines.push(before.to_owned()),
            (None, Some(continued)) => open = Some(continued.to_owned()),
            (None, None) => lines.push(whole),
        }
    }
    lines
}

/// Removes the quote that a value begins with, and then one at its end.
fn unquote(value: &str) -> &str {
    match value.strip_prefix(['"', '\'']) {
        Some(inner) => inner.strip_suffix(['"', '\'']).unwrap_or(inner),
        None => value,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::accounts::user;
    use super::*;

    #[test]
    fn the_search_path_is_that_of_login_defs() {
        let defaults = "# ENV_PATH no\nENV_SUPATH\tPATH=/root/bin:/bin\nENV_PATH PATH=/usr/games\nUMASK 022\n";
        assert_eq!(search_path(defaults, true), "/root/bin:/bin");
        assert_eq!(search_path(defaults, false), "/usr/games");
        assert_eq!(search_path("", true), ROOT_PATH);
        assert_eq!(search_path("ENV_PATH nonsense", false), USER_PATH);
    }

    #[test]
    fn etc_environment_is_read_as_pam_does() {
        for (text, expected) in [
            ("# comment\nPATH=\"/opt/bin:/bin\"\n", vec![("PATH", "/opt/bin:/bin")]),
            (
                "export http_proxy='http://proxy:3128'\nnot a name=1\nEMPTY=\n",
                vec![("http_proxy", "http://proxy:3128"), ("EMPTY", "")],
            ),
            ("export Q=1 # c\nHASH=a#b\n", vec![("Q", "1 "), ("HASH", "a")]),
            (
                "HALF=\"half\nMIXED='a\"\nINNER=\"a\"b\"\nTAIL=a\"\n",
                vec![("HALF", "half"), ("MIXED", "a"), ("INNER", "a\"b"), ("TAIL", "a\"")],
            ),
            (
                "  LEAD=lead\nTRAIL=trail  \nX=$HOME\nA=b=c\n1BAD=x\n",
                vec![("LEAD", "lead"), ("TRAIL", "trail  "), ("X", "$HOME"), ("A", "b=c"), ("1BAD", "x")],
            ),
            ("LONG=\\\ncont\nTWO=a\\  \n# skipped\n b # c\n", vec![("LONG", "cont"), ("TWO", "a b ")]),
            ("export\tTAB=z\nSP ACE=y\n=x\nNONE\nOPEN=a\\\n", vec![]),
        ] {
            let expected: Vec<_> = expected.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            assert_eq!(assignments(text), expected, "{text:?}");
        }
    }

    #[test]
    fn etc_environment_overrides_the_path_but_not_the_user() {
        let etc = tempfile::tempdir().unwrap();
        fs::write(etc.path().join("environment"), "PATH=/opt\nHOME=/elsewhere\nLANG=de_DE.UTF-8\n").unwrap();
        let dev = user("dev", 1000, "/bin/sh");
        let environment = environment(&dev, etc.path(), false);
        assert_eq!(environment["PATH"], "/opt");
        assert_eq!(environment["HOME"], "/home/dev");
        assert_eq!(environment["LANG"], "de_DE.UTF-8");
    }

    #[test]
    fn the_file_that_sets_the_path_is_known() {
        let etc = tempfile::tempdir().unwrap();
        assert_eq!(path_file(etc.path()), None);
        fs::write(etc.path().join("login.defs"), "ENV_PATH PATH=/bin\n").unwrap();
        assert_eq!(path_file(etc.path()), Some("/etc/login.defs"));
        fs::write(etc.path().join("environment"), b"NAME=\xff\nPATH=/opt\n").unwrap();
        assert_eq!(path_file(etc.path()), Some("/etc/environment"));
    }

    #[test]
    fn only_a_shell_has_a_language_of_its_own() {
        let etc = tempfile::tempdir().unwrap();
        let dev = user("dev", 1000, "/bin/sh");
        assert!(!environment(&dev, etc.path(), false).contains_key("LANG"));
        assert_eq!(environment(&dev, etc.path(), true)["LANG"], "C.UTF-8");
        fs::create_dir(etc.path().join("default")).unwrap();
        fs::write(etc.path().join("default/locale"), "LANG=\"en_GB.UTF-8\"\n").unwrap();
        assert_eq!(environment(&dev, etc.path(), true)["LANG"], "en_GB.UTF-8");
    }
}
