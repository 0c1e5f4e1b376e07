//! Which tensor of the base a module's factors belong to, and how they lie in it.

use super::low_rank::{Layout, LowRank, Window};
use super::mixtures::{Mixture, mixtures};
use super::{Adapter, Named, bad, flattened};
use crate::checkpoint::{Checkpoint, Error, ModuleNames, Prefix, TensorMeta, module_of, stores_transposed};
use indexmap::IndexMap;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// How a module multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// `y = W x`
    Linear,
    /// A table, `tokens x d`, of which factors make the transpose.
    Embedding,
}

/// The factors of a module.
#[derive(Clone, Debug)]
pub(super) struct Factors {
    /// Its path in the model; `.base_layer` at its end for each parameter of the same module that is wrapped around this one.
    pub module: String,
    pub kind: Kind,
    /// Their keys.
    pub a: String,
    pub b: String,
    /// The key of their `alpha`, in formats that store it so.
    pub alpha: Option<String>,
}

/// What PEFT puts into the path of a module for each wrapper around it.
const WRAPPED: &str = ".base_layer";

/// The factor `s` of a module of some rank.
pub(super) type Scale<'a> = dyn Fn(&str, usize) -> Result<f64, Error> + 'a;

/// The tensors of a base, by what adapters call them.
pub(super) struct Targets<'a> {
    base: &'a Checkpoint,
    /// Module -> the tensor that is its weight.
    weights: HashMap<String, &'a str>,
    /// Experts that the base keeps apart and modules have as one, by module.
    mixtures: HashMap<String, Mixture>,
    /// Modules that the base keeps apart and adapters have as one: the weights, one below the other.
    stacks: HashMap<String, Vec<String>>,
    /// Names that need no prefix: modules, and tensors.
    known: HashSet<String>,
    /// Whether square weights are stored as `d_in x d_out`.
    transposed: bool,
}

impl<'a> Targets<'a> {
    /// By the base's names and its `config.json`. `fan_in_fan_out` decides for square weights where there is none.
    pub fn new(base: &'a Checkpoint, config: &Value, fan_in_fan_out: bool) -> Targets<'a> {
        let names = ModuleNames::new(config, base.names());
        let mut weights = HashMap::new();
        for tensor in base.names() {
            if let Some(module) = names.module(tensor) {
                weights.insert(module, tensor);
            }
        }
        for tensor in base.names() {
            if let Some(module) = module_of(tensor) {
                weights.insert(module.to_owned(), tensor);
            }
        }
        let parents = base.names().filter_map(|tensor| Some(tensor.rsplit_once('.')?.0.to_owned()));
        let mixtures = mixtures(base);
        let modules = weights.keys().chain(mixtures.keys()).cloned();
        let known = modules.chain(parents).chain(base.names().map(str::to_owned)).collect();
        let model_type = config.get("model_type").and_then(Value::as_str);
        let transposed = stores_transposed(model_type, base) || (config.is_null() && fan_in_fan_out);
        Targets { base, weights, mixtures, stacks: HashMap::new(), known, transposed }
    }

    /// Takes a module for several of the base, whose weights one below the other are its weight.
    pub fn stack(&mut self, module: &str, parts: &[String]) {
        let weights = parts.iter().filter_map(|part| Some((*self.weights.get(part)?).to_owned())).collect();
        self.stacks.insert(module.to_owned(), weights);
        self.known.insert(module.to_owned());
    }

    /// The adapter with these factors and whole tensors (name, key).
    pub fn adapter(
        &self,
        path: &Path,
        file: Checkpoint,
        factors: &[Factors],
        saved: &[(String, String)],
        parameters: &[String],
        scale: &Scale,
    ) -> Result<Adapter, Error> {
        let names = factors
            .iter()
            .map(|f| without_wrappers(&f.module))
            .chain(saved.iter().map(|(name, _)| name.clone()));
        let prefix = self.prefix(names.collect());
        let finder = Finder { targets: self, file: &file, prefix: prefix.as_ref(), parameters, scale };
        let mut low_rank: IndexMap<String, Vec<LowRank>> = IndexMap::new();
        let mut of_modules: IndexMap<String, Vec<&Factors>> = IndexMap::new();
        for one in factors {
            of_modules.entry(without_wrappers(&one.module)).or_default().push(one);
        }
        for (module, own) in &of_modules {
            for (tensor, found) in finder.place(module, own)? {
                low_rank.entry(tensor).or_default().push(found);
            }
        }
        let (placed, left) = finder.saved(saved)?;
        if low_rank.is_empty() && placed.is_empty() {
            return Err(bad(path, "it holds nothing that changes the base"));
        }
        let pairs = placed.iter().map(|(name, key)| (name.as_str(), key.as_str()));
        let saved = file.view(pairs);
        let base = Named::default();
        Ok(Adapter {
            path: path.to_path_buf(),
            low_rank,
            saved,
            placed,
            left,
            elsewhere: Vec::new(),
            prefix,
            base,
            file,
        })
    }

    /// Whether the base has any of some modules, behind a prefix or without one.
    pub fn has_any(&self, factors: &[Factors]) -> bool {
        let names = factors.iter().map(|f| without_wrappers(&f.module)).collect::<HashSet<_>>();
        names.iter().any(|name| self.known.contains(name)) || self.prefix(names).is_some()
    }

    /// The prefix by which most of an adapter's names that the base lacks differ from its names.
    fn prefix(&self, names: HashSet<String>) -> Option<Prefix> {
        let unknown: HashSet<String> =
            names.iter().filter(|name| !self.known.contains(*name)).cloned().collect();
        if unknown.is_empty() {
            return None;
        }
        let free = self.known.iter().filter(|name| !names.contains(*name)).cloned().collect();
        Prefix::most_voted(&free, &unknown).map(|(prefix, _)| prefix)
    }
}

/// A module's path without what wrappers of its parameters put there.
fn without_wrappers(module: &str) -> String {
    module.replace(WRAPPED, "")
}

/// Whole tensors by the base's names, and those that the base has no place for: the name, and the key.
type Saved = (Vec<(String, String)>, Vec<(String, String)>);

/// Finds the tensors of one adapter.
struct Finder<'a> {
    targets: &'a Targets<'a>,
    file: &'a Checkpoint,
    prefix: Option<&'a Prefix>,
    /// `target_parameters`
    parameters: &'a [String],
    scale: &'a Scale<'a>,
}

impl Finder<'_> {
    /// The base's name of something, if it has that.
    fn known(&self, name: &str) -> Option<String> {
        let known = &self.targets.known;
        if known.contains(name) {
            return Some(name.to_owned());
        }
        self.prefix.and_then(|prefix| prefix.in_base(name)).filter(|name| known.contains(name))
    }

    /// The tensors that the factors of a module are added to.
    fn place(&self, module: &str, factors: &[&Factors]) -> Result<Vec<(String, LowRank)>, Error> {
        let Some(name) = self.known(module) else { return Err(self.no_module(module)) };
        let parameters = self.parameters_of(&name);
        if !parameters.is_empty() {
            return self.place_parameters(module, &name, &parameters, factors);
        }
        if let (Some(tensors), [one]) = (self.targets.stacks.get(&name), factors) {
            return self.place_stack(module, tensors, one);
        }
        match (self.targets.weights.get(&name), factors) {
            (Some(&tensor), [one]) => {
                let found = self.low_rank(module, (tensor, Window::default()), one)?;
                Ok(vec![(tensor.to_owned(), found)])
            }
            (Some(_), _) => {
                Err(bad(self.file.path(), format!("it has factors of `{module}` twice; save it again")))
            }
            (None, _) => Err(self.no_module(module)),
        }
    }

    /// Each of the tensors holds its rows of the product, which together are all there are.
    fn place_stack(
        &self,
        module: &str,
        tensors: &[String],
        factors: &Factors,
    ) -> Result<Vec<(String, LowRank)>, Error> {
        let rows = |tensor: &String| self.targets.base.get(tensor).map_or(0, |meta| flattened(meta).0);
        let height = self.file.get(&factors.b).map_or(0, |meta| flattened(meta).0);
        let all: usize = tensors.iter().map(rows).sum();
        if height != all {
            return Err(bad(
                self.file.path(),
                format!(
                    "its factors of `{module}` make {height} rows, but {}, which are that module in the base, have {all}; is it an \
                     adapter of another model?",
                    tensors.join(", ")
                ),
            ));
        }
        let mut first = 0;
        let part = |tensor: &String| {
            let window = Window { rows: Some((first, rows(tensor))), ..Window::default() };
            first += rows(tensor);
            Ok((tensor.clone(), self.low_rank(module, (tensor, window), factors)?))
        };
        tensors.iter().map(part).collect()
    }

    fn no_module(&self, module: &str) -> Error {
        bad(
            self.file.path(),
            format!(
                "it changes the module `{module}`, which the base {} has no weight of; is it an adapter of another model?",
                self.targets.base.path().display()
            ),
        )
    }

    /// The targeted parameters of a module, in the order in which models register them: what they are called, and the tensors that
    /// hold them.
    fn parameters_of(&self, module: &str) -> Vec<(String, Vec<(String, Window)>)> {
        let targeted =
            |name: &str| self.parameters.iter().any(|p| name == p || name.ends_with(&format!(".{p}")));
        let of_mixture = self.targets.mixtures.get(module).into_iter().flat_map(Mixture::parameters);
        let of_mixture = of_mixture.map(|(parameter, tensors)| (format!("{module}.{parameter}"), tensors));
        let base = self.targets.base;
        let own =
            base.names().filter(|tensor| tensor.rsplit_once('.').is_some_and(|(parent, _)| parent == module));
        let mut parameters: IndexMap<&str, Vec<(String, Window)>> = IndexMap::new();
        for tensor in own {
            let slice = base.slice(tensor).map(|(whole, e, count)| (whole, Some((e, count))));
            let (parameter, expert) = slice.unwrap_or((tensor, None));
            let window = Window { expert, ..Window::default() };
            parameters.entry(parameter).or_default().push((tensor.to_owned(), window));
        }
        let own = parameters.into_iter().map(|(parameter, tensors)| (parameter.to_owned(), tensors));
        let mut found: Vec<_> = of_mixture.chain(own).filter(|(name, _)| targeted(name)).collect();
        // files sort by name; the experts of mixtures have the way in before the way out
        found.sort_by_key(|(name, _)| name.ends_with("down_proj"));
        found
    }

    /// Of several parameters of a module the first is wrapped first, so that its factors stand innermost.
    fn place_parameters(
        &self,
        module: &str,
        name: &str,
        parameters: &[(String, Vec<(String, Window)>)],
        factors: &[&Factors],
    ) -> Result<Vec<(String, LowRank)>, Error> {
        let mut factors = factors.to_vec();
        factors.sort_by_key(|one| std::cmp::Reverse(one.module.matches(WRAPPED).count()));
        if factors.len() != parameters.len() {
            return Err(bad(
                self.file.path(),
                format!(
                    "it has factors of {} parameters of `{module}`, but `target_parameters` names {} there ({}); save it again",
                    factors.len(),
                    parameters.len(),
                    parameters.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
                ),
            ));
        }
        let mut orders = vec![parameters.to_vec()];
        if let [first, second] = parameters {
            orders.push(vec![second.clone(), first.clone()]);
        }
        let mut failure = None;
        for order in orders {
            let placed = order.iter().zip(&factors).flat_map(|((parameter, tensors), one)| {
                let parameter = parameter.strip_prefix(name).unwrap_or_default();
                tensors.iter().map(move |(tensor, window)| {
                    let found = self.low_rank(&format!("{module}{parameter}"), (tensor, *window), one)?;
                    Ok((tensor.clone(), found))
                })
            });
            match placed.collect::<Result<Vec<_>, Error>>() {
                Ok(placed) => return Ok(placed),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or_else(|| self.no_module(module)))
    }

    /// A module's factors in a tensor.
    fn low_rank(
        &self,
        module: &str,
        (tensor, window): (&str, Window),
        factors: &Factors,
    ) -> Result<LowRank, Error> {
        let shapes = [&factors.a, &factors.b].map(|key| self.file.get(key));
        let ([Some(a), Some(b)], Some(meta)) = (shapes, self.targets.base.get(tensor)) else {
            return Err(self.no_module(module));
        };
        for (key, meta) in [(&factors.a, a), (&factors.b, b)] {
            if meta.float().is_none() {
                let what =
                    format!("`{key}` has type {}; only float32, float16 and bfloat16 are read", meta.dtype);
                return Err(bad(self.file.path(), what));
            }
        }
        if meta.float().is_none() {
            let what = format!(
                "it adds to `{tensor}`, which has type {} in {}; only float32, float16 and bfloat16 can be merged",
                meta.dtype,
                self.targets.base.path().display()
            );
            return Err(bad(self.file.path(), what));
        }
        let Some(shape) = self.shape(factors.kind, [a, b], meta, window) else {
            return Err(bad(
                self.file.path(),
                format!(
                    "its factors of `{module}`, {:?} and {:?}, do not make the tensor `{tensor}` of the base, which is {:?}; is it an \
                     adapter of another model?",
                    a.shape, b.shape, meta.shape
                ),
            ));
        };
        let scale = (self.scale)(module, shape.rank)?;
        let keys = |key: &String| key.clone();
        Ok(LowRank { a: keys(&factors.a), b: keys(&factors.b), alpha: factors.alpha.clone(), scale, ..shape })
    }

    /// How factors fit a tensor; none if they do not.
    fn shape(
        &self,
        kind: Kind,
        [a, b]: [&TensorMeta; 2],
        meta: &TensorMeta,
        window: Window,
    ) -> Option<LowRank> {
        let ((rows_of_a, d_in), (d_out, columns_of_b)) = (flattened(a), flattened(b));
        let is_convolution = a.shape.len() > 2;
        let (rows, columns) = flattened(meta);
        let experts = window.expert.map_or(1, |(_, of)| of);
        let holds = |height: usize| match window.rows {
            Some((first, count)) => count == rows && first + count <= height,
            None => height == rows,
        };
        let fits = rows_of_a == columns_of_b
            && rows_of_a > 0
            && d_in > 0
            && d_out > 0
            && rows_of_a.is_multiple_of(experts.max(1));
        let plain = holds(d_out) && columns == d_in && kind == Kind::Linear;
        let transposed = holds(d_in) && columns == d_out && !is_convolution;
        let layout = match (plain, transposed) {
            (true, true) if experts == 1 && self.targets.transposed => Layout::Transposed,
            (true, _) => Layout::Plain,
            (false, true) => Layout::Transposed,
            (false, false) => return None,
        };
        let rank = rows_of_a.checked_div(experts)?;
        let (a, b) = (String::new(), String::new());
        fits.then_some(LowRank {
            a,
            b,
            rank,
            d_out,
            d_in,
            scale: 1.0,
            layout,
            kind,
            experts,
            window,
            alpha: None,
        })
    }

    /// Finds the places of whole tensors.
    fn saved(&self, saved: &[(String, String)]) -> Result<Saved, Error> {
        let (mut placed, mut left) = (Vec::new(), Vec::new());
        for (name, key) in saved {
            let tensor = self.known(name).or_else(|| {
                let module = self.known(module_of(name)?)?;
                self.targets.weights.get(&module).map(|tensor| (*tensor).to_owned())
            });
            let (Some(tensor), Some(own)) = (tensor, self.file.get(key)) else {
                left.push((name.clone(), key.clone()));
                continue;
            };
            let Some(meta) = self.targets.base.get(&tensor) else {
                left.push((name.clone(), key.clone()));
                continue;
            };
            if own.shape != meta.shape {
                return Err(bad(
                    self.file.path(),
                    format!(
                        "it holds `{name}` whole, with shape {:?}, and the base has {:?}: a vocabulary that was resized (or a head of \
                         other classes) cannot be merged; use a base with the same",
                        own.shape, meta.shape
                    ),
                ));
            }
            placed.push((tensor, key.clone()));
        }
        Ok((placed, left))
    }
}
