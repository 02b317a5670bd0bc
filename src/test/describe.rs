//! Descriptions of what a check compared: the beginning of a command's output or of a file, and its size.

use regex_lite::Regex;

/// The number of characters that are shown of a line.
const SHOWN: usize = 120;

/// Describes text: "`golden`", "`first line` and 3 more lines (120 bytes)" or "nothing".
pub(super) fn describe_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let Some(first) = lines.next() else {
        return if bytes.is_empty() { "nothing".to_owned() } else { format!("{} bytes without text", bytes.len()) };
    };
    let shown = shorten(first.trim_end());
    match lines.count() {
        0 if shown == first.trim_end() => format!("`{shown}`"),
        0 => format!("`{shown}` ({} bytes)", bytes.len()),
        1 => format!("`{shown}` and 1 more line ({} bytes)", bytes.len()),
        more => format!("`{shown}` and {more} more lines ({} bytes)", bytes.len()),
    }
}

/// Cuts a line to the length that is shown.
pub(super) fn shorten(line: &str) -> String {
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

/// Returns whether the expression matches what a command wrote. `$` matches before the newline at its end as well, as in
/// grep, Perl and Python.
pub(super) fn matches_output(regex: &str, output: &str) -> bool {
    let stripped = output.strip_suffix('\n').unwrap_or(output);
    let stripped = stripped.strip_suffix('\r').unwrap_or(stripped);
    Regex::new(regex).is_ok_and(|regex| regex.is_match(stripped) || regex.is_match(output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_output_is_before_its_last_newline() {
        for output in ["golden\n", "golden", "golden\r\n"] {
            assert!(matches_output("^golden$", output), "{output:?}");
        }
        assert!(matches_output("golden\n$", "golden\n") && matches_output("^$", "\n") && matches_output("^$", ""));
        assert!(!matches_output("^golden$", "golden\n\n") && !matches_output("^golden$", "a golden\n"));
        assert!(matches_output("(?m)^b$", "a\nb\nc\n"));
    }

    #[test]
    fn text_is_described_by_its_first_line_and_its_length() {
        assert_eq!(describe_text(b"golden\n"), "`golden`");
        assert_eq!(describe_text(b""), "nothing");
        assert_eq!(describe_text(b"\n \n"), "3 bytes without text");
        assert_eq!(describe_text(b"\nfirst\nsecond\n"), "`first` and 1 more line (14 bytes)");
        assert_eq!(describe_text(b"1\n2\n3\n"), "`1` and 2 more lines (6 bytes)");
        let long = describe_text("\u{e9}".repeat(500).as_bytes());
        assert!(long.ends_with("...` (1000 bytes)") && long.chars().count() < 150, "{long}");
    }
}
