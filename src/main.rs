//! The `kiln` command: arguments in, exit code out. Everything else is the library's.

use std::process::ExitCode;

fn main() -> ExitCode {
    kiln::cli::main()
}
