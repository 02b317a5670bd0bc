//! `kiln lock`: pins base images in kiln.lock, so that others build on the same ones.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::digest::Sha256Digest;
use crate::error::Failure;
use crate::event::{Events, NoticeLevel};
use crate::plan::graph::{Graph, SpecNode};
use crate::resolve::base::{BaseResolver, LocatedBase, LockfileMode};
use crate::resolve::facts::{base_sha256, unreadable_base};
use crate::resolve::lockfile::{LockFile, source};
use crate::resolve::path_policy::FileReach;
use crate::specfile::{BaseSource, HostPattern};

use super::CommandContext;
use super::args::SourceArgs;
use super::{path_line, print, specs};

/// Arguments of `kiln lock`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln lock images && git add images/*/kiln.lock\n  kiln build images --locked\n\n\
        Writes kiln.lock beside each spec. Builds use the base images pinned there until `kiln lock` is run \
        again, even if a tag moves or a list of digests changes. What the steps of a spec with `network = \"locked\"` \
        download is recorded by its builds; `--refresh` drops that.")]
pub struct LockArgs {
    /// Spec files, folders with a kiln.toml, or folders that contain such folders [default: the current folder, if it has a
    /// kiln.toml]
    #[arg(value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// Do not download anything
    #[arg(long)]
    pub offline: bool,
    /// Drop the recorded downloads of the given specs, or those of HOST (a name, an address or `*.DOMAIN`), so that the next
    /// build records them anew
    #[arg(long, value_name = "HOST", num_args = 0..=1, require_equals = true)]
    #[expect(clippy::option_option, reason = "clap's type for an option with an optional value")]
    pub refresh: Option<Option<HostPattern>>,
    /// Allow a spec to be a symbolic link out of its project, and to be built on specs and files outside of it; the project
    /// is the git work tree that the spec is named in, or else its folder
    #[arg(long)]
    pub allow_outside: bool,
}

/// Locks every spec with its variants, and the specs that they are built on; prints the files that have changed.
pub(super) async fn run(args: LockArgs, context: CommandContext<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let named = specs::or_here(args.specs)?;
    let events = context.events();
    let sources = SourceArgs { locked: false, offline: args.offline };
    let reach = if args.allow_outside { FileReach::Host } else { FileReach::Project };
    let bases = BaseResolver { locking: LockfileMode::Ignore, ..context.bases(sources, reach, &events)? };
    let graph = Graph::new(specs::with_variants(&named, reach)?, reach)?;
    let mut folders: BTreeMap<PathBuf, Vec<LockChange<'_>>> = BTreeMap::new();
    for node in graph.nodes() {
        let parent = node.parent.map(|parent| graph.nodes()[parent].id());
        let (image, sha256) = found(node, parent, &bases).await?;
        let told = image.clone().or(sha256.map(|sha256| sha256.to_string())).unwrap_or_default();
        events.notice(NoticeLevel::Info, format!("{}: {} is {told}", node.id(), source(&node.spec)));
        folders.entry(folder(&node.spec.path)).or_default().push(LockChange { node, image, sha256 });
    }
    for changes in folders.values() {
        let Some(LockChange { node, .. }) = changes.first() else { continue };
        let change = |pins: &mut LockFile| apply(pins, changes, args.refresh.as_ref(), &events);
        let (path, has_changed) = LockFile::update(&node.spec, change)?;
        if has_changed {
            print(out, &path_line(&path))?;
        }
    }
    Ok(())
}

/// The new entry of a spec.
struct LockChange<'a> {
    node: &'a SpecNode,
    image: Option<String>,
    sha256: Option<Sha256Digest>,
}

/// Enters the base images of a folder's specs in its lock file. With `refresh`, the downloads of the specs that were asked
/// for are dropped, or those of one host.
fn apply(pins: &mut LockFile, changes: &[LockChange<'_>], refresh: Option<&Option<HostPattern>>, events: &Events) {
    for LockChange { node, image, sha256 } in changes {
        pins.enter(&node.spec, image.clone(), *sha256);
        if let Some(host) = refresh.filter(|_| node.wanted) {
            let dropped = pins.refresh(&node.spec, host.as_ref());
            events.notice(NoticeLevel::Info, tell_refresh(&node.id(), dropped, host.as_ref()));
        }
    }
}

fn tell_refresh(id: &str, dropped: usize, host: Option<&HostPattern>) -> String {
    let of_host = host.map(|host| format!(" of {host}")).unwrap_or_default();
    match dropped {
        0 => format!("{id}: no downloads{of_host} are recorded"),
        1 => format!("{id}: 1 download{of_host} dropped; the next build records it anew"),
        _ => format!("{id}: {dropped} downloads{of_host} dropped; the next build records them anew"),
    }
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
