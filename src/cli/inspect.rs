use super::args;
use super::device::on_device;
use super::failure::Failure;
use super::progress::Display;
use super::{memory, output, terminal};
use crate::checkpoint;
use crate::host::fs;
use crate::pipeline::{self, Progress};
use crate::plan::{Family, plan};
use crate::recipe::{Overrides, Recipe};
use crate::report::{self, Column, FILE, Grid};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// `esmerge inspect`
pub(super) fn run(args: &args::Inspect) -> Result<(), Failure> {
    let is_report = args.of.extension().is_some_and(|ending| ending == "json");
    match args.of.is_dir() {
        true => merged(args, &args.of.join(FILE)),
        false if is_report => merged(args, &args.of),
        false => experts(args),
    }
}

/// What experts are like before they are merged.
fn experts(args: &args::Inspect) -> Result<(), Failure> {
    if args.eval.is_some() {
        return Err(Failure::usage("--eval belongs to a merged model, and a recipe is given"));
    }
    let recipe = args.run.download().recipe(|| Recipe::open(&args.of, &Overrides::default()))?;
    let family = Family::open(&recipe)?;
    let plan = plan(&recipe, &family)?;
    let mut display = Display::new(args.run.quiet, false);
    plan.warnings.iter().for_each(|warning| display.warn(warning));
    let (device, why_not) = args.run.device.open()?;
    why_not.iter().for_each(|why_not| display.warn(why_not));
    let inspected = on_device!(&device, |backend| pollster::block_on(pipeline::inspect(
        backend,
        (&recipe, &family, &plan),
        memory::by_default(),
        &mut display,
    )));
    display.clear();
    let inspection = inspected.map_err(|e| Failure::of_merge(e, &args.of))?;
    if let Some(html) = &args.html {
        write(html, &inspection.page())?;
    }
    if args.json {
        output::print(&serde_json::to_string_pretty(&inspection)?);
    } else {
        output::print(&inspection.table(terminal::width()));
        args.html.iter().for_each(|html| output::print(&format!("{} written", html.display())));
    }
    Ok(())
}

/// What a merge made of its layers.
fn merged(args: &args::Inspect, file: &Path) -> Result<(), Failure> {
    let report = read(file, "merge_method", "a report that `esmerge merge` writes")?;
    let eval = args.eval.as_deref().map(|file| read(file, "tasks", "what `esmerge eval --json` prints"));
    let eval = eval.transpose()?;
    if let Some(html) = &args.html {
        write(html, &report::page(&report, eval.as_ref()))?;
    }
    let card = match (args.card, &eval) {
        (true, Some(eval)) => Some(write_card(file, eval)?),
        _ => None,
    };
    if args.json {
        let charts: Vec<Value> = report::figures(&report).iter().map(report::Chart::numbers).collect();
        output::print(&serde_json::to_string_pretty(&charts)?);
    } else {
        output::print(&table(&report, terminal::width()));
        card.iter().for_each(|card| output::print(&format!("{} written", card.display())));
        args.html.iter().for_each(|html| output::print(&format!("{} written", html.display())));
    }
    Ok(())
}

/// Accuracies into the card beside a report, and their picture.
fn write_card(report: &Path, eval: &Value) -> Result<PathBuf, Failure> {
    let card = report.with_file_name("README.md");
    let before = fs::read_to_string(&card).map_err(checkpoint::Error::io("read", &card))?;
    let after = report::with_accuracies(&before, eval).zip(report::accuracies(eval));
    let (after, chart) = after.ok_or_else(|| {
        let why =
            "it is not the card of a merge as esmerge writes it, or the report of --eval has no averages";
        Failure::usage(&format!("{}: {why}", card.display()))
    })?;
    write(&report.with_file_name(report::ACCURACIES), &chart.svg())?;
    write(&card, &after)?;
    Ok(card)
}

fn read(path: &Path, key: &str, what: &str) -> Result<Value, Failure> {
    let value: Value = checkpoint::settings::read(path)
        .map_err(|e| Failure::usage(&format!("{}: {e}; {what} is expected", path.display())))?;
    match value.get(key) {
        Some(_) => Ok(value),
        None => Err(Failure::usage(&format!("{}: it has no `{key}`; {what} is expected", path.display()))),
    }
}

/// Whole under its name, or not at all.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".partial");
    let draft = PathBuf::from(draft);
    let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, path));
    written.map_err(|e| {
        let _ = fs::remove_file(&draft);
        Failure::from(checkpoint::Error::io("write", path)(e))
    })
}

/// Every layer that has numbers.
fn table(report: &Value, width: usize) -> String {
    let mut grid = Grid::new([
        Column::text("layer"),
        Column::text("treatment"),
        Column::number("norm").meaning("of the merged delta, before scaling"),
        Column::number("beta").meaning("scale of the layer"),
        Column::number("energy kept").meaning("the least over experts, of what their kept directions hold"),
    ]);
    let layers = report.get("layers").and_then(Value::as_array).into_iter().flatten();
    for layer in layers.filter(|layer| layer.get("norm").is_some()) {
        let word = |key: &str| layer.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |key: &str| {
            layer.get(key).and_then(Value::as_f64).map_or_else(String::new, |v| format!("{v:.4}"))
        };
        let kept = layer.get("energy_retention").and_then(Value::as_object).into_iter().flatten();
        let least = kept.filter_map(|(_, share)| share.as_f64()).reduce(f64::min);
        let kept = least.map_or_else(String::new, |share| format!("{:.1}%", 100.0 * share));
        grid.row(vec![word("name"), word("role"), number("norm"), number("beta"), kept]);
    }
    grid.render(width)
}
