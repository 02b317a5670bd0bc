//! Text in XML 1.0.

/// Escapes text for an element or a quoted attribute. Control characters, most of which XML cannot contain at all, and the
/// two other characters that it excludes become spaces.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_for_elements_and_attributes() {
        assert_eq!(escape(r#"it's <"a" & b> é"#), "it&apos;s &lt;&quot;a&quot; &amp; b&gt; é");
    }

    #[test]
    fn characters_that_xml_excludes_become_spaces() {
        // The production `Char` of XML 1.0, 2.2.
        let is_allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
        for c in '\0'..=char::MAX {
            let escaped = escape(&c.to_string());
            assert!(escaped.chars().all(is_allowed), "{c:?}");
            assert!(is_allowed(c) || escaped == " ", "{c:?}");
        }
    }
}
