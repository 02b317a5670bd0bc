//! `kiln build`: builds specs and their base images, as many at a time as the host allows.

use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::context::{BuildOptions, OnFailure};
use crate::deadline::DeadlineError;
use crate::error::{Failure, Kind};
use crate::event::{Events, NoticeLevel, Outcome};
use crate::output::export::copy;
use crate::plan::graph::{Graph, SpecNode};
use crate::report::log::LogSink;
use crate::reproduce::reproduce;
use crate::resolve::base::BaseResolver;
use crate::resolve::path_policy::ReachPolicy;
use crate::scheduler::{self, Budget, BuildScheduler, NodeOutcome};
use crate::sign::Signer;
use crate::store::{Artifact, OnConflict};

use super::args::{self, BuildArgs, GlobalArgs};
use super::configuration::allowed_variables;
use super::folders::Folders;
use super::list::align;
use super::{specs, terminal};

/// Builds every spec and the specs that it is built on.
///
/// # Errors
/// Whatever went wrong first; what else went wrong is printed.
pub async fn run(
    args: BuildArgs,
    global: &GlobalArgs,
    folders: &Folders,
    cancel: CancellationToken,
) -> Result<(), Failure> {
    let specs = specs::load(&args.specs, &args.reading, args.version.as_ref())?;
    let graph = Graph::new(specs, args.reading.reach().files)?;
    let allowed = allowed_variables(&args.reading)?;
    graph.nodes().iter().try_for_each(|node| allowed.check(&node.spec))?;
    let events = super::events(global);
    if nix::unistd::geteuid().is_root() {
        events.notice(NoticeLevel::Debug, "running as root, which kiln never needs");
    }
    // A key that cannot sign is detected before anything boots.
    let signer = args.sign.as_deref().map(Signer::open).transpose()?.map(Arc::new);
    let bases = folders.bases(args.sources, args.reading.reach().files, &events, cancel.clone())?;
    let around = BuildOptions {
        signer,
        replace: args.replace,
        no_cache: args.no_cache,
        skip_tests: args.no_test,
        on_failure: match args.on_failure {
            args::OnFailureArg::Clean => OnFailure::Clean,
            args::OnFailureArg::Keep => OnFailure::Keep,
            args::OnFailureArg::Shell => OnFailure::Shell,
        },
        ..surroundings(folders, events, cancel)?
    };
    if args.check_reproducible {
        return check_reproducible(graph, &bases, &around, args.reading.reach()).await;
    }
    // A shell needs the terminal for itself.
    let jobs = if around.on_failure == OnFailure::Shell { Some(1) } else { args.jobs.map(usize::from) };
    let many = BuildScheduler { bases: &bases, reach: args.reading.reach(), around: &around };
    let ended = many.build(&graph, Budget::of_host(jobs)).await;
    let wanted = graph.nodes().iter().filter(|node| node.wanted).count();
    let mut undelivered = Vec::new();
    // What was published is delivered, even if other builds failed.
    for (node, ended) in graph.nodes().iter().zip(&ended) {
        let NodeOutcome::Done(artifact, _) = ended else { continue };
        if node.wanted {
            // Each image has a manifest and sums of the same names.
            let of_image = |folder: &Path| if wanted > 1 { folder.join(stem(artifact)) } else { folder.to_owned() };
            let folder = args.output.as_deref().map(of_image);
            undelivered.extend(deliver(artifact, folder, &args, &around.cancel).await.err());
        }
    }
    if graph.nodes().len() > 1 && !global.quiet && !matches!(global.progress, args::ProgressArg::Json) {
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
    let row = |(node, ended): (&SpecNode, &NodeOutcome)| {
        let (fate, why) = match ended {
            NodeOutcome::Done(_, Outcome::UpToDate) => ("up to date", String::new()),
            NodeOutcome::Done(..) => ("published", String::new()),
            NodeOutcome::Failed(_) => ("FAILED", String::new()),
            NodeOutcome::NotBuilt(cause) => ("not built", format!("{} failed", graph.nodes()[*cause].id())),
            NodeOutcome::Interrupted => ("not built", "interrupted".to_owned()),
        };
        [fate.to_owned(), node.id(), why]
    };
    align(&graph.nodes().iter().zip(ended).map(row).collect::<Vec<_>>())
}

/// Returns the surroundings of a build: folders, terminal, and default options.
pub(super) fn surroundings(
    folders: &Folders,
    events: Events,
    cancel: CancellationToken,
) -> Result<BuildOptions, Failure> {
    Ok(BuildOptions {
        store: folders.store()?,
        cache: folders.cache()?,
        memo: folders.memo()?,
        events,
        open_log: |path| Ok(Arc::new(LogSink::create(path)?)),
        cancel,
        replace: false,
        no_cache: false,
        signer: None,
        skip_tests: false,
        on_failure: OnFailure::Clean,
        attach: terminal::attach,
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
