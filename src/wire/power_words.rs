//! Recognizes commands that turn a machine off or restart it.

/// Words of such commands; the last one is that of `/proc/sysrq-trigger`.
const POWER_WORDS: [&str; 7] = ["reboot", "poweroff", "shutdown", "halt", "kexec", "telinit", "sysrq"];

/// Returns whether a text has a word of a command that turns a machine off or restarts it.
#[must_use]
pub fn mentions_power(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|word| POWER_WORDS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_words_turn_a_machine_off() {
        for text in [
            "(sleep 60; /sbin/reboot) &",
            "systemctl poweroff",
            "echo b >/proc/sysrq-trigger",
            "ExecStart=@/usr/bin/systemctl \"/usr/bin/systemctl\" \"reboot\"",
            "ExecStart=\"/sbin/shutdown\" \"-r\" \"now\"",
        ] {
            assert!(mentions_power(text), "{text}");
        }
        for text in ["echo rebooted; touch /var/run/reboots", "ExecStart=\"/usr/bin/check\" \"rebooted\""] {
            assert!(!mentions_power(text), "{text}");
        }
    }
}
