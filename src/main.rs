//! `esmerge`, the command.

fn main() -> std::process::ExitCode {
    esmerge::cli::main()
}
