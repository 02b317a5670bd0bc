//! `kiln outdated`: lists the images that should be built again, and why.

use std::io::Write;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cache::history::BaseFiles;
use crate::download::NetworkMode;
use crate::error::Failure;
use crate::event::NoticeLevel;
use crate::outdated::{self, KnownFiles, OutdatedImage};
use crate::plan::graph::Graph;
use crate::resolve::base::BaseResolver;
use crate::store::StoreListing;

use super::args::{self, GlobalArgs, SourceArgs};
use super::folders::Folders;
use super::list::{align, unreadable};
use super::{print, print_json, specs};

/// Writes a line for each outdated image, and returns whether there is any.
///
/// # Errors
/// When the store or a spec cannot be read; when a version cannot be, after the others were listed.
pub async fn run(
    args: &args::OutdatedArgs,
    global: &GlobalArgs,
    folders: &Folders,
    out: &mut dyn Write,
) -> Result<bool, Failure> {
    let events = super::events(global);
    let graph = Graph::new(specs::load(&args.specs, &args.reading, None)?, args.reading.reach().files)?;
    let sources = SourceArgs { locked: false, offline: true };
    let bases = BaseResolver {
        reach: NetworkMode::Offline,
        ..folders.bases(sources, args.reading.reach().files, &events, CancellationToken::new())?
    };
    let listing = folders.store()?.list()?;
    let files = KnownFiles { known: BaseFiles { cache: &bases.cache }, memo: &bases.memo };
    let is_asked = |id: &str| graph.nodes().iter().any(|node| node.id() == id);
    for summary in outdated::unknown(&listing, &files) {
        if !is_asked(&summary.id.to_string()) {
            let source = &summary.base.source;
            let text = format!("{}: the place of its base {source} is not known here; its spec names it", summary.id);
            events.notice(NoticeLevel::Info, text);
        }
    }
    let of_specs = outdated::of_specs(&graph, &bases, args.reading.reach()).await?;
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
    let row = |outdated: &OutdatedImage| {
        let why: Vec<_> = outdated.reasons.iter().map(ToString::to_string).collect();
        [outdated.id.clone(), tags(&outdated.id, listing).join(","), why.join("; ")]
    };
    align(&std::iter::once(head).chain(found.iter().map(row)).collect::<Vec<_>>())
}

fn as_json(found: &[OutdatedImage], listing: &StoreListing) -> String {
    let entry = |outdated: &OutdatedImage| {
        let (name, version) = outdated.id.split_once('@').unwrap_or((&outdated.id, ""));
        let reason = |reason: &outdated::OutdatedReason| {
            let mut value = json!(reason);
            value["text"] = Value::String(reason.to_string());
            value
        };
        let reasons: Vec<_> = outdated.reasons.iter().map(reason).collect();
        json!({ "name": name, "version": version, "tags": tags(&outdated.id, listing), "reasons": reasons })
    };
    format!("{:#}\n", json!(found.iter().map(entry).collect::<Vec<_>>()))
}
