//! Conditions of steps: a small language on variables, the machine and the system of the base image.
//!
//! ```text
//! base.os == 'debian' and base.version >= '12' or vars.site in ['a.example', 'b.example'] and not machine.boot == 'direct'
//! ```
//!
//! Types are checked when a spec is read; values are compared when the base image is known.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;

use serde_json::{Value as Json, json};
use toml::de::DeValue;

use super::complaint::SpecError;
use super::reader::{Node, SpecReader};
use super::value_kinds::Shape;
use super::{BootMode, FirmwareKind, NetworkBackend, Spec};

mod parser;
mod tokens;

/// The processor of every guest.
const ARCHITECTURE: &str = "x86_64";

/// The condition of a step.
#[derive(Clone, PartialEq, Eq)]
pub struct Condition {
    text: String,
    rule: Rule,
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A condition, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    All(Vec<Rule>),
    Any(Vec<Rule>),
    Not(Box<Rule>),
    Compare { left: Operand, operator: Operator, right: Operand },
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Operand {
    String(String),
    List(Vec<String>),
    Fact(Fact),
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

/// Something that a condition can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fact {
    Variable(String),
    Firmware,
    Boot,
    Network,
    Os,
    Version,
    Codename,
    Like,
    Arch,
}

impl Fact {
    /// The facts other than variables, with their names.
    const NAMED: [(&'static str, Self); 8] = [
        ("machine.firmware", Self::Firmware),
        ("machine.boot", Self::Boot),
        ("machine.network", Self::Network),
        ("base.os", Self::Os),
        ("base.version", Self::Version),
        ("base.codename", Self::Codename),
        ("base.like", Self::Like),
        ("base.arch", Self::Arch),
    ];

    /// Returns whether the fact is read from the base image.
    fn is_of_base(&self) -> bool {
        matches!(self, Self::Os | Self::Version | Self::Codename | Self::Like)
    }

    /// Returns the only values that the fact can have, if it is one of a few.
    fn choices(&self) -> Vec<&'static str> {
        match self {
            Self::Firmware => FirmwareKind::ALL.map(FirmwareKind::name).to_vec(),
            Self::Boot => BootMode::ALL.map(BootMode::name).to_vec(),
            Self::Network => NetworkBackend::ALL.map(NetworkBackend::name).to_vec(),
            Self::Arch => vec![ARCHITECTURE],
            Self::Variable(_) | Self::Os | Self::Version | Self::Codename | Self::Like => Vec::new(),
        }
    }
}

/// The system of a base image, by os-release(5). Strings are empty where that lacks the field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BaseSystem {
    /// `ID`, such as `debian`.
    pub os: String,
    /// `VERSION_ID`, such as `12`.
    pub version: String,
    /// `VERSION_CODENAME`, such as `bookworm`.
    pub codename: String,
    /// `ID_LIKE`, such as `debian` on Ubuntu, and `ID` itself.
    pub like: Vec<String>,
}

/// The system of the base image is not known, and a condition is about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownSystem;

impl Condition {
    /// Returns whether the condition is about the system of the base image.
    #[must_use]
    pub fn needs_base(&self) -> bool {
        self.rule.needs_base()
    }

    /// Returns whether the condition holds for a spec, and for the system of its base image if that is known.
    ///
    /// # Errors
    /// When the system is not known, and the condition is about it.
    pub fn holds(&self, spec: &Spec, base: Option<&BaseSystem>) -> Result<bool, UnknownSystem> {
        if base.is_none() && self.needs_base() {
            return Err(UnknownSystem);
        }
        let none = BaseSystem::default();
        Ok(self.rule.holds(&KnownFacts { spec, base: base.unwrap_or(&none) }))
    }
}

/// What the facts of a condition are looked up in.
struct KnownFacts<'f> {
    spec: &'f Spec,
    base: &'f BaseSystem,
}

impl KnownFacts<'_> {
    /// Returns the value of a fact: of a list all its elements, of a string itself.
    fn values(&self, fact: &Fact) -> Vec<&str> {
        let machine = &self.spec.machine;
        let value = match fact {
            Fact::Variable(name) => self.spec.vars.get(name).map_or("", String::as_str),
            Fact::Firmware => machine.firmware.name(),
            Fact::Boot => machine.boot.name(),
            Fact::Network => machine.network.name(),
            Fact::Os => &self.base.os,
            Fact::Version => &self.base.version,
            Fact::Codename => &self.base.codename,
            Fact::Like => return self.base.like.iter().map(String::as_str).collect(),
            Fact::Arch => ARCHITECTURE,
        };
        vec![value]
    }
}

impl Rule {
    fn needs_base(&self) -> bool {
        match self {
            Self::All(rules) | Self::Any(rules) => rules.iter().any(Self::needs_base),
            Self::Not(rule) => rule.needs_base(),
            Self::Compare { left, right, .. } => [left, right].into_iter().any(Operand::needs_base),
        }
    }

    fn holds(&self, known: &KnownFacts<'_>) -> bool {
        match self {
            Self::All(rules) => rules.iter().all(|rule| rule.holds(known)),
            Self::Any(rules) => rules.iter().any(|rule| rule.holds(known)),
            Self::Not(rule) => !rule.holds(known),
            Self::Compare { left, operator, right } => operator.holds(&left.values(known), &right.values(known)),
        }
    }
}

impl Operand {
    fn needs_base(&self) -> bool {
        matches!(self, Self::Fact(fact) if fact.is_of_base())
    }

    fn values<'v>(&'v self, known: &'v KnownFacts<'_>) -> Vec<&'v str> {
        match self {
            Self::String(string) => vec![string],
            Self::List(strings) => strings.iter().map(String::as_str).collect(),
            Self::Fact(fact) => known.values(fact),
        }
    }
}

impl Operator {
    /// Returns whether the comparison compares versions.
    fn is_of_versions(self) -> bool {
        matches!(self, Self::Less | Self::LessOrEqual | Self::Greater | Self::GreaterOrEqual)
    }

    fn holds(self, left: &[&str], right: &[&str]) -> bool {
        // The type of each side was checked: all but the right side of `in` have one value.
        let (Some(one), Some(other)) = (left.first(), right.first()) else { return self == Self::NotIn };
        let order = compare_versions(one, other);
        match self {
            Self::Equal => one == other,
            Self::Unequal => one != other,
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
            Self::In => right.contains(one),
            Self::NotIn => !right.contains(one),
        }
    }
}

/// Compares versions part by part: numbers by their value, and a version comes after its beginnings.
fn compare_versions(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one, other);
    loop {
        let first = split_part(&mut one);
        let second = split_part(&mut other);
        let order = match (number_of(first), number_of(second)) {
            (Some(first), Some(second)) => (first.len(), first).cmp(&(second.len(), second)),
            _ => first.cmp(second),
        };
        if order.is_ne() || first.is_empty() {
            return order;
        }
    }
}

/// Removes the first number, or what comes before it, from a version.
fn split_part<'v>(version: &mut &'v str) -> &'v str {
    let is_number = version.starts_with(|c: char| c.is_ascii_digit());
    let end = version.find(|c: char| c.is_ascii_digit() != is_number).unwrap_or(version.len());
    let (part, rest) = version.split_at(end);
    *version = rest;
    part
}

/// Returns a number without leading zeros, or `None` for another part of a version.
fn number_of(part: &str) -> Option<&str> {
    part.starts_with(|c: char| c.is_ascii_digit()).then(|| part.trim_start_matches('0'))
}

/// The reason why a string is no condition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ConditionError {
    /// The bytes of the string that the error is about.
    span: Range<usize>,
    message: String,
    help: Option<String>,
}

impl ConditionError {
    fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { span, message: message.into(), help: None }
    }

    fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// The kind of value of `when`. `{{ name }}` is not expanded in it: a variable is `vars.name` there.
pub(super) struct ConditionShape;

impl Shape for ConditionShape {
    type Value = Condition;

    fn expects(&self) -> String {
        "a condition such as `base.os == 'debian'`".into()
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<Condition> {
        let DeValue::String(text) = node.get_ref() else {
            reader.wrong_type(node, &self.expects());
            return None;
        };
        let variables: Vec<&str> = reader.vars.keys().map(String::as_str).collect();
        match parser::parse(text, &variables) {
            Ok(rule) => Some(Condition { text: text.to_string(), rule }),
            Err(error) => {
                let place = place_in_string(reader.document.text(), node.span(), text, &error.span);
                reader.report(SpecError::new(place, error.message).maybe_help(error.help));
                None
            }
        }
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "minLength": 1 })
    }
}

/// Returns the place in a document of a part of a decoded string; the whole string if it has escapes.
fn place_in_string(document: &str, string: Range<usize>, decoded: &str, part: &Range<usize>) -> Range<usize> {
    match document.get(string.clone()).and_then(|written| written.find(decoded)) {
        Some(start) if !decoded.is_empty() => string.start + start + part.start..string.start + start + part.end,
        _ => string,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::specfile::Overrides;

    fn spec(when: &str) -> Spec {
        let text = format!(
            "[image]\nname = 'a'\nversion = '1'\n[base]\nfile = 'b'\n[vars]\nsite = 'a.example'\nlevel = '10'\n\
             [[step]]\nrun = 'true'\nwhen = \"{when}\"\n"
        );
        Spec::parse(Path::new("kiln.toml"), &text, &Overrides::default()).unwrap()
    }

    fn ubuntu() -> BaseSystem {
        let like = ["debian", "ubuntu"].map(str::to_owned).to_vec();
        BaseSystem { os: "ubuntu".into(), version: "24.04".into(), codename: "noble".into(), like }
    }

    fn holds(when: &str) -> bool {
        let spec = spec(when);
        spec.steps[0].when.as_ref().unwrap().holds(&spec, Some(&ubuntu())).unwrap()
    }

    #[test]
    fn conditions_are_evaluated() {
        for (when, expected) in [
            ("base.os == 'ubuntu'", true),
            ("base.os != 'ubuntu'", false),
            ("'ubuntu' == base.os", true),
            ("base.os in ['debian', 'ubuntu']", true),
            ("base.os not in ['debian', 'ubuntu']", false),
            ("base.os in []", false),
            ("base.os not in []", true),
            ("'debian' in base.like", true),
            ("'fedora' in base.like", false),
            ("base.codename == 'noble' and base.arch == 'x86_64'", true),
            ("base.version >= '22.04' and base.version < '24.10'", true),
            ("base.version > '24.04' or base.version <= '24'", false),
            ("vars.level > '9'", true),
            ("vars.site == 'a.example'", true),
            ("machine.firmware == 'bios' and machine.boot == 'full' and machine.network == 'none'", true),
            ("not base.os == 'ubuntu'", false),
            ("not not base.os == 'ubuntu'", true),
            // `and` binds tighter than `or`, and `not` tighter than both.
            ("base.os == 'ubuntu' or base.os == 'x' and base.os == 'y'", true),
            ("(base.os == 'ubuntu' or base.os == 'x') and base.os == 'y'", false),
            ("not base.os == 'x' and base.os == 'ubuntu'", true),
            ("not (base.os == 'ubuntu' and base.version == '1')", true),
        ] {
            assert_eq!(holds(when), expected, "{when}");
        }
    }

    #[test]
    fn the_base_is_needed_only_by_conditions_about_it() {
        let of_base = spec("vars.site == 'x' and base.os == 'debian'");
        let condition = of_base.steps[0].when.as_ref().unwrap();
        assert_eq!(condition.holds(&of_base, None), Err(UnknownSystem));
        let other = spec("vars.site == 'x' or base.arch == 'x86_64'");
        assert_eq!(other.steps[0].when.as_ref().unwrap().holds(&other, None), Ok(true));
    }

    #[test]
    fn versions_are_in_their_order() {
        let versions =
            ["", "1", "1.2", "1.9", "1.10", "1.10a", "1.10b", "2", "9", "12", "12.1", "100000000000000000000"];
        for (index, one) in versions.iter().enumerate() {
            for (other_index, other) in versions.iter().enumerate() {
                assert_eq!(compare_versions(one, other), index.cmp(&other_index), "{one} {other}");
            }
        }
        assert!(compare_versions("1.02", "1.2").is_eq());
    }

    proptest! {
        #[test]
        fn the_order_of_versions_is_antisymmetric(one in "[0-9a.]{0,6}", other in "[0-9a.]{0,6}") {
            prop_assert_eq!(compare_versions(&one, &other), compare_versions(&other, &one).reverse());
        }
    }
}
