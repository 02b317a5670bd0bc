//! Who can log in to a clone, in words.

use std::path::PathBuf;

use crate::event::NoticeLevel;
use crate::store::manifest::ManifestOs;

/// What is known about logging in to a clone.
pub(super) struct LoginFacts<'a> {
    /// The command that logs in over SSH, if a port is forwarded.
    pub(super) command: Option<String>,
    /// Whether any key may log in.
    pub(super) has_keys: bool,
    /// The user that the keys are installed for, if that is known.
    pub(super) user: Option<&'static str>,
    /// The reason why cloud-init installs no keys in the clone, if there is one.
    pub(super) obstacle: Option<String>,
    /// The image, as the user has named it.
    pub(super) image: &'a str,
}

/// Returns notices about how to log in. Cloud images have no password, so that a key is needed.
pub(super) fn describe_login(facts: &LoginFacts<'_>) -> Vec<(NoticeLevel, String)> {
    let shell = format!("`kiln shell {}` opens a shell as root in another clone", facts.image);
    if let Some(obstacle) = &facts.obstacle {
        let text = format!("no key is installed ({obstacle}): only users whom the image itself lets in can log in");
        return vec![(NoticeLevel::Warning, text), (NoticeLevel::Info, shell)];
    }
    match &facts.command {
        Some(command) => {
            let unknown =
                if facts.user.is_none() { "; USER is the default user of the image's cloud-init" } else { "" };
            vec![(NoticeLevel::Info, format!("{command}{unknown}"))]
        }
        None if !facts.has_keys => {
            let text = "no public key in ~/.ssh: nobody can log in, unless the image has users of its own";
            let help = format!("`kiln run {} --ssh` makes a key and logs in; {shell}", facts.image);
            vec![(NoticeLevel::Warning, text.to_owned()), (NoticeLevel::Info, help)]
        }
        None => {
            let text = "the console asks for a password, which only an image has that sets one itself; `--ssh` logs in with a key";
            vec![(NoticeLevel::Info, text.to_owned())]
        }
    }
}

/// Returns the user that the keys are installed for, in the distribution's cloud images (cloud.cfg, `default_user`).
pub(super) fn default_user(os: &ManifestOs) -> Option<&'static str> {
    Some(match os.id.as_str() {
        "debian" => "debian",
        "ubuntu" => "ubuntu",
        "fedora" => "fedora",
        "centos" | "rhel" | "ol" => "cloud-user",
        "rocky" => "rocky",
        "almalinux" => "almalinux",
        "amzn" => "ec2-user",
        "alpine" => "alpine",
        "arch" => "arch",
        "opensuse-leap" | "opensuse-tumbleweed" => "opensuse",
        "sles" => "sles",
        _ => return None,
    })
}

/// Returns the user's own public keys, for cloud-init to install. Certificates are left out.
pub(super) fn public_keys() -> Vec<String> {
    let folder = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".ssh"));
    let Some(entries) = folder.and_then(|folder| std::fs::read_dir(folder).ok()) else { return Vec::new() };
    let paths =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "pub"));
    let keys = paths.filter_map(|path| std::fs::read_to_string(path).ok()).map(|key| key.trim().to_owned());
    keys.filter(|key| !key.is_empty() && !key.contains("-cert-v01@")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(facts: &LoginFacts<'_>) -> String {
        let all: Vec<_> = describe_login(facts).into_iter().map(|(_, text)| text).collect();
        all.join("\n")
    }

    #[test]
    fn whoever_can_log_in_is_named_with_the_user() {
        let os = |id: &str| ManifestOs { id: id.into(), version: "12".into(), name: String::new() };
        assert_eq!((default_user(&os("debian")), default_user(&os("frob"))), (Some("debian"), None));
        let facts = |command: Option<&str>, has_keys, user| LoginFacts {
            command: command.map(str::to_owned),
            has_keys,
            user,
            obstacle: None,
            image: "web",
        };
        assert!(sentences(&facts(None, false, Some("debian"))).contains("nobody can log in"));
        assert!(sentences(&facts(None, false, Some("debian"))).contains("`kiln run web --ssh`"));
        assert_eq!(sentences(&facts(Some("ssh debian@h"), true, Some("debian"))), "ssh debian@h");
        assert!(sentences(&facts(Some("ssh USER@h"), true, None)).contains("USER is the default user"));
        assert!(sentences(&facts(None, true, Some("debian"))).contains("`--ssh` logs in"));
        let without_cloud_init = LoginFacts {
            obstacle: Some("cloud-init is not installed".into()),
            ..facts(Some("ssh debian@h"), true, Some("debian"))
        };
        let told = sentences(&without_cloud_init);
        assert!(told.contains("cloud-init is not installed") && told.contains("`kiln shell web`"), "{told}");
    }
}
