//! Arguments that are a spec or an image.

use std::path::Path;

use crate::event::{Events, NoticeLevel};
use crate::specfile::{is_spec_path, spec_file};
use crate::store::{Reference, Store};

/// Returns whether a target is a spec: an existing file, or a string that is written like a path.
pub(super) fn is_spec(target: &str) -> bool {
    target.contains('/') || target == "." || is_spec_path(Path::new(target))
}

/// Emits a notice that a folder is read as a spec although an image of the store has the same name.
pub(super) fn tell_which_is_meant(target: &str, store: &Store, events: &Events) {
    let spec = spec_file(Path::new(target));
    if target.contains('/') || !is_spec(target) || !spec.exists() {
        return;
    }
    let Ok(reference) = target.parse::<Reference>() else { return };
    if let Ok(image) = store.artifact(&reference) {
        let text = format!("`{target}` is read as the spec {}; the image is `{}`", spec.display(), image.id());
        events.notice(NoticeLevel::Info, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_spec_and_a_name_is_an_image() {
        assert!(is_spec("images/hello") && is_spec("web.toml") && is_spec(".") && is_spec("./web"));
        assert!(!is_spec("web") && !is_spec("web@1.4.0"));
    }
}
