//! `kiln outdated`: lists the images that should be built again, and why.

use std::io::Write;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cache::history::BaseFiles;
use crate::download::Reach;
use crate::error::Failure;
use crate::event::Level;
use crate::outdated::{self, Files, Outdated};
use crate::plan::graph::Graph;
use crate::resolve::base::Bases;
use crate::store::Listing;

use super::args::{self, Global, Sources};
use super::folders::Folders;
use super::list::{align, unreadable};
use super::{print, print_json, specs};

/// Writes a line for each outdated image, and returns whether there is any.
///
/// # Errors
/// When the store or a spec cannot be read; when a version cannot be, after the others were listed.
pub async fn run(
    args: &args::Outdated,
    global: &Global,
    folders: &Folders,
    out: &mut dyn Write,
) -> Result<bool, Failure> {
    let events = super::events(global);
    let graph = Graph::new(specs::load(&args.specs, &args.reading, None)?, args.reading.reach().files)?;
    let sources = Sources { locked: false, offline: true };
    let bases = Bases {
        reach: Reach::Offline,
        ..folders.bases(sources, args.reading.reach().files, &events, CancellationToken::new())?
    };
    let listing = folders.store()?.list()?;
    let files = Files { known: BaseFiles { cache: &bases.cache }, memo: &bases.memo };
    let is_asked = |id: &str| graph.nodes().iter().any(|node| node.id() == id);
    for summary in outdated::unknown(&listing, &files) {
        if !is_asked(&summary.id.to_string()) {
            let source = &summary.base.source;
            let text = format!("{}: where its base {source} lies is not known here; its spec says it", summary.id);
            events.notice(Level::Info, text);
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
        events.notice(Level::Info, "nothing is outdated".to_owned());
    }
    unreadable(listing).map(|()| !found.is_empty())
}

/// Returns the tags of an image in the listing.
fn tags<'a>(id: &str, listing: &'a Listing) -> &'a [String] {
    let found = id.split_once('@').and_then(|(name, version)| listing.find(name, version));
    found.map(|summary| summary.tags.as_slice()).unwrap_or_default()
}

fn table(found: &[Outdated], listing: &Listing) -> String {
    if found.is_empty() {
        return String::new();
    }
    let head = ["IMAGE", "TAGS", "WHY"].map(str::to_owned);
    let row = |outdated: &Outdated| {
        let why: Vec<_> = outdated.reasons.iter().map(ToString::to_string).collect();
        [outdated.id.clone(), tags(&outdated.id, listing).join(","), why.join("; ")]
    };
    align(&std::iter::once(head).chain(found.iter().map(row)).collect::<Vec<_>>())
}

fn as_json(found: &[Outdated], listing: &Listing) -> String {
    let entry = |outdated: &Outdated| {
        let (name, version) = outdated.id.split_once('@').unwrap_or((&outdated.id, ""));
        let reason = |reason: &outdated::Reason| {
            let mut value = json!(reason);
            value["text"] = Value::String(reason.to_string());
            value
        };
        let reasons: Vec<_> = outdated.reasons.iter().map(reason).collect();
        json!({ "name": name, "version": version, "tags": tags(&outdated.id, listing), "reasons": reasons })
    };
    format!("{:#}\n", json!(found.iter().map(entry).collect::<Vec<_>>()))
}
