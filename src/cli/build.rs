//! `kiln build`: builds specs and their base images, as many at a time as the host allows.

use std::io::{Write, stderr, stdout};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::context::{BuildOptions, OnFailure};
use crate::deadline::DeadlineError;
use crate::error::{Failure, Kind};
use crate::event::{Events, NoticeLevel, Outcome};
use crate::output::export::copy;
use crate::plan::graph::Graph;
use crate::report::ProgressMode;
use crate::report::log::LogSink;
use crate::reproduce::reproduce;
use crate::resolve::base::BaseResolver;
use crate::resolve::path_policy::ReachPolicy;
use crate::scheduler::{self, Budget, BuildScheduler, NodeOutcome};
use crate::sign::Signer;
use crate::store::{Artifact, OnConflict};

use super::CommandContext;
use super::args::{SourceArgs, SpecArgs};
use super::configuration::allowed_variables;
use super::list::align;
use super::{specs, terminal};

/// Arguments of `kiln build`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
#[command(
    after_help = "Example:\n  kiln build images/hello\n  kiln build web.toml --version 1.4.1 --var site=example.org -o \
        out/\n  kiln build images --jobs 4\n\n\
        Specs that a spec is built on are built first if they are out of date. Images are built in parallel, \
        as far as the host's processors and memory allow."
)]
pub struct BuildArgs {
    /// Spec files, folders with a kiln.toml, or folders that contain such folders [default: the current folder, if it has a
    /// kiln.toml]
    #[arg(value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// Number of parallel builds [default: one per processor]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Version to build [default: the spec's]
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Options for where base images may come from.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Run every step, even if its result is in the cache
    #[arg(long)]
    pub no_cache: bool,
    /// Also copy the outputs to this folder; with several images, to a subfolder NAME-VERSION for each
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Replace a version that was built from other inputs
    #[arg(long)]
    pub replace: bool,
    /// Sign SHA256SUMS with this OpenSSH or minisign key, even if the version is up to date
    #[arg(long, value_name = "KEY")]
    pub sign: Option<PathBuf>,
    /// Skip the tests and record that in the manifest
    #[arg(long)]
    pub no_test: bool,
    /// Build twice from scratch, with different clocks, memory sizes and numbers of processors, and list the files that
    /// differ; publish nothing
    #[arg(long, conflicts_with_all = ["output", "replace", "no_test", "json", "sign"])]
    pub check_reproducible: bool,
    /// What to do with the guest when a step fails
    #[arg(long, value_enum, default_value_t)]
    pub on_failure: OnFailure,
    /// Print the manifest instead of the paths
    #[arg(long)]
    pub json: bool,
}

/// Builds every spec and the specs that it is built on.
///
/// # Errors
/// Whatever went wrong first; what else went wrong is printed.
pub(super) async fn run(args: BuildArgs, context: CommandContext<'_>) -> Result<(), Failure> {
    let specs = specs::load(&specs::or_here(args.specs.clone())?, &args.reading, args.version.as_ref())?;
    let graph = Graph::new(specs, args.reading.reach().files)?;
    let allowed = allowed_variables(&args.reading)?;
    graph.nodes().iter().try_for_each(|node| allowed.check(&node.spec))?;
    let events = context.events();
    if nix::unistd::geteuid().is_root() {
        events.notice(NoticeLevel::Debug, "running as root, which kiln never needs");
    }
    // A key that cannot sign is detected before anything boots.
    let signer = args.sign.as_deref().map(Signer::open).transpose()?.map(Arc::new);
    let bases = context.bases(args.sources, args.reading.reach().files, &events)?;
    let around = BuildOptions {
        signer,
        replace: args.replace,
        no_cache: args.no_cache,
        skip_tests: args.no_test,
        on_failure: args.on_failure,
        ..surroundings(&context, args.sources, events)?
    };
    if args.check_reproducible {
        return check_reproducible(graph, &bases, &around, args.reading.reach()).await;
    }
    // A shell needs the terminal for itself.
    let jobs = if around.on_failure == OnFailure::Shell { Some(1) } else { args.jobs.map(usize::from) };
    let many = BuildScheduler { bases: &bases, reach: args.reading.reach(), around: &around };
    let ended = many.build(&graph, Budget::of_host(jobs)).await;
    let has_several = graph.nodes().iter().filter(|node| node.wanted).count() > 1;
    let mut undelivered = Vec::new();
    // What was published is delivered, even if other builds failed.
    for (node, ended) in graph.nodes().iter().zip(&ended) {
        let NodeOutcome::Done(artifact, _) = ended else { continue };
        if node.wanted {
            let mut folder = args.output.clone();
            if has_several {
                // Each image has a manifest and sums of the same names.
                folder = folder.map(|folder| folder.join(stem(artifact)));
            }
            undelivered.extend(deliver(artifact, folder, &args, &around.cancel).await.err());
        }
    }
    let is_summed_up = !context.global.quiet && context.global.progress != ProgressMode::Json;
    if graph.nodes().len() > 1 && is_summed_up {
        // An error means that the terminal is gone, and nothing can be printed.
        let _ = stderr().lock().write_all(summary(&graph, &ended).as_bytes());
    }
    let mut undelivered = undelivered.into_iter();
    let failed = verdict(&graph, ended).and_then(|()| undelivered.next().map_or(Ok(()), Err));
    undelivered.for_each(|failure| super::diagnostics::print(&failure));
    failed
}

/// Builds each spec twice, one after the other.
async fn check_reproducible(
    graph: Graph,
    bases: &BaseResolver,
    around: &BuildOptions,
    reach: ReachPolicy,
) -> Result<(), Failure> {
    for node in graph.nodes().iter().filter(|node| node.wanted) {
        let (plan, _held) = scheduler::plan(node.spec.clone(), bases, reach).await?;
        let content = reproduce(&plan, around).await?;
        super::print(&mut stdout().lock(), &format!("reproducible: content_sha256 {content}\n"))?;
    }
    Ok(())
}

/// Returns the first failure, and prints the others, each with its image.
fn verdict(graph: &Graph, ended: Vec<NodeOutcome>) -> Result<(), Failure> {
    let several = graph.nodes().len() > 1;
    let failed = graph.nodes().iter().zip(ended).filter_map(|(node, ended)| match ended {
        NodeOutcome::Failed(mut failure) => {
            if several {
                failure.attach(format!("image: {}", node.id()));
            }
            Some(failure)
        }
        // Nothing has failed before: the interruption came first.
        NodeOutcome::Interrupted => Some(DeadlineError::Interrupted.into()),
        NodeOutcome::Done(..) | NodeOutcome::NotBuilt(_) => None,
    });
    let mut failed: Vec<Failure> = failed.collect();
    if let Some(at) = failed.iter().position(|failure| failure.kind() == Kind::Interrupted) {
        return Err(failed.swap_remove(at));
    }
    failed.iter().skip(1).for_each(super::diagnostics::print);
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// Returns a table with the outcome of each image.
fn summary(graph: &Graph, ended: &[NodeOutcome]) -> String {
    let rows = graph.nodes().iter().zip(ended).map(|(node, ended)| {
        let (fate, why) = match ended {
            NodeOutcome::Done(_, Outcome::UpToDate) => ("up to date", String::new()),
            NodeOutcome::Done(..) => ("published", String::new()),
            NodeOutcome::Failed(_) => ("FAILED", String::new()),
            NodeOutcome::NotBuilt(cause) => ("not built", format!("{} failed", graph.nodes()[*cause].id())),
            NodeOutcome::Interrupted => ("not built", "interrupted".to_owned()),
        };
        [fate.to_owned(), node.id(), why]
    });
    align(&rows.collect::<Vec<_>>())
}

/// Returns the surroundings of a build: folders, terminal, and default options.
pub(super) fn surroundings(
    context: &CommandContext<'_>,
    sources: SourceArgs,
    events: Events,
) -> Result<BuildOptions, Failure> {
    Ok(BuildOptions {
        store: context.folders.store()?,
        cache: context.folders.cache()?,
        memo: context.folders.memo()?,
        events,
        open_log: |path| Ok(Arc::new(LogSink::create(path)?)),
        cancel: context.cancel.clone(),
        replace: false,
        locking: sources.locking(),
        no_cache: false,
        signer: None,
        skip_tests: false,
        on_failure: OnFailure::Clean,
        attach: terminal::attach,
        reach: sources.reach(),
    })
}

fn stem(artifact: &Artifact) -> String {
    format!("{}-{}", artifact.id().name(), artifact.id().version())
}

/// Copies the version into the output folder, if one was given, and prints the paths of the image files.
async fn deliver(
    artifact: &Arc<Artifact>,
    folder: Option<PathBuf>,
    args: &BuildArgs,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    if let Some(folder) = &folder {
        let conflict = if args.replace { OnConflict::Replace } else { OnConflict::Refuse };
        copy(artifact, None, folder, conflict, cancel.clone()).await?;
    }
    if args.json {
        return super::print_json(&mut stdout().lock(), &artifact.manifest().to_json());
    }
    let folder = folder.unwrap_or_else(|| artifact.folder().to_owned());
    let outputs = artifact.manifest().outputs.iter();
    let paths: String = outputs.map(|output| super::path_line(&folder.join(&output.file))).collect();
    super::print(&mut stdout().lock(), &paths)
}
