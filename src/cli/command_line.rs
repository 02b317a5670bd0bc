//! The command line, for clap: global options and subcommands.

use clap::{Args, Parser, Subcommand};

use super::args::GlobalArgs;
use super::{
    build, check, diff, doctor, export, gc, init, inspect, list, lock, logs, outdated, plan, ps, remove, run, shell,
    stop, tag, test, verify,
};

/// Build sealed, versioned, checksummed VM images from TOML specs.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    // `scripts/release` adds the commit.
    long_version = option_env!("KILN_LONG_VERSION").unwrap_or(env!("CARGO_PKG_VERSION")),
    max_term_width = 100,
    after_help = "Run `kiln init` to write a first spec, and `kiln help-exit-codes` to list the exit codes."
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten, next_help_heading = "Global options")]
    pub global: GlobalArgs,
    /// The subcommand.
    #[command(subcommand)]
    pub command: CliCommand,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Build, seal, test and publish images
    Build(build::BuildArgs),
    /// Check specs without booting anything
    Check(check::CheckArgs),
    /// Show what a build would do
    Plan(plan::PlanArgs),
    /// Pin base images in kiln.lock
    Lock(lock::LockArgs),
    /// Run the tests of an image in the store
    Test(test::TestArgs),
    /// Open a shell in the guest before or after a step, or in a clone of an image
    Shell(shell::ShellArgs),
    /// Boot a throw-away clone of an image
    Run(run::RunArgs),
    /// List running machines
    Ps(ps::PsArgs),
    /// Stop running machines
    Stop(stop::StopArgs),
    /// Print the log of an image, a failed build or a running machine
    Logs(logs::LogsArgs),
    /// List the images in the store
    List(list::ListArgs),
    /// Show an image's manifest
    Inspect(inspect::InspectArgs),
    /// Verify an image's checksums and signature
    Verify(verify::VerifyArgs),
    /// Convert an image to another format, or describe it for libvirt or Terraform
    Export(export::ExportArgs),
    /// Compare two images or disks
    Diff(diff::DiffArgs),
    /// Set, list, roll back or delete the tags of an image
    Tag(tag::TagArgs),
    /// List the images that should be rebuilt, and why
    Outdated(outdated::OutdatedArgs),
    /// Remove a version of an image
    Remove(remove::RemoveArgs),
    /// Free space in the cache and the store
    Gc(gc::GcArgs),
    /// List the operations that generalise an image
    Seal(SealArgs),
    /// Check host requirements
    Doctor(doctor::DoctorArgs),
    /// Write a commented spec to start from
    Init(init::InitArgs),
    /// Print the JSON Schema of specs
    Schema,
    /// Print a shell completion script
    Completions(CompletionsArgs),
    /// Print the manual page
    Man,
    /// List the exit codes
    #[command(name = "help-exit-codes", hide = true)]
    ExitCodes,
}

/// Arguments of `kiln seal`.
#[derive(Debug, Args)]
pub struct SealArgs {
    /// List every operation, one per line
    #[arg(long, required = true)]
    pub list: bool,
}

/// Arguments of `kiln completions`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln completions bash >~/.local/share/bash-completion/completions/kiln")]
pub struct CompletionsArgs {
    /// Shell to print the script for
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{} has no description", command.get_name());
        }
    }
}
