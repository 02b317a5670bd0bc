//! A spec of any bytes is either a spec or gets complaints of bounded length.

use std::path::Path;

use kiln::cli::diagnostics::render;
use kiln::specfile::{Overrides, Spec};

pub fn check(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    if let Err(errors) = Spec::parse(Path::new("/project/kiln.toml"), text, &Overrides::default()) {
        assert!(!errors.errors.is_empty(), "refused without a reason");
        let shown = render(&errors, true);
        assert!(errors.errors.len() <= 100 && shown.len() < 200_000, "{} bytes of complaints", shown.len());
    }
}
