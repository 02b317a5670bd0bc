//! `kiln build`: one image after the other.

use std::io::stdout;
use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::build::reproduce::reproduce;
use crate::build::survey;
use crate::build::{self, OnFailure, Surroundings};
use crate::error::Failure;
use crate::event::{Events, Level};
use crate::report::log::Log;
use crate::sign::Signer;
use crate::spec::{Overrides, Spec};
use crate::store::{Artifact, OnConflict, UNWATCHED};

use super::args::{self, Build, Global};
use super::folders::Folders;
use super::terminal;

/// Builds every spec; the first failure ends it.
///
/// # Errors
/// Whatever went wrong first.
pub async fn run(args: Build, global: &Global, folders: &Folders, cancel: CancellationToken) -> Result<(), Failure> {
    let reach = args.reading.reach();
    let overrides = Overrides { version: args.version.clone(), vars: args.reading.vars.clone() };
    // All specs are read before anything boots: a mistake in the last one shows at once.
    let specs = args.specs.iter().map(|path| Ok(Spec::load(path, &overrides)?)).collect::<Result<Vec<_>, Failure>>()?;
    let events = super::events(global);
    if nix::unistd::geteuid().is_root() {
        events.notice(Level::Debug, "running as root, which kiln never needs");
    }
    // A key that does not sign is found out before anything boots.
    let signer = args.sign.as_deref().map(Signer::open).transpose()?.map(Arc::new);
    let around = Surroundings {
        signer,
        replace: args.replace,
        no_cache: args.no_cache,
        skip_tests: args.no_test,
        on_failure: match args.on_failure {
            args::OnFailure::Clean => OnFailure::Clean,
            args::OnFailure::Keep => OnFailure::Keep,
            args::OnFailure::Shell => OnFailure::Shell,
        },
        ..surroundings(folders, events, cancel)?
    };
    for spec in specs {
        let plan = survey::plan(spec, reach, &around.memo, &around.events).await?;
        if args.check_reproducible {
            let content = reproduce(&plan, &around).await?;
            super::print(&mut stdout().lock(), &format!("reproducible: content_sha256 {content}\n"))?;
            continue;
        }
        let artifact = build::build(&plan, &around).await?;
        deliver(&artifact, args.output.as_deref(), args.replace, args.json)?;
    }
    Ok(())
}

/// The folders, the terminal, and no wishes.
pub(super) fn surroundings(
    folders: &Folders,
    events: Events,
    cancel: CancellationToken,
) -> Result<Surroundings, Failure> {
    Ok(Surroundings {
        store: folders.store()?,
        cache: folders.cache_path()?,
        memo: folders.memo()?,
        events,
        open_log: |path| Ok(Arc::new(Log::create(path)?)),
        cancel,
        replace: false,
        no_cache: false,
        signer: None,
        skip_tests: false,
        on_failure: OnFailure::Clean,
        attach: terminal::attach,
    })
}

fn deliver(artifact: &Artifact, folder: Option<&Path>, replace: bool, json: bool) -> Result<(), Failure> {
    if let Some(folder) = folder {
        artifact.export(folder, if replace { OnConflict::Replace } else { OnConflict::Refuse }, UNWATCHED)?;
    }
    let text = if json {
        artifact.manifest().to_json()
    } else {
        let folder = folder.map_or_else(|| artifact.folder().to_owned(), Path::to_owned);
        artifact.manifest().outputs.iter().map(|output| format!("{}\n", folder.join(&output.file).display())).collect()
    };
    super::print(&mut stdout().lock(), &text)
}
