//! Boots that have ended without an agent, recognised by what the console shows.

use std::time::Duration;

use tokio::time::sleep;

use crate::machine::console::Console;

/// Strings on the console of a boot that has ended without an agent, and what each of them means.
const DEAD_ENDS: [(&str, &str); 9] = [
    ("No bootable device", "the BIOS finds nothing to boot on the disk"),
    ("No bootable option or device was found", "the UEFI firmware finds nothing to boot on the disk"),
    ("UEFI Interactive Shell", "the UEFI firmware finds nothing to boot on the disk"),
    ("grub rescue>", "GRUB does not find the rest of itself"),
    ("grub>", "GRUB finds no configuration"),
    ("Kernel panic - not syncing", "the guest's kernel panicked"),
    ("(initramfs)", "the initramfs does not find or mount the root file system"),
    ("You are in emergency mode", "systemd is in its emergency mode"),
    ("Entering emergency mode", "the initramfs is in its emergency mode"),
];
/// How long the agent may still take after that; if it connects all the same, the boot has succeeded.
const LAST_CHANCE: Duration = Duration::from_secs(5);

/// Waits until the console shows a dead end, and returns what that means.
pub(crate) async fn hopeless(console: &Console) -> &'static str {
    let shown = console.until(&DEAD_ENDS.map(|(text, _)| text)).await;
    sleep(LAST_CHANCE).await;
    DEAD_ENDS.iter().find(|(text, _)| *text == shown).map_or("", |(_, what)| *what)
}
