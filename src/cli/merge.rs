use super::args;
use super::device::{Device, on_device};
use super::dry_run;
use super::failure::Failure;
use super::output;
use super::progress::Display;
use super::shard::Shard;
use super::{space, terminal};
use crate::backend::cpu::Cpu;
use crate::checkpoint::journal::{Earlier, Journal, Parts, Writer};
use crate::checkpoint::{self, OutputDir};
use crate::heads;
use crate::pipeline::{self, Options, Output, Progress, Share};
use crate::plan::{Family, Plan, plan};
use crate::recipe::{Document, Overrides, Recipe};
use crate::report::{self, Stages};
use std::path::PathBuf;
use std::time::Instant;

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
    if args.shard.is_some() {
        let reason = "a recipe of several documents is merged by one run, for each needs those before it; leave --shard out";
        return Err(Failure::usage(reason));
    }
    OutputDir::check(out, args.run.force)?; // told before any work
    let parts = Parts::open(out, earlier_work(args), &mut waiting)?;
    // every document is understood before the first is merged
    for document in &documents {
        parse(document, &overrides)?;
        overrides.made.extend(document.name.iter().map(|name| (name.clone(), parts.path(name))));
    }
    for document in earlier {
        let name = document.name.clone().unwrap_or_default();
        let own =
            args::Merge { out: Some(parts.path(&name)), keep_delta: None, resume: false, ..args.clone() };
        if !args.run.quiet {
            output::say(&format!("{name}:"));
        }
        carry_out_part(&own, &parse(document, &overrides)?, &parts, &name)?;
    }
    carry_out(&args::Merge { resume: false, ..args.clone() }, &parse(last, &overrides)?)?;
    Ok(parts.finish()?)
}

/// The merge of a document that others need, unless it was done by an earlier run.
fn carry_out_part(args: &args::Merge, recipe: &Recipe, parts: &Parts, name: &str) -> Result<(), Failure> {
    let family = Family::open(recipe)?;
    let plan = plan(recipe, &family)?;
    let options = Options { overrides: changes(args), verify: args.verify, ..Options::default() };
    let (device, _) = args.run.open_device()?;
    let identity =
        on_device!(&device, |backend| pipeline::identity(backend, (recipe, &family, &plan), &options))?;
    drop(device);
    if parts.is_done(name, &identity)? {
        if !args.run.quiet {
            output::say("done already, and used");
        }
        return Ok(());
    }
    let own = parts.path(name);
    if own.exists() {
        // complete, but killed before that was noted
        std::fs::remove_dir_all(&own)
            .map_err(|e| Failure::other(&format!("cannot remove {}: {e}", own.display())))?;
    }
    carry_out(args, recipe)?;
    Ok(parts.done(name, &identity)?)
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
    if args.shard.is_some() {
        pipeline::check_share(recipe)?;
    }
    let journal = journal(args)?; // a wrong path is told before any work
    carry_out_in(args, recipe, journal, false)
}

/// What an earlier run may have left, and the place of the output; none for a dry run, and without journal.
fn journal(args: &args::Merge) -> Result<Option<Journal>, Failure> {
    let Some(out) = args.out.as_deref().filter(|_| !args.dry_run && !args.no_journal) else {
        return Ok(None);
    };
    Journal::tidied(out, &mut waiting)?; // of no use, whatever is said of the output
    let writer = args.shard.map_or(Writer::only(), |shard| Writer::share(shard.index, shard.count));
    let writer = Writer { every: args.journal_every, ..writer };
    Ok(Some(Journal::open(out, args.run.force, writer, earlier_work(args), &mut waiting)?))
}

/// What becomes of an earlier run's work.
fn earlier_work(args: &args::Merge) -> Earlier {
    match (args.resume, args.fresh) {
        (true, _) => Earlier::Insist,
        (_, true) => Earlier::Discard,
        _ => Earlier::Use,
    }
}

/// Tells why nothing happens for a while.
pub(super) fn waiting(why: &str) {
    output::say(why);
}

/// One merge, or a share of one, or with `join` the shares of one put together.
pub(super) fn carry_out_in(
    args: &args::Merge,
    recipe: &Recipe,
    journal: Option<Journal>,
    join: bool,
) -> Result<(), Failure> {
    let output = match journal {
        Some(journal) => Some(journal.into()),
        None => plain_output(args)?.map(Output::Plain),
    };
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
    let (out, folder) = (output.folder().wanted().to_path_buf(), output.folder().folder().to_path_buf());
    if args.run.verbose {
        name_fallbacks(&plan);
    }
    check_space(args, &plan, &family, recipe, &output)?;

    let options = Options {
        shard_size: args.run.out_shard_size,
        max_memory: args.run.max_memory(),
        keep_delta: args.keep_delta.clone(),
        force: args.run.force,
        overrides: changes(args),
        verify: args.verify,
        join: join && args.shard.is_none(),
        fallback: args.fallback.is_some(),
        warnings: Vec::new(),
    };
    let output = match (args.shard, output) {
        (Some(Shard { index, count }), Output::Journaled(journal)) => {
            let share = Share { index, count, of_files: join };
            return carry_out_share(args, (recipe, &family, &plan), *journal, share, &options, display);
        }
        (_, output) => output,
    };
    let (device, why_not) = open_device(args, &mut display)?;
    let options = Options { warnings: why_not.into_iter().collect(), ..options };
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
    let mut report = merged.map_err(|e| Failure::of_merge(e, &args.recipe).with_kept(&folder))?;
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

/// A share of a merge, and what is left to do.
fn carry_out_share(
    args: &args::Merge,
    (recipe, family, plan): (&Recipe, &Family, &Plan),
    journal: Journal,
    share: Share,
    options: &Options,
    mut display: Display,
) -> Result<(), Failure> {
    let (started, out) = (Instant::now(), journal.output().wanted().display().to_string());
    let folder = journal.output().folder().to_path_buf();
    let (device, _) = open_device(args, &mut display)?;
    let work = (recipe, family, plan);
    let done = on_device!(&device, |backend| pollster::block_on(pipeline::merge_share(
        backend,
        work,
        journal,
        share,
        options,
        &mut display,
    )));
    display.clear();
    let done = done.map_err(|e| Failure::of_merge(e, &args.recipe).with_kept(&folder))?;
    if args.run.json {
        output::print(&serde_json::to_string_pretty(&done)?);
    } else if !args.run.quiet {
        let Share { index, count, of_files } = share;
        let mut parts = Vec::new();
        if !of_files {
            parts.push(format!("{} of {} batches of layers", done.batches, done.of_batches));
        }
        if of_files || done.of_batches == 0 {
            parts.push(format!("{} files of the output", done.files));
        }
        let seconds = started.elapsed().as_secs_f64();
        output::print(&format!("share {index} of {count} done in {seconds:.1} s: {}", parts.join(", ")));
        output::print(&format!("when all are: esmerge join {out}"));
    }
    Ok(())
}

/// The device, and why another was not taken.
fn open_device(args: &args::Merge, display: &mut Display) -> Result<(Device, Option<String>), Failure> {
    let (device, why_not) = match (args.run.open_device(), args.fallback) {
        (Err(error), Some(args::Fallback::Cpu)) if error.is_fault_of_device() => {
            (Device::Cpu(Cpu), Some(format!("{error}; the CPU goes on (--fallback cpu)")))
        }
        (opened, _) => opened?,
    };
    why_not.iter().for_each(|why_not| display.warn(why_not));
    Ok((device, why_not))
}

/// Whether there is room for the output, and for what lasts until it is complete.
fn check_space(
    args: &args::Merge,
    plan: &Plan,
    family: &Family,
    recipe: &Recipe,
    output: &Output,
) -> Result<(), Failure> {
    let (out, folder) = (output.folder().wanted(), output.folder().folder());
    let space = pipeline::space(recipe, family, plan, args.keep_delta.is_some());
    let shares = args.shard.map_or(1, |shard| shard.count as u64);
    let (journal, hint) = match output {
        Output::Journaled(_) => {
            (space.journal / shares, "; --no-journal takes less, and a kill then loses everything")
        }
        Output::Plain(_) => (0, ""),
    };
    let there = checkpoint::bytes_in(folder);
    let output_bytes = if args.shard.is_some() { 0 } else { space.output };
    let needed = (output_bytes + journal).saturating_sub(there);
    space::check(folder, needed, &format!("{} and the work on it", out.display()), hint)?;
    match &args.keep_delta {
        Some(file) => space::check(file, space.deltas, "the kept deltas", ""),
        None => Ok(()),
    }
}

/// The output, under its temporary name; none for a dry run, which only looks at the paths.
fn plain_output(args: &args::Merge) -> Result<Option<OutputDir>, Failure> {
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
