//! `kiln stop`: ends machines.

use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use clap::Args;

use crate::error::Failure;
use crate::machine_registry::{ListedMachine, RegistryError, StopOutcome, find, list};
use crate::size::{format_duration, parse_duration};

/// Arguments of `kiln stop`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln stop web-1\n  kiln stop --all --now\n\n\
        A detached machine is asked to power off, as by its power button, and is killed if it does not in time. A \
        machine on a terminal is ended at once.")]
pub struct StopArgs {
    /// Ids of machines, as `kiln ps` lists them
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    pub ids: Vec<String>,
    /// Stop every machine
    #[arg(long)]
    pub all: bool,
    /// Kill the machine without asking it to power off
    #[arg(long)]
    pub now: bool,
    /// How long a machine may take to power off
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration, conflicts_with = "now")]
    pub timeout: Duration,
}

/// Stops the machines, all at once, and reports on `notes`, which is standard error: there is no result.
pub fn run(args: &StopArgs, cache: &Path, notes: &mut dyn Write) -> Result<(), Failure> {
    let machines =
        if args.all { list(cache)? } else { args.ids.iter().map(|id| find(cache, id)).collect::<Result<_, _>>()? };
    let patience = (!args.now).then_some(args.timeout);
    let mut failed: Option<Failure> = None;
    for (machine, outcome) in machines.iter().zip(stop_all(&machines, patience)) {
        match outcome {
            // The machine has ended, even if the report cannot be printed.
            Ok(outcome) => drop(writeln!(notes, "{}", describe(&machine.id, outcome))),
            Err(error) => match &mut failed {
                None => failed = Some(error.into()),
                Some(first) => first.attach(error),
            },
        }
    }
    failed.map_or(Ok(()), Err)
}

fn stop_all(machines: &[ListedMachine], patience: Option<Duration>) -> Vec<Result<StopOutcome, RegistryError>> {
    thread::scope(|scope| {
        let threads: Vec<_> = machines.iter().map(|machine| scope.spawn(move || machine.stop(patience))).collect();
        threads.into_iter().map(|thread| thread.join().expect("stopping a machine does not panic")).collect()
    })
}

fn describe(id: &str, outcome: StopOutcome) -> String {
    match outcome {
        StopOutcome::Ended => format!("stopped {id}"),
        StopOutcome::Killed => format!("killed {id}"),
        StopOutcome::KilledAfter(patience) => {
            format!("killed {id}: it did not power off within {}", format_duration(patience))
        }
    }
}
