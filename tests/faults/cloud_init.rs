//! Guests whose cloud-init keeps kiln's agent out at their next boot: removed, disabled, or without vfat. The specs ask for
//! cloud-init; `planted.rs` has those that do not.

use crate::refused;
use crate::support::Kiln;

const REASON: &str = "cloud-init is not installed";

const CLOUD_INIT: &str = "agent = 'cloud-init'";

/// A build whose first step leaves the guest so.
fn after(command: &str, rest: &str) -> Kiln {
    Kiln::new().machine(CLOUD_INIT).spec(&format!("[[step]]\nname = 'harden'\nrun = '{command}'\n{rest}")).build()
}

#[test]
fn i1_what_follows_is_said_right_after_the_step() {
    let ended = after(&format!("echo done; breaks {REASON}"), "").run();
    let warning = format!(
        "step 1 `harden`: {REASON}, so cloud-init will not start kiln's agent when the guest boots again: no `reboot` step \
         can follow, and no test can run"
    );
    let said = |text: &str| ended.stderr.find(text).unwrap_or_else(|| panic!("no {text}: {}", ended.stderr));
    assert!(said("| done") < said(&warning) && said(&warning) < said("seal"), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches(REASON).count(), 1, "{}", ended.stderr);
    assert_eq!(ended.place().published(), ["web@1"], "the image is as it should be");
}

#[test]
fn i1_a_reboot_that_would_not_come_back_is_refused_at_once() {
    let rest = "[[step]]\nrun = 'echo between'\n[[step]]\nreboot = true\n";
    for command in [format!("breaks {REASON}"), format!("disables {REASON}")] {
        let kiln = after(&command, rest).fails(7).stderr_has("step 3 `reboot`").stderr_has("kiln.toml:14");
        let ended = refused(kiln.stderr_has(format!("{REASON} (since step 1 `harden`)")));
        assert!(!ended.place().fake_log().contains(&"reboot".to_owned()));
    }
}

#[test]
fn i1_tests_that_cannot_run_are_no_image_that_does_not_boot() {
    let tests = "[[test]]\nrun = 'true'\n";
    let kiln = after(&format!("breaks {REASON}"), tests).fails(9).stderr_has("the tests cannot run");
    let ended = refused(kiln.stderr_has("since step 1 `harden`").stderr_has("--no-test"));
    assert_eq!(ended.place().starts(), 1, "no clone is booted");
    assert!(!ended.stderr.contains("does not boot"), "{}", ended.stderr);
    ended.then(["build", ".", "--no-test"]).run();
}

#[test]
fn i1_a_guest_that_is_mended_reboots_and_is_tested() {
    let rest = "[[step]]\nrun = 'mends'\n[[step]]\nreboot = true\n[[test]]\nrun = 'true'\n";
    let ended = after(&format!("breaks {REASON}"), rest).run();
    assert!(ended.place().fake_log().contains(&"reboot".to_owned()));
}

#[test]
fn i1_units_that_a_first_boot_enables_keep_no_test_out() {
    let kiln = after("disables the units of cloud-init are disabled", "[[test]]\nrun = 'true'\n");
    let ended = kiln.stderr_has("boots again: no `reboot` step can follow").run();
    assert!(!ended.stderr.contains("no test can run"), "{}", ended.stderr);
    assert_eq!(ended.place().starts(), 2);
}

#[test]
fn i1_a_clone_with_a_login_prompt_has_booted() {
    let spec = "[[test]]\nname = 'answers'\nrun = 'true'";
    let kiln = Kiln::new().machine(crate::BOOT_TIMEOUT).spec(spec).build().fake("clone-login-prompt").fails(9);
    let ended = refused(kiln.stderr_has("boots, but kiln's agent did not start").stderr_has("can mount vfat"));
    assert!(!ended.stderr.contains("does not boot"), "{}", ended.stderr);
}
