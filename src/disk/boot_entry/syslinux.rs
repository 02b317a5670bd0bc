//! Reads the menus of SYSLINUX and EXTLINUX (`doc/syslinux.txt`, `doc/menu.txt`).

use super::command_line::KernelCommandLine;
use super::{BootEntry, BootMenu};

/// Parses a menu, ignoring case. The default is unknown if another file can change it.
pub(super) fn parse_syslinux(text: &str) -> BootMenu {
    let mut entries: Vec<BootEntry> = Vec::new();
    let mut default = None;
    let mut has_include = false;
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let key = words.first().unwrap_or(&"").to_ascii_lowercase();
        let second = words.get(1).unwrap_or(&"").to_ascii_lowercase();
        let value = words.get(1..).unwrap_or_default().join(" ");
        match (key.as_str(), second.as_str()) {
            ("default" | "ontimeout", _) if !is_module(&value) => default = Some(value),
            ("menu", "default") => default = entries.last().and_then(|entry| entry.names.first().cloned()).or(default),
            ("include", _) | ("menu", "include") => has_include = true,
            ("label", _) => entries.push(BootEntry { names: vec![value], ..BootEntry::default() }),
            ("append", _) => {
                if let Some(entry) = entries.last_mut() {
                    entry.line = KernelCommandLine::parse(&value);
                }
            }
            _ => {}
        }
    }
    let place = match default {
        Some(name) => entries.iter().position(|entry| entry.names.contains(&name)),
        None => Some(0),
    };
    BootMenu { entries, default: place.filter(|_| !has_include).map(|place| place.to_string()) }
}

/// Returns whether the default is a program that shows the menu.
fn is_module(name: &str) -> bool {
    [".c32", ".cbt", ".com"].iter().any(|suffix| name.to_ascii_lowercase().ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_may_be_said_in_many_ways() {
        let labels = "LABEL a\n KERNEL /v\n APPEND root=/dev/vda2\nLABEL b\n KERNEL /v\n append root=/dev/vda3\n";
        for (text, expected) in [
            (labels.to_owned(), Some("0")),
            (format!("DEFAULT b\n{labels}"), Some("1")),
            (format!("DEFAULT menu.c32\n{labels}  MENU DEFAULT\n"), Some("1")),
            (format!("default a\nontimeout b\n{labels}"), Some("1")),
            (format!("default gone\n{labels}"), None),
            (format!("default a\ninclude more.cfg\n{labels}"), None),
        ] {
            let menu = parse_syslinux(&text);
            assert_eq!((menu.entries.len(), menu.default.as_deref()), (2, expected), "{text}");
        }
    }
}
