//! GitHub Actions: annotations at the line of the spec, and a table on the page of the run.
//!
//! Sources: GitHub's "Workflow commands for GitHub Actions", and `toolkit/packages/core/src/command.ts` for what is escaped.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::error::Failure;
use crate::guest::step_error::StepError;
use crate::report::escape::escape;
use crate::resolve::source_errors::SourceErrors;
use crate::specfile::{LoadError, SpecErrors};
use crate::test::{Failed, Outcome, TestsFailed};

/// A run of GitHub Actions.
pub struct GithubSink {
    /// The file that GitHub reads the Markdown of the run's page from.
    summary: Option<PathBuf>,
}

impl GithubSink {
    /// Returns the run of GitHub Actions that kiln is part of, if any.
    pub fn here() -> Option<Self> {
        let is_there = std::env::var("GITHUB_ACTIONS").is_ok_and(|value| value == "true");
        is_there.then(|| Self { summary: std::env::var_os("GITHUB_STEP_SUMMARY").map(PathBuf::from) })
    }

    /// Appends the table of tests to the run's page. An error is ignored: it must not fail the build.
    pub fn tell(&self, image: &str, outcomes: &[Outcome]) {
        let Some(path) = &self.summary else { return };
        let appended = File::options().append(true).create(true).open(path);
        let _ = appended.and_then(|mut file| file.write_all(table(image, outcomes).as_bytes()));
    }
}

/// Returns annotations for errors in a spec or its inputs, and for a step or tests that failed. Other failures have no place
/// in a file.
pub fn annotations(failure: &Failure) -> Vec<String> {
    if let Some(LoadError::Invalid(errors)) = failure.fault() {
        return of_spec(errors);
    }
    if let Some(sources) = failure.fault::<SourceErrors>() {
        return of_spec(&sources.errors);
    }
    if let Some(failed) = failure.fault::<TestsFailed>() {
        return failed.tests.outcomes.iter().map(|outcome| of_test(&failed.tests, outcome)).collect();
    }
    let Some(step) = failure.fault::<StepError>() else { return Vec::new() };
    let place = AnnotationPosition { file: &step.spec, line: step.line, column: 0 };
    vec![annotation(place, &format!("step {} `{}`", step.number, step.name), &failure.to_string())]
}

fn of_test(Failed { image, spec, .. }: &Failed, Outcome { test, found, .. }: &Outcome) -> String {
    let place = AnnotationPosition { file: spec, line: test.line, column: 0 };
    annotation(place, &format!("{image}: {}", test.name), &format!("test `{}` {found}", test.name))
}

fn of_spec(errors: &SpecErrors) -> Vec<String> {
    let document = &errors.document;
    let annotations = errors.errors.iter().map(|error| {
        let at = error.span.as_ref().map(|span| document.position(span.start));
        let (line, column) = at.map_or((0, 0), |at| (at.line, at.column));
        let help = error.help.as_ref().map(|help| format!("\n{help}")).unwrap_or_default();
        let place = AnnotationPosition { file: document.path(), line, column };
        annotation(place, "spec", &format!("{}{help}", error.message))
    });
    annotations.collect()
}

/// Position in a file, counted from 1; 0 if the error is about the whole file.
struct AnnotationPosition<'a> {
    file: &'a Path,
    line: usize,
    column: usize,
}

/// Returns an error annotation for a line of a file. Paths are relative to the working folder, as GitHub requires.
fn annotation(AnnotationPosition { file, line, column }: AnnotationPosition<'_>, title: &str, message: &str) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let file = property(&file.strip_prefix(here).unwrap_or(file).display().to_string());
    let line = numbered("line", line);
    let column = numbered("col", column);
    format!("::error file={file}{line}{column},title={}::{}", property(title), data(message))
}

/// Returns a numeric property of a command, with a comma before it; nothing for 0.
fn numbered(name: &str, number: usize) -> String {
    if number == 0 { String::new() } else { format!(",{name}={number}") }
}

/// Encodes the message of a command. Other control characters are escaped: the page shows them as they are.
fn data(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(escape).collect();
    lines.join("\n").replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Encodes a property of a command, which is one line.
fn property(text: &str) -> String {
    data(&escape(text)).replace(':', "%3A").replace(',', "%2C")
}

pub(super) fn table(image: &str, outcomes: &[Outcome]) -> String {
    let mut text = format!("### {image}\n\n| | test | format | time | found |\n|---|---|---|---|---|\n");
    for Outcome { test, format, ok, found, seconds, .. } in outcomes {
        let verdict = if *ok { "passed" } else { "**failed**" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {verdict} | {} | {format} | {seconds:.1}s | {} |", cell(&test.name), cell(found));
    }
    text.push('\n');
    text
}

/// Escapes text for a cell of a Markdown table: no cell ends early, and nothing is taken for markup.
fn cell(text: &str) -> String {
    let line = text.replace(['\n', '\r'], " ");
    let escaped = escape(&line);
    let cell = escaped.chars().map(|c| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '\\' | '|' | '`' | '*' | '_' | '[' | ']' | '!' | '#' | '~' | '@' => format!("\\{c}"),
        c => c.to_string(),
    });
    cell.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::outcome;

    #[test]
    fn an_annotation_is_one_command_whatever_is_in_it() {
        let place = |file, line, column| AnnotationPosition { file: Path::new(file), line, column };
        let text = annotation(place("a,b/kiln.toml", 7, 0), "x: y", "50%\n::error::forged");
        assert_eq!(text, "::error file=a%2Cb/kiln.toml,line=7,title=x%3A y::50%25%0A::error::forged");
        assert_eq!(annotation(place("m", 0, 0), "t", "x"), "::error file=m,title=t::x");
        let here = std::env::current_dir().unwrap().join("m");
        assert_eq!(annotation(place(here.to_str().unwrap(), 1, 2), "t", "x"), "::error file=m,line=1,col=2,title=t::x");
    }

    #[test]
    fn a_cell_cannot_end_the_table() {
        let text = table("web@1", &[outcome("a|b\n| c", false, "<img>")]);
        assert!(text.ends_with("| **failed** | a\\|b \\| c | qcow2 | 1.5s | &lt;img> |\n\n"), "{text}");
    }
}
