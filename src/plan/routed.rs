//! The layers that ESM++ gives low-rank experts, and what those cost whoever serves the model.

use super::layers::Planner;
use super::names::block_index;
use super::roles::{Rules, Ruling};
use super::{Error, Layer, Part, Role};
use crate::checkpoint::module_of;
use crate::method::esm_plus::ResidualBase;
use crate::recipe;
use std::collections::HashMap;

/// ESM++'s part of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// Directions of an expert; fewer where a layer is smaller.
    pub rank: usize,
    /// What residuals are taken against.
    pub residual_base: ResidualBase,
    /// The routed layers, block by block.
    pub layers: Vec<Routed>,
    /// Parameters of the experts of one task, `sum r (d_out + d_in)`. A stack of q, k and v has one `A`.
    pub parameters: usize,
    /// Values of all prototypes.
    pub routing: usize,
    /// Floating-point operations that the chosen expert adds to a token.
    pub flops_per_token: usize,
}

/// A layer with experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    /// Its weights; `rank` is the experts'.
    pub layer: Layer,
    /// The weight whose prototypes it is routed by: its first, or that of an earlier layer with the same inputs.
    pub prototypes: String,
}

impl Planner<'_> {
    /// The routed layers; none if the method is not ESM++.
    pub(super) fn experts(&self, rules: &Rules) -> Result<Option<Experts>, Error> {
        let Some(recipe::Experts { rank, residual_base, .. }) = self.recipe.method.experts() else {
            return Ok(None);
        };
        let wanted = |name: &str| self.family.base.get(name).is_some_and(|meta| rules.is_routed(name, meta));
        let mut layers: Vec<Routed> = Vec::new();
        let mut known = HashMap::new();
        let mut entries = self.entries(|name, _| wanted(name));
        entries.sort_by_key(|(name, _)| block_index(name)); // stable
        for (name, parts) in entries {
            if parts.iter().all(|part| wanted(&part.name)) {
                let layer = self.routed_layer(name, parts)?;
                let prototypes = self.prototypes(&layer, &mut known)?;
                layers.push(Routed { layer, prototypes });
            }
        }
        if layers.is_empty() {
            let message = "no layer of this model is routed by default; name some with `routed_layers`";
            let key = "parameters.routed_layers";
            return Err(recipe::Error::new(&self.recipe.path, None, key, message).into());
        }
        let parameters = layers.iter().map(|Routed { layer: l, .. }| l.rank * (l.d_out + l.d_in)).sum();
        let own = layers.iter().filter(|l| l.layer.parts.first().is_some_and(|p| p.name == l.prototypes));
        Ok(Some(Experts {
            rank: *rank,
            residual_base: *residual_base,
            parameters,
            routing: own.map(|l| self.family.experts.len() * l.layer.d_in).sum(),
            flops_per_token: 2 * parameters,
            layers,
        }))
    }

    fn routed_layer(&self, name: String, parts: Vec<Part>) -> Result<Layer, Error> {
        if let Some(odd) = parts.iter().find(|p| module_of(&p.name).is_none()) {
            let path = self.family.base.path().to_path_buf();
            return Err(Error::NotLinear { weight: odd.name.clone(), path });
        }
        self.layer(name, parts, Ruling::plain(Role::Experts))
    }

    /// The weight whose prototypes route a layer. Layers that every expert's calibration gives the same inputs share them.
    /// `known` holds those of earlier layers.
    fn prototypes(
        &self,
        layer: &Layer,
        known: &mut HashMap<Vec<Option<String>>, String>,
    ) -> Result<String, Error> {
        let sources = self.sources(&layer.parts);
        for (expert, source) in self.family.experts.iter().zip(&sources) {
            let (Some(calibration), Some(source)) = (&expert.calibration, source) else { continue };
            if !calibration.has_mean(source, layer.d_in, expert.weights.path())? {
                return Err(Error::NoPrototype {
                    expert: expert.name.clone(),
                    path: calibration.path().to_path_buf(),
                    weight: source.clone(),
                });
            }
        }
        let own = || layer.parts.first().map_or_else(String::new, |part| part.name.clone());
        Ok(known.entry(sources).or_insert_with(own).clone())
    }

    /// The weight under which each expert's calibration has the inputs of a layer.
    fn sources(&self, parts: &[Part]) -> Vec<Option<String>> {
        let source = |e: &super::Expert| {
            let calibration = e.calibration.as_ref()?;
            parts.iter().find_map(|p| Some(calibration.source_of(&p.name)?.0.to_owned()))
        };
        self.family.experts.iter().map(source).collect()
    }
}
