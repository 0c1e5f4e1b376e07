//! Mixtures of experts whose files keep a matrix an expert, and whose modules keep those of all experts as one parameter.

use super::low_rank::Window;
use crate::checkpoint::{Checkpoint, MIXTURE_SPELLINGS, MIXTURES_RENAMED, MixtureSpelling};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The experts of one layer.
#[derive(Clone, Debug)]
pub(super) struct Mixture {
    /// What stands before an expert's number.
    path: String,
    experts: usize,
    spelling: usize,
    /// Rows of a gate, and of an `up`.
    rows: [usize; 2],
}

impl Mixture {
    /// What its module has as one: the parameter, and the tensors that hold it, each with its part.
    pub fn parameters(&self) -> Vec<(&'static str, Vec<(String, Window)>)> {
        let MixtureSpelling { gate, up, down } = MIXTURE_SPELLINGS[self.spelling];
        let [of_gate, of_up] = self.rows;
        let tensor = |e: usize, name: &str, rows: Option<(usize, usize)>| {
            (format!("{}.{e}.{name}.weight", self.path), Window { expert: Some((e, self.experts)), rows })
        };
        let halves = |e: usize| [tensor(e, gate, Some((0, of_gate))), tensor(e, up, Some((of_gate, of_up)))];
        vec![
            ("gate_up_proj", (0..self.experts).flat_map(halves).collect()),
            ("down_proj", (0..self.experts).map(|e| tensor(e, down, None)).collect()),
        ]
    }
}

/// The mixtures of a model that keeps its experts apart, by what their modules are called.
pub(super) fn mixtures(base: &Checkpoint) -> HashMap<String, Mixture> {
    let mut found: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for tensor in base.names() {
        let Some((path, rest)) = tensor.split_once(".experts.") else { continue };
        let Some(e) = rest.split_once('.').and_then(|(number, _)| number.parse::<usize>().ok()) else {
            continue;
        };
        found.entry(path).or_default().insert(e);
    }
    let mixture = |(holder, numbers): (&str, BTreeSet<usize>)| {
        let experts = numbers.len();
        if !numbers.into_iter().eq(0..experts) {
            return None;
        }
        let path = format!("{holder}.experts");
        let rows = |name: &str| base.get(&format!("{path}.0.{name}.weight"))?.matrix().map(|(rows, _)| rows);
        let spelled = MIXTURE_SPELLINGS.iter().enumerate();
        let (spelling, rows) = spelled
            .filter_map(|(i, spelling)| Some((i, [rows(spelling.gate)?, rows(spelling.up)?])))
            .next()?;
        let (from, to) = MIXTURES_RENAMED;
        let renamed = holder.strip_suffix(from).map(|before| format!("{before}{to}.experts"));
        let mixture = Mixture { path: path.clone(), experts, spelling, rows };
        Some([Some((path, mixture.clone())), renamed.map(|module| (module, mixture))])
    };
    found.into_iter().filter_map(mixture).flatten().flatten().collect()
}
