use super::args::{self, Cli};
use super::failure::Failure;
use super::output;
use clap::CommandFactory;

/// `esmerge completions`
pub(super) fn completions(args: &args::Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "esmerge", &mut script);
    output::print(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

/// `esmerge man`: the page of the program, and those of its commands after it, as `man -l -` shows them.
pub(super) fn man() -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page).map_err(unwritten)?;
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        clap_mangen::Man::new(subcommand.clone()).render(&mut page).map_err(unwritten)?;
    }
    output::print(String::from_utf8_lossy(&page).trim_end());
    Ok(())
}

fn unwritten(error: std::io::Error) -> Failure {
    Failure::other(&format!("the page cannot be made: {error}"))
}
