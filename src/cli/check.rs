//! `kiln check`: checks everything about specs that can be known without booting, offline.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;

use crate::download::NetworkMode as Network;
use crate::error::{Failure, Kind};
use crate::event::NoticeLevel;
use crate::plan::graph::{Graph, SpecNode};
use crate::resolve::base::{BaseResolver, is_yet_to_come};
use crate::resolve::facts;
use crate::resolve::path_policy::ReachPolicy;
use crate::resolve::secrets::SecretValues;
use crate::resolve::source_errors::SourceErrors;
use crate::scheduler;

use super::args::{CheckArgs, GlobalArgs};
use super::configuration::allowed_variables;
use super::folders::Folders;
use super::specs;

/// Checks every spec, and returns the first failure. A spec may be built on the image of another one.
///
/// # Errors
/// The first failure, after the others were printed.
pub async fn run(args: CheckArgs, global: &GlobalArgs, folders: &Folders) -> Result<(), Failure> {
    let events = super::events(global);
    let mut bases = folders.bases(args.sources, args.reading.reach().files, &events, CancellationToken::new())?;
    bases.reach = Network::Offline;
    let allowed = allowed_variables(&args.reading)?;
    let (mut found, mut told, mut failed) = (Vec::new(), BTreeMap::new(), Vec::new());
    for file in specs::files(&args.specs) {
        match specs::load(std::slice::from_ref(&file), &args.reading, None) {
            Ok(specs) => {
                for spec in specs {
                    let variant = spec.variant.as_ref().map(|name| format!(" (variant {name})")).unwrap_or_default();
                    told.insert((spec.path.clone(), spec.variant.clone()), format!("{}{variant}", file.display()));
                    found.push(spec);
                }
            }
            Err(failure) => failed.push(failure),
        }
    }
    match Graph::new(found, args.reading.reach().files) {
        Ok(graph) => {
            for node in graph.nodes().iter().filter(|node| node.wanted) {
                let refused = allowed.check(&node.spec).err().map(Failure::from);
                match check(node, &bases, args.reading.reach(), refused.is_none()).await {
                    Ok(_) if refused.is_some() => {}
                    Ok(missing) => {
                        let told = &told[&(node.spec.path.clone(), node.spec.variant.clone())];
                        let steps = count_steps(node.spec.steps.len());
                        events.notice(NoticeLevel::Info, format!("{told}: ok, {steps}{missing}"));
                    }
                    Err(mut failure) => {
                        if failure.fault::<SourceErrors>().is_none() {
                            failure.attach(format!("spec: {}", node.spec.path.display()));
                        }
                        failed.push(failure);
                    }
                }
                failed.extend(refused);
            }
        }
        Err(error) => failed.push(error.into()),
    }
    failed.iter().skip(1).for_each(super::diagnostics::print);
    failed.into_iter().next().map_or(Ok(()), Err)
}

fn count_steps(count: usize) -> String {
    if count == 1 { "1 step".to_owned() } else { format!("{count} steps") }
}

/// Checks a spec and returns a summary. A check builds and downloads nothing: if the base image is not there yet, everything
/// else is checked, and the summary names the base.
async fn check(
    node: &SpecNode,
    bases: &BaseResolver,
    reach: ReachPolicy,
    has_allowed_secrets: bool,
) -> Result<String, Failure> {
    let spec = &node.spec;
    let missing = match scheduler::plan(spec.clone(), bases, reach).await {
        Ok(_) => String::new(),
        Err(failure) if is_yet_to_come(&failure) || node.parent.is_some() && is_of_the_base(&failure) => {
            facts::inputs(spec, reach, &bases.memo, &bases.events)?;
            format!("; {failure}")
        }
        Err(failure) => return Err(failure),
    };
    if has_allowed_secrets {
        SecretValues::load(spec)?;
    }
    Ok(missing)
}

/// Returns whether a failure is about a base image that another of the specs builds and that the store does not have yet.
fn is_of_the_base(failure: &Failure) -> bool {
    matches!(failure.kind(), Kind::Base | Kind::Output)
}
