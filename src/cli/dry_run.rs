use super::args;
use super::failure::Failure;
use super::output;
use crate::plan::{AlphaSearch, Experts, Family, Layer, Plan, Role, SearchSamples};
use crate::recipe::Proxies;
use crate::report::{align_right, new_table, short_names};
use indexmap::IndexMap;

/// `esmerge merge --dry-run`
pub(super) fn show(plan: &Plan, family: &Family, args: &args::Merge) -> Result<(), Failure> {
    if args.run.json {
        output::print(&serde_json::to_string_pretty(plan)?);
    } else if args.run.verbose {
        all_layers(plan).for_each(|layer| output::print(&line(plan, layer)));
    } else if !args.run.quiet {
        output::print(&table(plan, family));
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
    matches!(layer.role, Role::Esm | Role::TsvM | Role::Experts)
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

fn table(plan: &Plan, family: &Family) -> String {
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
    let mut table =
        new_table(["layers", "treatment", "tensors", "shape", "values", "alpha", "GFLOP", "memory"]);
    let alpha = plan.search.as_ref().map_or(plan.alpha.to_string(), |_| "search".to_owned());
    let names = short_names(&rows.keys().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    for (((_, role), row), name) in rows.into_iter().zip(names) {
        table.add_row(vec![
            name,
            role.to_owned(),
            row.tensors.to_string(),
            row.shape,
            row.values.to_string(),
            if row.alpha { alpha.clone() } else { String::new() },
            format!("{:.2}", row.flops / 1e9),
            format!("{:.1} MiB", row.bytes as f64 / f64::from(1 << 20)),
        ]);
    }
    align_right(&mut table, &[2, 4, 5, 6, 7]);
    let costs = |experts: &Experts| {
        format!(
            "\nevery expert: {} parameters, {} flops a token; {} values of prototypes in all",
            experts.parameters, experts.flops_per_token, experts.routing
        )
    };
    let costs = plan.experts.as_ref().map(costs).unwrap_or_default();
    let search = plan.search.as_ref().map(search).unwrap_or_default();
    format!(
        "{table}\n{} experts; GFLOP and memory are estimates, memory that of one layer (small ones are merged several at a \
         time){costs}{search}\n{}",
        family.experts.len(),
        plan.account
    )
}

/// How alpha will be found.
fn search(search: &AlphaSearch) -> String {
    let on = search.on.iter().map(|on| match on {
        SearchSamples::Labelled { task, split } => format!("\n  {split} of {}", task.display()),
        SearchSamples::Proxies(Proxies { data, samples, .. }) => {
            format!("\n  {samples} samples of {}", data.display())
        }
    });
    format!("\nalpha is searched by {} on{}", search.by.name(), on.collect::<String>())
}
