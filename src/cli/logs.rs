//! `kiln logs`: prints the log of a version, of a failed build, or of a running machine's console.

use std::fs::File;
use std::io::{ErrorKind, Read, Write, stderr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::error::{Failure, Fault, FileError, Kind};
use crate::machine_registry::{self, ListedMachine, RegistryError};
use crate::output::kept_logs::FAILED;
use crate::output::publish::{BUILD_LOG, CONSOLE_LOG};
use crate::report::escape::escape;
use crate::specfile::Spec;
use crate::store::{Reference, Store, StoreError};

use super::HostSetupError;
use super::args::SpecArgs;
use super::folders::Folders;
use super::target::is_spec;

/// How often a file that is followed is read.
const PAUSE: Duration = Duration::from_millis(200);
/// Length at which a line is printed before its end, bytes.
const LONGEST_LINE: usize = 64 << 10;

/// Arguments of `kiln logs`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln logs web@1.4.0\n  kiln logs web.toml\n  kiln logs -f web-1\n\n\
        Of an image, the log of its build is printed; of a spec, that of its last failed build, or else of its \
        version in the store; of a running machine, its console. Characters that a terminal acts upon are escaped.")]
pub struct LogsArgs {
    /// Image, spec, NAME-VERSION of a failed build, or id of a running machine
    #[arg(value_name = "IMAGE|SPEC|BUILD|ID")]
    pub target: String,
    /// Print the guest's console instead of the build's events
    #[arg(long)]
    pub console: bool,
    /// Keep printing what a running machine writes, until it ends
    #[arg(short, long)]
    pub follow: bool,
    /// Version of the spec's image [default: the spec's]
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
}

/// An error of `kiln logs`.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// Nothing has this name.
    #[error("`{0}` has no log: no image, failed build or running machine has this name")]
    Unknown(String),
    /// The spec was never built.
    #[error("{id}, the image of {spec}, was never built here")]
    NotBuilt {
        /// The image, as `name@version`.
        id: String,
        /// The spec, as it was named.
        spec: String,
    },
    /// The console is somewhere else.
    #[error("the console of {0} is on the terminal that it was started on")]
    OnTerminal(String),
    /// Only a machine can be followed.
    #[error("`{0}` is not a running machine, so there is nothing to follow")]
    NotRunning(String),
}

impl Fault for LogsError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unknown(_) => vec!["`kiln list` lists images, `kiln ps` running machines".into()],
            Self::NotBuilt { spec, .. } => vec![format!("`kiln build {spec}` builds it")],
            Self::OnTerminal(_) => vec!["`kiln run --detach` starts a machine whose console is kept".into()],
            Self::NotRunning(_) => vec!["`kiln ps` lists running machines".into()],
        }
    }
}

/// A log, and the machine that still writes it, if one does.
struct FoundLog {
    path: PathBuf,
    machine: Option<ListedMachine>,
}

/// Writes the log.
pub fn run(args: &LogsArgs, folders: &Folders, out: &mut dyn Write) -> Result<(), Failure> {
    let found = find(args, folders)?;
    if args.follow && found.machine.is_none() {
        return Err(LogsError::NotRunning(args.target.clone()).into());
    }
    // The result is the log; where it comes from is a note.
    let _ = writeln!(stderr(), "{}", escape(&found.path.display().to_string()));
    let file = File::open(&found.path).map_err(FileError::of(Kind::Output, "open the log", &found.path))?;
    let writer = found.machine.filter(|_| args.follow);
    copy(file, &|| writer.as_ref().is_some_and(ListedMachine::is_running), out).map_err(|error| {
        let error = std::io::Error::new(error.kind(), error);
        HostSetupError::Stdout(error).into()
    })
}

/// Finds the log of a target: an id of a running machine, then a spec, then an image, then a failed build.
fn find(args: &LogsArgs, folders: &Folders) -> Result<FoundLog, Failure> {
    let cache = folders.cache()?;
    let name = if args.console { CONSOLE_LOG } else { BUILD_LOG };
    match machine_registry::find(&cache, &args.target) {
        Ok(machine) => return console_of(machine).map_err(Failure::from),
        Err(RegistryError::Unknown { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let failed = |name_and_version: &str| {
        let path = cache.join(FAILED).join(name_and_version).join(name);
        path.is_file().then_some(FoundLog { path, machine: None })
    };
    if is_spec(&args.target) {
        return of_spec(args, &folders.store()?, name, failed);
    }
    if let Ok(reference) = args.target.parse::<Reference>() {
        match of_image(&folders.store()?, &reference, name) {
            Ok(found) => return Ok(found),
            Err(StoreError::NoImage { .. } | StoreError::NoVersion { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let unknown = || LogsError::Unknown(args.target.clone());
    // A path that leads elsewhere is not a name.
    let is_name = Path::new(&args.target).components().count() == 1 && !args.target.starts_with('.');
    let found = is_name.then(|| failed(&args.target.replacen('@', "-", 1))).flatten();
    Ok(found.ok_or_else(unknown)?)
}

fn console_of(machine: ListedMachine) -> Result<FoundLog, LogsError> {
    let path = machine.folder.join(machine_registry::CONSOLE);
    if !path.exists() {
        return Err(LogsError::OnTerminal(machine.id));
    }
    Ok(FoundLog { path, machine: Some(machine) })
}

fn of_image(store: &Store, reference: &Reference, name: &str) -> Result<FoundLog, StoreError> {
    let artifact = store.artifact(reference)?;
    Ok(FoundLog { path: artifact.folder().join(name), machine: None })
}

fn of_spec(
    args: &LogsArgs,
    store: &Store,
    name: &str,
    failed: impl Fn(&str) -> Option<FoundLog>,
) -> Result<FoundLog, Failure> {
    let overrides = args.reading.overrides(args.version.as_ref());
    let spec = Spec::load(Path::new(&args.target), args.reading.reach().files, &overrides)?;
    let (image, version) = (&spec.image.name, &spec.image.version);
    if let Some(found) = failed(&format!("{image}-{version}")) {
        return Ok(found);
    }
    let id = format!("{image}@{version}");
    match of_image(store, &id.parse()?, name) {
        Err(StoreError::NoImage { .. } | StoreError::NoVersion { .. }) => {
            Err(LogsError::NotBuilt { id, spec: args.target.clone() }.into())
        }
        found => Ok(found?),
    }
}

/// Copies a log line by line, each escaped, and goes on as long as `is_written` says that there may be more. A closed pipe
/// ends it.
fn copy(mut log: impl Read, is_written: &dyn Fn() -> bool, out: &mut dyn Write) -> std::io::Result<()> {
    let mut line = Vec::new();
    let mut buffer = [0; 16 << 10];
    let copied = loop {
        // Asked before the read, so that what is written before the end is not missed.
        let may_grow = is_written();
        match log.read(&mut buffer) {
            Ok(0) if may_grow => std::thread::sleep(PAUSE),
            Ok(0) => break write_line(&mut line, out),
            Ok(count) => {
                if let Err(error) = buffer[..count].iter().try_for_each(|byte| take(*byte, &mut line, out)) {
                    break Err(error);
                }
                out.flush()?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    };
    match copied.and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn take(byte: u8, line: &mut Vec<u8>, out: &mut dyn Write) -> std::io::Result<()> {
    if byte != b'\n' {
        line.push(byte);
        if line.len() < LONGEST_LINE {
            return Ok(());
        }
    } else if line.is_empty() {
        return out.write_all(b"\n");
    }
    write_line(line, out)
}

fn write_line(line: &mut Vec<u8>, out: &mut dyn Write) -> std::io::Result<()> {
    if line.is_empty() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(line).into_owned();
    line.clear();
    writeln!(out, "{}", escape(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn copied(log: &[u8]) -> String {
        let mut out = Vec::new();
        copy(log, &|| false, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_copied_and_escaped() {
        assert_eq!(copied(b"one\r\n\ntwo \x1b[2J\nlogin: "), "one\n\ntwo \\x1b[2J\nlogin: \n");
        assert_eq!(copied(b""), "");
        let long = vec![b'x'; LONGEST_LINE + 5];
        assert_eq!(copied(&long), format!("{}\nxxxxx\n", "x".repeat(LONGEST_LINE)));
    }

    #[test]
    fn a_log_is_followed_until_its_writer_has_ended() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let asked = Cell::new(0);
        let is_written = || {
            asked.set(asked.get() + 1);
            // The writer's last line comes just before its end.
            if asked.get() == 3 {
                std::fs::write(file.path(), "last words").unwrap();
            }
            asked.get() < 3
        };
        let mut out = Vec::new();
        copy(File::open(file.path()).unwrap(), &is_written, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "last words\n");
    }

    #[test]
    fn a_closed_pipe_ends_a_log_that_is_followed() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        drop(reader);
        copy(&b"a line\n"[..], &|| true, &mut writer).unwrap();
    }
}
