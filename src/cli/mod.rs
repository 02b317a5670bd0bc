//! The command line: parses arguments, dispatches to one file for each subcommand, prints failures and picks the exit code.
//! No lower room knows about a terminal.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

use crate::deadline::Deadline;
use crate::error::{Failure, Kind};
use crate::event::{EventSink, Events};
use crate::report;

pub mod args;
pub mod build;
pub mod check;
mod configuration;
pub mod diagnostics;
pub mod diff;
pub mod doctor;
pub mod export;
pub mod folders;
#[cfg(test)]
mod forging;
pub mod gc;
pub mod init;
pub mod inspect;
pub mod list;
pub mod lock;
mod mistakes;
pub mod outdated;
pub mod plan;
pub mod remove;
pub mod run;
pub mod shell;
mod specs;
pub mod tag;
pub mod terminal;
mod terminal_modes;
pub mod test;
pub mod verify;

use args::{Cli, CliCommand, GlobalArgs};
use folders::Folders;

/// Runs kiln and returns the exit code of the process.
#[must_use]
pub fn main() -> ExitCode {
    restore_terminal_at_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let error = mistakes::explain_mistake(error);
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Kind::Usage.exit_code() } else { 0 });
        }
    };
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            diagnostics::print(&failure);
            ExitCode::from(failure.kind().exit_code())
        }
    }
}

/// Installs a panic hook that resets the terminal before a panic is printed: in a raw terminal, its lines would not start at
/// the left edge.
fn restore_terminal_at_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        terminal_modes::restore_terminal();
        report(panic);
    }));
}

/// Runs the subcommand, and returns the exit code of a command that did not fail.
fn dispatch(cli: Cli) -> Result<u8, Failure> {
    let folders = Folders::new(&cli.global);
    // Not locked: a separate thread writes the output of a shell in a guest.
    let out = &mut std::io::stdout();
    let global = cli.global;
    let done = match cli.verb {
        CliCommand::Build(args) => in_runtime(|cancel| build::run(args, &global, &folders, cancel)),
        CliCommand::Check(args) => in_runtime(|cancel| until(cancel, check::run(args, &global, &folders))),
        CliCommand::Plan(args) => in_runtime(|cancel| until(cancel, plan::run(args, &global, &folders, out))),
        CliCommand::Lock(args) => in_runtime(|cancel| lock::run(args, &global, &folders, cancel, out)),
        CliCommand::Test(args) => in_runtime(|cancel| test::run(args, &global, &folders, cancel, out)),
        CliCommand::Shell(args) => return in_runtime(|cancel| shell::run(args, &global, &folders, cancel)),
        CliCommand::Run(args) => in_runtime(|cancel| run::run(args, &global, &folders, cancel)),
        CliCommand::List(args) => list::run(&folders.store()?, args.json, out),
        CliCommand::Inspect(args) => inspect::run(&folders.store()?, &args.image.parse()?, args.json, out),
        CliCommand::Verify(args) => verify::run(&folders.store()?, &args, out),
        CliCommand::Export(args) => in_runtime(|cancel| export::run(args, &global, &folders, cancel, out)),
        CliCommand::Diff(args) => {
            let is_same = diff::run(&args, &folders, out)?;
            return Ok(u8::from(args.exit_code && !is_same));
        }
        CliCommand::Tag(args) => tag::run(&folders.store()?, &args, out, &mut std::io::stderr().lock()),
        CliCommand::Outdated(args) => {
            let is_any = in_runtime(|cancel| until(cancel, outdated::run(&args, &global, &folders, out)))?;
            return Ok(u8::from(args.exit_code && is_any));
        }
        CliCommand::Remove(args) => remove::run(&folders.store()?, &args, &mut std::io::stderr().lock()),
        CliCommand::Gc(args) => gc::run(&args, &folders, &mut std::io::stderr().lock()),
        CliCommand::Seal(_) => print(out, &seal_list()),
        CliCommand::Doctor(args) => in_runtime(|cancel| until(cancel, doctor(args, &folders, out))),
        CliCommand::Init(args) => init::run(&args.folder, out),
        CliCommand::Schema => print(out, &format!("{:#}\n", crate::specfile::schema())),
        CliCommand::Completions(args) => print(out, &completions(args.shell)),
        CliCommand::Man => print(out, &manual()),
        CliCommand::ExitCodes => print(out, &exit_codes()),
    };
    done.map(|()| 0)
}

async fn doctor(args: doctor::DoctorArgs, folders: &Folders, out: &mut dyn Write) -> Result<(), Failure> {
    let (store, cache) = (folders.store_path()?, folders.cache_path()?);
    doctor::run(&args, doctor::CheckedFolders { store: &store, cache: &cache }, out).await
}

/// Runs a command that leaves nothing behind, and ends it when the user interrupts.
async fn until<T>(cancel: CancellationToken, verb: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    Deadline::new(cancel, Duration::MAX).hold(verb).await
}

/// Runs a command that needs the runtime, with the token that the first Ctrl-C cancels. The runtime has one thread: QEMU's
/// death signal is bound to the thread that spawns it.
fn in_runtime<T, F>(verb: impl FnOnce(CancellationToken) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    raise_descriptor_limit()?;
    crate::signal::ignore_file_size();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(HostSetupError::Runtime)?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, async {
        let cancel = crate::signal::interruption(terminal_modes::restore_terminal).map_err(HostSetupError::Runtime)?;
        verb(cancel).await
    });
    // Abandoned work on the blocking pool must not delay the exit.
    runtime.shutdown_background();
    result
}

/// Raises the limit on open files as far as the host lets it, within reason. A build holds every layer of its guest's disk
/// open, some of them several times.
fn raise_descriptor_limit() -> Result<(), HostSetupError> {
    const LEAST: u64 = 128;
    /// Some programs that are started with a limit of a thousand million close every descriptor number below it.
    const MOST: u64 = 1 << 16;
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| HostSetupError::Runtime(errno.into()))?;
    if most < LEAST {
        return Err(HostSetupError::Descriptors { most, least: LEAST });
    }
    let wanted = most.min(MOST).max(now);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, most).map_err(|errno| HostSetupError::Runtime(errno.into()))
}

/// The host lacks something that every command needs.
#[derive(Debug, thiserror::Error)]
pub enum HostSetupError {
    /// Threads, signals or descriptors are not available.
    #[error("cannot start: {0}")]
    Runtime(#[source] std::io::Error),
    /// The limit on open files is too low.
    #[error("only {most} files may be open at once (`ulimit -n`), and kiln needs {least}")]
    Descriptors {
        /// The hard limit on open files.
        most: u64,
        /// The number of open files that kiln needs.
        least: u64,
    },
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Stdout(#[source] std::io::Error),
    /// No path for images or scratch files is known.
    #[error("no folder for {what}: neither {option} nor HOME is set")]
    NoHome {
        /// `the store` or `the cache`.
        what: &'static str,
        /// The option that sets the path.
        option: &'static str,
    },
}

impl crate::error::Fault for HostSetupError {
    fn kind(&self) -> Kind {
        Kind::Host
    }
}

/// Writes a command's result. A closed pipe (`kiln schema | head`) is not an error.
pub(crate) fn print(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(HostSetupError::Stdout(error).into()),
        _ => Ok(()),
    }
}

/// Returns a line with a path. Characters that a terminal or a CI service acts upon are escaped, so such a line is not the
/// exact path.
pub(crate) fn path_line(path: &Path) -> String {
    let plain = path.to_str().filter(|text| report::escape::escape(text) == *text && !text.contains('\t'));
    plain.map_or_else(|| report::quote::quote_name(path.as_os_str().as_encoded_bytes()), str::to_owned) + "\n"
}

/// Writes a JSON result. Characters that a terminal or a CI service acts upon are written as escapes, which a parser reads
/// as the same characters.
pub(crate) fn print_json(out: &mut dyn Write, json: &str) -> Result<(), Failure> {
    print(out, &report::escape::escape_json(json))
}

/// Returns the event stream of a command, with the sinks that the user has chosen.
pub(crate) fn events(global: &GlobalArgs) -> Events {
    let verbosity = match (global.quiet, global.verbose) {
        (true, _) => report::Verbosity::Quiet,
        (_, true) => report::Verbosity::Verbose,
        _ => report::Verbosity::Normal,
    };
    let progress = match global.progress {
        args::ProgressArg::Auto => report::ProgressMode::Auto,
        args::ProgressArg::Bars => report::ProgressMode::Bars,
        args::ProgressArg::Plain => report::ProgressMode::Plain,
        args::ProgressArg::Json => report::ProgressMode::Json,
    };
    let sink: Arc<dyn EventSink> = report::terminal(progress, verbosity);
    Events::new(vec![sink])
}

pub(crate) fn colour(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn seal_list() -> String {
    let operations = &crate::specfile::seal::OPERATIONS;
    let width = operations.iter().map(|operation| operation.name.len()).max().unwrap_or(0);
    operations.iter().map(|operation| format!("{:width$}  {}\n", operation.name, operation.description)).collect()
}

fn exit_codes() -> String {
    let codes = Kind::ALL.iter().map(|(kind, what)| format!("{:>3}  {what}\n", kind.exit_code()));
    std::iter::once("  0  done, or already up to date\n".to_owned()).chain(codes).collect()
}

fn completions(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

fn manual() -> String {
    let mut pages = Vec::new();
    let command = Cli::command();
    let rendered = clap_mangen::Man::new(command.clone()).render(&mut pages);
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    let all = verbs.fold(rendered, |done, verb| {
        done.and_then(|()| {
            clap_mangen::Man::new(verb.clone().bin_name(format!("kiln {}", verb.get_name()))).render(&mut pages)
        })
    });
    debug_assert!(all.is_ok(), "writing to memory cannot fail");
    String::from_utf8_lossy(&pages).into_owned()
}
