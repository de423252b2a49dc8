//! The binary: hands over to `cli` and exits with its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ktcw_vm::cli::main()
}
