//! A spec of any bytes is either a spec or gets complaints of bounded length.
#![no_main]

use std::path::Path;

use kiln::cli::diagnostics::render;
use kiln::spec::{Overrides, Spec};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(errors) = Spec::parse(Path::new("/project/kiln.toml"), text, &Overrides::default()) {
        assert!(!errors.errors.is_empty(), "refused without a reason");
        let shown = render(&errors, true);
        assert!(errors.errors.len() <= 100 && shown.len() < 200_000, "{} bytes of complaints", shown.len());
    }
});
