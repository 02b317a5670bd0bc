//! Options that several subcommands share. Those of one subcommand are declared in its file.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::download::NetworkMode;
use crate::report::ProgressMode;
use crate::resolve::base::LockfileMode;
use crate::resolve::path_policy::{FileReach, NetworkReach, ReachPolicy};
use crate::specfile::Overrides;

/// Options of every command.
#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// Folder of the image store [env: `KILN_STORE`] [default: `$XDG_DATA_HOME/kiln/store`]
    #[arg(long, value_name = "DIR", global = true)]
    pub store: Option<PathBuf>,
    /// Folder for scratch disks and caches [env: `KILN_CACHE`] [default: `$XDG_CACHE_HOME/kiln`]
    #[arg(long, value_name = "DIR", global = true)]
    pub cache: Option<PathBuf>,
    /// Progress display on standard error
    #[arg(long, value_enum, default_value_t, global = true)]
    pub progress: ProgressMode,
    /// Print warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Also print the guest's console and debug messages
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// Options for reading specs.
#[derive(Debug, Args)]
pub struct SpecArgs {
    /// Set a variable that the spec declares
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = key_value)]
    pub vars: Vec<(String, String)>,
    /// Use this variant of the spec; `build` and `check` accept `all` for every variant
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Allow a spec to be a symbolic link out of its project, and its steps, secrets, `base.spec` and file URLs to name
    /// files outside of it; the project is the git work tree that the spec is named in, or else its folder
    #[arg(long)]
    pub allow_outside: bool,
    /// Allow guests to reach the addresses that the spec lists as `private` in `[network]`
    #[arg(long)]
    pub allow_private_network: bool,
    /// Allow specs to use this environment variable as a secret, in addition to those of the configuration file; may be
    /// repeated
    #[arg(long = "secret-env", value_name = "NAME")]
    pub secret_env: Vec<String>,
    /// Allow steps to take this environment variable of the host with `env-from-host`, in addition to those of the
    /// configuration file; may be repeated
    #[arg(long = "host-env", value_name = "NAME")]
    pub host_env: Vec<String>,
}

/// Options for where base images may come from.
#[derive(Debug, Clone, Copy, Args)]
pub struct SourceArgs {
    /// Require an up-to-date kiln.lock: fail if an entry for a base image is missing or stale
    #[arg(long)]
    pub locked: bool,
    /// Do not download anything
    #[arg(long)]
    pub offline: bool,
}

impl SourceArgs {
    /// Returns whether downloads may use the network.
    pub fn reach(self) -> NetworkMode {
        if self.offline { NetworkMode::Offline } else { NetworkMode::Online }
    }

    /// Returns how `kiln.lock` is used.
    pub fn locking(self) -> LockfileMode {
        if self.locked { LockfileMode::Require } else { LockfileMode::Follow }
    }
}

impl SpecArgs {
    /// Returns the values that the command line overrides in a spec.
    pub fn overrides(&self, version: Option<&String>) -> Overrides {
        Overrides { version: version.cloned(), vars: self.vars.clone(), variant: self.variant.clone() }
    }

    /// Returns which files and addresses the spec may use.
    pub fn reach(&self) -> ReachPolicy {
        ReachPolicy {
            files: if self.allow_outside { FileReach::Host } else { FileReach::Project },
            network: if self.allow_private_network { NetworkReach::Private } else { NetworkReach::Public },
        }
    }
}

/// Returns a parser of values that are given by their names.
pub(super) fn named<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let names = PossibleValuesParser::new(all.iter().map(|value| name(*value)));
    names.map(move |typed| all.iter().copied().find(|value| name(*value) == typed).expect("one of the possible values"))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "write it as NAME=VALUE".to_owned())?;
    Ok((key.to_owned(), value.to_owned()))
}
