//! The kinds of values that a key can have. Each reads itself, describes what it accepts, and gives its own JSON Schema, so
//! that reading, messages and schema cannot disagree.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use regex_lite::Regex;
use serde_json::{Value as Json, json};
use toml::de::DeValue;

use super::complaint::SpecError;
use super::hidden_characters::is_forgery;
use super::reader::{Node, SpecReader};
use super::suggest::{list, suggest};
use crate::digest::Sha256Digest;
use crate::size::{ByteSize, format_duration, parse_duration};
use crate::url::Url;

/// A kind of value.
pub(super) trait Shape {
    /// The type of the value that was read.
    type Value;

    /// Describes the accepted values, for messages after "expected" and for the reference.
    fn expects(&self) -> String;

    /// Reads a value, or reports why it is not accepted.
    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<Self::Value>;

    /// Returns the JSON Schema, draft 7, without a description.
    fn schema(&self) -> Json;
}

/// The reason why a string is refused, and how to fix it.
pub(super) struct ValueProblem {
    pub message: String,
    pub help: Option<String>,
}

impl<M: ToString> From<M> for ValueProblem {
    fn from(message: M) -> Self {
        Self { message: message.to_string(), help: None }
    }
}

/// A string that is parsed further, after its variables are expanded.
pub(super) struct Text<T> {
    pub expects: String,
    pub schema: Json,
    #[expect(clippy::type_complexity, reason = "a parser is just this")]
    pub parse: Box<dyn Fn(&str) -> Result<T, ValueProblem>>,
}

impl<T> Text<T> {
    pub fn new(
        expects: impl Into<String>,
        schema: Json,
        parse: impl Fn(&str) -> Result<T, ValueProblem> + 'static,
    ) -> Self {
        Self { expects: expects.into(), schema, parse: Box::new(parse) }
    }
}

impl<T> Shape for Text<T> {
    type Value = T;

    fn expects(&self) -> String {
        self.expects.clone()
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<T> {
        let text = reader.text(node, &self.expects)?;
        match (self.parse)(&text) {
            Ok(value) => Some(value),
            Err(refusal) => {
                reader.report(SpecError::new(node.span(), refusal.message).maybe_help(refusal.help));
                None
            }
        }
    }

    fn schema(&self) -> Json {
        self.schema.clone()
    }
}

/// Returns the schema of a string that matches a pattern, or that contains variables, whose value no schema can know.
pub(super) fn matching(pattern: &str) -> Json {
    json!({ "type": "string", "pattern": format!(r"^(?:{pattern})$|\{{\{{") })
}

/// Quotes what the user wrote, for a message.
pub(super) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    if text.is_empty() { "an empty string".to_owned() } else { format!("`{short}`") }
}

/// Accepts any string, such as the content of a file.
pub(super) fn content() -> Text<String> {
    Text::new("a string", json!({ "type": "string" }), |text| Ok(text.to_owned()))
}

/// Accepts a string without NUL, as the arguments and the environment of a process must be.
pub(super) fn text() -> Text<String> {
    Text::new("a string", json!({ "type": "string" }), |text| {
        if text.contains('\0') { Err("a NUL byte cannot be given to a process".into()) } else { Ok(text.to_owned()) }
    })
}

/// Accepts one line for people. Control characters and bidirectional ones could forge what a terminal shows.
pub(super) fn line(max: usize) -> Text<String> {
    let expects = format!("one line of at most {max} characters");
    Text::new(expects, json!({ "type": "string" }), move |text| match text.chars().find(|c| is_forgery(*c)) {
        Some(c) => Err(format!("the character {} is not allowed here", c.escape_unicode()).into()),
        None if text.chars().count() > max => Err(format!("longer than {max} characters").into()),
        None => Ok(text.to_owned()),
    })
}

/// Accepts a [`line`] that is not blank, as a name must be.
pub(super) fn title(max: usize) -> Text<String> {
    let Text { expects, parse, .. } = line(max);
    Text::new(expects, json!({ "type": "string", "minLength": 1 }), move |text| {
        if text.trim().is_empty() { Err("a name cannot be blank".into()) } else { parse(text) }
    })
}

/// A word: its first character is of one class and the others of another. Both are written as in the brackets of a regular
/// expression, with ranges, and `-` last.
#[derive(Clone, Copy)]
pub(super) struct Word {
    pub first: &'static str,
    pub rest: &'static str,
    /// The greatest length, in characters.
    pub max: usize,
    /// A prefix that is reserved for kiln; may be empty.
    pub reserved: &'static str,
}

impl Word {
    pub const fn new(first: &'static str, rest: &'static str, max: usize) -> Self {
        Self { first, rest, max, reserved: "" }
    }

    pub fn pattern(&self) -> String {
        let not = if self.reserved.is_empty() { String::new() } else { format!("(?!{})", self.reserved) };
        format!("{not}[{}][{}]{{0,{}}}", self.first, self.rest, self.max - 1)
    }

    pub fn check(&self, text: &str) -> Result<(), ValueProblem> {
        let mut chars = text.chars();
        let fits = chars.next().is_some_and(|c| in_class(self.first, c)) && chars.all(|c| in_class(self.rest, c));
        if !fits || text.len() > self.max {
            let most = format!("of at most {} characters", self.max);
            return Err(format!("{} does not match [{}][{}]*, {most}", quoted(text), self.first, self.rest).into());
        }
        if !self.reserved.is_empty() && text.starts_with(self.reserved) {
            Err(format!("names that begin with `{}` are kiln's own", self.reserved).into())
        } else {
            Ok(())
        }
    }
}

/// Accepts a string that is one [`Word`].
pub(super) fn word(word: Word) -> Text<String> {
    let expects = format!("`[{}][{}]*`, at most {} characters", word.first, word.rest, word.max);
    Text::new(expects, matching(&word.pattern()), move |text| word.check(text).map(|()| text.to_owned()))
}

fn in_class(class: &str, c: char) -> bool {
    match class.as_bytes() {
        [from, b'-', to, ..] => (char::from(*from)..=char::from(*to)).contains(&c) || in_class(&class[3..], c),
        [one, ..] => char::from(*one) == c || in_class(&class[1..], c),
        [] => false,
    }
}

/// Accepts a size within bounds, a whole number of MiB.
pub(super) fn size(allowed: RangeInclusive<ByteSize>) -> Text<ByteSize> {
    let expects = format!("a size from {} to {} in whole MiB, such as 512MiB or 8GiB", allowed.start(), allowed.end());
    Text::new(expects, matching("[0-9]+(?:B|KiB|MiB|GiB|TiB)"), move |text| {
        let size: ByteSize = text.parse()?;
        if !allowed.contains(&size) {
            return Err(outside(text, allowed.start(), allowed.end()));
        }
        if !size.bytes().is_multiple_of(1 << 20) {
            return Err(format!("`{text}` is not a whole number of MiB").into());
        }
        Ok(size)
    })
}

/// Accepts a duration within bounds, in seconds.
pub(super) fn duration(allowed: RangeInclusive<u64>) -> Text<Duration> {
    let least = format_duration(Duration::from_secs(*allowed.start()));
    let most = format_duration(Duration::from_secs(*allowed.end()));
    let expects = format!("a duration from {least} to {most}, such as 90s, 10m or 1h");
    Text::new(expects, matching("[0-9]+[smh]"), move |text| {
        let duration = parse_duration(text)?;
        if allowed.contains(&duration.as_secs()) { Ok(duration) } else { Err(outside(text, &least, &most)) }
    })
}

fn outside(text: &str, least: &dyn fmt::Display, most: &dyn fmt::Display) -> ValueProblem {
    format!("`{text}` is out of range: from {least} to {most} is allowed").into()
}

/// Accepts one of a few names. Those in `later` are known, but not supported by this version.
pub(super) fn choice<T: Copy + 'static>(
    known: impl Into<Vec<(&'static str, T)>>,
    later: &'static [&'static str],
) -> Text<T> {
    let known = known.into();
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let expects = format!("one of {}", list(&names));
    let schema = json!({ "type": "string", "anyOf": [{ "enum": names }, { "pattern": r"\{\{" }] });
    Text::new(expects, schema, move |text| match known.iter().find(|(name, _)| *name == text) {
        Some((_, value)) => Ok(*value),
        None if later.contains(&text) => Err(not_yet(text, &names).into()),
        None => Err(ValueProblem {
            message: format!("{} is not known here", quoted(text)),
            help: suggest(text, names.iter().copied()),
        }),
    })
}

/// Returns the message for a value that the format of specs foresees, and that this version does not support.
pub(super) fn not_yet(what: &str, known: &[&str]) -> String {
    format!("`{what}` is not supported by this version of kiln, only {}", list(known))
}

/// Accepts 64 hex digits, in either case.
pub(super) fn sha256() -> Text<Sha256Digest> {
    Text::new("64 hex digits", matching("[0-9A-Fa-f]{64}"), |text| {
        let refused = |_| format!("{} is not a SHA-256 digest, which has 64 hex digits", quoted(text)).into();
        text.parse().map_err(refused)
    })
}

/// Accepts the URL of a file to download.
pub(super) fn location() -> Text<Url> {
    let expects = "a URL that begins with https://, http:// or file:///";
    Text::new(expects, matching("(?:https?|file)://[!-~]+"), |text| Ok(text.parse()?))
}

/// Accepts `name`, `name@version` or `name@tag`.
pub(super) fn reference(name: Word, version: Word) -> Text<String> {
    let schema = matching(&format!("{}(?:@{})?", name.pattern(), version.pattern()));
    Text::new("an image as name, name@version or name@tag", schema, move |text| {
        let (left, right) = text.split_once('@').map_or((text, None), |(left, right)| (left, Some(right)));
        name.check(left)?;
        right.map_or(Ok(()), |right| version.check(right))?;
        Ok(text.to_owned())
    })
}

/// Accepts a regular expression. Searching with one takes time in proportion to the text, whatever the expression is.
pub(super) fn regex() -> Text<String> {
    Text::new("a regular expression", json!({ "type": "string" }), |text| match Regex::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{} is not a regular expression: {error}", quoted(text)).into()),
    })
}

/// Permission bits as an octal number in a string, since TOML writes octal numbers in another way.
pub(super) struct Mode;

impl Shape for Mode {
    type Value = u32;

    fn expects(&self) -> String {
        "octal permission bits in a string, such as \"0644\", up to \"7777\"".into()
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<u32> {
        let text = reader.text(node, &self.expects())?;
        let digits = text.strip_prefix('0').filter(|rest| rest.len() > 2).unwrap_or(&text);
        let octal = matches!(digits.len(), 3 | 4) && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
        if !octal {
            let message = format!("{} is not a mode: expected {}", quoted(&text), self.expects());
            reader.report(SpecError::new(node.span(), message));
        }
        u32::from_str_radix(digits, 8).ok().filter(|_| octal)
    }

    fn schema(&self) -> Json {
        matching("0?[0-7]{3,4}")
    }
}

/// A whole number within bounds.
pub(super) struct Integer<T>(pub RangeInclusive<T>);

impl<T: TryFrom<u16> + Into<u16> + Copy + fmt::Display + PartialOrd> Shape for Integer<T> {
    type Value = T;

    fn expects(&self) -> String {
        format!("a whole number from {} to {}", self.0.start(), self.0.end())
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<T> {
        let DeValue::Integer(integer) = node.get_ref() else {
            reader.wrong_type(node, &self.expects());
            return None;
        };
        let number = u16::from_str_radix(integer.as_str(), integer.radix()).ok();
        let value = number.and_then(|number| T::try_from(number).ok()).filter(|n| self.0.contains(n));
        if value.is_none() {
            let message = format!("{integer} is out of range: from {} to {} is allowed", self.0.start(), self.0.end());
            reader.report(SpecError::new(node.span(), message));
        }
        value
    }

    fn schema(&self) -> Json {
        let least: u16 = (*self.0.start()).into();
        let most: u16 = (*self.0.end()).into();
        json!({ "type": "integer", "minimum": least, "maximum": most })
    }
}

/// A Boolean, `true` or `false`.
pub(super) struct Boolean;

impl Shape for Boolean {
    type Value = bool;

    fn expects(&self) -> String {
        "`true` or `false`".into()
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<bool> {
        if node.get_ref().as_bool().is_none() {
            reader.wrong_type(node, &self.expects());
        }
        node.get_ref().as_bool()
    }

    fn schema(&self) -> Json {
        json!({ "type": "boolean" })
    }
}
