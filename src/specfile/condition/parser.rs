//! The grammar and the types of conditions.
//!
//! ```text
//! any        = all { "or" all }
//! all        = one { "and" one }
//! one        = "not" one | "(" any ")" | operand comparison operand
//! comparison = "==" | "!=" | "<" | "<=" | ">" | ">=" | [ "not" ] "in"
//! operand    = string | name | "[" [ string { "," string } ] "]"
//! ```

use std::iter::Peekable;
use std::ops::Range;
use std::vec;

use super::super::suggest::{list, suggest};
use super::tokens::{Token, Word, cut};
use super::{ConditionError, Fact, Operand, Operator, Rule};

/// The longest condition, bytes.
const LONGEST: usize = 1000;
/// The most brackets and `not` within each other.
const DEEPEST: usize = 32;

/// Parses a condition about these variables and the facts that every spec has.
pub(super) fn parse(text: &str, variables: &[&str]) -> Result<Rule, ConditionError> {
    if text.len() > LONGEST {
        return Err(ConditionError::new(0..text.len(), format!("a condition has at most {LONGEST} bytes")));
    }
    let words = cut(text)?.into_iter().peekable();
    let last = text.char_indices().next_back().map_or(0, |(start, _)| start);
    let mut parser = Parser { words, last: last..text.len(), variables };
    let rule = parser.any(0)?;
    match parser.words.next() {
        None => Ok(rule),
        Some(word) => Err(ConditionError::new(word.span, "expected `and`, `or` or the end of the condition")),
    }
}

struct Parser<'t, 'v> {
    words: Peekable<vec::IntoIter<Word<'t>>>,
    /// The last character of the condition.
    last: Range<usize>,
    variables: &'v [&'v str],
}

/// An operand with its place.
struct PlacedOperand {
    operand: Operand,
    span: Range<usize>,
}

impl<'t> Parser<'t, '_> {
    fn any(&mut self, depth: usize) -> Result<Rule, ConditionError> {
        let mut rules = vec![self.all(depth)?];
        while self.take(&Token::Or) {
            rules.push(self.all(depth)?);
        }
        Ok(single_or(rules, Rule::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Rule, ConditionError> {
        let mut rules = vec![self.one(depth)?];
        while self.take(&Token::And) {
            rules.push(self.one(depth)?);
        }
        Ok(single_or(rules, Rule::All))
    }

    fn one(&mut self, depth: usize) -> Result<Rule, ConditionError> {
        if depth > DEEPEST {
            return Err(ConditionError::new(self.here(), "too many brackets within each other"));
        }
        if self.take(&Token::Not) {
            return Ok(Rule::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.take(&Token::Open) {
            let rule = self.any(depth + 1)?;
            return if self.take(&Token::Close) { Ok(rule) } else { Err(self.expected("`)`")) };
        }
        let left = self.operand()?;
        let (operator, span) = self.operator(&left)?;
        let right = self.operand()?;
        check_types(&left, (operator, span), &right)?;
        Ok(Rule::Compare { left: left.operand, operator, right: right.operand })
    }

    /// Removes the next word if it is this one.
    fn take(&mut self, token: &Token<'_>) -> bool {
        self.words.next_if(|word| word.token == *token).is_some()
    }

    /// Returns the place of the next word, or the end.
    fn here(&mut self) -> Range<usize> {
        self.words.peek().map_or(self.last.clone(), |word| word.span.clone())
    }

    fn expected(&mut self, what: &str) -> ConditionError {
        let found = if self.words.peek().is_some() { "" } else { " before the end of the condition" };
        ConditionError::new(self.here(), format!("expected {what}{found}"))
    }

    fn operator(&mut self, left: &PlacedOperand) -> Result<(Operator, Range<usize>), ConditionError> {
        let span = self.here();
        let operator = match self.words.peek().map(|word| word.token.clone()) {
            Some(Token::Compare(operator)) => operator,
            Some(Token::In) => Operator::In,
            Some(Token::Not) => {
                self.words.next();
                if !self.take(&Token::In) {
                    return Err(self.expected("`in` after `not`"));
                }
                return Ok((Operator::NotIn, span));
            }
            _ => {
                let error = ConditionError::new(left.span.clone(), "this is not compared with anything");
                return Err(error.help("write a comparison, such as `base.os == 'debian'`"));
            }
        };
        self.words.next();
        Ok((operator, span))
    }

    fn operand(&mut self) -> Result<PlacedOperand, ConditionError> {
        let Some(word) = self.words.next() else { return Err(self.expected("a string, a name or a list")) };
        let operand = match word.token {
            Token::String(string) => Operand::String(string.to_owned()),
            Token::Name(name) => Operand::Fact(self.fact(name, &word.span)?),
            Token::OpenList => return self.list(word.span.start),
            _ => return Err(ConditionError::new(word.span, "expected a string, a name or a list")),
        };
        Ok(PlacedOperand { operand, span: word.span })
    }

    /// Parses a list whose bracket was read.
    fn list(&mut self, start: usize) -> Result<PlacedOperand, ConditionError> {
        let mut strings = Vec::new();
        loop {
            let place = self.here();
            match self.words.next().map(|word| word.token) {
                Some(Token::CloseList) => {
                    return Ok(PlacedOperand { operand: Operand::List(strings), span: start..place.end });
                }
                Some(Token::String(string)) => strings.push(string.to_owned()),
                _ => return Err(ConditionError::new(place, "expected a string in single quotes, or `]`")),
            }
            if !self.take(&Token::Comma) && self.words.peek().is_none_or(|word| word.token != Token::CloseList) {
                return Err(self.expected("`,` or `]`"));
            }
        }
    }

    fn fact(&self, name: &'t str, span: &Range<usize>) -> Result<Fact, ConditionError> {
        let known = Fact::NAMED.into_iter().find(|(known, _)| *known == name);
        if let Some((_, fact)) = known {
            return Ok(fact);
        }
        let variable = name.strip_prefix("vars.");
        if let Some(variable) = variable.filter(|variable| self.variables.contains(variable)) {
            return Ok(Fact::Variable(variable.to_owned()));
        }
        let variables: Vec<String> = self.variables.iter().map(|name| format!("vars.{name}")).collect();
        let names = Fact::NAMED.iter().map(|(name, _)| *name).chain(variables.iter().map(String::as_str));
        let (message, help) = match variable {
            Some(variable) => (format!("unknown variable `{variable}`"), suggest(name, names)),
            None if !name.contains('.') => {
                (format!("unknown name `{name}`"), Some(format!("strings are in single quotes: `'{name}'`")))
            }
            None => (format!("unknown name `{name}`"), suggest(name, names)),
        };
        Err(ConditionError { span: span.clone(), message, help })
    }
}

/// Returns the only rule, or all of them together.
fn single_or(mut rules: Vec<Rule>, together: impl FnOnce(Vec<Rule>) -> Rule) -> Rule {
    match rules.pop() {
        Some(only) if rules.is_empty() => only,
        last => {
            rules.extend(last);
            together(rules)
        }
    }
}

impl PlacedOperand {
    fn is_list(&self) -> bool {
        matches!(self.operand, Operand::List(_) | Operand::Fact(Fact::Like))
    }

    /// Returns whether the operand may be a version.
    fn is_version(&self) -> bool {
        match &self.operand {
            Operand::String(string) => string.starts_with(|c: char| c.is_ascii_digit()),
            Operand::Fact(fact) => matches!(fact, Fact::Version | Fact::Variable(_)),
            Operand::List(_) => false,
        }
    }

    /// Returns the only values that the operand can have, if it is one of a few.
    fn choices(&self) -> Vec<&'static str> {
        match &self.operand {
            Operand::Fact(fact) => fact.choices(),
            Operand::String(_) | Operand::List(_) => Vec::new(),
        }
    }

    /// Returns the strings that are written in the operand.
    fn strings(&self) -> &[String] {
        match &self.operand {
            Operand::String(string) => std::slice::from_ref(string),
            Operand::List(strings) => strings,
            Operand::Fact(_) => &[],
        }
    }
}

/// Checks that a comparison makes sense of its operands.
fn check_types(
    left: &PlacedOperand,
    (operator, span): (Operator, Range<usize>),
    right: &PlacedOperand,
) -> Result<(), ConditionError> {
    if !matches!(left.operand, Operand::Fact(_)) && !matches!(right.operand, Operand::Fact(_)) {
        let error = ConditionError::new(left.span.start..right.span.end, "this compares two constants");
        return Err(error.help("a variable is `vars.NAME` here, without braces and quotes"));
    }
    let is_membership = matches!(operator, Operator::In | Operator::NotIn);
    if left.is_list() {
        let error = ConditionError::new(left.span.clone(), "a list can only be on the right of `in`");
        return Err(error.help("write `'debian' in base.like`"));
    }
    if is_membership && !right.is_list() {
        let error = ConditionError::new(right.span.clone(), "expected a list after `in`");
        return Err(error.help("write `['debian', 'ubuntu']`, or `==` to compare with one string"));
    }
    if !is_membership && right.is_list() {
        return Err(ConditionError::new(span, "a list can only be compared by `in`").help("write `in` or `not in`"));
    }
    for operand in [left, right] {
        if operator.is_of_versions() && !operand.is_version() {
            let error =
                ConditionError::new(operand.span.clone(), "this is no version, and only versions have an order");
            return Err(error.help("compare `base.version` or a variable with a string such as `'12.5'`"));
        }
    }
    check_choices(left, right)?;
    check_choices(right, left)
}

/// Checks that strings are values that the fact on the other side can have.
fn check_choices(fact: &PlacedOperand, strings: &PlacedOperand) -> Result<(), ConditionError> {
    let choices = fact.choices();
    let impossible = strings.strings().iter().find(|string| !choices.is_empty() && !choices.contains(&string.as_str()));
    let Some(string) = impossible else { return Ok(()) };
    let help = suggest(string, choices.iter().copied()).unwrap_or_else(|| format!("it is {}", list(&choices)));
    Err(ConditionError::new(strings.span.clone(), format!("this is never `{string}`")).help(help))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the message about a condition, and the part of the condition that it is about.
    fn refused(text: &str) -> (String, String) {
        let error = parse(text, &["site"]).unwrap_err();
        (error.message, text[error.span].to_owned())
    }

    #[test]
    fn errors_point_at_their_word() {
        for (text, message, part) in [
            ("", "before the end", ""),
            ("base.os", "not compared", "base.os"),
            ("base.os ==", "before the end", "="),
            ("base.os = 'debian'", "`=` is not known", "="),
            ("base.os == \"debian\"", "`\"` is not known", "\""),
            ("base.os == 'debian", "no closing quote", "'debian"),
            ("base.os == debian", "unknown name `debian`", "debian"),
            ("base.oss == 'debian'", "unknown name `base.oss`", "base.oss"),
            ("vars.sit == 'a'", "unknown variable `sit`", "vars.sit"),
            ("base.os == 'a' && base.os == 'b'", "`&&` is not known", "&&"),
            ("base.os == 'a' base.os == 'b'", "expected `and`", "base.os"),
            ("(base.os == 'a'", "expected `)`", "'"),
            ("base.os == 'a')", "expected `and`", ")"),
            ("base.os in 'a'", "expected a list", "'a'"),
            ("base.os not 'a'", "expected `in`", "'a'"),
            ("base.os == ['a']", "only be compared by `in`", "=="),
            ("base.like == 'a'", "on the right of `in`", "base.like"),
            ("base.os in ['a' 'b']", "expected `,`", "'b'"),
            ("base.os in ['a', base.os]", "expected a string", "base.os"),
            ("base.os < '12'", "no version", "base.os"),
            ("base.version < 'bookworm'", "no version", "'bookworm'"),
            ("base.version < 12", "a number", "12"),
            ("machine.firmware == 'efi'", "never `efi`", "'efi'"),
            ("machine.boot in ['full', 'fast']", "never `fast`", "['full', 'fast']"),
            ("base.os == 'ä' and ü", "`ü` is not known", "ü"),
            ("vars.site == {{ site }}", "`{` is not known", "{"),
            ("'{{ site }}' == 'a'", "two constants", "'{{ site }}' == 'a'"),
            ("'a' in ['a', 'b']", "two constants", "'a' in ['a', 'b']"),
        ] {
            let (found, about) = refused(text);
            assert!(found.contains(message), "{text}: {found}");
            assert_eq!(about, part, "{text}: {found}");
        }
    }

    #[test]
    fn s7_hostile_conditions_end_soon() {
        for text in ["(".repeat(900), "not ".repeat(240), "'a' == ".repeat(140), "x".repeat(1 << 20), "[".repeat(900)] {
            parse(&text, &[]).unwrap_err();
        }
    }

    /// Returns a rule as text, with brackets around all of its parts.
    fn written(rule: &Rule) -> String {
        let joined = |rules: &[Rule], word: &str| {
            format!("({})", rules.iter().map(written).collect::<Vec<_>>().join(&format!(" {word} ")))
        };
        match rule {
            Rule::All(rules) => joined(rules, "and"),
            Rule::Any(rules) => joined(rules, "or"),
            Rule::Not(rule) => format!("not {}", written(rule)),
            Rule::Compare { left, operator, right } => {
                format!("{} {} {}", written_operand(left), operator_text(*operator), written_operand(right))
            }
        }
    }

    fn operator_text(operator: Operator) -> &'static str {
        match operator {
            Operator::Equal => "==",
            Operator::Unequal => "!=",
            Operator::Less => "<",
            Operator::LessOrEqual => "<=",
            Operator::Greater => ">",
            Operator::GreaterOrEqual => ">=",
            Operator::In => "in",
            Operator::NotIn => "not in",
        }
    }

    fn written_operand(operand: &Operand) -> String {
        match operand {
            Operand::String(string) => format!("'{string}'"),
            Operand::List(strings) => {
                format!("[{}]", strings.iter().map(|string| format!("'{string}'")).collect::<Vec<_>>().join(", "))
            }
            Operand::Fact(Fact::Variable(name)) => format!("vars.{name}"),
            Operand::Fact(fact) => {
                let named = Fact::NAMED.into_iter().find(|(_, known)| known == fact);
                named.expect("named").0.to_owned()
            }
        }
    }

    fn comparison() -> impl Strategy<Value = Rule> {
        let string = "[ -&(-~]{0,8}".prop_map(Operand::String);
        let list = prop::collection::vec("[a-z]{0,4}", 0..4).prop_map(Operand::List);
        let fact = prop_oneof![
            Just(Operand::Fact(Fact::Os)),
            Just(Operand::Fact(Fact::Codename)),
            Just(Operand::Fact(Fact::Variable("site".into()))),
        ];
        let equal = prop_oneof![Just(Operator::Equal), Just(Operator::Unequal)];
        let within = prop_oneof![Just(Operator::In), Just(Operator::NotIn)];
        let compare = |(left, operator, right)| Rule::Compare { left, operator, right };
        prop_oneof![(fact.clone(), equal, string).prop_map(compare), (fact, within, list).prop_map(compare),]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        comparison().prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 2..4).prop_map(Rule::All),
                prop::collection::vec(inner.clone(), 2..4).prop_map(Rule::Any),
                inner.prop_map(|rule| Rule::Not(Box::new(rule))),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(rule in rule()) {
            let text = written(&rule);
            prop_assume!(text.len() <= LONGEST);
            prop_assert_eq!(parse(&text, &["site"]), Ok(rule), "{}", text);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
            if let Err(error) = parse(&text, &["site"]) {
                prop_assert!(text.get(error.span.clone()).is_some(), "{:?} in {}", error.span, text);
            }
        }

        #[test]
        fn no_words_make_the_parser_panic(words in prop::collection::vec("base.os|vars.site|'a'|==|in|not|and|or|\\(|\\)|\\[|\\]|,|<", 0..12)) {
            let text = words.join(" ");
            if let Err(error) = parse(&text, &["site"]) {
                prop_assert!(text.get(error.span.clone()).is_some(), "{:?} in {}", error.span, text);
            }
        }
    }
}
