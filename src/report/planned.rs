//! What a merge would do, in the words of its report.

use super::LayerReport;
use super::inputs::name_of;
use crate::plan::{Account, AlphaSearch, Cost, Experts, Layer, Part, Plan, Role};
use crate::recipe::{Alpha, Recipe};
use serde::Serialize;

/// A dry run: a [`Report`](super::Report) without outcomes, with shapes and estimates.
#[derive(Clone, Debug, Serialize)]
pub struct Planned<'a> {
    /// Version of this program.
    pub esmerge: &'static str,
    /// The method.
    pub merge_method: &'static str,
    /// The base's name in the hub, or the last part of its path.
    pub base_model: String,
    /// Names of the experts.
    pub models: Vec<&'a str>,
    /// Coefficient of the merged deltas; absent where it is to be searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// The search for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha_search: Option<&'a AlphaSearch>,
    /// Every layer.
    pub layers: Vec<PlannedLayer<'a>>,
    /// The low-rank experts of ESM++.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<PlannedExperts<'a>>,
    /// Bytes of merged deltas that wait until all are known.
    pub bytes_of_deltas: u64,
    /// Bytes of memory for them; past it they go through a file.
    pub room_for_deltas: u64,
    /// What becomes of every tensor.
    pub account: &'a Account,
    /// What the user should know.
    pub warnings: &'a [String],
}

/// One layer.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedLayer<'a> {
    /// What the report says of it.
    #[serde(flatten)]
    pub layer: LayerReport,
    /// Its tensors with their sizes.
    pub parts: &'a [Part],
    /// Rows and columns of the matrix that is decomposed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<[usize; 2]>,
    /// The layers that it is compared with for `beta`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<&'a str>,
    /// The weight whose prototypes route it, for layers with experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prototypes: Option<&'a str>,
    /// An estimate.
    pub cost: Cost,
}

/// The low-rank experts of ESM++, and what they will cost whoever serves the model.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedExperts<'a> {
    /// Directions of an expert.
    pub rank: usize,
    /// What residuals are taken against.
    pub residual_base: &'static str,
    /// Parameters of one task's experts.
    pub parameters_per_task: usize,
    /// Values of all prototypes.
    pub routing_values: usize,
    /// Floating-point operations that an expert adds to a token.
    pub flops_per_token: usize,
    /// The routed layers.
    pub layers: Vec<PlannedLayer<'a>>,
}

impl<'a> Planned<'a> {
    /// Of a plan, with so many bytes of merged deltas and of memory for them.
    pub fn new(
        recipe: &'a Recipe,
        plan: &'a Plan,
        (bytes_of_deltas, room_for_deltas): (u64, u64),
    ) -> Planned<'a> {
        Planned {
            esmerge: env!("CARGO_PKG_VERSION"),
            merge_method: recipe.method.name(),
            base_model: name_of(&recipe.base_model),
            models: recipe.models.iter().map(|model| model.name.as_str()).collect(),
            alpha: match recipe.method.alpha() {
                Alpha::Number(alpha) => Some(*alpha),
                Alpha::Search { .. } => None,
            },
            alpha_search: plan.search.as_ref(),
            layers: plan.layers.iter().map(|layer| PlannedLayer::new(plan, layer)).collect(),
            experts: plan.experts.as_ref().map(|experts| PlannedExperts::new(plan, experts)),
            bytes_of_deltas,
            room_for_deltas,
            account: &plan.account,
            warnings: &plan.warnings,
        }
    }
}

impl<'a> PlannedLayer<'a> {
    fn new(plan: &Plan, layer: &'a Layer) -> Self {
        let report = LayerReport::planned(plan, layer);
        PlannedLayer {
            shape: report.rank.map(|_| [layer.d_out, layer.d_in]),
            layer: report,
            parts: &layer.parts,
            group: layer.group.as_deref(),
            prototypes: None,
            cost: layer.cost,
        }
    }
}

impl<'a> PlannedExperts<'a> {
    fn new(plan: &Plan, experts: &'a Experts) -> Self {
        let layer = |routed: &'a crate::plan::Routed| PlannedLayer {
            prototypes: Some(&routed.prototypes),
            ..PlannedLayer::new(plan, &routed.layer)
        };
        PlannedExperts {
            rank: experts.rank,
            residual_base: experts.residual_base.name(),
            parameters_per_task: experts.parameters,
            routing_values: experts.routing,
            flops_per_token: experts.flops_per_token,
            layers: experts.layers.iter().map(layer).collect(),
        }
    }
}

impl LayerReport {
    /// What is known of a layer before it is merged.
    pub fn planned(plan: &Plan, layer: &Layer) -> LayerReport {
        let decomposed = matches!(layer.role, Role::Esm | Role::TsvM | Role::Spectral | Role::Experts);
        LayerReport {
            name: layer.name.clone(),
            tensors: layer.parts.iter().map(|p| p.name.clone()).collect(),
            role: plan.treatment(layer).to_owned(),
            reason: layer.reason.map(str::to_owned),
            scaled_by_alpha: layer.scaled,
            rank: decomposed.then_some(layer.rank),
            ..LayerReport::default()
        }
    }
}
