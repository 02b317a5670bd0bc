//! Names of steps and tests: given by the spec, or derived by default.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::Command;
use super::complaint::SpecError;
use super::document::SpannedValue;
use super::hidden_characters::is_forgery;
use super::reader::SpecReader;

/// The longest default name, in characters.
const MAX_DEFAULT_NAME: usize = 60;

/// Returns the names that the spec gives, and reports those that it gives twice.
pub(super) fn explicit_names<'n>(
    names: impl Iterator<Item = &'n SpannedValue<String>>,
    reader: &mut SpecReader,
) -> HashSet<String> {
    let mut first: HashMap<&str, &Range<usize>> = HashMap::new();
    for name in names {
        if let Some(first) = first.get(name.value.as_str()) {
            let error = SpecError::new(name.span.clone(), format!("the name `{}` is taken", name.value));
            reader.report(error.related((*first).clone(), "taken here"));
        } else {
            first.insert(&name.value, &name.span);
        }
    }
    first.into_keys().map(str::to_owned).collect()
}

/// Makes a default name unique: adds a number if the name is taken.
pub(super) fn unique(name: &str, taken: &mut HashSet<String>) -> String {
    let numbered = (2..).map(|number| format!("{name} ({number})"));
    let mut candidates = std::iter::once(name.to_owned()).chain(numbered);
    candidates.find(|name| taken.insert(name.clone())).expect("there is always another number")
}

/// Shortens a text to a line that can serve as a name: the first that is not blank, without control characters, and not too
/// long.
pub(super) fn shorten(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let words = line.replace(is_forgery, " ").split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(MAX_DEFAULT_NAME) {
        Some((end, _)) => format!("{}...", words[..end].trim_end()),
        None => words,
    }
}

pub(super) fn run_name(command: &Command) -> String {
    match command {
        Command::Shell(text) => shorten(&format!("run {}", text.trim_start())),
        Command::Argv(words) => shorten(&format!("run {}", words.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_names_are_short_lines() {
        let name = |text: &str| run_name(&Command::Shell(text.into()));
        assert_eq!(name("apt-get install -y nginx"), "run apt-get install -y nginx");
        assert_eq!(name("\n  a\tb\u{202e}\u{1b}[1m\n c"), "run a b [1m");
        let long = name(&"ü".repeat(100));
        assert!(long.chars().count() == MAX_DEFAULT_NAME + 3 && long.ends_with("ü..."), "{long}");
    }

    #[test]
    fn default_names_avoid_what_is_taken() {
        let mut taken = HashSet::from(["reboot (2)".to_owned()]);
        let names: Vec<String> = (0..3).map(|_| unique("reboot", &mut taken)).collect();
        assert_eq!(names, ["reboot", "reboot (3)", "reboot (4)"]);
    }
}
