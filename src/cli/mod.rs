//! The command line: a thin skin over the library. Printing and blocking live here and nowhere else.

mod args;
mod bench;
mod capture;
mod device;
mod devices;
mod dry_run;
mod eval;
mod failure;
mod generate;
mod merge;
mod output;
mod progress;
mod rescale;
mod route;
mod terminal;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

/// Parses the arguments and does what they say. Exit code 0 is success, 2 an error in the command line or the recipe, 1
/// any other error.
pub fn main() -> ExitCode {
    let cli = Cli::parse(); // exits with code 2 on a usage error
    let done = match cli.command {
        Command::Merge(args) => merge::run(&args),
        Command::Rescale(args) => rescale::run(&args),
        Command::Capture(args) => capture::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Route(args) => route::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man => generate::man(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
