//! The command line: parse, run, print, exit code.

fn main() -> std::process::ExitCode {
    mergeforge::cli::main()
}
