use super::args;
use super::device::on_device;
use super::dry_run;
use super::failure::Failure;
use super::output;
use super::progress::Display;
use super::terminal;
use crate::checkpoint::OutputDir;
use crate::pipeline::{self, Options, Progress};
use crate::plan::{Family, Plan, plan};
use crate::recipe::{Overrides, Recipe};
use crate::report;

/// `esmerge merge`
pub(super) fn run(args: &args::Merge) -> Result<(), Failure> {
    let overrides = Overrides { alpha: args.alpha, accuracy: args.accuracy, seed: args.seed };
    let recipe = Recipe::open(&args.recipe, &overrides)?;
    if let Some(out) = &args.out {
        drop(OutputDir::create(out)?); // a wrong output path is told before any work
    }
    let family = Family::open(&recipe)?;
    let plan = plan(&recipe, &family)?;
    let mut display = Display::new(args.run.quiet, args.run.verbose);
    for warning in &plan.warnings {
        display.warn(warning);
    }
    let (Some(out), false) = (&args.out, args.dry_run) else {
        return dry_run::show(&recipe, &plan, &family, args);
    };
    if args.run.verbose {
        name_fallbacks(&plan);
    }

    let options = Options {
        shard_size: args.run.out_shard_size,
        keep_delta: args.keep_delta.clone(),
        overrides: changes(args),
    };
    let (device, why_not) = args.run.open_device()?;
    if let Some(why_not) = why_not {
        display.warn(&why_not);
    }
    let merged = on_device!(&device, |backend| pollster::block_on(pipeline::merge(
        backend,
        &recipe,
        &family,
        &plan,
        out,
        &options,
        &mut display,
    )));
    display.clear();
    let report = merged?;
    if args.run.json {
        output::print(&serde_json::to_string_pretty(&report)?);
    } else if !args.run.quiet {
        output::print(&report::table(&report, terminal::width()));
        output::print(&format!(
            "{} written in {:.1} s on {}",
            out.display(),
            report.seconds.unwrap_or_default(),
            report.device
        ));
    }
    Ok(())
}

/// What flags changed in the recipe, for the report.
fn changes(args: &args::Merge) -> Vec<String> {
    let alpha = args.alpha.map(|v| format!("--alpha {v}"));
    let accuracy = args.accuracy.map(|v| format!("--accuracy {v}"));
    let seed = args.seed.map(|v| format!("--seed {v}"));
    [alpha, accuracy, seed].into_iter().flatten().collect()
}

/// Names every tensor that is not merged by the method's main rule.
fn name_fallbacks(plan: &Plan) {
    for layer in &plan.layers {
        if let Some(reason) = layer.reason {
            output::say(&format!("{}: {} ({reason})", layer.name, plan.treatment(layer)));
        }
    }
}
