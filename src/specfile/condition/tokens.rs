//! The words of a condition.

use std::ops::Range;

use super::{ConditionError, Operator};

/// A word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token<'t> {
    /// A string, without its quotes.
    String(&'t str),
    /// A name such as `base.os`.
    Name(&'t str),
    And,
    Or,
    Not,
    In,
    Compare(Operator),
    Open,
    Close,
    OpenList,
    CloseList,
    Comma,
}

/// A word with its place in the condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word<'t> {
    pub(super) token: Token<'t>,
    pub(super) span: Range<usize>,
}

/// The signs that are whole words, longer ones before their beginnings.
const SIGNS: [(&str, Token<'static>); 11] = [
    ("==", Token::Compare(Operator::Equal)),
    ("!=", Token::Compare(Operator::Unequal)),
    ("<=", Token::Compare(Operator::LessOrEqual)),
    (">=", Token::Compare(Operator::GreaterOrEqual)),
    ("<", Token::Compare(Operator::Less)),
    (">", Token::Compare(Operator::Greater)),
    ("(", Token::Open),
    (")", Token::Close),
    ("[", Token::OpenList),
    ("]", Token::CloseList),
    (",", Token::Comma),
];
/// What other languages write, and what is meant.
const FOREIGN: [(&str, &str); 6] = [
    ("&&", "write `and`"),
    ("||", "write `or`"),
    ("=", "write `==` to compare"),
    ("!", "write `not`"),
    ("\"", "write strings in single quotes"),
    ("{", "variables are written as `vars.NAME` here, without braces"),
];

/// Cuts a condition into words.
pub(super) fn cut(text: &str) -> Result<Vec<Word<'_>>, ConditionError> {
    let mut words = Vec::new();
    let mut at = 0;
    loop {
        at = text.len() - text[at..].trim_start().len();
        let Some(first) = text[at..].chars().next() else { return Ok(words) };
        let (token, length) = match first {
            '\'' => string(text, at)?,
            c if c.is_ascii_alphabetic() || c == '_' => name(&text[at..]),
            _ => sign(text, at)?,
        };
        words.push(Word { token, span: at..at + length });
        at += length;
    }
}

fn string(text: &str, at: usize) -> Result<(Token<'_>, usize), ConditionError> {
    let inner = &text[at + 1..];
    let end =
        inner.find('\'').ok_or_else(|| ConditionError::new(at..text.len(), "this string has no closing quote"))?;
    Ok((Token::String(&inner[..end]), end + 2))
}

fn name(text: &str) -> (Token<'_>, usize) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(text.len());
    let token = match &text[..end] {
        "and" => Token::And,
        "or" => Token::Or,
        "not" => Token::Not,
        "in" => Token::In,
        name => Token::Name(name),
    };
    (token, end)
}

fn sign(text: &str, at: usize) -> Result<(Token<'_>, usize), ConditionError> {
    let rest = &text[at..];
    if let Some((sign, token)) = SIGNS.iter().find(|(sign, _)| rest.starts_with(sign)) {
        return Ok((token.clone(), sign.len()));
    }
    if let Some((sign, help)) = FOREIGN.iter().find(|(sign, _)| rest.starts_with(sign)) {
        return Err(ConditionError::new(at..at + sign.len(), format!("`{sign}` is not known here")).help(*help));
    }
    let number = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
    if number > 0 {
        let help = format!("write it as a string: `'{}'`", &rest[..number]);
        return Err(ConditionError::new(at..at + number, "a number is not known here").help(help));
    }
    let length = rest.chars().next().map_or(0, char::len_utf8);
    Err(ConditionError::new(at..at + length, format!("`{}` is not known here", &rest[..length])))
}
