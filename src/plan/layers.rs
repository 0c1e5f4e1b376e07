//! From tensors to layers.

use super::account::account;
use super::across::Across;
use super::check::{patterns_match, tensors_fit, unverified_calibrations};
use super::cost::{Cost, Decomposed};
use super::identical::identical;
use super::names::{is_of_expert, kind_of_layer, projection};
use super::roles::{Architecture, Rules, Ruling};
use super::samples::{alpha_search, check_proxies};
use super::settings::used_otherwise;
use super::{Error, Expert, Family, Layer, Part, Places, Plan, Role};
use crate::calibration::Statistic;
use crate::checkpoint::{TensorMeta, stores_transposed};
use crate::method::table::Calibration;
use crate::method::{AlphaScope, linear, tsv};
use crate::recipe::{Alpha, Esm, Method, Recipe};
use indexmap::IndexMap;
use std::collections::HashMap;

/// Decides what happens to every tensor.
pub fn plan(recipe: &Recipe, family: &Family) -> Result<Plan, Error> {
    let alpha = alpha(recipe);
    let (architecture, unknown) = Architecture::of(family.settings.model_type(), family.base.names());
    let identical = identical(family, recipe.out_dtype)?;
    let places = Places::new(recipe, family)?;
    let rules = Rules::new(recipe, &architecture, family, (identical, &places));
    tensors_fit(family, |name, meta| rules.of(name, meta).role)?;
    let mut warnings = notes_on_files(family);
    let mut planner = Planner { recipe, family, fuse: false, across: Across::new(family) };
    if let Method::Esm(esm) = &recipe.method {
        check_esm(recipe, family, esm)?;
        planner.fuse = esm.fuse_qkv.unwrap_or(matches!(architecture, Architecture::Vit { .. }));
        if let (Some(unknown), None) = (unknown, &esm.layers) {
            warnings.push(format!(
                "{unknown}: every matrix of a block (`.N.` in its name) is merged by ESM; name others with `layers`"
            ));
        }
    }
    if recipe.method.description().is_calibrated() {
        warnings.extend(unverified_calibrations(family));
    }
    let layers = planner.layers(&rules)?;
    let experts = planner.experts(&rules)?;
    check_proxies(recipe, family)?;
    let search = alpha_search(recipe)?;
    warnings.extend(recipe.notes.iter().cloned());
    let account = account(family, &layers)?;
    check_values(recipe, &layers, &places)?;
    Ok(Plan {
        layers,
        experts,
        sum: sum(recipe),
        spectral: recipe.method.name(),
        places,
        alpha,
        search,
        by_blocks: recipe.method.description().calibration == Calibration::OfMerged,
        account,
        warnings,
    })
}

/// What is noteworthy about the models' files.
fn notes_on_files(family: &Family) -> Vec<String> {
    let mut notes = family.base.notes().to_vec();
    notes.extend(family.tokens.as_ref().map(|tokens| tokens.note.clone()));
    let mut of_experts: IndexMap<String, Vec<&str>> = IndexMap::new();
    for expert in &family.experts {
        notes.extend(expert.own.notes().iter().cloned());
        if let Some(note) = expert.matching.note() {
            of_experts.entry(note).or_default().push(&expert.name);
        }
    }
    notes.extend(of_experts.into_iter().map(|(note, names)| match names[..] {
        [name] => format!("expert `{name}`: {note}"),
        _ => format!("experts {}, each: {note}", names.join(", ")),
    }));
    notes.extend(used_otherwise(&family.settings, &family.experts));
    notes
}

/// The number given; 1 until a search has found another.
fn alpha(recipe: &Recipe) -> f64 {
    match recipe.method.alpha() {
        Alpha::Number(alpha) => *alpha,
        Alpha::Search { .. } => 1.0,
    }
}

/// What merging element by element is called.
fn sum(recipe: &Recipe) -> &'static str {
    match recipe.method.elementwise() {
        Some(tabled) if tabled.description != &linear::METHOD => tabled.description.name,
        _ => "average",
    }
}

/// The parameters of every tensor that is merged element by element go together.
fn check_values(recipe: &Recipe, layers: &[Layer], places: &Places) -> Result<(), Error> {
    let Some(tabled) = recipe.method.elementwise() else { return Ok(()) };
    for part in layers.iter().filter(|layer| layer.role == Role::Sum).flat_map(|layer| &layer.parts) {
        let values = recipe.values(tabled, &part.name, places.of(&part.name));
        recipe.streamed(Some(&values)).map_err(|why| {
            let why = format!("{why} (for the tensor `{}`)", part.name);
            crate::recipe::Error::new(&recipe.path, None, "parameters", why)
        })?;
    }
    Ok(())
}

fn check_esm(recipe: &Recipe, family: &Family, esm: &Esm) -> Result<(), Error> {
    if esm.experts.is_some() && stores_transposed(family.settings.model_type(), &family.base) {
        return Err(Error::Unsupported {
            path: family.base.path().to_path_buf(),
            reason: "this architecture stores its linear weights transposed (d_in x d_out), for which ESM++ makes no low-rank \
                     experts in this version; use merge_method esm"
                .to_owned(),
        });
    }
    let routed = esm.experts.as_ref().and_then(|experts| experts.routed_layers.as_ref());
    for (key, patterns) in [("layers", esm.layers.as_ref()), ("routed_layers", routed)] {
        if let Some(patterns) = patterns {
            patterns_match(recipe, key, patterns, &family.base)?;
        }
    }
    Ok(())
}

pub(super) struct Planner<'a> {
    pub recipe: &'a Recipe,
    pub family: &'a Family,
    /// Whether q, k and v become one layer.
    fuse: bool,
    /// Which linear weights are stored as `d_in x d_out`.
    across: Across<'a>,
}

/// A tensor, or several that are one matrix, under the name of either.
pub(super) type Entry = (String, Vec<Part>);

impl Planner<'_> {
    fn layers(&self, rules: &Rules) -> Result<Vec<Layer>, Error> {
        let entries = self.entries(|name, meta| rules.of(name, meta).role == Role::Esm);
        let ruling = |parts: &[Part]| {
            let first = parts.first()?;
            Some(rules.of(&first.name, self.family.base.get(&first.name)?))
        };
        let ruled = entries.into_iter().filter_map(|(name, parts)| Some((name, ruling(&parts)?, parts)));
        ruled.map(|(name, ruling, parts)| self.layer(name, parts, ruling)).collect()
    }

    /// All tensors in the order of the base. Where q, k and v are merged as one matrix and `stacked` holds for all three,
    /// they stand together in the place of the first.
    pub fn entries(&self, stacked: impl Fn(&str, &TensorMeta) -> bool) -> Vec<Entry> {
        let base = &self.family.base;
        let stacks = if self.fuse { self.stacks(stacked) } else { HashMap::new() };
        let mut entries = Vec::new();
        for name in base.names() {
            let Some(meta) = base.get(name) else { continue };
            let stack = projection(name).and_then(|(_, fused)| Some((stacks.get(&fused)?, fused)));
            match stack {
                Some((stack, fused)) if stack.first_in_file == name => {
                    entries.push((fused, stack.parts.clone()))
                }
                Some(_) => {}
                None => entries.push((name.to_owned(), vec![part(name, meta)])),
            }
        }
        entries
    }

    /// The complete triples of q, k and v that take the same inputs and for which `stacked` holds.
    fn stacks(&self, stacked: impl Fn(&str, &TensorMeta) -> bool) -> HashMap<String, Stack> {
        let mut found: HashMap<String, (String, [Option<Part>; 3])> = HashMap::new();
        for name in self.family.base.names() {
            let (Some(meta), Some((place, fused))) = (self.family.base.get(name), projection(name)) else {
                continue;
            };
            if stacked(name, meta) {
                let entry = found.entry(fused).or_insert_with(|| (name.to_owned(), [const { None }; 3]));
                entry.1[place] = Some(part(name, meta));
            }
        }
        let complete = |(fused, (first_in_file, parts)): (String, (String, [Option<Part>; 3]))| {
            let parts: Vec<Part> = parts.into_iter().collect::<Option<_>>()?;
            let same_inputs = parts.iter().all(|p| p.shape.last() == parts[0].shape.last());
            same_inputs.then_some((fused, Stack { first_in_file, parts }))
        };
        found.into_iter().filter_map(complete).collect()
    }

    /// An entry with its role.
    pub fn layer(&self, name: String, parts: Vec<Part>, ruling: Ruling) -> Result<Layer, Error> {
        let Ruling { role, reason, kept } = ruling;
        let tasks = self.family.experts.len();
        let elements: usize = parts.iter().map(Part::elements).sum();
        let looks_at_inputs =
            role == Role::Esm || role == Role::Spectral && self.recipe.method.description().is_calibrated();
        let transposed = looks_at_inputs && parts.first().is_some_and(|part| self.across.has(&part.name));
        let (d_out, d_in) = match role {
            Role::Esm | Role::TsvM | Role::Spectral | Role::Experts => {
                let rows: usize = parts.iter().map(|p| p.rows).sum();
                let columns = elements.checked_div(rows).unwrap_or(0);
                if transposed { (columns, rows) } else { (rows, columns) }
            }
            Role::Sum | Role::Base | Role::Pretrained => (1, elements),
        };
        let esm = match &self.recipe.method {
            Method::Esm(esm) => Some(esm),
            _ => None,
        };
        let rank = match (role, esm) {
            (Role::Esm, Some(esm)) => esm.rank.of(d_out, tasks),
            (Role::TsvM, _) => tsv::rank_budget(d_out, d_in, tasks),
            (Role::Spectral, _) => d_out.min(d_in),
            // a residual has no more directions than its smaller side
            (Role::Experts, Some(esm)) => esm.experts.as_ref().map_or(0, |e| e.rank).min(d_out).min(d_in),
            _ => 0,
        };
        match role {
            // what no expert changes is compared with other layers, and not decomposed
            Role::Esm | Role::Spectral if !self.is_changed(&parts) => {}
            Role::Esm => self.check_calibration(&parts, d_in, Some("layers"))?,
            Role::Spectral => self.check_calibration(&parts, d_in, None)?,
            Role::Experts => self.check_calibration(&parts, d_in, Some("routed_layers"))?,
            _ => {}
        }
        let compared = esm.is_some_and(|e| e.options.inter_layer.is_some());
        Ok(Layer {
            group: (compared && matches!(role, Role::Esm | Role::TsvM)).then(|| kind_of_layer(&name)),
            scaled: !matches!(role, Role::Base | Role::Pretrained | Role::Experts)
                && esm.is_none_or(|e| role == Role::Esm || e.alpha_scope == AlphaScope::All),
            mean_sigma: role == Role::TsvM && esm.is_some_and(|e| e.preset.tsv_mean_sigma()),
            cost: self.cost(role, &parts, (d_out, d_in), rank),
            name,
            parts,
            d_out,
            d_in,
            transposed,
            role,
            rank,
            reason,
            kept,
        })
    }

    /// Whether any expert may differ from the base in some tensors.
    fn is_changed(&self, parts: &[Part]) -> bool {
        self.family.experts.iter().any(|expert| parts.iter().any(|part| expert.changes(&part.name)))
    }

    /// Every expert that is calibrated at all must have inputs of this layer; `key` of the recipe can leave it out, if there is one.
    fn check_calibration(&self, parts: &[Part], d_in: usize, key: Option<&'static str>) -> Result<(), Error> {
        for expert in &self.family.experts {
            let Some(calibration) = &expert.calibration else { continue };
            // an expert of a mixture may have seen no token
            let mut covered = parts.iter().any(|part| is_of_expert(&part.name));
            for part in parts {
                covered |= calibration.covers(&part.name, d_in, expert.weights.path())?;
            }
            if !covered {
                return Err(Error::NotCalibrated {
                    expert: expert.name.clone(),
                    path: calibration.path().to_path_buf(),
                    weight: parts.first().map_or_else(String::new, |p| p.name.clone()),
                    method: self.recipe.method.name(),
                    key,
                });
            }
        }
        Ok(())
    }

    fn cost(&self, role: Role, parts: &[Part], (d_out, d_in): (usize, usize), rank: usize) -> Cost {
        let tasks = self.family.experts.len();
        let elements: usize = parts.iter().map(Part::elements).sum();
        match role {
            Role::Base | Role::Pretrained => Cost::default(),
            Role::Sum => Cost {
                flops: (2 * tasks * elements) as f64,
                bytes: 12 * elements.min(super::SUM_CHUNK) as u64,
            },
            Role::Esm | Role::TsvM | Role::Spectral => {
                let calibrated = role != Role::TsvM && self.recipe.method.description().is_calibrated();
                self.decomposed(parts, (d_out, d_in), rank, calibrated).cost(self.recipe.accuracy)
            }
            Role::Experts => {
                self.decomposed(parts, (d_out, d_in), rank, true).without_fusion(self.recipe.accuracy)
            }
        }
    }

    /// The sizes that decide what a decomposition costs; `calibrated` if it sees the inputs of the layer.
    fn decomposed(
        &self,
        parts: &[Part],
        (d_out, d_in): (usize, usize),
        rank: usize,
        calibrated: bool,
    ) -> Decomposed {
        let experts = self.family.experts.iter().filter(|e| calibrated && e.calibration.is_some());
        let rows = experts.map(|e| tokens(e, parts, d_in)).max();
        let calibration = rows.map_or(0, |rows| rows * d_in);
        let tasks = self.family.experts.len();
        Decomposed { tasks, d_out, d_in, rank, rows: rows.unwrap_or(d_in), calibration }
    }
}

struct Stack {
    first_in_file: String,
    parts: Vec<Part>,
}

fn part(name: &str, meta: &TensorMeta) -> Part {
    let rows = meta.matrix().map_or(1, |(rows, _)| rows);
    Part { name: name.to_owned(), shape: meta.shape.clone(), rows }
}

/// Rows of the calibration matrix of a layer.
fn tokens(expert: &Expert, parts: &[Part], d_in: usize) -> usize {
    let Some(calibration) = &expert.calibration else { return 0 };
    match parts.iter().find_map(|p| calibration.source_of(&p.name)) {
        Some((source, Statistic::Input)) => calibration.tokens(source),
        Some((_, Statistic::Gram)) => d_in,
        None => 0,
    }
}
