//! Builds the guest agent: a static executable of `src/agent` and `src/wire`, by the same compiler as the crate.
//!
//! Its sources' digest becomes `KILN_AGENT_BUILD` for both ends, so that an agent only ever talks to its own kiln.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What decides how an image is sealed. Other sources of the agent may change without making other images.
const SEALING: [&str; 10] = [
    "src/agent/seal",
    "src/agent/next_boot.rs",
    "src/agent/planted.rs",
    "src/wire/sealing.rs",
    "src/wire/sealing",
    "src/wire/path_pattern.rs",
    "src/wire/planted.rs",
    "src/wire/boot_mounts.rs",
    "src/wire/mount_unit.rs",
    "src/wire/fstab.rs",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let mut sources = Vec::new();
    for folder in ["src/agent", "src/wire"] {
        // The folder itself too: a new file changes nothing that was there.
        println!("cargo::rerun-if-changed={folder}");
        collect(Path::new(folder), &mut sources);
    }
    sources.sort();
    let build = digest(&sources);
    println!("cargo::rustc-env=KILN_AGENT_BUILD={build}");
    sources.retain(|path| SEALING.iter().any(|folder| path.starts_with(folder)));
    println!("cargo::rustc-env=KILN_SEAL_BUILD={}", digest(&sources));
    compile(&build);
}

fn collect(folder: &Path, sources: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the sources are readable") {
        let path = entry.expect("the sources are readable").path();
        if path.is_dir() {
            collect(&path, sources);
        } else {
            sources.push(path);
        }
    }
}

/// FNV-1a of all names and contents: it tells builds apart and protects nothing.
fn digest(sources: &[PathBuf]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for path in sources {
        let content = fs::read(path).expect("the sources are readable");
        let name = path.to_string_lossy();
        for byte in name.bytes().chain([0]).chain(content) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

fn compile(build: &str) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"));
    rustc
        .args(["src/agent/main.rs", "--crate-name", "kiln_agent", "--edition", "2024", "--target", TARGET])
        .args(["-C", "opt-level=3", "-C", "panic=abort", "-C", "codegen-units=1", "-C", "strip=symbols"])
        .args(["-C", "target-feature=+crt-static", "-C", "relocation-model=static"])
        // Half of it is the host's side of the protocol.
        .args(["-A", "dead_code", "--remap-path-prefix"])
        .arg(format!("{root}=kiln"))
        .arg("-o")
        .arg(out.join("kiln-agent"))
        .env("KILN_AGENT_BUILD", build)
        .env_remove("RUSTFLAGS");
    let output = rustc.output().expect("rustc runs");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return said
            .lines()
            .filter(|line| line.starts_with("warning"))
            .for_each(|line| println!("cargo::warning={line}"));
    }
    let missing_libc = ["-lc:", "-lc\n", "cannot find -l", "libc.a"].iter().any(|text| said.contains(text));
    let hint = if missing_libc { "the static C library is missing: install libc6-dev\n" } else { "" };
    panic!("cannot build the guest agent: {hint}{said}");
}
