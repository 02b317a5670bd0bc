//! Carries out the operations of the sealing table on a tree of files.

use std::path::Path;

use super::super::{RequestFailure, sys};
use super::SYSTEMD;
use super::files::{SealRoot, empty_file, is_machine_id_link, read_file, write_file};
use crate::wire::sealing::{
    FileTreatment, IdentityForm, IdentityPin, IdentityRenewal, MachineIdentity, SealOperation, find_maker, has_line,
};

/// Carries out one operation.
///
/// # Errors
/// When a file cannot be treated, with the operation's name.
pub fn carry_out(root: &SealRoot, operation: &SealOperation) -> Result<(), RequestFailure> {
    let forgotten = operation.identities.iter().try_for_each(|identity| forget(root, identity));
    let done = forgotten.and_then(|()| operation.files.iter().try_for_each(|treatment| treat(root, treatment)));
    done.map_err(|RequestFailure { class, text }| {
        let text = format!("the operation `{}` failed: {text}", operation.name);
        RequestFailure { class, text }
    })
}

/// Removes an identity that the next boot creates anew.
fn forget(root: &SealRoot, identity: &MachineIdentity) -> Result<(), RequestFailure> {
    let renewal = &identity.renewal;
    let maker = find_maker(renewal.makers(), &mut |file| Ok::<_, RequestFailure>(root.exists(file)))?;
    let is_forgotten = match renewal {
        IdentityRenewal::WhenMissing(_) | IdentityRenewal::Always { .. } => true,
        IdentityRenewal::By(_) => maker.is_some(),
        IdentityRenewal::Never(_) => false,
    };
    if !is_forgotten || is_pinned_by_file(root, identity.pin) {
        return Ok(());
    }
    let placeholder = maker.and_then(|maker| maker.placeholder);
    for path in identity.paths {
        match placeholder {
            Some(placeholder) => write_file(&root.place(path), placeholder.as_bytes())?,
            None => forget_path(root, identity, path)?,
        }
    }
    Ok(())
}

fn is_pinned_by_file(root: &SealRoot, pin: IdentityPin) -> bool {
    matches!(pin, IdentityPin::File(files) if files.iter().any(|file| root.exists(file)))
}

fn forget_path(root: &SealRoot, identity: &MachineIdentity, path: &str) -> Result<(), RequestFailure> {
    for place in root.find(path)? {
        match identity.form {
            IdentityForm::File => {
                if !is_machine_id_link(&place) {
                    root.remove(&place)?;
                }
            }
            IdentityForm::FileWith(beginning) => {
                if read_file(&place)?.is_some_and(|content| has_line(&content, beginning)) {
                    root.remove(&place)?;
                }
            }
            IdentityForm::Lines(beginning) => drop_lines(&place, beginning, identity.pin)?,
        }
    }
    Ok(())
}

/// Removes the lines of a file that begin with this string, unless another line of it pins them.
fn drop_lines(place: &Path, beginning: &str, pin: IdentityPin) -> Result<(), RequestFailure> {
    let Some(content) = read_file(place)? else { return Ok(()) };
    let is_pinned = matches!(pin, IdentityPin::Line(line) if has_line(&content, line));
    if is_pinned || !has_line(&content, beginning) {
        return Ok(());
    }
    let lines = content.split_inclusive(|byte| *byte == b'\n');
    let kept: Vec<u8> = lines.filter(|line| !has_line(line, beginning)).flatten().copied().collect();
    write_file(place, &kept)
}

fn treat(root: &SealRoot, treatment: &FileTreatment) -> Result<(), RequestFailure> {
    match treatment {
        FileTreatment::Remove(pattern) => for_each(root, pattern, SealRoot::remove),
        FileTreatment::RemoveFiles(pattern) => for_each(root, pattern, SealRoot::remove_file),
        FileTreatment::RemoveEmptyFolder(pattern) => for_each(root, pattern, SealRoot::remove_empty_folder),
        FileTreatment::Empty(pattern) => for_each(root, pattern, |_, place| empty_file(place)),
        FileTreatment::RemoveGenerated { maker, .. } if !root.exists(maker) => Ok(()),
        FileTreatment::RemoveGenerated { pattern, words, .. } => {
            for_each(root, pattern, |root, place| remove_mentioning(root, place, words))
        }
        FileTreatment::HideFromShutdown(folder) => hide_from_shutdown(root, folder),
    }
}

fn for_each(
    root: &SealRoot,
    pattern: &str,
    act: impl Fn(&SealRoot, &Path) -> Result<(), RequestFailure>,
) -> Result<(), RequestFailure> {
    root.find(pattern)?.iter().try_for_each(|place| act(root, place))
}

fn remove_mentioning(root: &SealRoot, place: &Path, words: &[&str]) -> Result<(), RequestFailure> {
    let content = read_file(place)?.unwrap_or_default().to_ascii_lowercase();
    let is_mentioned = words.iter().any(|word| content.windows(word.len()).any(|part| part == word.as_bytes()));
    if is_mentioned { root.remove(place) } else { Ok(()) }
}

/// Mounts a tmpfs over a folder, so that files written there during shutdown are lost.
fn hide_from_shutdown(root: &SealRoot, folder: &str) -> Result<(), RequestFailure> {
    let place = root.place(folder);
    if root.exists(SYSTEMD) || !place.is_dir() {
        return Ok(());
    }
    sys::mount_tmpfs(&place, "").map_err(RequestFailure::at(place.display()))
}
