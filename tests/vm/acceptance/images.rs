//! The images of this repository but hello, which every run of the tests builds.

use crate::bench::{Bench, root};

#[test]
#[ignore = "boots a VM"]
fn the_other_images_build() {
    let bench = Bench::new();
    bench.builds(&root().join("images/offline-app"));
    bench.builds(&root().join("images/nginx"));
}
