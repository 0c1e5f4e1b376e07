//! Which task's samples went where.

use super::{Cost, Decisions};
use indexmap::IndexMap;
use serde::Serialize;

/// Samples by their task and the expert that they took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Confusion {
    /// Task -> samples by expert, in the order of the experts.
    pub samples: IndexMap<String, Vec<usize>>,
}

impl Confusion {
    fn add(&mut self, task: &str, experts: usize, taken: impl Iterator<Item = usize>) {
        let counts = self.samples.entry(task.to_owned()).or_insert_with(|| vec![0; experts]);
        taken.for_each(|expert| counts[expert] += 1);
    }

    /// The share of a task's samples that took the task's own expert; none where it has no expert.
    pub fn accuracy(&self, task: &str, experts: &[String]) -> Option<f64> {
        let own = experts.iter().position(|expert| expert == task)?;
        let counts = self.samples.get(task)?;
        Some(counts[own] as f64 / counts.iter().sum::<usize>().max(1) as f64)
    }
}

/// The routing of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `prototype` or `oracle`.
    pub routing: String,
    /// The experts, in the order of all counts below.
    pub experts: Vec<String>,
    /// What they cost.
    #[serde(flatten)]
    pub cost: Cost,
    /// By routed layer, named by the weight that its prototypes are stored under.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub layers: IndexMap<String, Confusion>,
    /// By the vote of all layers.
    pub vote: Confusion,
}

impl Report {
    /// A report without samples.
    pub fn new(routing: &str, experts: &[String], cost: Cost) -> Report {
        Report {
            routing: routing.to_owned(),
            experts: experts.to_vec(),
            cost,
            layers: IndexMap::new(),
            vote: Confusion::default(),
        }
    }

    /// Counts the samples of a task.
    pub fn add(&mut self, task: &str, decisions: &Decisions) {
        let experts = self.experts.len();
        for layer in decisions.layers() {
            let confusion = self.layers.entry(layer.to_owned()).or_default();
            confusion.add(task, experts, decisions.routes(layer).into_iter());
        }
        if decisions.samples() > 0 {
            self.vote.add(task, experts, decisions.votes().into_iter().map(|vote| vote.expert));
        }
    }
}

/// The names of layers without the parts that all have in common: `0.mlp.fc1` of `encoder.layers.0.mlp.fc1.weight`.
#[cfg(feature = "cli")]
pub fn short_layers<'a>(layers: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let layers: Vec<&str> = layers.map(|name| name.strip_suffix(".weight").unwrap_or(name)).collect();
    let Some((first, others)) = layers.split_first() else { return layers };
    let common = |name: &str| first.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
    let common = others.iter().map(|name| common(name)).min().unwrap_or(0);
    let start = first.as_bytes()[..common].iter().rposition(|&b| b == b'.').map_or(0, |dot| dot + 1);
    layers.into_iter().map(|name| &name[start..]).collect()
}

/// Costs; right choices in percent, by layer and task; and which experts the votes went to. Lines have at most `width` columns.
#[cfg(feature = "cli")]
pub fn tables(report: &Report, width: usize) -> String {
    let cost = &report.cost;
    let costs = format!(
        "{} routing: an expert has {} parameters and adds {} flops to a token; {} prototype values, {} flops a sample",
        report.routing,
        cost.parameters_per_task,
        cost.flops_per_token,
        cost.routing_values,
        cost.flops_per_sample
    );
    let costs = crate::report::wrapped(&costs, width);
    if report.layers.is_empty() {
        return costs;
    }
    let (right, votes) = (accuracy_table(report).render(width), votes_table(report).render(width));
    format!(
        "{costs}\n\nright choices (%)\n{right}\n\nsamples by task (rows) and the expert of most layers (columns)\n{votes}"
    )
}

#[cfg(feature = "cli")]
fn accuracy_table(report: &Report) -> crate::report::Grid {
    use crate::report::{Column, Grid};
    let tasks: Vec<&str> = report.vote.samples.keys().map(String::as_str).collect();
    let percent = |a: Option<f64>| a.map(|a| format!("{:.1}", 100.0 * a)).unwrap_or_default();
    let heads = tasks.iter().map(|&task| Column::number(task));
    let mut grid = Grid::new(std::iter::once(Column::text("layer")).chain(heads));
    let names = short_layers(report.layers.keys().map(String::as_str));
    let rows = names.into_iter().zip(report.layers.values());
    for (name, confusion) in rows.chain([("vote", &report.vote)]) {
        let row = tasks.iter().map(|task| percent(confusion.accuracy(task, &report.experts)));
        grid.row(std::iter::once(name.to_owned()).chain(row).collect());
    }
    grid
}

#[cfg(feature = "cli")]
fn votes_table(report: &Report) -> crate::report::Grid {
    use crate::report::{Column, Grid};
    let heads = report.experts.iter().map(Column::number);
    let mut grid = Grid::new(std::iter::once(Column::text("task")).chain(heads));
    for (task, counts) in &report.vote.samples {
        grid.row(std::iter::once(task.clone()).chain(counts.iter().map(usize::to_string)).collect());
    }
    grid
}
