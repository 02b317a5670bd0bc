//! A base that does not boot, or boots as somebody else.

use std::time::Duration;

use crate::support::Kiln;
use crate::{BOOT_TIMEOUT, STEP, fault, refused};

#[test]
fn b13_a_base_that_never_speaks_is_given_up_with_what_the_console_showed() {
    let kiln = Kiln::new().machine(BOOT_TIMEOUT).spec(STEP).build().fake("never-boots");
    refused(kiln.fails(6).stderr_has("did not answer within 4s").stderr_has("Linux version").stderr_has("help: "));
}

#[test]
fn b14_a_login_prompt_without_an_agent_hints_at_cloud_init() {
    let kiln = Kiln::new().machine(BOOT_TIMEOUT).spec(STEP).build().fake("login-prompt");
    refused(kiln.fails(6).stderr_has("fake login:").stderr_has("NoCloud"));
}

/// Long before the time is over that a boot may take.
#[test]
fn b13_a_boot_loader_that_has_given_up_is_not_waited_for() {
    let kiln = Kiln::new().spec(STEP).build().fake("grub-rescue").within(Duration::from_secs(40));
    refused(kiln.fails(6).stderr_has("GRUB does not find the rest of itself").stderr_has("| grub rescue>"));
}

#[test]
fn b15_a_guest_with_another_seed_is_refused() {
    refused(fault("other-instance").fails(6).stderr_has("i-0123456789").stderr_has("help: "));
}

#[test]
fn g1_noise_on_the_port_before_the_hello_is_thrown_away() {
    assert_eq!(fault("garbage").run().place().published(), ["web@1"]);
}

#[test]
fn g7_an_agent_of_another_build_is_refused() {
    refused(fault("wrong-build").fails(6).stderr_has("another agent").stderr_has("help: "));
}

#[test]
fn g8_a_panic_at_boot_shows_the_console() {
    refused(fault("panics-at-boot").fails(6).stderr_has("panicked").stderr_has("Unable to mount root fs"));
}

#[test]
fn g10_a_boot_loop_is_given_up() {
    refused(fault("boot-loop").fails(6).stderr_has("rebooted"));
}

#[test]
fn b13_a_boot_that_does_not_end_names_the_units_that_it_waits_for() {
    let units = "did not finish booting within 20m; still starting: stuck.service; waiting: multi-user.target";
    refused(fault("never-settles").fails(6).stderr_has(units).stderr_has("TimeoutStartSec"));
    let test = "[[test]]\nrun = 'true'";
    let kiln = Kiln::new().spec(test).build().fake("clone-never-settles").fails(9);
    refused(kiln.stderr_has("the sealed image does not boot").stderr_has("still starting: stuck.service"));
}
