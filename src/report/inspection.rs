//! What experts are like before they are merged, as `esmerge inspect RECIPE` says it.

use super::chart::{Chart, Series, text};
use super::page::{self, Column as Cell};
#[cfg(feature = "cli")]
use super::{Column, Grid, short_names};
#[cfg(feature = "cli")]
use indexmap::IndexMap;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Layers and experts, looked at.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Inspection {
    /// The program.
    pub esmerge: String,
    /// The base.
    pub base_model: String,
    /// The experts, in the order of the recipe: rows and columns of `overlap`.
    pub experts: Vec<String>,
    /// What computed it.
    pub device: String,
    /// Accuracy against time.
    pub accuracy: String,
    /// Seed of random numbers.
    pub seed: u64,
    /// Layers that a merge would decompose.
    pub layers: Vec<InspectedLayer>,
    /// What went wrong on the device.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// One layer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct InspectedLayer {
    /// Its name.
    pub name: String,
    /// The name with `*` for the block.
    #[serde(skip)]
    pub kind: String,
    /// Its outputs.
    pub d_out: usize,
    /// Its inputs.
    pub d_in: usize,
    /// Directions that each expert would get.
    pub rank: usize,
    /// Whether its inputs are known; else energies are those of the weights.
    pub calibrated: bool,
    /// `||W_0||_F`
    pub base_norm: f64,
    /// `||dW_t||_F` by expert.
    pub norm: BTreeMap<String, f64>,
    /// Numbers of directions for `esd` and `svd`.
    pub ranks: Vec<usize>,
    /// The share of the output shift's energy that so many directions of ESD keep, by expert.
    pub esd: BTreeMap<String, Vec<f64>>,
    /// The same of as many left singular vectors of the weights.
    pub svd: BTreeMap<String, Vec<f64>>,
    /// Eigenvalues of the output shift's covariance over the largest, by expert.
    pub spectrum: BTreeMap<String, Vec<f64>>,
    /// `||U_i U_j^T||_F^2 / min(k_i, k_j)` of experts i and j: 1 where one subspace lies in the other, 0 where they are orthogonal.
    pub overlap: Vec<Vec<f64>>,
}

impl InspectedLayer {
    /// The mean over pairs of different experts; none for one expert.
    fn mean_overlap(&self) -> Option<f64> {
        let pairs = self.overlap.iter().enumerate().flat_map(|(i, row)| row.iter().skip(i + 1));
        mean(pairs.copied())
    }

    /// What all directions of the budget keep, the mean over experts.
    fn kept(of: &BTreeMap<String, Vec<f64>>) -> Option<f64> {
        mean(of.values().filter_map(|shares| shares.last().copied()))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0usize, 0.0), |(n, sum), value| (n + 1, sum + value));
    (count > 0).then(|| sum / count as f64)
}

impl Inspection {
    /// The overlaps of all experts, the mean over layers.
    pub fn overlap(&self) -> Vec<Vec<f64>> {
        let n = self.experts.len();
        let of =
            |i: usize, j: usize| mean(self.layers.iter().filter_map(|l| l.overlap.get(i)?.get(j).copied()));
        (0..n).map(|i| (0..n).map(|j| of(i, j).unwrap_or(0.0)).collect()).collect()
    }

    /// Pictures of all of it.
    pub fn figures(&self) -> Vec<Chart> {
        [self.energies(), self.kept(), self.norms(), self.overlaps()].into_iter().flatten().collect()
    }

    /// Energy against the number of directions, the mean over layers that have as many.
    fn energies(&self) -> Option<Chart> {
        let ranks: BTreeSet<usize> = self
            .layers
            .iter()
            .flat_map(|l| l.ranks.iter().copied())
            .filter(|r| r.is_power_of_two())
            .collect();
        let series = |name: &str, of: fn(&InspectedLayer) -> &BTreeMap<String, Vec<f64>>| {
            let at = |(place, &rank): (usize, &usize)| {
                let share = |layer: &InspectedLayer| {
                    let place = layer.ranks.iter().position(|r| *r == rank)?;
                    mean(of(layer).values().filter_map(|shares| shares.get(place).copied()))
                };
                let name = if rank == 1 { "1".to_owned() } else { rank.to_string() };
                Some((place, name, mean(self.layers.iter().filter_map(share))?))
            };
            Series { name: name.to_owned(), points: ranks.iter().enumerate().filter_map(at).collect() }
        };
        let all = vec![series("ESD", |layer| &layer.esd), series("SVD", |layer| &layer.svd)];
        (ranks.len() > 1).then(|| Chart {
            title: "Energy that so many directions keep".to_owned(),
            vertical: "share of the output shift's energy, mean over layers and experts".to_owned(),
            horizontal: "directions".to_owned(),
            series: all,
            percent: true,
            joined: false,
        })
    }

    /// What the budget keeps in every layer.
    fn kept(&self) -> Option<Chart> {
        let of = |share: fn(&InspectedLayer) -> Option<f64>| self.by_layer(share);
        let series = [
            ("ESD", of(|layer| InspectedLayer::kept(&layer.esd))),
            ("SVD", of(|layer| InspectedLayer::kept(&layer.svd))),
        ];
        self.chart(
            "Energy that a merge would keep",
            "share of the output shift's energy, mean over experts",
            series,
            true,
        )
    }

    fn norms(&self) -> Option<Chart> {
        let series = self.experts.iter().map(|expert| {
            (expert.as_str(), self.by_layer(|layer| Some(layer.norm.get(expert)? / layer.base_norm)))
        });
        self.chart(
            "How far experts are from the base",
            "norm of the difference over the base's",
            series,
            true,
        )
    }

    fn overlaps(&self) -> Option<Chart> {
        let series = [("overlap", self.by_layer(InspectedLayer::mean_overlap))];
        self.chart(
            "How far experts share their subspaces",
            "mean over pairs of experts; 0 is orthogonal",
            series,
            true,
        )
    }

    fn by_layer(&self, value: impl Fn(&InspectedLayer) -> Option<f64>) -> Vec<(usize, String, f64)> {
        let layers = self.layers.iter().enumerate();
        layers.filter_map(|(i, layer)| Some((i, layer.name.clone(), value(layer)?))).collect()
    }

    fn chart<'a>(
        &self,
        title: &str,
        vertical: &str,
        series: impl IntoIterator<Item = (&'a str, Vec<(usize, String, f64)>)>,
        percent: bool,
    ) -> Option<Chart> {
        let series = series.into_iter().map(|(name, points)| Series { name: name.to_owned(), points });
        let series: Vec<Series> = series.filter(|series| !series.points.is_empty()).collect();
        (!series.is_empty()).then(|| Chart {
            title: title.to_owned(),
            vertical: vertical.to_owned(),
            horizontal: "layers, in the order of the model".to_owned(),
            series,
            percent,
            joined: true,
        })
    }

    /// A line a kind of layer, then the overlaps.
    #[cfg(feature = "cli")]
    pub fn table(&self, width: usize) -> String {
        let mut kinds: IndexMap<&str, Vec<&InspectedLayer>> = IndexMap::new();
        self.layers.iter().for_each(|layer| kinds.entry(&layer.kind).or_default().push(layer));
        let mut grid = Grid::new([
            Column::text("layers"),
            Column::number("tensors"),
            Column::number("rank").meaning("directions that each expert would get"),
            Column::number("change").meaning("norm of the difference over the base's, mean over experts"),
            Column::number("ESD keeps").meaning("of the output shift's energy, mean over experts"),
            Column::number("SVD keeps")
                .meaning("as many singular directions of the weights keep of the same energy"),
            Column::number("overlap")
                .meaning("of the experts' subspaces, mean over pairs: 0 orthogonal, 1 the same"),
        ]);
        let names = short_names(&kinds.keys().map(|kind| (*kind).to_owned()).collect::<Vec<_>>());
        for (layers, name) in kinds.values().zip(names) {
            let percent = |of: &dyn Fn(&InspectedLayer) -> Option<f64>| {
                let value = mean(layers.iter().filter_map(|layer| of(layer)));
                value.map_or_else(String::new, |v| format!("{:.1}%", 100.0 * v))
            };
            let change =
                |layer: &InspectedLayer| mean(layer.norm.values().map(|norm| norm / layer.base_norm));
            grid.row(vec![
                name,
                layers.len().to_string(),
                layers.iter().map(|layer| layer.rank).max().unwrap_or_default().to_string(),
                percent(&change),
                percent(&|layer| InspectedLayer::kept(&layer.esd)),
                percent(&|layer| InspectedLayer::kept(&layer.svd)),
                percent(&InspectedLayer::mean_overlap),
            ]);
        }
        let mut table = grid.render(width);
        if self.experts.len() > 1 {
            let numbers = 1..=self.experts.len();
            let columns = numbers.clone().map(|number| Column::number(number.to_string()));
            let mut grid = Grid::new(std::iter::once(Column::text("overlap with")).chain(columns));
            for ((number, expert), row) in numbers.zip(&self.experts).zip(self.overlap()) {
                let shares = row.iter().map(|share| format!("{:.0}%", 100.0 * share));
                grid.row(std::iter::once(format!("{number} {expert}")).chain(shares).collect());
            }
            table = format!("{table}\n\n{}", grid.render(width));
        }
        table
    }

    /// All of it as one page that needs nothing else.
    pub fn page(&self) -> String {
        let mut html = String::new();
        self.write_page(&mut html).unwrap_or_default(); // writing to a String cannot fail
        html
    }

    fn write_page(&self, html: &mut String) -> std::fmt::Result {
        let title = format!("{} experts of {}", self.experts.len(), self.base_model);
        page::write_start(html, &title, &self.esmerge)?;
        writeln!(html, "<p>{}</p>", text(&self.experts.join(", ")))?;
        self.figures().iter().try_for_each(|chart| page::write_chart(html, chart))?;
        if self.experts.len() > 1 {
            writeln!(html, "<h2>Overlap of subspaces, mean over layers</h2>")?;
            let heads: Vec<Cell> = std::iter::once(("expert", false))
                .chain(self.experts.iter().map(|name| (name.as_str(), true)))
                .collect();
            let rows = self.experts.iter().zip(self.overlap());
            let cells = rows.map(|(name, row)| {
                std::iter::once(name.clone())
                    .chain(row.iter().map(|share| format!("{:.1} %", 100.0 * share)))
                    .collect()
            });
            page::write_table(html, &heads, cells)?;
        }
        writeln!(html, "<details><summary>Every layer</summary>")?;
        let heads = [
            ("layer", false),
            ("expert", false),
            ("rank", true),
            ("change", true),
            ("ESD keeps", true),
            ("SVD keeps", true),
        ];
        let cells = self.layers.iter().flat_map(|layer| {
            self.experts.iter().map(move |expert| {
                let percent =
                    |value: Option<f64>| value.map_or_else(String::new, |v| format!("{:.1} %", 100.0 * v));
                let last = |of: &BTreeMap<String, Vec<f64>>| {
                    percent(of.get(expert).and_then(|shares| shares.last().copied()))
                };
                let change = percent(layer.norm.get(expert).map(|norm| norm / layer.base_norm));
                vec![
                    layer.name.clone(),
                    expert.clone(),
                    layer.rank.to_string(),
                    change,
                    last(&layer.esd),
                    last(&layer.svd),
                ]
            })
        });
        page::write_table(html, &heads, cells)?;
        writeln!(html, "</details>")?;
        page::write_warnings(html, self.warnings.iter().map(String::as_str))?;
        writeln!(html, "</main></body></html>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str) -> InspectedLayer {
        let shares = |values: &[f64]| {
            BTreeMap::from([("cars".to_owned(), values.to_vec()), ("<birds>".to_owned(), values.to_vec())])
        };
        InspectedLayer {
            name: name.to_owned(),
            rank: 4,
            base_norm: 2.0,
            norm: BTreeMap::from([("cars".to_owned(), 0.5), ("<birds>".to_owned(), 1.0)]),
            ranks: vec![1, 2, 4],
            esd: shares(&[0.5, 0.75, 0.9]),
            svd: shares(&[0.25, 0.5, 0.6]),
            overlap: vec![vec![1.0, 0.125], vec![0.125, 1.0]],
            ..InspectedLayer::default()
        }
    }

    #[test]
    fn pictures_tables_and_page_have_the_same_numbers() {
        let experts = vec!["cars".to_owned(), "<birds>".to_owned()];
        let inspection =
            Inspection { experts, layers: vec![layer("l.0.q"), layer("l.1.q")], ..Inspection::default() };
        assert_eq!(inspection.overlap(), [[1.0, 0.125], [0.125, 1.0]]);
        let figures = inspection.figures();
        assert_eq!(figures.len(), 4);
        assert_eq!(figures[0].series[1].points[1], (1, "2".to_owned(), 0.5));
        assert_eq!(figures[2].series[0].points[0], (0, "l.0.q".to_owned(), 0.25));
        let page = inspection.page();
        for part in ["12.5 %", "90.0 %", "60.0 %", "&lt;birds&gt;", "50.0 %"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("<birds>"));
        assert!(Inspection::default().figures().is_empty());
    }
}
