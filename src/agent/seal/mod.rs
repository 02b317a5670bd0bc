//! Generalises the guest from inside, just before it powers off, in the agent's own process: under software emulation a
//! process costs tens of milliseconds, and there are hundreds of files.
//!
//! ```text
//! services   stops everything that still writes: a service that logs its own end would undo the work
//! unmounting unmounts what steps left mounted, since no file behind a mount may be lost
//! operations carries out the table of `wire::sealing`, by files
//! labels     gives files their SELinux labels, after a direct boot
//! times      sets back times later than the build's epoch, if there is one
//! trimming   discards free blocks, so that deleted content is neither converted nor published
//! ```

mod files;
mod labels;
mod operations;
mod services;
mod times;
mod trimming;
mod unmounting;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use self::files::SealRoot;
use super::leftovers::Leftovers;
use super::mount_table::{self, MountLine};
use super::{RequestFailure, boot_mode, init, planted, sys};
use crate::wire::sealing::{OPERATIONS, SealOperation};
use crate::wire::{Class, SealReport, SealRequest, UNIT_FOLDERS};

/// The folders in which a running systemd has units that are on no disk.
const TRANSIENT_UNIT_FOLDERS: [&str; 4] =
    ["/run/systemd/system", "/run/systemd/transient", "/run/systemd/generator", "/run/systemd/generator.late"];
/// The folder that systemd creates when it is PID 1 (`sd_booted(3)`).
const SYSTEMD: &str = "/run/systemd/system";
/// The most notes in a report.
const MOST_NOTES: usize = 64;

/// Seals the guest. The files whose times were set back are written to `records`.
///
/// # Errors
/// When an operation is not known, or cannot be carried out.
pub fn seal(request: &SealRequest, left: &Leftovers, records: &mut impl Write) -> Result<SealReport, RequestFailure> {
    let mut run = SealRun { since: Instant::now(), report: SealReport::default() };
    let operations = find_operations(&request.operations)?;
    init::remove_policy().map_err(|error| RequestFailure::io("policy-rc.d", &error))?;
    // Most free blocks stay free, and the services end meanwhile: afterwards only the remaining ones have to be discarded.
    let trimmed = thread::spawn(|| mount_table::read_table().map(|table| trimming::trim(&table)));
    let still_running = services::stop();
    run.report.notes.extend(still_running.iter().map(|unit| format!("{unit} has not ended")));
    run.note("services stopped");
    let _ = trimmed.join();
    run.note("free blocks discarded");
    run.report.unmounted = unmounting::unmount_left(left)?;
    run.note("file systems unmounted");
    let removed = planted::remove(Path::new("/"));
    run.report.had_agent = removed.map_err(|error| RequestFailure::io("the planted agent", &error))?;
    let table = mount_table::read_table()?;
    let root = SealRoot::new(PathBuf::from("/"), mount_points(&table));
    for operation in operations {
        operations::carry_out(&root, operation)?;
    }
    run.note("operations done");
    if boot_mode::is_direct() {
        let labelled = labels::restore(Path::new("/")).map_err(|error| RequestFailure::io("SELinux labels", &error))?;
        run.note(&format!("SELinux labels: {labelled:?}"));
    }
    if let Some(epoch) = request.epoch {
        times::set_back(Path::new("/"), &times::disk_mounts(&table), epoch, records)?;
        run.note("times set back");
    }
    sys::sync_all();
    run.note("written");
    trimming::trim(&table);
    run.note("freed blocks discarded");
    run.report.notes.extend(root.take_notes().into_iter().take(MOST_NOTES));
    Ok(run.report)
}

/// Returns the folders that contain systemd units.
fn unit_folders() -> impl Iterator<Item = &'static str> + Clone {
    UNIT_FOLDERS.into_iter().chain(TRANSIENT_UNIT_FOLDERS)
}

/// The report of a sealing under way.
struct SealRun {
    since: Instant,
    report: SealReport,
}

impl SealRun {
    /// Notes that a phase is done, and how long it took.
    fn note(&mut self, what: &str) {
        self.report.notes.push(format!("{what} in {:.3} s", self.since.elapsed().as_secs_f64()));
        self.since = Instant::now();
    }
}

fn find_operations(names: &[String]) -> Result<Vec<&'static SealOperation>, RequestFailure> {
    let operations = names.iter().map(|name| {
        let operation = OPERATIONS.iter().find(|operation| operation.name == name);
        operation.ok_or_else(|| RequestFailure::new(Class::Request {}, format!("there is no operation `{name}`")))
    });
    operations.collect()
}

fn mount_points(table: &[MountLine]) -> HashSet<PathBuf> {
    table.iter().map(|line| OsString::from_vec(line.target.clone()).into()).collect()
}
