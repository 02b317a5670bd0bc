//! From a file to a [`Spec`]: its text, then TOML with spans, then the keys, then the checks between keys.

use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml_parser::Source;
use toml_parser::lexer::TokenKind;

use crate::project::FileReach;

use super::complaint::{LoadError, SpecError, SpecErrors};
use super::document::SpecDocument as Text;
use super::keys::Document;
use super::reader::{Node, SpecReader};
use super::spec_file::SpecFile;
use super::table::of;
use super::value_kinds::Shape as _;
use super::{Overrides, Spec, validate, variants};

/// The most parts of a dotted key. A spec needs two; a key with more than this many can only be meant to exhaust the stack,
/// since tables are dropped recursively. The TOML parser itself limits the nesting of brackets alone.
const MAX_KEY_PARTS: usize = 8;

/// The most syntax errors that are kept. A file that is not TOML at all has an error every few bytes.
const MAX_SYNTAX_ERRORS: usize = 1000;

impl Spec {
    /// Reads a spec file, or the `kiln.toml` of a folder.
    ///
    /// # Errors
    /// Those of [`SpecFile::read`], or all errors in the spec.
    pub fn load(path: &Path, reach: FileReach, overrides: &Overrides) -> Result<Self, LoadError> {
        Ok(SpecFile::read(path, reach)?.parse(overrides)?)
    }

    /// Parses the text of a spec; `path` is the file that relative paths and errors refer to.
    ///
    /// # Errors
    /// All errors in the spec.
    pub fn parse(path: &Path, text: &str, overrides: &Overrides) -> Result<Self, SpecErrors> {
        let document = Text::new(path, text);
        let mut reader = SpecReader::new(&document, overrides);
        let spec = read_document(&mut reader).and_then(|raw| validate::spec(raw, &mut reader));
        let errors = reader.finish();
        match spec {
            Some(spec) if errors.is_empty() => Ok(spec),
            _ => Err(SpecErrors::new(document, errors)),
        }
    }
}

fn read_document(reader: &mut SpecReader) -> Option<Document> {
    if let Some(error) = deep_key(reader.document.text()) {
        reader.report_syntax(error);
        return None;
    }
    let (table, errors) = DeTable::parse_recoverable(reader.document.text());
    // Where the parser gives up on a bracket, the brackets around it seem unclosed too.
    if let Some(error) = errors.iter().find(|error| error.message().starts_with("cannot recurse")) {
        reader.report_syntax(SpecError::new(error.span().unwrap_or_default(), "too many brackets within each other"));
        return None;
    }
    let errors = &errors[..errors.len().min(MAX_SYNTAX_ERRORS)];
    for error in errors {
        reader.report_syntax(SpecError::new(error.span().unwrap_or_default(), error.message()));
    }
    if errors.iter().any(|error| is_header(error, reader.document)) {
        return None;
    }
    let span = table.span();
    let mut table = table.into_inner();
    let overrides = reader.overrides;
    if let Some(variant) = &overrides.variant {
        variants::lay_over(&mut table, variant, reader);
    }
    let node = Node::new(span, DeValue::Table(table));
    of::<Document>().read(&node, reader)
}

/// Returns whether an error is in a line such as `[machine`: it is then unknown which table the keys after it belong to.
fn is_header(error: &toml::de::Error, document: &Text) -> bool {
    let line = document.lines_around(&error.span().unwrap_or_default());
    document.text()[line].trim_start().starts_with('[')
}

fn deep_key(text: &str) -> Option<SpecError> {
    let mut dots = 0;
    for token in Source::new(text).lex() {
        match token.kind() {
            TokenKind::Dot => dots += 1,
            TokenKind::Atom | TokenKind::BasicString | TokenKind::LiteralString | TokenKind::Whitespace => {}
            _ => dots = 0,
        }
        if dots >= MAX_KEY_PARTS {
            let span = token.span().start()..token.span().end();
            return Some(SpecError::new(span, format!("a key of more than {MAX_KEY_PARTS} parts")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::specfile::{Action, Command};

    const HEAD: &str = "[image]\nname = 'web'\nversion = '1'\n[base]\nfile = 'x.qcow2'\n";

    /// Parses this text after the tables that every spec has, with the line ends of Windows.
    fn parse_foreign(steps: &str) -> Result<Spec, SpecErrors> {
        let text = format!("{HEAD}{steps}").replace('\n', "\r\n");
        Spec::parse(Path::new("kiln.toml"), &text, &Overrides::default())
    }

    #[test]
    fn a_spec_with_line_ends_of_windows_means_what_it_means_without() {
        let steps = "[vars]\nt = '''\na\nb'''\n\
             [[step]]\nrun = \"\"\"\ncd /tmp\necho \\\n  {{ t }}\\r\\n\"\"\"\n\
             [[step]]\nwrite = '''\na\nb\n'''\nto = '/etc/x'\n\
             [[test]]\nrun = \"\"\"\ntrue\ntrue\n\"\"\"\n";
        let spec = parse_foreign(steps).unwrap();
        let Action::Run { command: Command::Shell(text), .. } = &spec.steps[0].action else { panic!("{spec:?}") };
        assert_eq!(text, "cd /tmp\necho a\nb\r\n", "an escape is not a line end of the file");
        let Action::Write { content, .. } = &spec.steps[1].action else { panic!("{spec:?}") };
        assert_eq!(content, "a\nb\n");
        assert_eq!(format!("{:?}", spec.tests).matches("\\r").count(), 0, "{:?}", spec.tests);
        let plain = Spec::parse(Path::new("kiln.toml"), &format!("{HEAD}{steps}"), &Overrides::default()).unwrap();
        assert_eq!(spec, plain);
    }

    #[test]
    fn errors_of_a_spec_with_line_ends_of_windows_point_at_their_places() {
        let errors = parse_foreign("[[step]]\nrun = '''\necho\n{{ no }}\n'''\nusr = 'a'\n").unwrap_err();
        let lines = errors.lines();
        assert!(lines.len() == 2 && lines[0].starts_with("kiln.toml:9:1: unknown variable `no`"), "{lines:?}");
        assert!(lines[1].starts_with("kiln.toml:11:1: unknown key `usr`"), "{lines:?}");
    }

    #[test]
    fn an_option_that_does_not_fit_is_no_error_of_the_file() {
        let overrides = Overrides { variant: Some("q".to_owned()), ..Overrides::default() };
        let errors = Spec::parse(Path::new("kiln.toml"), HEAD, &overrides).unwrap_err();
        assert_eq!(errors.to_string(), "the command line does not fit kiln.toml");
        assert!(errors.lines()[0].starts_with("`--variant q`"), "{:?}", errors.lines());
        let errors = Spec::parse(Path::new("kiln.toml"), "", &overrides).unwrap_err();
        assert!(errors.to_string().starts_with("kiln.toml has"), "{errors}");
    }
}
