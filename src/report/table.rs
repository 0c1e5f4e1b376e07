use super::card::{layers, percent, range, treatment};
use super::{ExpertsReport, Report};
use crate::text::cell;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// The table at the end of a run.
pub fn table(report: &Report) -> String {
    let mut table =
        new_table(["layers", "treatment", "tensors", "energy kept", "task scale", "beta", "alpha", "time"]);
    let names = short_names(&report.groups.iter().map(layers).collect::<Vec<_>>());
    for (group, name) in report.groups.iter().zip(names) {
        table.add_row(vec![
            name,
            treatment(group),
            group.tensors.to_string(),
            percent(&group.energy_retention),
            range(&group.task_scale),
            range(&group.beta),
            if group.scaled_by_alpha { report.alpha.to_string() } else { String::new() },
            group.seconds.map(seconds).unwrap_or_default(),
        ]);
    }
    align_right(&mut table, &[2, 7]);
    let mut text = table.to_string();
    text.extend(report.experts.iter().map(|experts| format!("\n{}", experts_line(experts))));
    text.extend(report.account.iter().map(|account| format!("\n{account}")));
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

/// An empty table in the style of all tables here.
pub fn new_table<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.into_iter().map(Into::into).collect::<Vec<String>>());
    table
}

/// Numbers line up on the right.
pub fn align_right(table: &mut Table, columns: &[usize]) {
    for &column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// `vision_model.encoder.layers.*.mlp.fc1.weight` as `layers.*.mlp.fc1`, unless two names would become the same.
pub fn short_names(names: &[String]) -> Vec<String> {
    let short: Vec<String> = names.iter().map(|name| cell(short_name(name))).collect();
    let mut distinct = short.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() == short.len() { short } else { names.iter().map(|name| cell(name)).collect() }
}

fn short_name(name: &str) -> &str {
    let Some((before, _)) = name.split_once(".*.") else { return name };
    let start = before.rfind('.').map_or(0, |dot| dot + 1);
    name[start..].strip_suffix(".weight").unwrap_or(&name[start..])
}

fn seconds(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.2} s") } else { format!("{seconds:.0} s") }
}
