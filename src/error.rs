//! The common parts of every failure: its kind (and so the exit code), hints about what to do, and evidence.
//!
//! Each module has its own `thiserror` enum with the context as fields. Through [`Fault`] it names its [`Kind`] and its
//! hints; [`Failure`] carries any of them upwards, together with whatever went wrong during clean-up. The first error wins:
//! a failure while cleaning up is attached to it and never replaces it.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::masking::SecretMask;

/// The kind of a failure. The discriminants are the exit codes of the command line and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The usage of the command line is invalid.
    Usage = 2,
    /// The spec, or an input file that it names, is invalid.
    Spec = 3,
    /// This host does not meet the requirements: QEMU, the accelerator, firmware, disk space, limits.
    Host = 4,
    /// The base image is missing, hostile or not the expected one.
    Base = 5,
    /// The guest did not boot, or its agent violates the protocol.
    Boot = 6,
    /// A step of the spec failed.
    Step = 7,
    /// The output could not be created or stored.
    Output = 8,
    /// A test of the sealed image failed.
    Test = 9,
    /// A bug in kiln.
    Bug = 70,
    /// The user interrupted the command.
    Interrupted = 130,
}

impl Kind {
    /// Every kind with its documentation sentence, in the order of the exit codes.
    pub const ALL: [(Kind, &'static str); 10] = [
        (Kind::Usage, "invalid usage"),
        (Kind::Spec, "the spec, or an input it names, is wrong"),
        (Kind::Host, "this host is not fit: QEMU, accelerator, firmware, space"),
        (Kind::Base, "the base image is missing, hostile or not what it is said to be"),
        (Kind::Boot, "the guest did not boot, or its agent did not answer"),
        (Kind::Step, "a step failed"),
        (Kind::Output, "the output could not be made or stored"),
        (Kind::Test, "a test of the sealed image failed"),
        (Kind::Bug, "a bug in kiln"),
        (Kind::Interrupted, "interrupted"),
    ];

    /// Returns the exit code of the process for this kind.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        self as u8
    }
}

/// An error with a kind and hints for the user.
pub trait Fault: Error + Any + Send + Sync {
    /// Returns the kind, which determines the exit code.
    fn kind(&self) -> Kind;

    /// Returns hints about what to do, a sentence each, most useful first.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns evidence, such as the last lines of a step or of the console; shown indented below the error.
    fn evidence(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A file or folder that an operation has failed for.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub(crate) struct FileError {
    kind: Kind,
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// Returns a constructor of errors for an operation on a file, such as `open` or `write the report`.
    pub(crate) fn of(kind: Kind, action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self { kind, action, path: path.to_owned(), source }
    }
}

impl Fault for FileError {
    fn kind(&self) -> Kind {
        if self.source.kind() == io::ErrorKind::StorageFull { Kind::Host } else { self.kind }
    }
}

/// Any [`Fault`] on its way to the command line.
pub struct Failure {
    fault: Box<dyn Fault>,
    attached: Vec<String>,
    mask: SecretMask,
}

impl Failure {
    /// Returns the kind of the error that came first.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.fault.kind()
    }

    /// Returns hints about what the user can do.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        self.masked(&self.fault.hints())
    }

    /// Returns the evidence of the error that came first.
    #[must_use]
    pub fn evidence(&self) -> Vec<String> {
        self.masked(&self.fault.evidence())
    }

    /// Returns the error that came first, if it is of this type.
    #[must_use]
    pub fn fault<F: Fault>(&self) -> Option<&F> {
        let any: &dyn Any = self.fault.as_ref();
        any.downcast_ref()
    }

    /// Adds an error of the cleanup after this failure.
    pub fn attach(&mut self, what: impl fmt::Display) {
        self.attached.push(self.mask.mask_text(&what.to_string()));
    }

    /// Returns the errors of the cleanup.
    #[must_use]
    pub fn attached(&self) -> &[String] {
        &self.attached
    }

    /// Replaces these secrets in all strings of the failure: errors quote file names and answers of the guest.
    #[must_use]
    pub fn mask_secrets(mut self, mask: &SecretMask) -> Self {
        self.mask = mask.clone();
        self.attached = self.masked(&self.attached);
        self
    }

    fn masked(&self, texts: &[String]) -> Vec<String> {
        texts.iter().map(|text| self.mask.mask_text(text)).collect()
    }

    /// Returns the message and the messages of its causes, outermost first. A cause whose message its parent already ends
    /// with is left out.
    #[must_use]
    pub fn chain(&self) -> Vec<String> {
        let mut messages = vec![self.fault.to_string()];
        let mut source = self.fault.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if messages.last().is_none_or(|last| !last.ends_with(&text)) {
                messages.push(text);
            }
            source = cause.source();
        }
        self.masked(&messages)
    }
}

impl<F: Fault> From<F> for Failure {
    fn from(fault: F) -> Self {
        Self { fault: Box::new(fault), attached: Vec::new(), mask: SecretMask::default() }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({:?}, {self})", self.kind())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain().join(": "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the base image")]
    struct Outer(#[source] io::Error);

    impl Fault for Outer {
        fn kind(&self) -> Kind {
            Kind::Base
        }
    }

    #[test]
    fn a_failure_keeps_kind_and_causes() {
        let failure = Failure::from(Outer(io::Error::other("gone")));
        assert_eq!(failure.kind().exit_code(), 5);
        assert_eq!(failure.to_string(), "cannot open the base image: gone");
    }

    #[test]
    fn o3_a_failure_says_no_secret() {
        let mut failure = Failure::from(Outer(io::Error::other("no hunter2-hunter2 here")));
        failure.attach("68756e746572322d68756e74657232");
        let failure = failure.mask_secrets(&SecretMask::new([&b"hunter2-hunter2"[..]]));
        assert_eq!(failure.to_string(), "cannot open the base image: no [secret] here");
        assert_eq!(failure.attached(), ["[secret]"]);
    }
}
