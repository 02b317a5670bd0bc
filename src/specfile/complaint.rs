//! Errors of a spec: all errors of a file at once, or the reason why it could not be read at all.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::document::SpecDocument;
use super::hidden_characters::is_forgery;
use crate::error::{Fault, Kind};
use crate::project::ReachError;

/// The number of errors that are kept; further ones are only counted.
const SHOWN: usize = 100;

/// The longest message, in characters; a message quotes what the user wrote, which may be the whole file.
const MAX_MESSAGE: usize = 400;

/// One error in a spec.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpecError {
    /// The bytes of the document that the error is about, where they are known.
    pub span: Option<Range<usize>>,
    /// Whether the error is about a command-line option rather than the document.
    pub is_of_option: bool,
    /// The error message, a lower-case sentence without a full stop.
    pub message: String,
    /// Advice on how to fix the error.
    pub help: Option<String>,
    /// Other places of the document that matter, with a few words each.
    pub related: Vec<(Range<usize>, String)>,
}

impl SpecError {
    pub(super) fn new(span: Range<usize>, message: impl AsRef<str>) -> Self {
        Self::located(Some(span), message.as_ref())
    }

    pub(super) fn of_option(message: impl AsRef<str>) -> Self {
        Self { is_of_option: true, ..Self::located(None, message.as_ref()) }
    }

    /// Returns an error at a place that may not be known.
    pub(crate) fn located(span: Option<Range<usize>>, message: &str) -> Self {
        Self { span, is_of_option: false, message: presentable(message), help: None, related: Vec::new() }
    }

    pub(super) fn help(self, help: impl AsRef<str>) -> Self {
        self.maybe_help(Some(help))
    }

    pub(crate) fn maybe_help(self, help: Option<impl AsRef<str>>) -> Self {
        Self { help: help.map(|help| presentable(help.as_ref())), ..self }
    }

    pub(super) fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }
}

/// Makes a string fit for any terminal: cuts it where it is too long, and escapes characters that would change how the rest
/// looks.
fn presentable(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(MAX_MESSAGE) {
        if is_forgery(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    if text.chars().nth(MAX_MESSAGE).is_some() {
        shown.push_str("...");
    }
    shown
}

/// All errors of one spec file, in the order of the file; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecErrors {
    /// The spec file, for paths, lines and excerpts.
    pub document: SpecDocument,
    /// At most a hundred errors.
    pub errors: Vec<SpecError>,
    /// The number of errors beyond those.
    pub omitted: usize,
}

impl SpecErrors {
    pub(crate) fn new(document: SpecDocument, mut errors: Vec<SpecError>) -> Self {
        errors.sort_by_key(|error| error.span.as_ref().map(|span| span.start));
        let omitted = errors.len().saturating_sub(SHOWN);
        errors.truncate(SHOWN);
        Self { document, errors, omitted }
    }

    /// Returns one line for each error, for output such as a log that cannot show carets.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.errors.iter().map(|error| self.line(error)).collect()
    }

    fn line(&self, error: &SpecError) -> String {
        let Some(span) = &error.span else { return error.message.clone() };
        let at = self.document.position(span.start);
        format!("{}:{}:{}: {}", self.document.path().display(), at.line, at.column, error.message)
    }
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.document.path().display();
        match self.errors.len() + self.omitted {
            _ if self.errors.iter().all(|error| error.is_of_option) => {
                write!(f, "the command line does not fit {path}")
            }
            1 => write!(f, "{path} has an error"),
            many => write!(f, "{path} has {many} errors"),
        }
    }
}

impl std::error::Error for SpecErrors {}

impl Fault for SpecErrors {
    fn kind(&self) -> Kind {
        Kind::Spec
    }

    fn evidence(&self) -> Vec<String> {
        self.lines()
    }
}

/// The reason why there is no [`Spec`](super::Spec).
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be opened or read.
    #[error("cannot read the spec {}", path.display())]
    Read {
        /// Path of the spec file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
        /// A spec beside the missing one that was probably meant.
        similar: Option<PathBuf>,
    },
    /// The file is outside of the project.
    #[error(transparent)]
    Reach(#[from] ReachError),
    /// The path is a folder without a `kiln.toml`.
    #[error("the folder {} holds no kiln.toml", path.display())]
    EmptyFolder {
        /// Path of the folder.
        path: PathBuf,
    },
    /// The path leads to a pipe, a device or the like.
    #[error("the spec {} is not a regular file", path.display())]
    NotAFile {
        /// The path that was given for the spec.
        path: PathBuf,
    },
    /// The file is larger than [`super::MAX_BYTES`].
    #[error("the spec {} is larger than 1 MiB", path.display())]
    TooLarge {
        /// Path of the spec file.
        path: PathBuf,
    },
    /// The file is not UTF-8.
    #[error("the spec {} is not UTF-8: byte {offset} is invalid", path.display())]
    NotUtf8 {
        /// Path of the spec file.
        path: PathBuf,
        /// Offset of the first invalid byte, from 0.
        offset: usize,
    },
    /// The file was read, and its content is not a valid spec.
    #[error(transparent)]
    Invalid(#[from] SpecErrors),
}

impl LoadError {
    pub(super) fn unreadable(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source, similar: None }
    }
}

impl Fault for LoadError {
    fn kind(&self) -> Kind {
        Kind::Spec
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Read { similar: Some(similar), .. } => return vec![format!("did you mean `{}`?", similar.display())],
            Self::Reach(error) => return error.hints(),
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "`kiln init` writes a commented spec to start from"
            }
            Self::EmptyFolder { .. } => "name the spec file, or let `kiln init` write a commented one",
            Self::TooLarge { .. } => "keep long texts in files beside the spec, and name them with `script` or `copy`",
            Self::NotUtf8 { .. } => "save the file as UTF-8",
            Self::Read { .. } | Self::NotAFile { .. } | Self::Invalid(_) => return Vec::new(),
        };
        vec![hint.to_owned()]
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            Self::Invalid(errors) => errors.evidence(),
            _ => Vec::new(),
        }
    }
}
