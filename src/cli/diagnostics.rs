//! Errors of a spec with file, line, column, the source line and a caret. Pure: strings in, strings out.

use std::io::Write;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::error::Failure;
use crate::report::escape::{escape, escape_rendered};
use crate::report::github::{self, GithubSink};
use crate::report::quote::{quote_line, quote_message};
use crate::resolve::source_errors::SourceErrors;
use crate::specfile::{LoadError, SpecDocument, SpecError, SpecErrors};

/// Length limit of lines that are shown, bytes: the renderer reads its whole input again for each error, so for longer lines
/// only the position is printed.
const MAX_SNIPPET: usize = 4096;

/// Prints a failure on standard error: what failed, why, and what to do about it.
pub(crate) fn print(failure: &Failure) {
    let colour = crate::report::wants_colour(&std::io::stderr());
    // An error means that the terminal is gone, and nothing can be printed.
    let _ = std::io::stderr().lock().write_all(describe(failure, colour).as_bytes());
    if GithubSink::here().is_some() {
        let annotations: String = github::annotations(failure).iter().map(|line| format!("{line}\n")).collect();
        let _ = std::io::stderr().lock().write_all(annotations.as_bytes());
    }
}

/// Renders a failure for people: errors of a spec with their source lines, any other failure with evidence and hints.
#[must_use]
pub fn describe(failure: &Failure, colour: bool) -> String {
    if let Some(LoadError::Invalid(errors)) = failure.fault() {
        return render(errors, colour);
    }
    if let Some(sources) = failure.fault::<SourceErrors>() {
        return quote_lines(&failure.evidence()) + &render_sources(&sources.errors, colour);
    }
    let mut group = Group::with_title(Level::ERROR.primary_title(quote_message(&failure.to_string())));
    for hint in failure.hints() {
        group = group.element(Level::HELP.message(quote_message(&hint)));
    }
    for note in failure.attached() {
        group = group.element(Level::NOTE.message(quote_message(note)));
    }
    format!("{}{}\n", quote_lines(&failure.evidence()), escape_rendered(&renderer(colour).render(&[group])))
}

fn renderer(colour: bool) -> Renderer {
    if colour { Renderer::styled() } else { Renderer::plain() }
}

fn quote_lines(lines: &[String]) -> String {
    lines.iter().map(|line| quote_line(line) + "\n").collect()
}

/// Renders the errors in the files of a spec, without a summary line if there is only one.
fn render_sources(errors: &SpecErrors, colour: bool) -> String {
    let [only] = &errors.errors[..] else { return render(errors, colour) };
    escape_rendered(&renderer(colour).render(&report(only, &errors.document))) + "\n"
}

/// Renders all errors of a spec for people, with a summary line at the end.
#[must_use]
pub fn render(errors: &SpecErrors, colour: bool) -> String {
    let renderer = renderer(colour);
    let mut shown = String::new();
    for error in &errors.errors {
        shown.push_str(&renderer.render(&report(error, &errors.document)));
        shown.push_str("\n\n");
    }
    let summary = match errors.omitted {
        0 => errors.to_string(),
        omitted => format!("{errors}, {omitted} of them not shown"),
    };
    shown.push_str(&renderer.render(&[Group::with_title(Level::ERROR.primary_title(quote_message(&summary)))]));
    shown.push('\n');
    escape_rendered(&shown)
}

fn report<'e>(error: &'e SpecError, document: &'e SpecDocument) -> [Group<'e>; 1] {
    let mut group = Group::with_title(Level::ERROR.primary_title(quote_message(&error.message)));
    if let Some(span) = &error.span {
        group = places(group, span, error, document);
    }
    if let Some(help) = &error.help {
        group = group.element(Level::HELP.message(quote_message(help)));
    }
    [group]
}

/// Adds the places of an error to a group: one snippet if they are near each other, else one for each.
fn places<'e>(group: Group<'e>, span: &'e Range<usize>, error: &'e SpecError, document: &'e SpecDocument) -> Group<'e> {
    let primary = (AnnotationKind::Primary, span, None);
    let related = error.related.iter().map(|(span, label)| (AnnotationKind::Context, span, Some(label.as_str())));
    let all: Vec<Place> = std::iter::once(primary).chain(related).collect();
    let first = all.iter().map(|(_, span, _)| span.start).min().unwrap_or(span.start);
    let last = all.iter().map(|(_, span, _)| span.end).max().unwrap_or(span.end);
    if document.lines_around(&(first..last)).len() <= MAX_SNIPPET {
        return show(group, &all, first..last, document);
    }
    all.iter().fold(group, |group, place| show(group, &[*place], place.1.clone(), document))
}

type Place<'e> = (AnnotationKind, &'e Range<usize>, Option<&'e str>);

fn show<'e>(group: Group<'e>, places: &[Place<'e>], span: Range<usize>, document: &'e SpecDocument) -> Group<'e> {
    let path = escape(&document.path().display().to_string()).into_owned();
    let lines = document.lines_around(&span);
    if lines.len() > MAX_SNIPPET {
        let at = document.position(span.start);
        return group.element(Origin::path(path).line(at.line).char_column(at.column));
    }
    let annotations = places.iter().map(|(kind, span, label)| {
        let inside = span.start - lines.start..span.end - lines.start;
        kind.span(inside).label(*label)
    });
    let snippet = Snippet::source(&document.text()[lines.clone()]).path(path).line_start(document.line(lines.start));
    group.element(snippet.annotations(annotations))
}
