//! Scripts that no guest can run.

use crate::support::Kiln;
use crate::{refused_at_once, step};

const STEPS: &str = "[[step]]\nscript = 'crlf.sh'\n[[step]]\nscript = 'bare.sh'\n";

#[test]
fn s11_scripts_that_cannot_run_are_found_before_anything_boots() {
    for command in ["check", "plan", "build"] {
        let kiln = Kiln::new().file("crlf.sh", "#!/bin/sh\r\necho one\r\n").file("bare.sh", "echo two\n");
        let ended = kiln.spec(STEPS).args([command, "."]).fails(3).run();
        for text in [
            "kiln.toml:9:10",
            "crlf.sh:1: the `#!` line ends with CR LF, so the kernel looks for an interpreter named `/bin/sh\\r`",
            "sed -i 's/\\r$//'",
            "kiln.toml:11:10",
            "bare.sh:1: the script has no `#!` line",
            "such as `#!/bin/sh`",
            "has 2 errors",
        ] {
            assert!(ended.stderr.contains(text), "{command}: no {text}: {}", ended.stderr);
        }
        assert_eq!(ended.place().starts(), 0, "nothing is booted");
    }
}

#[test]
fn s11_one_bad_script_is_one_error() {
    let kiln = Kiln::new().file("run", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0").build();
    refused_at_once(kiln.spec("[[step]]\nscript = 'run'").fails(3).stderr_has("a program for 64-bit Arm"));
}

#[test]
fn s11_a_line_that_may_fail_is_a_warning() {
    let kiln = Kiln::new().file("run.sh", "#!/bin/sh\necho one\r\n").spec("[[step]]\nscript = 'run.sh'");
    let warning = "run.sh:2: the line ends with CR LF, and `sh` takes the CR for a part of the command";
    let checked = kiln.args(["check", "."]).stderr_has("kiln.toml, line 8").stderr_has(warning).run();
    checked.then(["build", "."]).stderr_has(warning).run();
}

#[test]
fn a_bad_script_is_annotated_at_its_step() {
    let kiln = step("true").file("kiln.toml", "");
    let kiln = kiln.spec(STEPS).file("crlf.sh", "#!/bin/sh\r\n").file("bare.sh", "").env("GITHUB_ACTIONS", "true");
    let ended = kiln.fails(3).stderr_has("::error file=kiln.toml,line=9,").run();
    assert!(ended.stderr.contains("::error file=kiln.toml,line=11,"), "{}", ended.stderr);
}
