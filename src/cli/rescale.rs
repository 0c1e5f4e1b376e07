use super::args;
use super::device::on_device;
use super::failure::Failure;
use super::output;
use super::progress::Display;
use super::terminal;
use crate::checkpoint::OutputDir;
use crate::pipeline::{self, Progress, Rescale};
use crate::report;

/// `esmerge rescale`
pub(super) fn run(args: &args::Rescale) -> Result<(), Failure> {
    let request = Rescale {
        delta: args.delta.clone(),
        base: args.run.download().path(&args.base)?,
        alpha: args.alpha,
        shard_size: args.run.out_shard_size,
        max_memory: args.run.max_memory(),
    };
    let output = OutputDir::create(&args.out, args.run.force)?; // a wrong path is told before any work
    let (device, why_not) = args.run.open_device()?;
    let mut display = Display::new(args.run.quiet, args.run.verbose);
    if let Some(why_not) = why_not {
        display.warn(&why_not);
    }
    let made = on_device!(&device, |backend| pollster::block_on(pipeline::rescale(
        backend,
        &request,
        output,
        &mut display,
    )));
    display.clear();
    let mut report = made.map_err(|e| Failure::of_merge(e, &args.delta))?;
    device.add_profile(&args.run, &mut report, &mut display);
    if args.run.json {
        output::print(&serde_json::to_string_pretty(&report)?);
    } else if !args.run.quiet {
        output::print(&report::table(&report, terminal::width()));
        if let Some(profile) = &report.profile {
            output::print(&profile.table(terminal::width()));
        }
        let seconds = report.seconds.unwrap_or_default();
        output::print(&format!("{} written in {seconds:.1} s on {}", args.out.display(), report.device));
    }
    Ok(())
}
