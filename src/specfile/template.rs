//! Templates, `{{ name }}` in a string: where a variable stands, and where braces are literal.

/// A part of a template.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TemplatePart<'t> {
    /// A literal string.
    Text(&'t str),
    /// A variable, `{{ name }}`.
    Variable {
        /// The variable's name.
        name: &'t str,
        /// The variable as written, with its braces.
        written: &'t str,
    },
}

/// Cuts a template into pieces. `{{{{` is a literal `{{`; braces around anything but one identifier are kept, so that other
/// template languages pass unharmed.
pub(super) fn pieces(text: &str) -> Vec<TemplatePart<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find("{{") {
        let (before, braces) = rest.split_at(open);
        pieces.push(TemplatePart::Text(before));
        let (piece, length) = if braces.starts_with("{{{{") {
            (TemplatePart::Text("{{"), 4)
        } else if let Some((name, length)) = variable(braces) {
            (TemplatePart::Variable { name, written: &braces[..length] }, length)
        } else {
            (TemplatePart::Text("{{"), 2)
        };
        pieces.push(piece);
        rest = &braces[length..];
    }
    pieces.push(TemplatePart::Text(rest));
    pieces
}

/// Returns the name in braces at the start of a string, and the length of the whole.
fn variable(text: &str) -> Option<(&str, usize)> {
    let inner = text.strip_prefix("{{")?.trim_start_matches([' ', '\t']);
    let end = inner.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(inner.len());
    let (name, after) = inner.split_at(end);
    let after = after.trim_start_matches([' ', '\t']).strip_prefix("}}")?;
    name.starts_with(|c: char| !c.is_ascii_digit()).then_some((name, text.len() - after.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill(text: &str) -> String {
        let show = |piece: &TemplatePart| match piece {
            TemplatePart::Text(text) => (*text).to_owned(),
            TemplatePart::Variable { name, .. } => format!("<{name}>"),
        };
        pieces(text).iter().map(show).collect()
    }

    #[test]
    fn identifiers_are_variables_and_nothing_else_is() {
        assert_eq!(fill("a {{ b_1 }} c {{d}}"), "a <b_1> c <d>");
        assert_eq!(fill("{{{{ b }} {{{{"), "{{ b }} {{");
        for text in ["{{.State}}", "{{ a.b }}", "{{}}", "{{ 1a }}", "{{ a", "{{ a }", "{ a }", "}}", "{{ a | b }}"] {
            assert_eq!(fill(text), text);
        }
    }

    proptest! {
        #[test]
        fn a_text_without_double_braces_is_unchanged(text in "[^{]*") {
            prop_assert_eq!(fill(&text), text);
        }

        #[test]
        fn escaped_braces_come_out_as_they_were(text in "[{}a .]*") {
            // Each pair is doubled from the left, as a person who escapes a string would do.
            prop_assert_eq!(fill(&text.replace("{{", "{{{{")), text);
        }
    }
}
