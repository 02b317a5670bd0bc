//! Tests of the consumers, fed with one build.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::InMemoryTerm;
use proptest::prelude::*;

use super::log::LogSink;
use super::screen::{Screen, ScreenSize};
use super::testing::{Glass, Tape};
use super::*;
use crate::event::{Channel, Event, EventOrigin, Events, NoticeLevel, Outcome, Stage};

fn output(line: &str) -> Event {
    Event::StepOutput { index: 0, channel: Channel::Stderr, line: line.into() }
}

/// Returns the events of a build with a step that writes hostile text, a step that fails, and one of every other event.
fn build(outcome: Outcome) -> Vec<Event> {
    vec![
        Event::Notice { level: NoticeLevel::Info, text: "waiting for another kiln".into() },
        Event::BuildStarted { image: "web".into(), version: "1.4.0".into(), steps: 2 },
        Event::StageStarted { stage: Stage::Boot },
        Event::Console { line: "Linux version 6.1".into() },
        Event::Notice { level: NoticeLevel::Debug, text: "agent 1".into() },
        Event::StageFinished { stage: Stage::Boot, seconds: 23.14 },
        Event::StageStarted { stage: Stage::Provision },
        Event::StepStarted { index: 0, name: "install nginx".into(), verb: "run", steps: 2 },
        output("::set-output name=x::y"),
        output("\x1b]52;c;cm0=\x07\rok"),
        Event::Progress { stage: Stage::Provision, done: 1 << 20, total: 8 << 20 },
        Event::StepFinished { index: 0, ok: true, seconds: 1.26 },
        Event::StepStarted { index: 1, name: "site".into(), verb: "copy", steps: 2 },
        Event::StepFinished { index: 1, ok: false, seconds: 61.0 },
        Event::Notice { level: NoticeLevel::Warning, text: "the clock is off".into() },
        Event::TestFinished { name: "answers".into(), ok: true, seconds: 2.0, found: String::new() },
        Event::BuildFinished { outcome, seconds: 99.5 },
    ]
}

fn at(at: Duration) -> EventOrigin<'static> {
    EventOrigin { at, build: None }
}

fn feed(sink: &dyn EventSink, events: &[Event]) {
    for (n, event) in (0..).zip(events) {
        sink.emit(at(Duration::from_millis(1000 + n * 250)), event);
    }
}

fn plain(verbosity: Verbosity, paint: Paint, events: &[Event]) -> String {
    let tape = Tape::default();
    feed(&PlainSink::new(Box::new(tape.clone()), verbosity, paint), events);
    tape.text()
}

#[test]
fn plain_output_is_a_line_for_each_change() {
    let text = plain(Verbosity::Normal, Paint(false), &build(Outcome::Failed));
    let expected = r"note: waiting for another kiln
build web@1.4.0, 2 steps
boot...
  ok boot  23.1s
provision...
step 1/2 install nginx (run)...
  | ::set-output name=x::y
  | \x1b]52;c;cm0=\x07\rok
  ok step 1/2 install nginx  1.3s
step 2/2 site (copy)...
  FAILED step 2/2 site  1m 01s
warning: the clock is off
  ok test answers  2.0s
  FAILED build web@1.4.0  1m 40s
";
    assert_eq!(text, expected);
}

#[test]
fn quiet_is_warnings_and_verbose_is_the_console_too() {
    let events = build(Outcome::Published);
    assert_eq!(plain(Verbosity::Quiet, Paint(false), &events), "warning: the clock is off\n");
    let verbose = plain(Verbosity::Verbose, Paint(false), &events);
    assert!(verbose.contains("\nconsole | Linux version 6.1\ndebug: agent 1\n"), "{verbose}");
    assert!(verbose.ends_with("\n  ok published web@1.4.0  1m 40s\n"), "{verbose}");
}

#[test]
fn colour_is_there_or_not_at_all() {
    let events = build(Outcome::Published);
    assert!(plain(Verbosity::Normal, Paint(true), &events).contains("  \x1b[32mok\x1b[0m boot  23.1s\n"));
    assert!(!plain(Verbosity::Verbose, Paint(false), &events).contains('\x1b'));
}

#[test]
fn json_is_one_object_a_line() {
    let tape = Tape::default();
    feed(&JsonSink::new(Box::new(tape.clone())), &build(Outcome::UpToDate));
    let text = tape.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), build(Outcome::UpToDate).len());
    assert_eq!(lines[1], r#"{"schema":1,"at":1.25,"event":"build-started","image":"web","version":"1.4.0","steps":2}"#);
    assert_eq!(lines[5], r#"{"schema":1,"at":2.25,"event":"stage-finished","stage":"boot","seconds":23.14}"#);
    assert_eq!(lines[16], r#"{"schema":1,"at":5.0,"event":"build-finished","outcome":"up-to-date","seconds":99.5}"#);
    for (line, event) in lines.iter().zip(build(Outcome::UpToDate)) {
        let read: serde_json::Value = serde_json::from_str(line).unwrap();
        let sent = serde_json::to_value(&event).unwrap();
        assert_eq!(read["event"], sent["event"]);
        assert_eq!(read["line"], sent["line"], "hostile text arrives as it was sent");
        assert!(!line.contains('\x1b'));
    }
}

/// Checks that `docs/events.md` names every event and field.
#[test]
fn the_schema_is_documented() {
    let docs = include_str!("../../docs/events.md");
    for event in build(Outcome::Published) {
        let json = serde_json::to_value(&event).unwrap();
        for (field, value) in json.as_object().unwrap() {
            assert!(docs.contains(&format!("`{field}`")), "{field}");
            if field == "event" {
                assert!(docs.contains(&format!("### `{}`", value.as_str().unwrap())), "{value}");
            }
        }
    }
}

#[test]
fn the_log_has_every_event() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("build.log");
    let log = LogSink::create(&path).unwrap();
    let events = build(Outcome::Failed);
    feed(&log, &events);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), events.len() + 1);
    assert!(lines[0].starts_with("kiln ") && lines[0].ends_with('Z'), "{}", lines[0]);
    assert_eq!(lines[4], "     1.750 console | Linux version 6.1");
    assert_eq!(lines[11], "     3.500 provision  1MiB of 8MiB");
    assert_eq!(lines[14], "     4.250 FAILED step 2/2 site  1m 01s");
}

/// Returns a terminal of this many columns, and bars on it.
fn bars(columns: u16, verbosity: Verbosity, paint: Paint) -> (InMemoryTerm, BarSink) {
    let term = InMemoryTerm::new(30, columns);
    let screen = Screen::new(Box::new(Glass(term.clone())), Some(ScreenSize { rows: 30, columns }));
    (term, BarSink::on(screen, 255, verbosity, paint))
}

/// Returns the content of the screen, with the spinner in a fixed position.
fn screen(term: &InMemoryTerm) -> String {
    let still = |line: &str| match line.strip_prefix(['|', '/', '-', '\\']) {
        Some(rest) if rest.starts_with(' ') => format!("*{rest}"),
        _ => line.to_owned(),
    };
    term.contents().lines().map(still).collect::<Vec<_>>().join("\n")
}

#[test]
fn bars_show_what_is_done_above_what_runs() {
    let (term, bars) = bars(50, Verbosity::Normal, Paint(false));
    let events = build(Outcome::Published);
    feed(&bars, &events[..11]);
    let expected = r"note: waiting for another kiln
build web@1.4.0, 2 steps
  ok boot  23.1s
* step 1/2 install nginx (run) 1MiB of 8MiB   0s
  | \x1b]52;c;cm0=\x07\rok";
    assert_eq!(screen(&term), expected);
}

#[test]
fn bars_tell_the_pace_of_a_transfer() {
    let (term, bars) = bars(60, Verbosity::Normal, Paint(false));
    bars.emit(at(Duration::ZERO), &Event::BuildStarted { image: "web".into(), version: "1".into(), steps: 0 });
    bars.emit(at(Duration::ZERO), &Event::StageStarted { stage: Stage::Convert });
    for (seconds, mib) in [(1, 10), (2, 40), (3, 50)] {
        let event = Event::Progress { stage: Stage::Convert, done: mib << 20, total: 80 << 20 };
        bars.emit(at(Duration::from_secs(seconds)), &event);
    }
    assert!(screen(&term).contains("* convert 50MiB of 80MiB, 20MiB/s"), "{}", screen(&term));
}

/// Covers two concurrent builds: lines name their build, and each build has one live line.
#[test]
fn several_builds_have_a_line_each() {
    let (term, bars) = bars(60, Verbosity::Normal, Paint(false));
    let tape = Tape::default();
    let plain = PlainSink::new(Box::new(tape.clone()), Verbosity::Normal, Paint(false));
    let json = Tape::default();
    let machine = JsonSink::new(Box::new(json.clone()));
    let tell = |build: &str, event: Event| {
        let origin = EventOrigin { at: Duration::ZERO, build: Some(build) };
        for sink in [&bars as &dyn EventSink, &plain, &machine] {
            sink.emit(origin, &event);
        }
    };
    for (build, image) in [("web@1", "web"), ("app@1", "app")] {
        tell(build, Event::BuildStarted { image: image.into(), version: "1".into(), steps: 1 });
        tell(build, Event::StageStarted { stage: Stage::Boot });
    }
    tell("web@1", Event::StageFinished { stage: Stage::Boot, seconds: 1.0 });
    tell("web@1", Event::StepStarted { index: 0, name: "site".into(), verb: "copy", steps: 1 });
    tell("app@1", Event::Notice { level: NoticeLevel::Warning, text: "slow".into() });
    let expected = "build web@1, 1 step\nbuild app@1, 1 step\napp@1: warning: slow\n\
                    * web@1: step 1/1 site (copy)                           0s\n\
                    * app@1: boot                                           0s";
    assert_eq!(screen(&term), expected);
    tell("web@1", Event::BuildFinished { outcome: Outcome::Published, seconds: 2.0 });
    assert!(screen(&term).contains("  ok published web@1  2.0s\n* app@1: boot"), "{}", screen(&term));
    assert!(tape.text().contains("web@1: step 1/1 site (copy)...\napp@1: warning: slow\n"), "{}", tape.text());
    let first = json.text().lines().next().unwrap().to_owned();
    assert!(first.starts_with(r#"{"schema":1,"at":0.0,"build":"web@1","event":"build-started""#), "{first}");
}

#[test]
fn a_download_before_the_build_has_a_line() {
    let (term, bars) = bars(60, Verbosity::Normal, Paint(false));
    let url = "https://example.org/debian.qcow2".to_owned();
    bars.emit(at(Duration::ZERO), &Event::DownloadStarted { url });
    bars.emit(at(Duration::from_secs(2)), &Event::Progress { stage: Stage::Base, done: 1 << 20, total: 4 << 20 });
    assert!(screen(&term).starts_with("* download debian.qcow2 1MiB of 4MiB"), "{}", screen(&term));
    bars.emit(at(Duration::from_secs(4)), &Event::DownloadFinished { bytes: 4 << 20, seconds: 4.0 });
    assert_eq!(screen(&term), "  ok download 4MiB  4.0s");
}

/// Checks that `docs/events.md` also names what comes before a build.
#[test]
fn downloads_are_documented() {
    let docs = include_str!("../../docs/events.md");
    for name in ["### `download-started`", "### `download-finished`", "`url`", "`bytes`"] {
        assert!(docs.contains(name), "{name}");
    }
}

#[test]
fn bars_leave_nothing_live_at_the_end() {
    for outcome in [Outcome::Published, Outcome::Failed] {
        let (term, bars) = bars(50, Verbosity::Normal, Paint(true));
        feed(&bars, &build(outcome));
        let text = screen(&term);
        let last = text.lines().last().unwrap();
        let expected =
            if outcome == Outcome::Failed { "  ok test answers  2.0s" } else { "  ok published web@1.4.0  1m 40s" };
        assert_eq!(last, expected);
    }
    // The events end early, as after an error outside of the build.
    let (term, bars) = bars(50, Verbosity::Normal, Paint(false));
    feed(&bars, &build(Outcome::Published)[..10]);
    drop(bars);
    assert_eq!(screen(&term).lines().last(), Some("  ok boot  23.1s"));
}

#[test]
fn no_line_relies_on_autowrap() {
    let tape = Tape::default();
    let screen = Screen::new(Box::new(tape.clone()), Some(ScreenSize { rows: 30, columns: 70 }));
    let bars = BarSink::on(screen, 255, Verbosity::Normal, Paint(false));
    feed(&bars, &build(Outcome::Published));
    bars.emit(at(Duration::ZERO), &Event::Notice { level: NoticeLevel::Info, text: "x".repeat(70) });
    drop(bars);
    let text = tape.text();
    assert!(text.ends_with(&format!("  ok published web@1.4.0  1m 40s\r\nnote: {}\r\n", "x".repeat(70))), "{text:?}");
    // Rows are erased to their end, not filled to it.
    assert!(text.split(['\r', '\n']).all(|row| !row.ends_with(' ')), "{text:?}");
}

#[test]
fn live_lines_do_not_wrap_on_a_narrow_terminal() {
    for text in ["x".repeat(500), "日本".repeat(100), "\t\x1b[31m".repeat(50)] {
        let (term, bars) = bars(40, Verbosity::Normal, Paint(true));
        bars.emit(at(Duration::ZERO), &Event::BuildStarted { image: "web".into(), version: "1".into(), steps: 1 });
        bars.emit(at(Duration::ZERO), &Event::StepStarted { index: 0, name: text.clone(), verb: "run", steps: 1 });
        bars.emit(at(Duration::ZERO), &output(&text));
        bars.emit(at(Duration::ZERO), &Event::Progress { stage: Stage::Provision, done: 1, total: 1 << 40 });
        let text = screen(&term);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.lines().nth(1).unwrap().ends_with("0s"), "{text}");
    }
}

#[test]
fn the_terminal_decides_what_auto_means() {
    let shown = |progress, verbosity, term: Option<&str>, is_terminal| {
        shown(progress, verbosity, Terminal::new(is_terminal, term, None))
    };
    assert_eq!(shown(ProgressMode::Auto, Verbosity::Normal, Some("xterm"), true), ProgressMode::Bars);
    assert_eq!(shown(ProgressMode::Auto, Verbosity::Normal, Some("xterm"), false), ProgressMode::Plain);
    assert_eq!(shown(ProgressMode::Auto, Verbosity::Normal, Some("dumb"), true), ProgressMode::Plain);
    assert_eq!(shown(ProgressMode::Auto, Verbosity::Quiet, Some("xterm"), true), ProgressMode::Plain);
    assert_eq!(shown(ProgressMode::Bars, Verbosity::Normal, None, true), ProgressMode::Plain);
    assert_eq!(shown(ProgressMode::Plain, Verbosity::Verbose, Some("xterm"), true), ProgressMode::Plain);
    assert_eq!(shown(ProgressMode::Json, Verbosity::Quiet, Some("xterm"), true), ProgressMode::Json);
}

#[test]
fn no_color_is_honoured() {
    let colour = |no_color| Terminal::new(true, Some("xterm"), no_color).has_colour;
    assert!(colour(None) && colour(Some("")));
    assert!(!colour(Some("1")));
}

#[test]
fn a_sink_outlives_its_reader() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
    let tape = Tape::default();
    let plain = |out| Arc::new(PlainSink::new(out, Verbosity::Normal, Paint(false)));
    let sinks: Vec<Arc<dyn EventSink>> =
        vec![plain(Box::new(Gone)), Arc::new(JsonSink::new(Box::new(Gone))), plain(Box::new(tape.clone()))];
    Events::new(sinks).notice(NoticeLevel::Info, "hello");
    assert_eq!(tape.text(), "note: hello\n");
}

proptest! {
    /// Covers fault row G4: whatever foreign text comes in, every line is one of kiln's, complete and without commands.
    #[test]
    fn g4_no_line_can_be_forged(text in any::<String>(), prefix in "(::|##\\[|##vso\\[|\r|\n|\x1b\\[)?") {
        let text = prefix + &text;
        let events = [
            Event::StepStarted { index: 0, name: text.clone(), verb: "run", steps: 1 },
            output(&text),
            Event::Console { line: text.clone() },
            Event::Notice { level: NoticeLevel::Info, text: text.clone() },
            Event::TestFinished { name: text.clone(), ok: false, seconds: 0.0, found: text },
        ];
        let shown = plain(Verbosity::Verbose, Paint(false), &events);
        prop_assert_eq!(shown.matches('\n').count(), events.len());
        for (line, start) in shown.lines().zip(["step 1/1 ", "  | ", "console | ", "note: ", "  FAILED test "]) {
            prop_assert!(line.starts_with(start), "{line:?}");
            prop_assert!(!line.contains("##[") && !line.contains(['\x1b', '\r']));
        }
    }
}
