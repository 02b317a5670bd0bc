//! From a file to a [`Spec`]: reading within limits, TOML with spans, then keys, then what they mean together.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use toml::de::{DeTable, DeValue};
use toml_parser::Source;
use toml_parser::lexer::TokenKind;

use super::complaint::{LoadError, SpecError, SpecErrors};
use super::document::Document as Text;
use super::keys::Document;
use super::reader::{Node, Reader};
use super::shape::Shape as _;
use super::table::of;
use super::{Overrides, Spec, validate, variants};

/// The largest spec that is read.
pub const MAX_BYTES: u64 = 1 << 20;

/// A dotted key of a spec has two parts; more than this many can only be meant to exhaust the stack, since tables are
/// dropped recursively. The TOML parser itself limits the nesting of brackets alone.
const MAX_KEY_PARTS: usize = 8;

/// Something that is not TOML at all has an error for every few bytes.
const MAX_SYNTAX_ERRORS: usize = 1000;

impl Spec {
    /// Reads a spec file, or the `kiln.toml` of a folder.
    ///
    /// # Errors
    /// When there is no such file, when it is not text of at most 1 MiB, or with all that is wrong in it.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        let file = spec_file(path);
        if path.is_dir() && !file.exists() {
            return Err(LoadError::EmptyFolder { path: path.to_owned() });
        }
        Ok(Self::parse(&file, &read(&file)?, overrides)?)
    }

    /// Reads a spec from a text; `path` is the file that its relative paths and its complaints refer to.
    ///
    /// # Errors
    /// With all that is wrong in it.
    pub fn parse(path: &Path, text: &str, overrides: &Overrides) -> Result<Self, SpecErrors> {
        let document = Text::new(path, text);
        let mut reader = Reader::new(&document, overrides);
        let spec = read_document(&mut reader).and_then(|raw| validate::spec(raw, &mut reader));
        let errors = reader.finish();
        match spec {
            Some(spec) if errors.is_empty() => Ok(spec),
            _ => Err(SpecErrors::new(document, errors)),
        }
    }
}

/// The file that is read for a path: the `kiln.toml` of a folder.
#[must_use]
pub fn spec_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("kiln.toml") } else { path.to_owned() }
}

pub(super) fn read(path: &Path) -> Result<String, LoadError> {
    let failed = |source: io::Error| LoadError::Read { path: path.to_owned(), source };
    // Opening a pipe that nobody writes to would wait for ever without O_NONBLOCK.
    let nonblocking = OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(LoadError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        LoadError::NotUtf8 { path: path.to_owned(), offset }
    })
}

fn read_document(reader: &mut Reader) -> Option<Document> {
    if let Some(error) = deep_key(reader.document.text()) {
        reader.report_syntax(error);
        return None;
    }
    let (table, errors) = DeTable::parse_recoverable(reader.document.text());
    // Where the parser gives up on a bracket, the ones around it seem unclosed too.
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
    let (span, mut table) = (table.span(), table.into_inner());
    let overrides = reader.overrides;
    if let Some(variant) = &overrides.variant {
        variants::lay_over(&mut table, variant, reader);
    }
    let node = Node::new(span, DeValue::Table(table));
    of::<Document>().read(&node, reader)
}

/// Whether an error is in a line such as `[machine`: then nobody knows which table the keys after it belong to.
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

/// A path of a spec, which starts at the spec's folder unless it is absolute. `..` stays as it is, because what it
/// leads to depends on symbolic links.
pub(super) fn from_folder_of(spec: &Path, path: &Path) -> PathBuf {
    spec.parent().map_or_else(|| path.to_owned(), |folder| folder.join(path).components().collect())
}
