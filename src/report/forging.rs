//! Tests foreign strings at every place where kiln prints them: no line begins with one, and none is a command of a CI
//! service.

use std::fs;
use std::time::Duration;

use indicatif::InMemoryTerm;

use super::ci::{assert_harmless, hostile_texts};
use super::log::LogSink;
use super::quote::{TextPage, quote_name};
use super::screen::{Screen, ScreenSize};
use super::testing::{Glass, Tape, outcome};
use super::*;
use crate::digest::Sha256Digest;
use crate::event::{Channel, Event, EventOrigin, NoticeLevel, Stage};

/// Returns the foreign strings as kiln decodes them.
fn texts() -> Vec<String> {
    hostile_texts().iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// Returns every event with the string in each of its fields.
fn events(text: &str) -> Vec<Event> {
    vec![
        Event::BuildStarted { image: text.into(), version: text.into(), steps: 1 },
        Event::DownloadStarted { url: text.into() },
        Event::StageStarted { stage: Stage::Provision },
        Event::StepCached { index: 0, name: text.into(), verb: "run", steps: 1 },
        Event::StepSkipped { name: text.into(), verb: "run", when: text.into() },
        Event::StepStarted { index: 0, name: text.into(), verb: "run", steps: 1 },
        Event::StepOutput { index: 0, channel: Channel::Stdout, line: text.into() },
        Event::Console { line: text.into() },
        Event::Notice { level: NoticeLevel::Debug, text: text.into() },
        Event::Notice { level: NoticeLevel::Info, text: text.into() },
        Event::Notice { level: NoticeLevel::Warning, text: text.into() },
        Event::ShellStarted { failure: Some(text.into()), tail: vec![text.into()] },
        Event::TestFinished { name: text.into(), ok: true, seconds: 1.0, found: text.into() },
        Event::TestFinished { name: text.into(), ok: false, seconds: 1.0, found: text.into() },
        Event::StepRetried { index: 0, attempt: 1, attempts: 2, reason: text.into(), pause: 1.0 },
        Event::StepFinished { index: 0, ok: false, seconds: 1.0 },
    ]
}

#[test]
fn forging_through_progress_and_logs() {
    let folder = tempfile::tempdir().unwrap();
    for (number, text) in texts().iter().enumerate() {
        let plain = Tape::default();
        let json = Tape::default();
        let path = folder.path().join(number.to_string());
        let log = LogSink::create(&path).unwrap();
        let sinks: [&dyn EventSink; 3] = [
            &PlainSink::new(Box::new(plain.clone()), Verbosity::Verbose, Paint(false)),
            &JsonSink::new(Box::new(json.clone())),
            &log,
        ];
        for event in events(text) {
            let origin = EventOrigin { at: Duration::ZERO, build: None };
            for sink in sinks {
                sink.emit(origin, &event);
            }
        }
        assert_harmless("plain", &plain.text(), &[]);
        assert_harmless("json", &json.text(), &[]);
        assert_harmless("build.log", &fs::read_to_string(&path).unwrap(), &[]);
        assert_eq!(json.text().lines().count(), events(text).len());
    }
}

#[test]
fn forging_through_bars() {
    for text in texts() {
        let term = InMemoryTerm::new(60, 200);
        let screen = Screen::new(Box::new(Glass(term.clone())), Some(ScreenSize { rows: 60, columns: 200 }));
        let bars = BarSink::on(screen, 255, Verbosity::Verbose, Paint(false));
        for event in events(&text) {
            bars.emit(EventOrigin::default(), &event);
            if matches!(event, Event::StepOutput { .. }) {
                assert_harmless("live lines", &term.contents(), &[]);
            }
        }
        assert_harmless("bars", &term.contents(), &[]);
    }
}

#[test]
fn forging_through_reports_of_tests() {
    for text in texts() {
        let mut failed = outcome(&text, false, &text);
        failed.tail = vec![text.clone(), text.clone()];
        let report = junit::report("web@1", &[("disk_sha256", Sha256Digest::of("disk"))], &[failed.clone()]);
        assert_harmless("JUnit", &report, &[]);
        assert!(report.contains("  | "), "{report}");
        assert_harmless("the run's page", &github::table("web@1", &[failed]), &[]);
    }
}

#[test]
fn forging_through_results() {
    for bytes in hostile_texts() {
        let text = String::from_utf8_lossy(&bytes);
        let mut page = TextPage::default();
        page.line("image ", &text);
        page.quote(&text);
        page.line("+ ", &quote_name(&bytes));
        assert_harmless("a result", &page.into_text(), &[]);
        let json = format!("{:#}", serde_json::json!({ &*text: [&*text] }));
        let escaped = escape::escape_json(&json);
        assert_harmless("JSON", &escaped, &[]);
        let read: serde_json::Value = serde_json::from_str(&escaped).unwrap();
        assert_eq!(read, serde_json::json!({ &*text: [&*text] }));
    }
}
