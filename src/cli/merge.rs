use super::args;
use super::device::on_device;
use super::dry_run;
use super::failure::Failure;
use super::output;
use super::progress::Display;
use super::terminal;
use crate::checkpoint::{OutputDir, Temporary};
use crate::heads;
use crate::pipeline::{self, Options, Progress};
use crate::plan::{Family, Plan, plan};
use crate::recipe::{Document, Overrides, Recipe};
use crate::report::{self, Stages};
use std::path::PathBuf;

/// `esmerge merge`
pub(super) fn run(args: &args::Merge) -> Result<(), Failure> {
    for note in args.foreign.notes() {
        if !args.run.quiet {
            output::say(&note);
        }
    }
    let documents = Recipe::documents(&args.recipe)?;
    let Some((last, earlier)) = documents.split_last() else { return Ok(()) };
    let mut overrides = Overrides {
        alpha: args.alpha,
        accuracy: args.accuracy,
        seed: args.seed,
        allow_mismatch: args.allow_mismatch.clone(),
        made: Vec::new(),
    };
    let parse = |document: &Document, overrides: &Overrides| parse(args, document, overrides);
    if earlier.is_empty() {
        return carry_out(args, &parse(last, &overrides)?);
    }
    let Some(out) = args.out.as_deref().filter(|_| !args.dry_run) else {
        return plan_all(args, &documents, &mut overrides);
    };
    OutputDir::check(out, args.run.force)?; // told before any work
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let parts = Temporary::beside(&out.with_file_name(format!("{name}-parts")))?;
    // every document is understood before the first is merged
    for document in &documents {
        parse(document, &overrides)?;
        overrides.made.extend(document.name.iter().map(|name| (name.clone(), parts.path().join(name))));
    }
    for document in earlier {
        let name = document.name.clone().unwrap_or_default();
        let own = args::Merge { out: Some(parts.path().join(&name)), keep_delta: None, ..args.clone() };
        if !args.run.quiet {
            output::say(&format!("{name}:"));
        }
        carry_out(&own, &parse(document, &overrides)?)?;
    }
    carry_out(args, &parse(last, &overrides)?)
}

fn parse(args: &args::Merge, document: &Document, overrides: &Overrides) -> Result<Recipe, Failure> {
    args.run.download().recipe(|| Recipe::parse(&document.text, &args.recipe, overrides))
}

/// Plans the documents that need none of the others.
fn plan_all(args: &args::Merge, documents: &[Document], overrides: &mut Overrides) -> Result<(), Failure> {
    for document in documents {
        let recipe = parse(args, document, overrides)?;
        let name = document.name.as_deref().unwrap_or("the last document");
        let models = recipe.models.iter().map(|model| model.source.path());
        let needed = models
            .chain([&*recipe.base_model])
            .find(|path| overrides.made.iter().any(|(_, made)| made == path));
        if let Some(needed) = needed {
            let needed = needed.file_name().unwrap_or_default().to_string_lossy();
            output::say(&format!("{name} needs `{needed}`, which is merged first"));
        } else {
            output::say(&format!("{name}:"));
            carry_out(args, &recipe)?;
        }
        overrides
            .made
            .extend(document.name.iter().map(|name| (name.clone(), PathBuf::from("made").join(name))));
    }
    Ok(())
}

/// One merge.
pub(super) fn carry_out(args: &args::Merge, recipe: &Recipe) -> Result<(), Failure> {
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
        pipeline::check_heads(recipe)?;
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
        if !report.heads.is_empty() {
            output::print(&format!("\n{}", heads::table(&report.heads, terminal::width())));
        }
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
