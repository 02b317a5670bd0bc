//! Replaces what differs from run to run and host to host, for snapshots.

use super::Place;

/// The text without the test's own folder, digests, the program's path and figures of this host.
pub fn redact(text: &str, place: &Place) -> String {
    let folder = place.path().to_str().expect("UTF-8");
    let fake = super::fake_qemu();
    let text = text.replace(folder, "[FOLDER]").replace(fake.to_str().expect("UTF-8"), "[QEMU]");
    let mut redacted = String::new();
    for piece in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        // The last part of a UUID is as long as a digest's beginning.
        let is_digest = matches!(word.len(), 12 | 64) && !redacted.ends_with('-');
        let is_digest = is_digest && word.chars().all(|c| c.is_ascii_hexdigit());
        redacted.push_str(if is_digest { "[DIGEST]" } else { word });
        redacted.push_str(&piece[word.len()..]);
    }
    redacted
}
