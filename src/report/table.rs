use super::card::{layers, percent, range, treatment};
use super::{Column, ExpertsReport, Grid, Report, wrapped};
use crate::text::cell;
use std::collections::HashSet;

/// The table at the end of a run, on lines of at most `width` columns, with what its words mean.
pub fn table(report: &Report, width: usize) -> String {
    let mut grid = Grid::new([
        Column::text("layers"),
        Column::text("treatment"),
        Column::number("tensors"),
        Column::number("alpha").meaning("the merged deltas are multiplied by it, where it is given"),
        Column::number("time"),
        Column::text("energy kept").meaning(
            "how much of what each expert changes in the outputs of these layers (for tsv_m in their weights) the directions \
             kept of it hold, from the least expert and layer to the most",
        ),
        Column::text("task scale").meaning(
            "experts are multiplied by it, so that those that changed more count more: the norm of an expert's delta over the \
             experts' mean, squared",
        ),
        Column::text("beta").meaning(
            "layers are multiplied by it: the norm of a merged delta over the mean of its kind of layer, squared",
        ),
    ]);
    let names = short_names(&report.groups.iter().map(layers).collect::<Vec<_>>());
    for (group, name) in report.groups.iter().zip(names) {
        grid.row(vec![
            name,
            treatment(group),
            group.tensors.to_string(),
            if group.scaled_by_alpha { report.alpha.to_string() } else { String::new() },
            group.seconds.map(seconds).unwrap_or_default(),
            percent(&group.energy_retention),
            range(&group.task_scale),
            range(&group.beta),
        ]);
    }
    let mut text = grid.render(width);
    let adapter = report.adapter.iter().map(|adapter| {
        let kept = percent(&adapter.energy_retention);
        format!(
            "one adapter of rank {}, which holds {kept} of what the method made of these layers",
            adapter.rank
        )
    });
    let experts = adapter.chain(report.experts.iter().map(experts_line));
    let account =
        report.account.iter().flat_map(|a| a.to_string().lines().map(str::to_owned).collect::<Vec<_>>());
    let lines: Vec<String> = experts.chain(account).map(|line| wrapped(&line, width)).collect();
    if !lines.is_empty() {
        text += &format!("\n\n{}", lines.join("\n"));
    }
    text
}

fn experts_line(experts: &ExpertsReport) -> String {
    format!(
        "experts of rank {} in {} layers: {} parameters a task ({:.2}% of the model), {} prototype values, {} flops a token, \
         energy restored {}",
        experts.rank,
        experts.layers.len(),
        experts.parameters_per_task,
        100.0 * experts.share_of_model,
        experts.routing_values,
        experts.flops_per_token,
        percent(&experts.energy_restored())
    )
}

/// `vision_model.encoder.layers.*.mlp.fc1.weight` as `layers.*.mlp.fc1`, unless two names would become the same.
pub fn short_names(names: &[String]) -> Vec<String> {
    let short: Vec<String> = names.iter().map(|name| cell(short_name(name))).collect();
    let distinct = |names: &[String]| names.iter().collect::<HashSet<_>>().len();
    if distinct(&short) == distinct(names) { short } else { names.iter().map(|name| cell(name)).collect() }
}

fn short_name(name: &str) -> &str {
    let Some((before, _)) = name.split_once(".*.") else { return name };
    let start = before.rfind('.').map_or(0, |dot| dot + 1);
    name[start..].strip_suffix(".weight").unwrap_or(&name[start..])
}

fn seconds(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.2} s") } else { format!("{seconds:.0} s") }
}
