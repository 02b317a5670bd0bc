//! `{{ name }}` in a text: where a variable stands, and what is only braces.

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'t> {
    /// Taken as it is.
    Text(&'t str),
    /// `{{ name }}`
    Variable {
        /// The name alone.
        name: &'t str,
        /// The whole of it, with its braces.
        written: &'t str,
    },
}

/// Cuts a text into pieces. `{{{{` is a literal `{{`; braces around anything but one identifier are left alone, so that
/// other template languages pass unharmed.
pub(super) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find("{{") {
        let (before, braces) = rest.split_at(open);
        pieces.push(Piece::Text(before));
        let (piece, length) = if braces.starts_with("{{{{") {
            (Piece::Text("{{"), 4)
        } else if let Some((name, length)) = variable(braces) {
            (Piece::Variable { name, written: &braces[..length] }, length)
        } else {
            (Piece::Text("{{"), 2)
        };
        pieces.push(piece);
        rest = &braces[length..];
    }
    pieces.push(Piece::Text(rest));
    pieces
}

/// The name in braces at the start of a text, and the length of it all.
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
        let show = |piece: &Piece| match piece {
            Piece::Text(text) => (*text).to_owned(),
            Piece::Variable { name, .. } => format!("<{name}>"),
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
            // Each pair is doubled from the left, as somebody escaping a text would.
            prop_assert_eq!(fill(&text.replace("{{", "{{{{")), text);
        }
    }
}
