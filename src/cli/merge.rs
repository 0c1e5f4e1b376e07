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
use crate::report::{self, Stages};

/// `esmerge merge`
pub(super) fn run(args: &args::Merge) -> Result<(), Failure> {
    let overrides = Overrides {
        alpha: args.alpha,
        accuracy: args.accuracy,
        seed: args.seed,
        allow_mismatch: args.allow_mismatch.clone(),
    };
    carry_out(&Recipe::open(&args.recipe, &overrides)?, args)
}

/// What a recipe says, wherever it came from.
pub(super) fn carry_out(recipe: &Recipe, args: &args::Merge) -> Result<(), Failure> {
    let output = output(args)?; // a wrong path is told before any work
    let family = Family::open(recipe)?;
    let plan = plan(recipe, &family)?;
    let mut display = Display::new(args.run.quiet, args.run.verbose);
    for warning in &plan.warnings {
        display.warn(warning);
    }
    let Some(output) = output else {
        for note in pipeline::check_files_beside(&family)? {
            display.warn(&note);
        }
        return dry_run::show(recipe, &plan, &family, args);
    };
    let out = output.wanted().to_path_buf();
    if args.run.verbose {
        name_fallbacks(&plan);
    }

    let options = Options {
        shard_size: args.run.out_shard_size,
        max_memory: args.run.max_memory(),
        keep_delta: args.keep_delta.clone(),
        force: args.run.force,
        overrides: changes(args),
    };
    let (device, why_not) = args.run.open_device()?;
    if let Some(why_not) = why_not {
        display.warn(&why_not);
    }
    let merged = on_device!(&device, |backend| pollster::block_on(pipeline::merge(
        backend,
        recipe,
        &family,
        &plan,
        output,
        &options,
        &mut display,
    )));
    display.clear();
    let mut report = merged.map_err(|e| Failure::of_merge(e, &args.recipe))?;
    device.add_profile(&args.run, &mut report, &mut display);
    if args.run.json {
        output::print(&serde_json::to_string_pretty(&report)?);
    } else if !args.run.quiet {
        output::print(&report::table(&report, terminal::width()));
        if let Some(profile) = &report.profile {
            output::print(&profile.table(terminal::width()));
        }
        output::print(&format!(
            "{} written in {:.1} s on {}{}",
            out.display(),
            report.seconds.unwrap_or_default(),
            report.device,
            report.stages.as_ref().map_or(String::new(), between)
        ));
    }
    Ok(())
}

/// Where merged deltas waited.
fn between(stages: &Stages) -> String {
    let places =
        [("in memory", stages.bytes_of_deltas_in_memory), ("on disk", stages.bytes_of_deltas_on_disk)];
    let places = places.iter().filter(|(_, bytes)| *bytes > 0);
    let places: Vec<String> =
        places.map(|(place, bytes)| format!("{} {place}", dry_run::megabytes(*bytes))).collect();
    if places.is_empty() { String::new() } else { format!("; merged deltas: {}", places.join(", ")) }
}

/// The output, under its temporary name; none for a dry run, which only looks at the paths.
fn output(args: &args::Merge) -> Result<Option<OutputDir>, Failure> {
    match (&args.out, args.dry_run) {
        (Some(out), false) => Ok(Some(OutputDir::create(out, args.run.force)?)),
        (None, _) => Ok(None),
        (Some(out), true) => {
            OutputDir::check(out, args.run.force)?;
            if let Some(file) = &args.keep_delta {
                pipeline::check_keep_delta(file, out, args.run.force)?;
            }
            Ok(None)
        }
    }
}

/// What flags changed in the recipe, for the report.
fn changes(args: &args::Merge) -> Vec<String> {
    let alpha = args.alpha.map(|v| format!("--alpha {v}"));
    let accuracy = args.accuracy.map(|v| format!("--accuracy {v}"));
    let seed = args.seed.map(|v| format!("--seed {v}"));
    let allowed = args.allow_mismatch.iter().map(|key| format!("--allow-mismatch {key}"));
    [alpha, accuracy, seed].into_iter().flatten().chain(allowed).collect()
}

/// Names every tensor that is not merged by the method's main rule.
fn name_fallbacks(plan: &Plan) {
    for layer in &plan.layers {
        if let Some(reason) = layer.reason {
            output::say(&format!("{}: {} ({reason})", layer.name, plan.treatment(layer)));
        }
    }
}
