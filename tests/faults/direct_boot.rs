//! Direct boots of disks that cannot be booted so.

use crate::support::Kiln;
use crate::{STEP, refused_at_once};

#[test]
fn i4_a_direct_boot_of_a_disk_without_a_kernel_says_what_to_do() {
    let kiln = Kiln::new().machine("boot = 'direct'").spec(STEP).build();
    refused_at_once(kiln.fails(5).stderr_has("help: build it with `boot = \"full\"`"));
}
