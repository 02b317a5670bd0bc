//! `kiln outdated`: lists the images that should be built again, and why.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::cache::history::BaseFiles;
use crate::error::Failure;
use crate::event::NoticeLevel;
use crate::outdated::{self, KnownFiles, OutdatedImage, OutdatedReason};
use crate::plan::graph::Graph;
use crate::store::StoreListing;

use super::args::{SourceArgs, SpecArgs};
use super::list::{align, unreadable};
use super::{CommandContext, print, print_json, specs};

/// Arguments of `kiln outdated`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln outdated\n  kiln outdated images --exit-code || kiln build images\n\n\
        Checks the newest version of each image and all tagged versions: whether the image or file that they \
        were built from has changed, or should itself be rebuilt. With specs, also checks whether the specs or \
        the inputs of their steps have changed. Downloads nothing. With --online, also asks servers whether the \
        indices in kiln.lock have changed, such as those of package archives.")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
pub struct OutdatedArgs {
    /// Also compare with these specs: spec files, folders with a kiln.toml, or folders that contain such folders
    #[arg(value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Ask servers whether the recorded indices of specs with a locked network have changed
    #[arg(long, requires = "specs")]
    pub online: bool,
    /// Do not ask servers; this is the default
    #[arg(long, conflicts_with = "online")]
    pub offline: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Exit with code 1 if anything is outdated
    #[arg(long)]
    pub exit_code: bool,
}

/// Writes a line for each outdated image, and returns whether there is any.
///
/// # Errors
/// When the store or a spec cannot be read; when a version cannot be, after the others were listed.
pub(super) async fn run(
    args: &OutdatedArgs,
    context: CommandContext<'_>,
    out: &mut dyn Write,
) -> Result<bool, Failure> {
    let events = context.events();
    let graph = Graph::new(specs::load(&args.specs, &args.reading, None)?, args.reading.reach().files)?;
    let sources = SourceArgs { locked: false, offline: true };
    let bases = context.bases(sources, args.reading.reach().files, &events)?;
    let listing = context.folders.store()?.list()?;
    let files = KnownFiles { known: BaseFiles { cache: &bases.cache }, memo: &bases.memo };
    for summary in outdated::unknown(&listing, &files) {
        if graph.nodes().iter().all(|node| node.id() != summary.id.to_string()) {
            let source = &summary.base.source;
            let text = format!("{}: the place of its base {source} is not known here; its spec names it", summary.id);
            events.notice(NoticeLevel::Info, text);
        }
    }
    let mut of_specs = outdated::of_specs(&graph, &bases, args.reading.reach()).await?;
    if args.online {
        outdated::add_changed_indices(&mut of_specs, &graph, &bases).await?;
    }
    let found = outdated::merged(outdated::in_store(&listing, &files), of_specs);
    // The digests that were computed here are kept for the next command.
    let _ = bases.memo.save();
    if args.json {
        print_json(out, &as_json(&found, &listing))?;
    } else {
        print(out, &table(&found, &listing))?;
    }
    if found.is_empty() {
        events.notice(NoticeLevel::Info, "nothing is outdated".to_owned());
    }
    unreadable(listing).map(|()| !found.is_empty())
}

/// Returns the tags of an image in the listing.
fn tags<'a>(id: &str, listing: &'a StoreListing) -> &'a [String] {
    let found = id.split_once('@').and_then(|(name, version)| listing.find(name, version));
    found.map(|summary| summary.tags.as_slice()).unwrap_or_default()
}

fn table(found: &[OutdatedImage], listing: &StoreListing) -> String {
    if found.is_empty() {
        return String::new();
    }
    let head = ["IMAGE", "TAGS", "WHY"].map(str::to_owned);
    let rows = found.iter().map(|outdated| {
        let why: Vec<_> = outdated.reasons.iter().map(ToString::to_string).collect();
        [outdated.id.clone(), tags(&outdated.id, listing).join(","), why.join("; ")]
    });
    align(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn as_json(found: &[OutdatedImage], listing: &StoreListing) -> String {
    let entries = found.iter().map(|outdated| {
        let (name, version) = outdated.id.split_once('@').unwrap_or((&outdated.id, ""));
        let reasons: Vec<_> = outdated.reasons.iter().map(reason_as_json).collect();
        json!({ "name": name, "version": version, "tags": tags(&outdated.id, listing), "reasons": reasons })
    });
    format!("{:#}\n", json!(entries.collect::<Vec<_>>()))
}

fn reason_as_json(reason: &OutdatedReason) -> Value {
    let mut value = json!(reason);
    value["text"] = Value::String(reason.to_string());
    value
}
