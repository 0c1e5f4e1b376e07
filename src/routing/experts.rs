//! The experts in the folder of a model that ESM++ made.

use crate::checkpoint::{ADAPTERS, Checkpoint, LoraFile, ModuleNames, RouterFile};
use crate::data::{Error, read_json};
use crate::host::PathExt;
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Adapters and router, checked against each other and against the model.
#[derive(Clone, Debug)]
pub struct Experts {
    path: PathBuf,
    router: RouterFile,
    /// By task.
    adapters: Vec<LoraFile>,
    shapes: HashMap<String, Shape>,
    /// Weight -> the first of its stack, whose `A` it shares.
    stacks: HashMap<String, String>,
    names: ModuleNames,
}

/// The shape of a weight's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub rank: usize,
    pub d_out: usize,
    pub d_in: usize,
}

/// What experts cost whoever serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Parameters of one task's experts; weights that were decomposed as one share their `A`.
    pub parameters_per_task: usize,
    /// Values of all prototypes.
    pub routing_values: usize,
    /// Floating-point operations that the chosen expert adds to a token.
    pub flops_per_token: usize,
    /// Floating-point operations of the cosines, for a sample of any length.
    pub flops_per_sample: usize,
}

impl Experts {
    /// Opens the experts beside a model.
    pub fn open(model: &Path) -> Result<Experts, Error> {
        let router = RouterFile::open(model)?;
        let folder = |task: &String| LoraFile::open(&model.join(ADAPTERS).join(task));
        let adapters = router.meta().tasks.iter().map(folder).collect::<Result<Vec<_>, _>>()?;
        let firsts = router.meta().stacks.iter().flat_map(|stack| {
            let first = stack.first().cloned().unwrap_or_default();
            stack.iter().map(move |weight| (weight.clone(), first.clone()))
        });
        let weights: Checkpoint = Checkpoint::open(model)?;
        let config = match Some(model.join("config.json")).filter(|path| path.leads_to_file()) {
            Some(path) => read_json(&path)?,
            None => Value::Null,
        };
        let mut experts = Experts {
            path: model.to_path_buf(),
            names: ModuleNames::new(&config, weights.names()),
            stacks: firsts.collect(),
            shapes: HashMap::new(),
            router,
            adapters,
        };
        for weight in experts.weights().map(str::to_owned).collect::<Vec<_>>() {
            let shape = experts.check(&weight, &weights)?;
            experts.shapes.insert(weight, shape);
        }
        Ok(experts)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tasks, in the order by which experts are numbered.
    pub fn tasks(&self) -> &[String] {
        &self.router.meta().tasks
    }

    /// All weights with experts.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.router.weights().chain(self.router.meta().aliases.keys().map(String::as_str))
    }

    /// The weight whose prototypes route `weight`; none if it has no experts.
    pub fn prototypes_of<'a>(&'a self, weight: &'a str) -> Option<&'a str> {
        self.router.prototypes_of(weight)
    }

    /// The weight whose `A` is also that of `weight`: itself, or the first of its stack.
    pub(super) fn first_of_stack<'a>(&'a self, weight: &'a str) -> &'a str {
        self.stacks.get(weight).map_or(weight, String::as_str)
    }

    /// The shape of a weight's experts.
    pub(super) fn shape(&self, weight: &str) -> Option<Shape> {
        self.shapes.get(weight).copied()
    }

    /// Prototypes stored under a weight, `T x d_in`.
    pub(super) fn prototypes(&self, weight: &str) -> Result<Vec<f32>, Error> {
        Ok(self.router.read(weight)?)
    }

    /// `A_t` of all tasks, `T x r x d_in`.
    pub(super) fn a(&self, weight: &str) -> Result<Vec<f32>, Error> {
        let read = |adapter: &LoraFile, weight: &str| adapter.read(&adapter.keys(weight, &self.names)[0]);
        let sharing = self.stacks.iter().filter(|(other, first)| *first == weight && *other != weight);
        let sharing: Vec<&String> = sharing.map(|(other, _)| other).collect();
        let mut values = Vec::new();
        for adapter in &self.adapters {
            let own = read(adapter, weight)?;
            for other in &sharing {
                if read(adapter, other)? != own {
                    let reason = format!(
                        "`{weight}` and `{other}` have different factors A, but the router says they share one; merge again"
                    );
                    return Err(Error::bad(adapter.path(), reason));
                }
            }
            values.extend(own);
        }
        Ok(values)
    }

    /// `B_t^T` of all tasks, `T x r x d_out`.
    pub(super) fn b(&self, weight: &str) -> Result<Vec<f32>, Error> {
        let rank = self.shape(weight).map_or(1, |s| s.rank);
        let transposed = |b: Vec<f32>| -> Vec<f32> {
            let d_out = b.len() / rank;
            (0..b.len()).map(|k| b[(k % d_out) * rank + k / d_out]).collect()
        };
        let mut values = Vec::new();
        for adapter in &self.adapters {
            let [_, key] = adapter.keys(weight, &self.names);
            values.extend(transposed(adapter.read(&key)?));
        }
        Ok(values)
    }

    /// What they cost.
    pub fn cost(&self) -> Cost {
        let a = |weight: &str, s: &Shape| if self.first_of_stack(weight) == weight { s.d_in } else { 0 };
        let parameters = self.shapes.iter().map(|(w, s)| s.rank * (s.d_out + a(w, s))).sum();
        let prototypes = self.router.weights().filter_map(|w| self.shape(w));
        let routing_values = prototypes.map(|s| self.tasks().len() * s.d_in).sum();
        Cost {
            parameters_per_task: parameters,
            routing_values,
            flops_per_token: 2 * parameters,
            flops_per_sample: 2 * routing_values,
        }
    }

    /// Every task's factors of a weight must have one shape, and fit the weight and its prototypes.
    fn check(&self, weight: &str, model: &Checkpoint) -> Result<Shape, Error> {
        let Some((d_out, d_in)) = model.get(weight).and_then(|meta| meta.matrix()) else {
            let reason =
                format!("it routes `{weight}`, which the model does not have as a matrix; merge again");
            return Err(Error::bad(self.router.path(), reason));
        };
        let mut rank = None;
        for adapter in &self.adapters {
            let found = adapter.keys(weight, &self.names).map(|key| adapter.shape(&key));
            match found {
                [Some((r, columns)), Some((rows, r_of_b))]
                    if r == r_of_b
                        && r > 0
                        && (rows, columns) == (d_out, d_in)
                        && *rank.get_or_insert(r) == r => {}
                _ => {
                    let reason = format!(
                        "its factors of `{weight}` are missing or do not fit the {d_out} x {d_in} weight and the other \
                         tasks' factors; merge again"
                    );
                    return Err(Error::bad(adapter.path(), reason));
                }
            }
        }
        let key = self.prototypes_of(weight).unwrap_or(weight);
        if self.router.inputs(key) != Some(d_in) {
            let reason = format!("the prototypes of `{key}` do not fit `{weight}`; merge again");
            return Err(Error::bad(self.router.path(), reason));
        }
        Ok(Shape { rank: rank.unwrap_or(0), d_out, d_in })
    }
}
