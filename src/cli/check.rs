//! `kiln check`: checks everything about specs that can be known without booting, offline.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use crate::error::{Failure, Kind};
use crate::event::NoticeLevel;
use crate::plan::graph::{Graph, SpecNode};
use crate::resolve::base::{BaseResolver, is_yet_to_come};
use crate::resolve::facts;
use crate::resolve::path_policy::ReachPolicy;
use crate::resolve::secrets::SecretValues;
use crate::resolve::source_errors::SourceErrors;
use crate::scheduler;

use super::CommandContext;
use super::args::{SourceArgs, SpecArgs};
use super::configuration::allowed_variables;
use super::list::counted;
use super::specs;

/// Arguments of `kiln check`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln check images/*")]
pub struct CheckArgs {
    /// Spec files, folders with a kiln.toml, or folders that contain such folders [default: the current folder, if it has a
    /// kiln.toml]
    #[arg(value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Options for where base images may come from.
    #[command(flatten)]
    pub sources: SourceArgs,
}

/// Checks every spec, and returns the first failure. A spec may be built on the image of another one.
///
/// # Errors
/// The first failure, after the others were printed.
pub(super) async fn run(args: CheckArgs, context: CommandContext<'_>) -> Result<(), Failure> {
    let named = specs::or_here(args.specs)?;
    let events = context.events();
    let sources = SourceArgs { offline: true, ..args.sources };
    let bases = context.bases(sources, args.reading.reach().files, &events)?;
    let allowed = allowed_variables(&args.reading)?;
    let mut found = Vec::new();
    let mut labels = BTreeMap::new();
    let mut failed = Vec::new();
    for file in specs::files(&named) {
        match specs::load(std::slice::from_ref(&file), &args.reading, None) {
            Ok(specs) => {
                for spec in specs {
                    let variant = spec.variant.as_ref().map(|name| format!(" (variant {name})")).unwrap_or_default();
                    labels.insert((spec.path.clone(), spec.variant.clone()), format!("{}{variant}", file.display()));
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
                        let label = &labels[&(node.spec.path.clone(), node.spec.variant.clone())];
                        let steps = counted(node.spec.steps.len(), "step");
                        events.notice(NoticeLevel::Info, format!("{label}: ok, {steps}{missing}"));
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

/// Checks a spec and returns a summary. A check builds and downloads nothing: if the base image is not there yet, everything
/// else is checked, and the summary names the base.
async fn check(
    node: &SpecNode,
    bases: &BaseResolver,
    reach: ReachPolicy,
    has_allowed_secrets: bool,
) -> Result<String, Failure> {
    let spec = &node.spec;
    let (spec, missing) = match scheduler::plan(spec.clone(), bases, reach).await {
        // Without the steps that are skipped.
        Ok((plan, _)) => (&plan.spec.clone(), String::new()),
        Err(failure) if is_yet_to_come(&failure) || node.parent.is_some() && is_of_the_base(&failure) => {
            facts::inputs(spec, reach, &bases.memo, &bases.events)?;
            (spec, format!("; {failure}"))
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
