//! `kiln verify IMAGE`: recomputes every checksum.

use std::io::Write;

use super::print;
use crate::error::Failure;
use crate::report::escape::escape;
use crate::store::{Reference, Store, UNWATCHED};

/// Writes an `ok` line for each sound file.
///
/// # Errors
/// When anything is damaged, after the lines of what is sound; when there is no such version.
pub fn run(store: &Store, image: &Reference, out: &mut dyn Write) -> Result<(), Failure> {
    let verdict = store.artifact(image)?.verify(UNWATCHED)?;
    for file in verdict.sound.keys() {
        print(out, &format!("ok {}\n", escape(file)))?;
    }
    Ok(verdict.into_result()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::shelf::{Shelf, written};

    #[test]
    fn each_sound_file_has_a_line() {
        let shelf = Shelf::with(&["web@1"]);
        let text = written(|out| run(&shelf.store, &"web@1".parse().unwrap(), out)).unwrap();
        assert_eq!(text, "ok manifest.json\nok web-1.qcow2\n");
    }

    #[test]
    fn a_damaged_file_is_named_after_the_sound_ones() {
        let shelf = Shelf::with(&["web@1"]);
        shelf.overwrite("web/1/web-1.qcow2", "dosk");
        let mut out = Vec::new();
        let failure = run(&shelf.store, &"web@1".parse().unwrap(), &mut out).unwrap_err();
        assert_eq!(String::from_utf8(out).unwrap(), "ok manifest.json\n");
        assert_eq!(failure.to_string(), "web@1 is damaged: web-1.qcow2 differs from its checksum");
        assert_eq!(failure.kind().exit_code(), 8);
    }
}
