use super::args;
use super::failure::Failure;
use super::{output, terminal};
use crate::pipeline;
use crate::plan::{AlphaSearch, Experts, Family, Layer, Plan, Role, SearchSamples};
use crate::recipe::{Proxies, Recipe};
use crate::report::{Column, Grid, Planned, short_names, wrapped};
use indexmap::IndexMap;

/// `esmerge merge --dry-run`
pub(super) fn show(recipe: &Recipe, plan: &Plan, family: &Family, args: &args::Merge) -> Result<(), Failure> {
    let bytes = pipeline::delta_bytes(plan, args.keep_delta.is_some());
    let deltas = (bytes, pipeline::room_for_deltas(args.run.max_memory()));
    if args.run.json {
        output::print(&serde_json::to_string_pretty(&Planned::new(recipe, plan, deltas))?);
    } else if args.run.verbose {
        all_layers(plan).for_each(|layer| output::print(&line(plan, layer)));
    } else if !args.run.quiet {
        output::print(&table(plan, family, deltas, terminal::width()));
    }
    Ok(())
}

/// What is merged, then what gets experts.
fn all_layers(plan: &Plan) -> impl Iterator<Item = &Layer> {
    let routed = plan.experts.iter().flat_map(|experts| &experts.layers);
    plan.layers.iter().chain(routed.map(|routed| &routed.layer))
}

/// One layer.
fn line(plan: &Plan, layer: &Layer) -> String {
    let mut text = format!("{}: {}", layer.name, plan.treatment(layer));
    if is_decomposed(layer) {
        text += &format!(", {} x {}, rank {}", layer.d_out, layer.d_in, layer.rank);
    }
    if let Some(reason) = layer.reason {
        text += &format!(" ({reason})");
    }
    text
}

fn is_decomposed(layer: &Layer) -> bool {
    matches!(layer.role, Role::Esm | Role::TsvM | Role::Spectral | Role::Experts)
}

/// Layers that are treated alike.
#[derive(Default)]
struct Row {
    shape: String,
    tensors: usize,
    values: usize,
    flops: f64,
    bytes: u64,
    alpha: bool,
}

fn table(plan: &Plan, family: &Family, deltas: (u64, u64), width: usize) -> String {
    let mut rows: IndexMap<(String, &str), Row> = IndexMap::new();
    for layer in all_layers(plan) {
        let name = match is_decomposed(layer) {
            true => layer.kind(),
            false => layer.reason.unwrap_or("all tensors").to_owned(),
        };
        let row = rows.entry((name, plan.treatment(layer))).or_default();
        if is_decomposed(layer) {
            row.shape = format!("{} x {}, rank {}", layer.d_out, layer.d_in, layer.rank);
        }
        row.tensors += layer.parts.len();
        row.values += layer.elements();
        row.flops += layer.cost.flops;
        row.bytes = row.bytes.max(layer.cost.bytes);
        row.alpha = layer.scaled;
    }
    let mut grid = Grid::new([
        Column::text("layers"),
        Column::text("treatment"),
        Column::number("tensors"),
        Column::number("values"),
        Column::number("alpha").meaning("the merged deltas will be multiplied by it, where it is given"),
        Column::text("shape"),
        Column::number("GFLOP").meaning("an estimate of the arithmetic"),
        Column::number("memory")
            .meaning("an estimate, of one layer at its peak; small layers are merged several at a time"),
    ]);
    let alpha = plan.search.as_ref().map_or(plan.alpha.to_string(), |_| "search".to_owned());
    let names = short_names(&rows.keys().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    for (((_, role), row), name) in rows.into_iter().zip(names) {
        grid.row(vec![
            name,
            role.to_owned(),
            row.tensors.to_string(),
            row.values.to_string(),
            if row.alpha { alpha.clone() } else { String::new() },
            row.shape,
            format!("{:.2}", row.flops / 1e9),
            format!("{:.1} MiB", row.bytes as f64 / f64::from(1 << 20)),
        ]);
    }
    let mut lines = vec![format!("{} experts", family.experts.len())];
    lines.extend(plan.experts.as_ref().map(costs));
    lines.extend(plan.search.iter().flat_map(search));
    lines.extend(between(deltas));
    lines.extend(plan.account.to_string().lines().map(str::to_owned));
    let lines: Vec<String> = lines.iter().map(|line| wrapped(line, width)).collect();
    format!("{}\n\n{}", grid.render(width), lines.join("\n"))
}

/// Where merged deltas wait until all are known.
fn between((bytes, room): (u64, u64)) -> Option<String> {
    let where_to = match bytes {
        0 => return None,
        _ if bytes <= room => "stay in memory".to_owned(),
        _ => format!("go through a file, but for {}", megabytes(room)),
    };
    Some(format!("{} of merged deltas {where_to}", megabytes(bytes)))
}

pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn costs(experts: &Experts) -> String {
    format!(
        "every expert: {} parameters, {} flops a token; {} values of prototypes in all",
        experts.parameters, experts.flops_per_token, experts.routing
    )
}

/// How alpha will be found.
fn search(search: &AlphaSearch) -> Vec<String> {
    let on = search.on.iter().map(|on| match on {
        SearchSamples::Labelled { task, split } => format!("  {split} of {}", task.display()),
        SearchSamples::Proxies(Proxies { data, samples, .. }) => {
            format!("  {samples} samples of {}", data.display())
        }
    });
    std::iter::once(format!("alpha is searched by {} on", search.by.name())).chain(on).collect()
}
