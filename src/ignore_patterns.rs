//! Patterns of files in git's syntax (gitignore(5)), matched as git matches them: byte by byte, the last match wins.

use std::fmt;

/// What a byte of a path, or several, must be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// This byte.
    Literal(u8),
    /// `?`: any byte but a slash.
    Any,
    /// `[...]`: one of these bytes, or none of them; never a slash.
    Class { is_negated: bool, ranges: Vec<(u8, u8)> },
    /// `*`: any part of a name.
    Star,
    /// `**/`: any number of folders.
    Folders,
    /// `**` at the end: anything.
    Rest,
}

/// One pattern.
#[derive(Clone, PartialEq, Eq)]
pub struct IgnorePattern {
    text: String,
    tokens: Vec<Token>,
    /// Whether it begins with `!`: what it matches is not left out.
    is_negated: bool,
    /// Whether it ends with a slash: it matches folders alone.
    is_for_folders: bool,
    /// Whether it has a slash before its end: it matches the whole path below the folder of the patterns.
    is_anchored: bool,
}

impl fmt::Debug for IgnorePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// The reason why a string is no pattern. git accepts such a string, and it matches nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// There is nothing to match.
    #[error("an empty pattern matches nothing")]
    Empty,
    /// A `[` has no `]`.
    #[error("a `[` in the pattern has no `]`; write `\\[` for the character itself")]
    OpenClass,
    /// A `[:name:]` is unknown.
    #[error("a class of characters in the pattern is unknown, such as `[:digit:]` and `[:alpha:]`")]
    UnknownClass,
    /// The last character is a backslash.
    #[error("the pattern ends with a backslash; write `\\\\` for the character itself")]
    OpenEscape,
}

impl IgnorePattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// When the pattern could match nothing.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let positive = text.strip_prefix('!');
        let pattern = positive.unwrap_or(text);
        let path = pattern.strip_suffix('/').unwrap_or(pattern);
        let is_anchored = path.contains('/');
        let tokens = PatternParser::new(path.strip_prefix('/').unwrap_or(path), is_anchored).parse()?;
        if tokens.is_empty() {
            return Err(PatternError::Empty);
        }
        Ok(Self {
            text: text.to_owned(),
            tokens,
            is_negated: positive.is_some(),
            is_for_folders: path.len() < pattern.len(),
            is_anchored,
        })
    }

    /// Returns whether the pattern matches a path below the folder of the patterns.
    fn matches(&self, path: &[u8], is_folder: bool) -> bool {
        if self.is_for_folders && !is_folder {
            return false;
        }
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        matches_tokens(&self.tokens, if self.is_anchored { path } else { name })
    }
}

/// Parses the part of a pattern between its `!` and the slash at its end.
struct PatternParser<'p> {
    pattern: &'p [u8],
    at: usize,
    /// Whether it has slashes: only then `**` is more than `*`.
    is_anchored: bool,
}

impl<'p> PatternParser<'p> {
    fn new(pattern: &'p str, is_anchored: bool) -> Self {
        Self { pattern: pattern.as_bytes(), at: 0, is_anchored }
    }

    fn parse(mut self) -> Result<Vec<Token>, PatternError> {
        let mut tokens = Vec::new();
        while let Some(byte) = self.next() {
            tokens.push(match byte {
                b'\\' => Token::Literal(self.next().ok_or(PatternError::OpenEscape)?),
                b'?' => Token::Any,
                b'[' => self.class()?,
                b'*' => self.stars(),
                other => Token::Literal(other),
            });
        }
        Ok(tokens)
    }

    fn peek(&self) -> Option<u8> {
        self.pattern.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    /// Parses the stars of which the first was read.
    fn stars(&mut self) -> Token {
        let first = self.at - 1;
        while self.peek() == Some(b'*') {
            self.at += 1;
        }
        let is_double = self.at - first > 1;
        let begins_name = first == 0 || self.pattern[first - 1] == b'/';
        match self.peek() {
            _ if !self.is_anchored || !is_double || !begins_name => Token::Star,
            None => Token::Rest,
            Some(b'/') => {
                self.at += 1;
                Token::Folders
            }
            Some(_) => Token::Star,
        }
    }

    /// Parses a class, whose `[` was read. A `]` that is first, and a `-` that is first or last, stand for themselves.
    fn class(&mut self) -> Result<Token, PatternError> {
        let is_negated = matches!(self.peek(), Some(b'!' | b'^'));
        self.at += usize::from(is_negated);
        let mut ranges = Vec::new();
        let mut is_first = true;
        loop {
            match self.next().ok_or(PatternError::OpenClass)? {
                b']' if !is_first => return Ok(Token::Class { is_negated, ranges }),
                b'[' if self.peek() == Some(b':') => self.named_class(&mut ranges)?,
                byte => {
                    let first = self.class_byte(byte)?;
                    ranges.push((first, self.range_end()?.unwrap_or(first)));
                }
            }
            is_first = false;
        }
    }

    /// Returns the byte of a class that begins with this one, which may be a backslash.
    fn class_byte(&mut self, byte: u8) -> Result<u8, PatternError> {
        if byte == b'\\' { self.next().ok_or(PatternError::OpenClass) } else { Ok(byte) }
    }

    /// Parses `-` and the end of a range, if they follow.
    fn range_end(&mut self) -> Result<Option<u8>, PatternError> {
        match self.pattern.get(self.at..) {
            Some([b'-', end, ..]) if *end != b']' => {
                self.at += 2;
                self.class_byte(*end).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Parses `:name:]`, or takes the `[` before it literally.
    fn named_class(&mut self, ranges: &mut Vec<(u8, u8)>) -> Result<(), PatternError> {
        let rest = &self.pattern[self.at + 1..];
        let end = rest.iter().position(|byte| *byte == b']').ok_or(PatternError::OpenClass)?;
        let Some(name) = rest[..end].strip_suffix(b":") else {
            ranges.push((b'[', b'['));
            return Ok(());
        };
        ranges.extend(named_ranges(name).ok_or(PatternError::UnknownClass)?);
        self.at += 1 + end + 1;
        Ok(())
    }
}

/// Returns the bytes of a class of POSIX, in the C locale.
fn named_ranges(name: &[u8]) -> Option<&'static [(u8, u8)]> {
    Some(match name {
        b"alnum" => &[(b'0', b'9'), (b'A', b'Z'), (b'a', b'z')],
        b"alpha" => &[(b'A', b'Z'), (b'a', b'z')],
        b"blank" => &[(b' ', b' '), (b'\t', b'\t')],
        b"cntrl" => &[(0, 31), (127, 127)],
        b"digit" => &[(b'0', b'9')],
        b"graph" => &[(33, 126)],
        b"lower" => &[(b'a', b'z')],
        b"print" => &[(32, 126)],
        b"punct" => &[(33, 47), (58, 64), (91, 96), (123, 126)],
        b"space" => &[(9, 13), (b' ', b' ')],
        b"upper" => &[(b'A', b'Z')],
        b"xdigit" => &[(b'0', b'9'), (b'A', b'F'), (b'a', b'f')],
        _ => return None,
    })
}

/// Returns whether tokens match a whole string. Follows all ways to match it at once, so the time is bounded by the product
/// of their lengths, whatever the pattern is.
fn matches_tokens(tokens: &[Token], string: &[u8]) -> bool {
    // Before which tokens the match may be.
    let mut places = vec![false; tokens.len() + 1];
    places[0] = true;
    skip_optional(tokens, &mut places, true);
    let mut next = vec![false; tokens.len() + 1];
    for byte in string {
        next.fill(false);
        let active = tokens.iter().enumerate().filter(|(index, _)| places[*index]);
        for (index, token) in active {
            match token.step(*byte) {
                TokenStep::Fail => {}
                TokenStep::Stay => next[index] = true,
                TokenStep::Advance => next[index + 1] = true,
            }
        }
        skip_optional(tokens, &mut next, *byte == b'/');
        std::mem::swap(&mut places, &mut next);
        if !places.contains(&true) {
            return false;
        }
    }
    places[tokens.len()]
}

/// Adds the places behind tokens that match nothing. `**/` does at the beginning of a name alone.
fn skip_optional(tokens: &[Token], places: &mut [bool], begins_name: bool) {
    for (index, token) in tokens.iter().enumerate() {
        let is_optional = match token {
            Token::Star | Token::Rest => true,
            Token::Folders => begins_name,
            Token::Literal(_) | Token::Any | Token::Class { .. } => false,
        };
        places[index + 1] |= places[index] && is_optional;
    }
}

/// What a byte does to the match of a token.
enum TokenStep {
    Fail,
    Stay,
    Advance,
}

impl Token {
    fn step(&self, byte: u8) -> TokenStep {
        let is_one = match self {
            Token::Folders | Token::Rest => return TokenStep::Stay,
            Token::Star => return if byte == b'/' { TokenStep::Fail } else { TokenStep::Stay },
            Token::Literal(wanted) => *wanted == byte,
            Token::Any => byte != b'/',
            Token::Class { is_negated, ranges } => {
                byte != b'/' && ranges.iter().any(|(first, last)| (*first..=*last).contains(&byte)) != *is_negated
            }
        };
        if is_one { TokenStep::Advance } else { TokenStep::Fail }
    }
}

/// Patterns in their order, all relative to one folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IgnoreRules(Vec<IgnorePattern>);

impl FromIterator<IgnorePattern> for IgnoreRules {
    fn from_iter<I: IntoIterator<Item = IgnorePattern>>(patterns: I) -> Self {
        Self(patterns.into_iter().collect())
    }
}

impl IgnoreRules {
    /// Parses a file of patterns, a line each; `#` begins a comment.
    ///
    /// # Errors
    /// The first line, from 1, that is no pattern.
    pub fn parse(text: &str) -> Result<Self, (usize, PatternError)> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().map(trim_spaces).zip(1..);
        let patterns = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        patterns.map(|(line, number)| IgnorePattern::parse(line).map_err(|error| (number, error))).collect()
    }

    /// Returns whether the last pattern that matches a path leaves it out; `None` where none matches.
    #[must_use]
    pub fn verdict(&self, path: &[u8], is_folder: bool) -> Option<bool> {
        let last = self.0.iter().rev().find(|pattern| pattern.matches(path, is_folder))?;
        Some(!last.is_negated)
    }

    /// Returns whether a path, or a folder on the way to it, is left out. As in git, nothing in a folder that is left out
    /// comes back.
    #[must_use]
    pub fn leaves_out(&self, path: &[u8], is_folder: bool) -> bool {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut folders = slashes.map(|(end, _)| &path[..end]);
        folders.any(|folder| self.verdict(folder, true) == Some(true)) || self.verdict(path, is_folder) == Some(true)
    }
}

/// Removes the spaces at the end of a line, except one behind a backslash.
fn trim_spaces(line: &str) -> &str {
    let trimmed = line.trim_end_matches(' ');
    let backslashes = trimmed.bytes().rev().take_while(|byte| *byte == b'\\').count();
    let is_escaped = backslashes % 2 == 1 && trimmed.len() < line.len();
    &line[..trimmed.len() + usize::from(is_escaped)]
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn rules(text: &str) -> IgnoreRules {
        IgnoreRules::parse(text).unwrap()
    }

    #[test]
    fn patterns_mean_what_gitignore_says() {
        for (pattern, left_out, kept) in [
            ("*.swp", &["a.swp", "x/y/.swp"][..], &["a.swp.txt", "swp"][..]),
            ("/a", &["a"], &["x/a"]),
            ("x/a", &["x/a"], &["y/x/a", "a"]),
            ("**/a", &["a", "x/a", "x/y/a"], &["xa"]),
            ("x/**", &["x/a", "x/y/a"], &["x", "y/x/a"]),
            ("x/**/a", &["x/a", "x/y/a", "x/y/z/a"], &["xa", "x/ya"]),
            ("x/*/a", &["x/y/a"], &["x/a", "x/y/z/a"]),
            ("a?", &["ab"], &["a", "abc"]),
            ("[a-c]1", &["a1", "c1"], &["d1", "-1"]),
            ("[!a]", &["b"], &["a"]),
            ("[]a]", &["]", "a"], &["[", "b"]),
            ("[[:digit:]x]", &["7", "x"], &["d", ":"]),
            ("\\#a", &["#a"], &["a"]),
            ("\\!a", &["!a"], &["a"]),
            ("a\\*", &["a*"], &["ab"]),
            ("a\\ ", &["a "], &["a"]),
            ("x", &["x/deep/below"], &["y/deep"]),
        ] {
            let rules = rules(pattern);
            for path in left_out {
                assert!(rules.leaves_out(path.as_bytes(), false), "{pattern} should match {path}");
            }
            for path in kept {
                assert!(!rules.leaves_out(path.as_bytes(), false), "{pattern} should not match {path}");
            }
        }
    }

    #[test]
    fn the_last_match_wins_and_a_folder_takes_its_content_along() {
        let rules = rules("# comment\n*.log  \n!keep.log\r\n\nout/\n!out/keep.log\n");
        for (path, is_folder, left_out) in [
            ("a.log", false, true),
            ("keep.log", false, false),
            ("x/keep.log", false, false),
            ("out", true, true),
            ("out", false, false),
            ("out/keep.log", false, true),
            ("# comment", false, false),
        ] {
            assert_eq!(rules.leaves_out(path.as_bytes(), is_folder), left_out, "{path}");
        }
    }

    #[test]
    fn what_can_match_nothing_is_an_error() {
        let lines = "a\n[b\n";
        assert_eq!(IgnoreRules::parse(lines), Err((2, PatternError::OpenClass)));
        for (pattern, error) in [
            ("", PatternError::Empty),
            ("!", PatternError::Empty),
            ("/", PatternError::Empty),
            ("[]", PatternError::OpenClass),
            ("[a-", PatternError::OpenClass),
            ("[a\\", PatternError::OpenClass),
            ("[[:digit:]", PatternError::OpenClass),
            ("[[:nothing:]]", PatternError::UnknownClass),
            ("a\\", PatternError::OpenEscape),
        ] {
            assert_eq!(IgnorePattern::parse(pattern), Err(error), "{pattern}");
        }
    }

    #[test]
    fn s7_a_hostile_pattern_is_matched_soon() {
        let pattern = format!("/{}b", "**/*a".repeat(200));
        let path = "a".repeat(4000);
        assert!(!rules(&pattern).leaves_out(path.as_bytes(), false));
    }

    /// Files and folders of the tree on which kiln and git are compared; a slash ends a folder.
    const TREE: [&str; 17] = [
        "a", "b", "ab", "ba", "a.b", "[", "x/", "x/a", "x/b", "x/ab", "x/y/", "x/y/a", "x/y/b", "x/y/x/", "x/y/x/a",
        "y/", "y/a",
    ];

    /// Returns which paths of [`TREE`] git ignores in a work tree, by `git check-ignore`.
    fn ignored_by_git(tree: &Path) -> Vec<bool> {
        let paths: String = TREE.map(|path| format!("{}\0", path.trim_end_matches('/'))).concat();
        let mut command = Command::new("git");
        command.args(["-c", "core.excludesFile=", "check-ignore", "--no-index", "-z", "-v", "-n", "--stdin"]);
        let command = command.current_dir(tree).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("git is installed");
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), paths.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        // Source, line, pattern and path of each; a negated pattern is named as well.
        let fields: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
        fields.chunks_exact(4).map(|record| !record[2].is_empty() && record[2][0] != b'!').collect()
    }

    fn make_tree(root: &Path) {
        let output = Command::new("git").args(["init", "-q"]).current_dir(root).output().expect("git is installed");
        assert!(output.status.success(), "{output:?}");
        for path in TREE {
            match path.strip_suffix('/') {
                Some(folder) => fs::create_dir(root.join(folder)).unwrap(),
                None => fs::write(root.join(path), "").unwrap(),
            }
        }
    }

    fn pattern() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            4 => "[abxy]".prop_map(|text: String| text),
            2 => Just("/".to_owned()),
            2 => Just("*".to_owned()),
            1 => Just("**".to_owned()),
            1 => Just("**/".to_owned()),
            1 => Just("?".to_owned()),
            1 => Just("[ab]".to_owned()),
            1 => Just("[!a]".to_owned()),
            1 => Just("[[:alpha:]]".to_owned()),
            1 => Just("\\a".to_owned()),
            1 => Just("\\[".to_owned()),
            1 => Just(".".to_owned()),
        ];
        (prop::bool::weighted(0.2), prop::collection::vec(part, 1..6))
            .prop_map(|(is_negated, parts)| format!("{}{}", if is_negated { "!" } else { "" }, parts.concat()))
    }

    /// Returns whether gitignore(5) says what a pattern means: it has no empty names, and `**` only as a whole name. For others
    /// git's answer depends on the literal characters at the beginning of the pattern.
    fn is_documented(pattern: &str) -> bool {
        let names = pattern.trim_start_matches('!').trim_start_matches('/').trim_end_matches('/').split('/');
        let are_plain = names.clone().all(|name| !name.is_empty() && (name == "**" || !name.contains("**")));
        are_plain && !pattern.contains("//") && IgnorePattern::parse(pattern).is_ok()
    }

    #[test]
    fn git_ignores_the_same_files() {
        let tree = tempfile::tempdir().unwrap();
        make_tree(tree.path());
        let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
        let matched = Cell::new(0);
        let compare = |patterns: Vec<String>| {
            let patterns: Vec<String> = patterns.into_iter().filter(|pattern| is_documented(pattern)).collect();
            let text = patterns.join("\n");
            fs::write(tree.path().join(".gitignore"), &text).unwrap();
            let rules = rules(&text);
            let ours = TREE.map(|path| rules.leaves_out(path.trim_end_matches('/').as_bytes(), path.ends_with('/')));
            let theirs = ignored_by_git(tree.path());
            assert_eq!(theirs.len(), TREE.len());
            for ((path, ours), theirs) in TREE.iter().zip(ours).zip(theirs) {
                assert_eq!(ours, theirs, "{path} with {patterns:?}");
                matched.set(matched.get() + usize::from(ours));
            }
        };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let patterns = prop::collection::vec(pattern(), 1..4);
        let run = runner.run(&patterns, |patterns| {
            compare(patterns);
            Ok(())
        });
        run.unwrap();
        assert!(matched.get() > 300, "the patterns match too little to compare: {}", matched.get());
    }
}
