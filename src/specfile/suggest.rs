//! "Did you mean" suggestions: the closest name, or all of them.

/// The most names that are listed; names of the user's own, such as variables, may be many.
const MAX_LISTED: usize = 20;

/// Returns a sentence that suggests names to somebody who wrote `word` where only `known` are valid.
pub(super) fn suggest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    match closest(word, known.iter().copied()) {
        Some(name) => Some(format!("did you mean `{name}`?")),
        None if known.is_empty() => None,
        None => Some(format!("known here: {}", list(&known))),
    }
}

/// Lists names in backquotes, with commas between them.
pub(super) fn list(names: &[&str]) -> String {
    let shown = names.iter().take(MAX_LISTED).map(|name| format!("`{name}`"));
    let more = (names.len() > MAX_LISTED).then(|| "...".to_owned());
    shown.chain(more).collect::<Vec<_>>().join(", ")
}

/// Returns the name that was probably meant.
pub(crate) fn closest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // The distance takes quadratic time, and no name is this long.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase().replace('_', "-");
    let near = known.into_iter().filter_map(|name| {
        let distance = strsim::osa_distance(&word, &name.to_lowercase().replace('_', "-"));
        (distance <= (word.len().max(name.len()) / 3).max(1)).then_some((distance, name))
    });
    near.min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_nonsense_gets_the_list() {
        let known = ["memory", "cpus", "boot-timeout"];
        let help = |word| suggest(word, known).unwrap();
        assert_eq!(help("memroy"), "did you mean `memory`?");
        assert_eq!(help("Boot_Timeout"), "did you mean `boot-timeout`?");
        assert_eq!(help("banana"), "known here: `memory`, `cpus`, `boot-timeout`");
        assert_eq!(help(&"x".repeat(100_000)), "known here: `memory`, `cpus`, `boot-timeout`");
        assert_eq!(suggest("a", []), None);
    }
}
