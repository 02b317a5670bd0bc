//! Detection of secrets written directly into a spec. A spec is committed, and its text ends up in logs and keys. Findings
//! are only warnings, since the shape of a string proves nothing.

/// The prefixes of such strings, the fewest letters and digits that follow, and the kind of secret that it looks like.
const SHAPES: [(&str, usize, &str); 9] = [
    ("AKIA", 16, "an AWS access key"),
    ("ASIA", 16, "an AWS access key"),
    ("ghp_", 36, "a GitHub token"),
    ("github_pat_", 22, "a GitHub token"),
    ("glpat-", 20, "a GitLab token"),
    ("xoxb-", 10, "a Slack token"),
    ("xoxp-", 10, "a Slack token"),
    ("sk_live_", 16, "a Stripe key"),
    ("PRIVATE KEY-----", 0, "a private key"),
];

/// Returns the lines of a text that look like a secret, from 1, with the kind of secret.
#[must_use]
pub fn giveaways(text: &str) -> Vec<(usize, &'static str)> {
    text.lines().zip(1..).filter_map(|(line, number)| Some((number, find_kind(line)?))).collect()
}

fn find_kind(line: &str) -> Option<&'static str> {
    SHAPES.iter().find(|(prefix, least, _)| contains_token(line, prefix, *least)).map(|(_, _, kind)| *kind)
}

fn contains_token(line: &str, prefix: &str, least: usize) -> bool {
    let mut rests = line.match_indices(prefix).map(|(at, _)| &line[at + prefix.len()..]);
    rests.any(|rest| rest.chars().take_while(char::is_ascii_alphanumeric).count() >= least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s10_keys_and_tokens_are_seen_and_words_are_not() {
        let text = "run = 'export K=AKIAABCDEFGHIJKLMNOP'\nname = 'AKIAABC'\n\n-----BEGIN OPENSSH PRIVATE KEY-----\n";
        assert_eq!(giveaways(text), [(1, "an AWS access key"), (4, "a private key")]);
        assert_eq!(giveaways("run = 'glpat-short; xoxb-'"), []);
    }
}
