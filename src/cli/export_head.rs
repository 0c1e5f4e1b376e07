use super::args;
use super::failure::Failure;
use super::output;
use crate::checkpoint::OutputDir;
use crate::heads;

/// `esmerge export-head`
pub(super) fn run(args: &args::ExportHead) -> Result<(), Failure> {
    let output = OutputDir::create(&args.out, args.force)?;
    heads::export(&args.model, &args.name, output, args.out_shard_size)?;
    output::say(&format!("{} written", args.out.display()));
    Ok(())
}
