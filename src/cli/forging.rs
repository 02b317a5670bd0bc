//! Tests foreign strings in errors and in specs: no line begins with one, and none is a command of a CI service.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::error::{Failure, Fault, Kind};
use crate::guest::step_error::{StepError, StepFailure};
use crate::project::FileReach;
use crate::report::ci::{assert_harmless, hostile_texts};
use crate::report::github;
use crate::specfile::{Overrides, Spec};

use super::diagnostics::describe;

/// Returns the foreign strings as kiln decodes them.
fn texts() -> Vec<String> {
    hostile_texts().iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// A failure with the foreign string in each of its fields.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {0}")]
struct ForeignError(String, #[source] io::Error);

impl Fault for ForeignError {
    fn kind(&self) -> Kind {
        Kind::Base
    }

    fn hints(&self) -> Vec<String> {
        vec![self.0.clone()]
    }

    fn evidence(&self) -> Vec<String> {
        vec![self.0.clone(), format!("{0}\n{0}", self.0)]
    }
}

#[test]
fn forging_through_errors() {
    for text in texts() {
        let mut failure = Failure::from(ForeignError(text.clone(), io::Error::other(text.clone())));
        failure.attach(&text);
        assert_harmless("an error", &describe(&failure, false), &[]);
        let file = PathBuf::from(format!("/{text}"));
        let how = StepFailure::NotStarted(text.clone());
        let step =
            StepError { number: 1, name: text.clone(), spec: file, line: 1, how, tail: vec![text.clone()], hint: None };
        let failure = Failure::from(step);
        assert_harmless("a step", &describe(&failure, false), &[]);
        let annotations = github::annotations(&failure);
        assert_harmless("an annotation", &annotations.join("\n"), &["::error file="]);
        assert_eq!(annotations.len(), 1);
    }
}

#[test]
fn forging_through_specs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.toml");
    for text in texts() {
        let spec =
            format!("[image]\nname = 'web'\n{text}\n'{text}' = '{text}'\n[[step]]\nrun = \"\"\"\n{text}\"\"\"\n");
        fs::write(&path, spec).unwrap();
        let failure = Failure::from(Spec::load(&path, FileReach::Project, &Overrides::default()).unwrap_err());
        assert_harmless("a spec", &describe(&failure, false), &[]);
        assert_harmless("annotations", &github::annotations(&failure).join("\n"), &["::error file="]);
    }
}
