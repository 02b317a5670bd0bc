//! `kiln lock`: pins base images in kiln.lock, so that others build on the same ones.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::digest::Sha256Digest;
use crate::error::Failure;
use crate::event::NoticeLevel;
use crate::plan::graph::{Graph, SpecNode};
use crate::resolve::base::{BaseResolver, LocatedBase, LockfileMode};
use crate::resolve::facts::{base_sha256, unreadable_base};
use crate::resolve::lockfile::{LockFile, source};
use crate::resolve::path_policy::FileReach;
use crate::specfile::BaseSource;

use super::CommandContext;
use super::args::SourceArgs;
use super::{path_line, print, specs};

/// Arguments of `kiln lock`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln lock images && git add images/*/kiln.lock\n  kiln build images --locked\n\n\
        Writes kiln.lock beside each spec. Builds use the base images pinned there until `kiln lock` is run \
        again, even if a tag moves or a list of digests changes.")]
pub struct LockArgs {
    /// Spec files, folders with a kiln.toml, or folders that contain such folders
    #[arg(required = true, value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// Do not download anything
    #[arg(long)]
    pub offline: bool,
    /// Allow a spec to be a symbolic link out of its project, and to be built on specs and files outside of it; the project
    /// is the git work tree that the spec is named in, or else its folder
    #[arg(long)]
    pub allow_outside: bool,
}

/// Locks every spec with its variants, and the specs that they are built on; prints the files that have changed.
pub(super) async fn run(args: LockArgs, context: CommandContext<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let events = context.events();
    let sources = SourceArgs { locked: false, offline: args.offline };
    let reach = if args.allow_outside { FileReach::Host } else { FileReach::Project };
    let bases = BaseResolver { locking: LockfileMode::Ignore, ..context.bases(sources, reach, &events)? };
    let graph = Graph::new(specs::with_variants(&args.specs, reach)?, reach)?;
    let mut files: BTreeMap<PathBuf, LockFile> = BTreeMap::new();
    for node in graph.nodes() {
        let parent = node.parent.map(|parent| graph.nodes()[parent].id());
        let (image, sha256) = found(node, parent, &bases).await?;
        let told = image.clone().or(sha256.map(|sha256| sha256.to_string())).unwrap_or_default();
        events.notice(NoticeLevel::Info, format!("{}: {} is {told}", node.id(), source(&node.spec)));
        let pins = match files.entry(folder(&node.spec.path)) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(LockFile::beside(&node.spec)?),
        };
        pins.enter(&node.spec, image, sha256);
    }
    for pins in files.values() {
        let (path, has_changed) = pins.save()?;
        if has_changed {
            print(out, &path_line(path))?;
        }
    }
    Ok(())
}

/// Returns the folder of a spec without symbolic links, so that a spec has one `kiln.lock` whichever path names it.
fn folder(spec: &Path) -> PathBuf {
    let folder = match spec.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())
}

/// Returns the image that a base is and its digest, as far as each is known.
async fn found(
    node: &SpecNode,
    parent: Option<String>,
    bases: &BaseResolver,
) -> Result<(Option<String>, Option<Sha256Digest>), Failure> {
    if let BaseSource::Spec { .. } = node.spec.base.source {
        return Ok((parent, None));
    }
    let LocatedBase { file, image, downloaded, .. } = &bases.locate(&node.spec, None).await?;
    let sha256 = match downloaded {
        Some(sha256) => *sha256,
        None => base_sha256(file, &bases.memo).map_err(unreadable_base(file))?,
    };
    Ok((image.as_ref().map(|image| format!("{}@{}", image.name, image.version)), Some(sha256)))
}
