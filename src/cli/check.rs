//! `kiln check`: everything that can be known about specs without booting, offline.

use tokio_util::sync::CancellationToken;

use crate::build::base::{Bases, is_yet_to_come};
use crate::build::reach::Reach;
use crate::build::{many, survey};
use crate::download::Reach as Network;
use crate::error::Failure;
use crate::event::Level;
use crate::spec::Spec;

use super::args::{Global, Specs};
use super::folders::Folders;
use super::specs;

/// Checks every spec; all are looked at, and the first failure is the command's.
///
/// # Errors
/// The first failure; the others are printed as they are found.
pub async fn run(args: Specs, global: &Global, folders: &Folders) -> Result<(), Failure> {
    let events = super::events(global);
    let mut bases = folders.bases(args.sources, &events, CancellationToken::new())?;
    bases.reach = Network::Offline;
    let mut first = None;
    for path in &args.specs {
        let checked = async {
            let specs = specs::load(std::slice::from_ref(path), &args.reading, None)?;
            let alone = specs.len() == 1;
            for spec in specs {
                let told = if alone { path.display().to_string() } else { spec.path.display().to_string() };
                let missing = check(&spec, &bases, args.reading.reach()).await?;
                events.notice(Level::Info, format!("{told}: ok, {} steps{missing}", spec.steps.len()));
            }
            Ok(())
        };
        match checked.await {
            Ok(()) => {}
            Err(failure) if first.is_none() => first = Some(failure),
            Err(failure) => super::diagnostics::print(&failure),
        }
    }
    first.map_or(Ok(()), Err)
}

/// What a build would make or download is not made for a check: then all is looked at but the base image, which is told.
async fn check(spec: &Spec, bases: &Bases, reach: Reach) -> Result<String, Failure> {
    match many::plan(spec.clone(), bases, reach).await {
        Ok(_) => Ok(String::new()),
        Err(failure) if is_yet_to_come(&failure) => {
            survey::inputs(spec, reach, &bases.memo, &bases.events)?;
            Ok(format!("; {failure}"))
        }
        Err(failure) => Err(failure),
    }
}
