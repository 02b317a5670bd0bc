//! Hides password hashes and private keys in a comparison: its output ends up in logs of CI services and in comments that
//! others read.

use std::collections::BTreeMap;

/// Tables of login(1) whose second field is a password hash, and their backups.
const PASSWORD_FILES: [&str; 5] =
    ["/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/security/opasswd"];
/// The string in the first line of every private key format.
const PRIVATE_KEY: &str = "PRIVATE KEY-----";

/// The part of a file's content that may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ShownText {
    /// These two texts, of the old and of the new side.
    Texts(String, String),
    /// Nothing: the file is a private key.
    Hidden,
}

/// Removes secrets from the two contents of a changed file.
pub(super) fn hide_secrets(path: &str, old: String, new: String) -> ShownText {
    if PASSWORD_FILES.contains(&path) {
        let mut hashes = HiddenHashes::default();
        return ShownText::Texts(hashes.hide(&old), hashes.hide(&new));
    }
    if [&old, &new].into_iter().any(|text| text.contains(PRIVATE_KEY)) {
        return ShownText::Hidden;
    }
    ShownText::Texts(old, new)
}

/// Password hashes with numbers, so that a changed hash still shows as a change.
#[derive(Default)]
struct HiddenHashes(BTreeMap<String, usize>);

impl HiddenHashes {
    fn hide(&mut self, text: &str) -> String {
        text.split_inclusive('\n').map(|line| self.hide_line(line)).collect()
    }

    /// Hides the hash in a line `name:hash:...`. A field that is empty, or locks the account, is not a hash.
    fn hide_line(&mut self, line: &str) -> String {
        let mut fields: Vec<&str> = line.split(':').collect();
        let Some(hash) = fields.get(1).copied().filter(|hash| hash.chars().any(|c| !matches!(c, '!' | '*' | 'x')))
        else {
            return line.to_owned();
        };
        let next = self.0.len() + 1;
        let hidden = format!("[hidden {}]", self.0.entry(hash.to_owned()).or_insert(next));
        fields[1] = &hidden;
        fields.join(":")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_hash_is_hidden_and_its_change_is_not() {
        let old = "root:*:19000:0:99999:7:::\nops:$y$j9T$KQab$cd:20000:0:99999:7:::\nold:!:1::::::\n";
        let new = old.replace("KQab", "Zz01");
        let ShownText::Texts(shown_old, shown_new) = hide_secrets("/etc/shadow", old.into(), new.clone()) else {
            panic!()
        };
        assert_eq!(shown_old, old.replace("$y$j9T$KQab$cd", "[hidden 1]"));
        assert_eq!(shown_new, new.replace("$y$j9T$Zz01$cd", "[hidden 2]"));
        let ShownText::Texts(same, again) = hide_secrets("/etc/gshadow", old.into(), old.into()) else { panic!() };
        assert_eq!(same, again);
    }

    #[test]
    fn a_private_key_is_not_shown_and_all_else_is() {
        let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaA==\n";
        assert_eq!(hide_secrets("/etc/x", "a".into(), key.into()), ShownText::Hidden);
        let texts = ShownText::Texts("ops:$y$1".into(), "b".into());
        assert_eq!(hide_secrets("/etc/motd", "ops:$y$1".into(), "b".into()), texts);
    }
}
