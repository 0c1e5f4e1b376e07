//! The command line: a thin skin over the library. Printing and blocking live here and nowhere else.

mod apply;
mod args;
mod bench;
mod capture;
mod defect;
mod device;
mod devices;
mod download;
mod dry_run;
mod eval;
mod export_head;
mod extract;
mod failure;
mod generate;
mod heads;
mod init;
mod inspect;
mod join;
mod memory;
mod merge;
mod methods;
mod output;
mod progress;
mod rescale;
mod route;
mod shard;
mod signals;
mod space;
mod terminal;
mod usage;

use args::{Cli, Command};
use clap::Parser;
use failure::Failure;
use std::process::ExitCode;

/// Parses the arguments and does what they say. Exit code 0 is success, 2 an error in the command line or the recipe, 1
/// any other error, 101 a defect; 128 and the number of a signal that stopped the run.
pub fn main() -> ExitCode {
    signals::watch();
    defect::watch();
    let done = defect::caught(|| match Cli::try_parse() {
        Ok(cli) => run(cli.command),
        Err(error) => usage::answer(&error),
    });
    signals::wait_if_stopped();
    let done = done.and_then(|()| match output::lost() {
        None => Ok(()),
        Some(why) => Err(Failure::other(&format!("standard output: {why}"))),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Merge(args) => merge::run(&args),
        Command::Join(args) => join::run(&args),
        Command::Rescale(args) => rescale::run(&args),
        Command::Apply(args) => apply::run(&args),
        Command::Extract(args) => extract::run(&args),
        Command::Capture(args) => capture::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Heads(args) => heads::run(&args),
        Command::ExportHead(args) => export_head::run(&args),
        Command::Route(args) => route::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Methods(args) => methods::run(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man => generate::man(),
    }
}
