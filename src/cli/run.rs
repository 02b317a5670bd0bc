//! `kiln run`: a throw-away clone of an image, its console on this terminal.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::build::clone;
use crate::error::Failure;
use crate::event::Level;
use crate::plan::machine::PrivateNetworkAccess;

use super::args::{self, Global};
use super::folders::Folders;

/// Boots the clone and waits until it is gone.
///
/// # Errors
/// When the image or the host is not fit, or QEMU fails.
pub async fn run(
    args: args::Run,
    global: &Global,
    folders: &Folders,
    cancel: CancellationToken,
) -> Result<(), Failure> {
    let events = super::events(global);
    let artifact = folders.store()?.artifact(&args.image.parse()?)?;
    let private_network =
        if args.allow_private_network { PrivateNetworkAccess::All } else { PrivateNetworkAccess::Listed(Vec::new()) };
    let wanted = clone::Wanted { memory: args.memory, ssh: args.ssh, ssh_keys: public_keys(), private_network };
    let (clone, accel_reason) = clone::prepare(&artifact, &wanted, &folders.cache()?).await?;
    if let Some(reason) = accel_reason {
        events.notice(Level::Info, format!("software emulation (tcg): {reason}"));
    }
    events.notice(Level::Info, "Ctrl-A X ends the machine, Ctrl-A H lists the other keys; nothing is kept");
    if let Some(port) = args.ssh {
        events.notice(Level::Info, format!("ssh -p {port} USER@localhost, with the keys of ~/.ssh"));
    }
    clone.run(&events, cancel).await
}

/// The user's own keys, so that cloud-init lets them in.
fn public_keys() -> Vec<String> {
    let folder = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".ssh"));
    let Some(entries) = folder.and_then(|folder| std::fs::read_dir(folder).ok()) else { return Vec::new() };
    let paths =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "pub"));
    paths.filter_map(|path| std::fs::read_to_string(path).ok()).map(|key| key.trim().to_owned()).collect()
}
