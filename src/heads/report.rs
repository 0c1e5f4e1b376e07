//! What became of the heads.

use super::Refitted;
use crate::method::head_refit::Heads;
use serde::Serialize;

/// Of all experts.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The merged model.
    pub model: String,
    /// What ran the models.
    pub device: String,
    /// `refit`, `auto` or `keep`.
    pub mode: &'static str,
    /// The penalty, in units of the Gram matrix's trace.
    pub lam: f64,
    /// `own` or `all`: whose proxies a head was refitted on.
    pub proxies: &'static str,
    /// Head by head.
    pub heads: Vec<HeadReport>,
}

impl Report {
    /// Of a run on a device.
    pub fn new(model: String, device: String, asked: &Heads, heads: Vec<HeadReport>) -> Report {
        let proxies = if asked.own_only { "own" } else { "all" };
        Report { model, device, mode: asked.mode.name(), lam: asked.lam, proxies, heads }
    }
}

/// Of one head.
#[derive(Clone, Debug, Serialize)]
pub struct HeadReport {
    /// The expert.
    pub name: String,
    /// How many classes it tells apart.
    pub classes: usize,
    /// Samples of its task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxies: Option<usize>,
    /// The share of them on which the merged model answers with the expert's head as the expert does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<f64>,
    /// The same with the refitted head, each sample by the head that is refitted without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<f64>,
    /// Whether the refitted head was taken.
    pub refitted: bool,
}

/// What was found of each head.
pub fn reports(heads: &[Refitted]) -> Vec<HeadReport> {
    heads.iter().map(|head| head.report.clone()).collect()
}

/// A line a head, on lines of at most `width` columns.
#[cfg(feature = "cli")]
pub fn table(heads: &[HeadReport], width: usize) -> String {
    use crate::report::{Column, Grid};
    let percent = |v: Option<f64>| v.map(|v| format!("{:.1}", 100.0 * v)).unwrap_or_default();
    let mut grid = Grid::new([
        Column::text("head"),
        Column::number("classes"),
        Column::number("proxies"),
        Column::number("before").meaning(
            "the share of its proxies, in percent, on which the merged model answers as the expert does, with the expert's head",
        ),
        Column::number("after").meaning("the same with the refitted head, fitted without the sample that it answers"),
        Column::text("taken"),
    ]);
    for head in heads {
        grid.row(vec![
            head.name.clone(),
            head.classes.to_string(),
            head.proxies.map(|n| n.to_string()).unwrap_or_default(),
            percent(head.before),
            percent(head.after),
            if head.refitted { "refitted" } else { "the expert's" }.to_owned(),
        ]);
    }
    grid.render(width)
}
