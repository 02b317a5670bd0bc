//! The command line: parses arguments, dispatches to one file for each subcommand, prints failures and picks the exit code.
//! No lower room knows about a terminal.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

use crate::deadline::Deadline;
use crate::error::{Failure, Kind};
use crate::event::Events;
use crate::project::FileReach;
use crate::report;
use crate::resolve::base::BaseResolver;

mod args;
mod build;
mod check;
mod command_line;
mod configuration;
pub mod diagnostics;
mod diff;
mod doctor;
mod export;
mod folders;
#[cfg(test)]
mod forging;
mod gc;
mod init;
mod inspect;
mod list;
mod lock;
mod logs;
mod mistakes;
mod outdated;
mod plan;
mod ps;
mod remove;
mod run;
mod shell;
mod specs;
mod stop;
mod tag;
mod target;
mod terminal;
mod terminal_modes;
mod test;
mod verify;

use args::{GlobalArgs, SourceArgs};
use command_line::{Cli, CliCommand};
use folders::Folders;

/// The global options of a subcommand, and the token that the first Ctrl-C cancels.
struct CommandContext<'a> {
    global: &'a GlobalArgs,
    folders: &'a Folders,
    cancel: CancellationToken,
}

impl CommandContext<'_> {
    /// Returns the event stream of the command, with the sink that the user has chosen.
    fn events(&self) -> Events {
        let verbosity = match (self.global.quiet, self.global.verbose) {
            (true, _) => report::Verbosity::Quiet,
            (_, true) => report::Verbosity::Verbose,
            _ => report::Verbosity::Normal,
        };
        Events::new(vec![report::terminal(self.global.progress, verbosity)])
    }

    /// Returns the places to look for base images.
    fn bases(&self, sources: SourceArgs, files: FileReach, events: &Events) -> Result<BaseResolver, Failure> {
        Ok(BaseResolver {
            store: self.folders.store_path()?,
            cache: self.folders.cache()?,
            memo: self.folders.memo()?,
            events: events.clone(),
            locking: sources.locking(),
            reach: sources.reach(),
            files,
            cancel: self.cancel.clone(),
        })
    }
}

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
    let runtime = CommandRuntime { global: &cli.global, folders: &folders };
    let done = match cli.command {
        CliCommand::Build(args) => runtime.run(|context| build::run(args, context)),
        CliCommand::Check(args) => runtime.run_until_cancelled(|context| check::run(args, context)),
        CliCommand::Plan(args) => runtime.run_until_cancelled(|context| plan::run(args, context, out)),
        CliCommand::Lock(args) => runtime.run(|context| lock::run(args, context, out)),
        CliCommand::Test(args) => runtime.run(|context| test::run(args, context, out)),
        CliCommand::Shell(args) => return runtime.run(|context| shell::run(args, context)),
        CliCommand::Run(args) => return runtime.run(|context| run::run(args, context)),
        CliCommand::Ps(args) => ps::run(&folders.cache()?, args.json, out),
        CliCommand::Stop(args) => stop::run(&args, &folders.cache()?, &mut std::io::stderr().lock()),
        CliCommand::Logs(args) => logs::run(&args, &folders, out),
        CliCommand::List(args) => list::run(&folders.store()?, args.json, out),
        CliCommand::Inspect(args) if args.disk_sha256 => {
            runtime.run(|context| inspect::run_digest(&args.image, context, out))
        }
        CliCommand::Inspect(args) => inspect::run(&folders.store()?, &args.image.parse()?, args.json, out),
        CliCommand::Verify(args) => verify::run(&folders.store()?, &args, out),
        CliCommand::Export(args) => runtime.run(|context| export::run(args, context, out)),
        CliCommand::Diff(args) => {
            let is_same = diff::run(&args, &folders, out)?;
            return Ok(u8::from(args.exit_code && !is_same));
        }
        CliCommand::Tag(args) => tag::run(&folders.store()?, &args, out, &mut std::io::stderr().lock()),
        CliCommand::Outdated(args) => {
            let is_any = runtime.run_until_cancelled(|context| outdated::run(&args, context, out))?;
            return Ok(u8::from(args.exit_code && is_any));
        }
        CliCommand::Remove(args) => remove::run(&folders, &args, &mut std::io::stderr().lock()),
        CliCommand::Gc(args) => gc::run(&args, &folders, &mut std::io::stderr().lock()),
        CliCommand::Seal(_) => print(out, &seal_list()),
        CliCommand::Doctor(args) => runtime.run_until_cancelled(|context| doctor(args, context, out)),
        CliCommand::Init(args) => init::run(&args.folder, out),
        CliCommand::Schema => print(out, &format!("{:#}\n", crate::specfile::schema())),
        CliCommand::Completions(args) => print(out, &completions(args.shell)),
        CliCommand::Man => print(out, &manual()),
        CliCommand::ExitCodes => print(out, &exit_codes()),
    };
    done.map(|()| 0)
}

async fn doctor(args: doctor::DoctorArgs, context: CommandContext<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let store = context.folders.store_path()?;
    let cache = context.folders.cache_path()?;
    doctor::run(&args, doctor::CheckedFolders { store: &store, cache: &cache }, out).await
}

/// Runs commands that need an async runtime.
struct CommandRuntime<'a> {
    global: &'a GlobalArgs,
    folders: &'a Folders,
}

impl<'a> CommandRuntime<'a> {
    /// Runs a command that leaves nothing behind, and ends it when the user interrupts.
    fn run_until_cancelled<T, F>(&self, command: impl FnOnce(CommandContext<'a>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        self.run(|context| async {
            let deadline = Deadline::new(context.cancel.clone(), Duration::MAX);
            deadline.hold(command(context)).await
        })
    }

    /// Runs a command that stops by itself when the token of its context is cancelled. The runtime has one thread: QEMU's
    /// death signal is bound to the thread that spawns it.
    fn run<T, F>(&self, command: impl FnOnce(CommandContext<'a>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        raise_descriptor_limit()?;
        crate::signal::ignore_file_size();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(HostSetupError::Runtime)?;
        let result = tokio::task::LocalSet::new().block_on(&runtime, async {
            let cancel = crate::signal::interruption(terminal_modes::restore_terminal);
            let cancel = cancel.map_err(HostSetupError::Runtime)?;
            command(CommandContext { global: self.global, folders: self.folders, cancel }).await
        });
        // Abandoned work on the blocking pool must not delay the exit.
        runtime.shutdown_background();
        result
    }
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

/// Returns the manual page of kiln and one of each subcommand, with titles that man(1) finds: `kiln-build`.
fn manual() -> String {
    let mut pages = Vec::new();
    let command = Cli::command().disable_help_subcommand(true);
    let rendered = clap_mangen::Man::new(command.clone()).render(&mut pages);
    let subcommands = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    let all = subcommands.fold(rendered, |done, subcommand| {
        let name = subcommand.get_name();
        let page = subcommand.clone().bin_name(format!("kiln {name}")).display_name(format!("kiln-{name}"));
        let source = concat!("kiln ", env!("CARGO_PKG_VERSION"));
        done.and_then(|()| clap_mangen::Man::new(page).source(source).render(&mut pages))
    });
    debug_assert!(all.is_ok(), "writing to memory cannot fail");
    String::from_utf8_lossy(&pages).into_owned()
}
