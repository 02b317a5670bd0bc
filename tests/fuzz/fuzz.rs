//! All targets in one program, since each is mostly kiln: `KILN_FUZZ` names the one that gets the bytes.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod documents;
mod frame;
mod kernel_file;
mod manifest;
mod qcow2_header;
mod session;
mod spec;
mod tree;

static CHECK: LazyLock<fn(&[u8])> = LazyLock::new(|| match std::env::var("KILN_FUZZ").as_deref() {
    Ok("frame") => frame::check,
    Ok("kernel_file") => kernel_file::check,
    Ok("manifest") => manifest::check,
    Ok("qcow2_header") => qcow2_header::check,
    Ok("session") => session::check,
    Ok("spec") => spec::check,
    Ok("tree") => tree::check,
    other => panic!("KILN_FUZZ names no target: {other:?}"),
});

fuzz_target!(|input: &[u8]| CHECK(input));
