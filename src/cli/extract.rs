use super::args;
use super::device::on_device;
use super::failure::Failure;
use super::output;
use super::progress::Display;
use super::terminal;
use crate::checkpoint::OutputDir;
use crate::pipeline::{self, Extract, Progress};
use crate::plan::{Family, plan};
use crate::recipe::{Overrides, Recipe};
use std::path::Path;

/// `esmerge extract`
pub(super) fn run(args: &args::Extract) -> Result<(), Failure> {
    let overrides = Overrides { allow_mismatch: args.allow_mismatch.clone(), ..Overrides::default() };
    let recipe = {
        let text = recipe(args)?;
        let download = args.run.download();
        download.recipe(|| Recipe::parse(&text, Path::new("esmerge extract"), &overrides))?
    };
    let output = OutputDir::create(&args.out, args.run.force)?; // a wrong path is told before any work
    let family = Family::open(&recipe)?;
    let plan = plan(&recipe, &family)?;
    let mut display = Display::new(args.run.quiet, args.run.verbose);
    for warning in &plan.warnings {
        display.warn(warning);
    }
    let request = Extract { rank: args.rank as usize, max_memory: args.run.max_memory() };
    let (device, why_not) = args.run.open_device()?;
    if let Some(why_not) = why_not {
        display.warn(&why_not);
    }
    let extracted = on_device!(&device, |backend| pollster::block_on(pipeline::extract(
        backend,
        (&recipe, &family, &plan),
        &request,
        output,
        &mut display,
    )));
    display.clear();
    let report = extracted.map_err(|e| Failure::of_merge(e, Path::new(&args.model)))?;
    if args.run.json {
        output::print(&serde_json::to_string_pretty(&report)?);
    } else if !args.run.quiet {
        output::print(&report.table(terminal::width()));
        let seconds = report.seconds.unwrap_or_default();
        output::print(&format!("{} written in {seconds:.1} s on {}", args.out.display(), report.device));
    }
    Ok(())
}

/// The model as the one expert of an ESM merge, whose plan says which weights are the linear ones of blocks.
fn recipe(args: &args::Extract) -> Result<String, Failure> {
    let quoted = |text: &str| serde_json::to_string(text).map_err(Failure::from);
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let calibration = args.calibration.as_deref().map_or_else(|| Ok("none".to_owned()), path)?;
    let mut text = format!(
        "merge_method: esm\nbase_model: {}\nmodels:\n  - {{model: {}, calibration: {calibration}}}\nparameters:\n  alpha: 1\n  \
         fuse_qkv: false\n",
        path(&args.base)?,
        quoted(&args.model)?
    );
    if !args.layers.is_empty() {
        text += &format!("  layers: {}\n", serde_json::to_string(&args.layers)?);
    }
    text += &format!("accuracy: {}\nseed: {}\n", args.accuracy, args.seed);
    Ok(text)
}
