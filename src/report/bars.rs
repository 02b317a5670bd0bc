//! Live progress at the bottom of a terminal: what is finished scrolls up as lines, what runs is redrawn in place.
//!
//! ```text
//! build web@1.4.0, 3 steps
//!   ok base  0.4s
//!   ok boot  23.1s
//!   ok step 1/3 install nginx  12.0s
//! / step 2/3 site/ to /var/www/html 1.2MiB of 8MiB, 4.1MiB/s      3s
//!   | the last line that the running step wrote
//! ```
//!
//! Where a command builds several images each has one live line, and of what is finished only the images are shown:
//!
//! ```text
//!   ok published debian@12  1m 02s
//! - web@1.4.0: step 2/3 site/ to /var/www/html 1.2MiB of 8MiB      3s
//! | app@2: boot                                                    12s
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::event::{Event, EventOrigin, EventSink, Outcome, Stage};
use crate::size::ByteSize;

use super::escape::escape;
use super::event_lines::{EventFormatter, LineTopic, ReportLine, amount, clock};
use super::quote::{MARK, quote_line};
use super::screen::Screen;
use super::{Paint, SharedWriter, Verbosity, is_shown};

/// Interval at which the spinner turns and the clock is redrawn.
const TICK: Duration = Duration::from_millis(125);

/// Limit of redraws of live lines, a second.
const REDRAWS: u8 = 20;

/// Live lines. Dropping it clears them.
pub struct BarSink {
    verbosity: Verbosity,
    paint: Paint,
    screen: Screen,
    live: MultiProgress,
    /// State of each build; events that belong to none have a state of their own.
    states: SharedWriter<BTreeMap<Option<String>, BarState>>,
}

#[derive(Default)]
struct BarState {
    story: EventFormatter,
    /// The image, if there are several.
    whose: String,
    /// The running item with its spinner and clock; and its last output line, which is left out if there are several builds.
    live: Option<(ProgressBar, Option<ProgressBar>)>,
    /// Name of the running item, without any amount.
    label: String,
    stage: Option<Stage>,
    pace: Option<TransferRate>,
}

/// The start of a stage's transfer.
struct TransferRate {
    stage: Stage,
    at: Duration,
    done: u64,
}

impl BarSink {
    /// Creates bars on standard error, with their timer running.
    pub fn on_stderr(verbosity: Verbosity, paint: Paint) -> Self {
        Self::on(Screen::on_stderr(), REDRAWS, verbosity, paint)
    }

    pub(super) fn on(screen: Screen, redraws: u8, verbosity: Verbosity, paint: Paint) -> Self {
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(screen.clone()), redraws);
        let live = MultiProgress::with_draw_target(target);
        Self { verbosity, paint, screen, live, states: SharedWriter::new(BTreeMap::new()) }
    }

    fn show(&self, state: &mut BarState, at: Duration, event: &Event) {
        let line = state.story.tell(event);
        match event {
            Event::BuildStarted { .. } => {
                self.print(state, &line);
                state.live = Some(self.live_lines(state.is_alone()));
            }
            Event::BuildFinished { outcome, .. } => {
                self.clear(state);
                // The command line prints the details of a failed build.
                if *outcome != Outcome::Failed {
                    self.print(state, &line);
                }
            }
            Event::DownloadStarted { url } => {
                // This precedes the build itself, and so has no line of its own.
                let alone = state.is_alone();
                state.live.get_or_insert_with(|| self.live_lines(alone));
                state.begin(format!("download {}", escape(url.rsplit('/').next().unwrap_or_default())));
            }
            Event::DownloadFinished { .. } => {
                self.clear(state);
                self.print(state, &line);
            }
            Event::ShellStarted { tail, .. } => {
                self.clear(state);
                // Of a running step only the last line was shown.
                for text in tail {
                    self.print(state, &ReportLine { topic: LineTopic::Output, text: quote_line(text) });
                }
                self.print(state, &line);
            }
            Event::StageStarted { stage } => {
                state.stage = Some(*stage);
                state.begin(stage.name().to_owned());
            }
            Event::StepStarted { .. } => state.begin(line.text.trim_end_matches("...").to_owned()),
            Event::StepFinished { ok, .. } => {
                if state.is_alone() || !ok || self.verbosity == Verbosity::Verbose {
                    self.print(state, &line);
                }
                state.begin(state.stage.map_or(String::new(), |stage| stage.name().to_owned()));
            }
            Event::StepOutput { line: text, .. } => {
                state.last(text);
                if self.verbosity == Verbosity::Verbose {
                    self.print(state, &line);
                }
            }
            Event::Progress { stage, done, total } => state.advance(at, *stage, *done, *total),
            Event::StageFinished { .. }
            | Event::StepCached { .. }
            | Event::StepSkipped { .. }
            | Event::TestFinished { ok: true, .. }
                if !state.is_alone() && self.verbosity < Verbosity::Verbose => {}
            _ => self.print(state, &line),
        }
    }

    fn print(&self, state: &BarState, line: &ReportLine) {
        if is_shown(line.topic, self.verbosity) {
            // The line names the image where a build begins or ends.
            let named = line.text.contains(&state.whose);
            let whose = if state.is_alone() || named { String::new() } else { format!("{}: ", state.whose) };
            let text = format!("{}{}", self.paint.dim(&whose), self.paint.line(line));
            // Errors mean that the terminal is gone.
            if matches!(self.screen.print_line(&text), Ok(false)) {
                let _ = self.live.println(text);
            }
        }
    }

    fn live_lines(&self, alone: bool) -> (ProgressBar, Option<ProgressBar>) {
        // Only the flexible part shrinks on a narrow terminal: a live line that wrapped could not be redrawn.
        let now = self.live.add(spinner("{spinner} {wide_msg} {clock:>4}"));
        let last = alone.then(|| self.live.add(spinner(&self.paint.dim(&format!("{MARK}{{wide_msg}}")))));
        now.enable_steady_tick(TICK);
        (now, last)
    }

    fn clear(&self, state: &mut BarState) {
        if let Some((now, last)) = state.live.take() {
            for bar in last.into_iter().chain([now]) {
                bar.finish_and_clear();
                self.live.remove(&bar);
            }
        }
    }
}

impl BarState {
    /// Returns whether this is the only build of the command.
    fn is_alone(&self) -> bool {
        self.whose.is_empty()
    }

    /// Starts the live line of something new.
    fn begin(&mut self, label: String) {
        let label = if self.is_alone() { label } else { format!("{}: {label}", self.whose) };
        if let Some((now, last)) = &self.live {
            now.reset_elapsed();
            now.set_message(label.clone());
            if let Some(last) = last {
                last.set_message("");
            }
        }
        self.label = label;
        self.pace = None;
    }

    fn last(&self, text: &str) {
        if let Some((_, Some(last))) = &self.live {
            // A tab has no width of its own, and would move the rest of the line out of what was measured.
            last.set_message(escape(text).replace('\t', " "));
        }
    }

    fn advance(&mut self, at: Duration, stage: Stage, done: u64, total: u64) {
        let pace = match self.pace.take() {
            Some(pace) if pace.stage == stage && pace.done <= done => pace,
            _ => TransferRate { stage, at, done },
        };
        if let Some((now, _)) = &self.live {
            now.set_message(format!("{} {}{}", self.label, amount(done, total), rate(&pace, at, done)));
        }
        self.pace = Some(pace);
    }
}

fn spinner(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .with_key("clock", write_clock)
        .tick_chars("|/-\\ ");
    ProgressBar::new_spinner().with_style(style)
}

/// Writes the time since something began.
fn write_clock(state: &ProgressState, out: &mut dyn fmt::Write) {
    let _ = out.write_str(&clock(state.elapsed().as_secs()));
}

/// Returns the mean rate since the transfer began, if there is something to measure yet.
fn rate(pace: &TransferRate, at: Duration, done: u64) -> String {
    let millis = at.saturating_sub(pace.at).as_millis();
    match u128::from(done - pace.done) * 1000 / millis.max(1) {
        0 => String::new(),
        _ if millis < 500 => String::new(),
        rate => format!(", {}/s", ByteSize(u64::try_from(rate).unwrap_or(u64::MAX))),
    }
}

impl EventSink for BarSink {
    fn emit(&self, EventOrigin { at, build }: EventOrigin<'_>, event: &Event) {
        self.states.with(|states| {
            let state = states.entry(build.map(str::to_owned)).or_default();
            if let Some(build) = build.filter(|_| state.is_alone()) {
                state.whose = escape(build).into_owned();
            }
            self.show(state, at, event);
        });
    }
}

impl Drop for BarSink {
    fn drop(&mut self) {
        self.states.with(|states| states.values_mut().for_each(|state| self.clear(state)));
    }
}
