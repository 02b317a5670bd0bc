//! Invisible characters.

/// Returns whether a character could make a terminal show something else than what is written.
pub(super) fn is_forgery(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
