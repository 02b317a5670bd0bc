//! The spec's tests, against a throw-away clone of the sealed image, freshly booted as a new machine would.

use std::time::{Duration, Instant};

use crate::disk::qcow2::create_overlay;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Channel, Event, Level};
use crate::guest::{Exec, Exit, GuestError};
use crate::machine::argv::{Backing, OVERLAY};
use crate::plan::with_grace;
use crate::size::format_duration;
use crate::spec::Test;
use crate::store::manifest;

use super::boot::{self, Guest};
use super::convert::Converted;
use super::output::Lines;
use super::provision::argv;
use super::{Build, ScratchError};

/// Between two tries of a test. There is no event for "the service answers now".
const PAUSE: Duration = Duration::from_millis(500);

/// A test failed for good.
#[derive(Debug, thiserror::Error)]
#[error("test `{name}` ({}:{line}) {how}{}", spec.display(), if retry_for.is_zero() { String::new() } else { format!(", for {}", format_duration(*retry_for)) })]
pub struct TestError {
    name: String,
    spec: std::path::PathBuf,
    line: usize,
    how: String,
    retry_for: Duration,
    tail: Vec<String>,
}

impl Fault for TestError {
    fn kind(&self) -> Kind {
        Kind::Test
    }

    fn evidence(&self) -> Vec<String> {
        self.tail.clone()
    }
}

/// The clone could not be tested at all.
#[derive(Debug, thiserror::Error)]
#[error("the sealed image does not boot: {0}")]
struct DoesNotBoot(Failure);

impl Fault for DoesNotBoot {
    fn kind(&self) -> Kind {
        match self.0.kind() {
            Kind::Boot => Kind::Test,
            other => other,
        }
    }

    fn hints(&self) -> Vec<String> {
        self.0.hints()
    }

    fn evidence(&self) -> Vec<String> {
        self.0.evidence()
    }
}

/// Boots the first output and runs every test; the first that fails ends it.
pub(crate) async fn test(build: &Build<'_>, converted: &Converted) -> Result<Vec<manifest::Test>, Failure> {
    let clone = Backing(vec![(converted.bootable.clone(), converted.bootable_format)]);
    let overlay = build.work.join(OVERLAY);
    // The overlay that was converted has done its duty; the clone's takes its name, since that is what QEMU opens.
    let _ = std::fs::remove_file(&overlay);
    create_overlay(&overlay, build.plan.disk_size()).map_err(ScratchError::at("an overlay", &overlay))?;
    boot::write_seed(build, false)?;
    let mut guest = boot::start(build, &build.plan.machine, &clone).await.map_err(DoesNotBoot)?;
    let mut passed = Vec::new();
    let result = run_all(build, &mut guest, &mut passed).await;
    guest.machine.abort().await;
    result.map(|()| passed)
}

async fn run_all(build: &Build<'_>, guest: &mut Guest, passed: &mut Vec<manifest::Test>) -> Result<(), Failure> {
    for test in &build.plan.spec.tests {
        let began = Instant::now();
        let result = retry(build, guest, test, began).await;
        let seconds = began.elapsed().as_secs_f64();
        build.events.emit(&Event::TestFinished { name: test.name.clone(), ok: result.is_ok(), seconds });
        result?;
        passed.push(manifest::Test { name: test.name.clone(), ok: true, seconds });
    }
    Ok(())
}

async fn retry(build: &Build<'_>, guest: &mut Guest, test: &Test, began: Instant) -> Result<(), Failure> {
    loop {
        let (exit, tail) = try_once(build, guest, test).await?;
        if exit.is_success() {
            return Ok(());
        }
        if began.elapsed() >= test.retry_for {
            let spec = build.plan.spec.path.clone();
            let (name, line, retry_for) = (test.name.clone(), test.line, test.retry_for);
            return Err(TestError { name, spec, line, how: exit.to_string(), retry_for, tail }.into());
        }
        build.limits.pause(PAUSE).await?;
    }
}

async fn try_once(build: &Build<'_>, guest: &mut Guest, test: &Test) -> Result<(Exit, Vec<String>), Failure> {
    let exec = Exec { timeout: Some(test.timeout), ..Exec::new(argv(&test.command)) };
    let mut lines = Lines::new(&build.secrets);
    let mut emit = |_, line| build.events.notice(Level::Debug, format!("{}: {line}", test.name));
    let mut output = |channel: Channel, bytes: &[u8]| lines.feed(channel, bytes, &mut emit);
    let work = guest.session.exec(&exec, &mut output);
    let late = || GuestError::Overdue(test.timeout).into();
    let exit = build.limits.hold_guest(&guest.machine, with_grace(test.timeout), late, work).await?;
    lines.finish(&mut |_, line| build.events.notice(Level::Debug, format!("{}: {line}", test.name)));
    Ok((exit, lines.tail()))
}
