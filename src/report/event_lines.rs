//! Formats events as lines of text, for plain output, bars and the log.

use std::collections::BTreeMap;

use crate::event::{Event, NoticeLevel, Outcome};
use crate::report::escape::escape;
use crate::report::quote::quote_line;
use crate::size::ByteSize;

/// Topic of a line, which decides where it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineTopic {
    /// A failure or a possible one.
    Warning,
    /// Something began.
    Began,
    /// Something ended successfully.
    Done,
    /// Something ended with a failure.
    Failed,
    /// An informative sentence.
    Note,
    /// A line that a step wrote.
    Output,
    /// Console lines and debug notices.
    Detail,
    /// Progress in bytes.
    Progress,
}

/// A line without its newline. It begins with a word of kiln's or with `  | `, whatever the guest wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReportLine {
    pub(super) topic: LineTopic,
    pub(super) text: String,
}

/// State of earlier events that is needed to format the next one.
#[derive(Debug, Default)]
pub(super) struct EventFormatter {
    image: String,
    steps: usize,
    step: Option<(usize, String)>,
}

/// The stories of concurrent builds.
#[derive(Debug, Default)]
pub(super) struct EventFormatters(BTreeMap<Option<String>, EventFormatter>);

impl EventFormatters {
    /// Returns the story of one build; events that belong to none have a story of their own.
    pub(super) fn of(&mut self, build: Option<&str>) -> &mut EventFormatter {
        self.0.entry(build.map(str::to_owned)).or_default()
    }
}

impl EventFormatter {
    /// Formats an event as a line.
    pub(super) fn tell(&mut self, event: &Event) -> ReportLine {
        let (topic, text) = match event {
            Event::BuildStarted { image, version, steps } => (LineTopic::Began, self.build(image, version, *steps)),
            Event::BuildFinished { outcome, seconds } => self.end(*outcome, *seconds),
            Event::DownloadStarted { url } => (LineTopic::Began, format!("download {}...", escape(url))),
            Event::DownloadFinished { bytes, seconds } => {
                (LineTopic::Done, format!("download {}  {}", ByteSize(*bytes), span(*seconds)))
            }
            Event::StageStarted { stage } => (LineTopic::Began, format!("{}...", stage.name())),
            Event::StageFinished { stage, seconds } => {
                (LineTopic::Done, format!("{}  {}", stage.name(), span(*seconds)))
            }
            Event::StepStarted { index, name, verb, steps } => {
                self.steps = *steps;
                self.step = Some((*index, escape(name).into_owned()));
                (LineTopic::Began, format!("{} ({verb})...", self.step_label(*index)))
            }
            Event::StepOutput { line, .. } => (LineTopic::Output, quote_line(line)),
            Event::StepCached { index, name, steps, .. } => {
                let place = format!("step {}/{steps}", index + 1);
                (LineTopic::Done, format!("{place} {}  cached", escape(name)))
            }
            Event::StepSkipped { name, when, .. } => {
                (LineTopic::Done, format!("step {}  skipped: not {}", escape(name), escape(when)))
            }
            Event::StepRetried { index, attempt, attempts, reason, pause } => {
                let label = self.step_label(*index);
                let tried = format!("try {attempt} of {attempts} {}", escape(reason));
                (LineTopic::Warning, format!("warning: {label}: {tried}; the next one begins in {}", span(*pause)))
            }
            Event::StepFinished { index, ok, seconds } => {
                over(*ok, format!("{}  {}", self.step_label(*index), span(*seconds)))
            }
            Event::Progress { stage, done, total } => {
                (LineTopic::Progress, format!("{}  {}", stage.name(), amount(*done, *total)))
            }
            Event::Console { line } => (LineTopic::Detail, format!("console | {}", escape(line))),
            Event::Notice { level, text } => notice(*level, text),
            Event::ShellStarted { failure, .. } => (LineTopic::Note, shell(failure.as_deref())),
            Event::ShellFinished { code } => (LineTopic::Detail, format!("the shell ended with exit code {code}")),
            Event::TestFinished { name, ok, seconds, found } => {
                let found = if *ok || found.is_empty() { String::new() } else { format!("  {}", escape(found)) };
                over(*ok, format!("test {}  {}{found}", escape(name), span(*seconds)))
            }
        };
        ReportLine { topic, text }
    }

    /// Returns a label for the step that runs or ran last, as in `step 2/5 install nginx`.
    fn step_label(&self, index: usize) -> String {
        let place = format!("step {}/{}", index + 1, self.steps);
        match &self.step {
            Some((at, name)) if *at == index => format!("{place} {name}"),
            _ => place,
        }
    }

    fn build(&mut self, image: &str, version: &str, steps: usize) -> String {
        self.image = format!("{}@{}", escape(image), escape(version));
        (self.steps, self.step) = (steps, None);
        format!("build {}, {steps} step{}", self.image, if steps == 1 { "" } else { "s" })
    }

    fn end(&self, outcome: Outcome, seconds: f64) -> (LineTopic, String) {
        let after = span(seconds);
        match outcome {
            Outcome::Published => (LineTopic::Done, format!("published {}  {after}", self.image)),
            Outcome::UpToDate => (LineTopic::Done, format!("up to date {}  {after}", self.image)),
            Outcome::Failed => (LineTopic::Failed, format!("build {}  {after}", self.image)),
        }
    }
}

fn shell(failure: Option<&str>) -> String {
    let why = failure.map(|failure| format!("stopped: {}; ", escape(failure))).unwrap_or_default();
    format!("{why}a shell in the guest: `exit` leaves it, Ctrl-] three times ends it, nothing is kept")
}

fn over(ok: bool, text: String) -> (LineTopic, String) {
    (if ok { LineTopic::Done } else { LineTopic::Failed }, text)
}

fn notice(level: NoticeLevel, text: &str) -> (LineTopic, String) {
    let text = escape(text);
    match level {
        NoticeLevel::Warning => (LineTopic::Warning, format!("warning: {text}")),
        NoticeLevel::Info => (LineTopic::Note, format!("note: {text}")),
        NoticeLevel::Debug => (LineTopic::Detail, format!("debug: {text}")),
    }
}

/// Formats an amount such as `1.2GiB of 8GiB`, or only the first number if the total is not known.
pub(super) fn amount(done: u64, total: u64) -> String {
    match total {
        0 => ByteSize(done).to_string(),
        total => format!("{} of {}", ByteSize(done), ByteSize(total)),
    }
}

/// Formats a duration for people: `0.4s`, `2m 03s`, `1h 02m`.
pub(super) fn span(seconds: f64) -> String {
    // A value that would be rounded up to 60.0 is a minute.
    if seconds < 59.95 {
        return format!("{:.1}s", seconds.max(0.0));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and such casts saturate")]
    let whole = seconds.round() as u64;
    clock(whole)
}

/// Formats a running duration: `59s`, `2m 03s`, `1h 02m`.
pub(super) fn clock(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let cases = [
            (0.0, "0.0s"),
            (0.44, "0.4s"),
            (59.94, "59.9s"),
            (59.96, "1m 00s"),
            (123.0, "2m 03s"),
            (3599.9, "1h 00m"),
            (3725.0, "1h 02m"),
            (-1.0, "0.0s"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(span(seconds), expected);
        }
    }

    #[test]
    fn a_clock_does_not_stand_still() {
        assert_eq!([0, 59, 60, 62, 121, 3660].map(clock), ["0s", "59s", "1m 00s", "1m 02s", "2m 01s", "1h 01m"]);
    }

    #[test]
    fn amounts_tell_the_total_where_it_is_known() {
        assert_eq!(amount(1 << 20, 8 << 30), "1MiB of 8GiB");
        assert_eq!(amount(1_503_238_554, 0), "1.4GiB");
    }

    #[test]
    fn a_step_keeps_its_name_until_the_next_build() {
        let mut story = EventFormatter::default();
        let mut tell = |event| story.tell(&event).text;
        tell(Event::BuildStarted { image: "web".into(), version: "1".into(), steps: 2 });
        tell(Event::StepStarted { index: 1, name: "install".into(), verb: "run", steps: 2 });
        assert_eq!(tell(Event::StepFinished { index: 1, ok: true, seconds: 1.0 }), "step 2/2 install  1.0s");
        tell(Event::BuildStarted { image: "app".into(), version: "1".into(), steps: 2 });
        assert_eq!(tell(Event::StepFinished { index: 1, ok: false, seconds: 1.0 }), "step 2/2  1.0s");
    }
}
