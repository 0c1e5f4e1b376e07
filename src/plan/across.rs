//! Which linear weights are stored as `d_in x d_out`.

use super::Family;
use crate::checkpoint::{Checkpoint, slice_name, slice_of, stores_transposed};
use serde_json::Value;

/// Mixtures whose files have the matrices of experts so.
const MIXTURES: [&str; 3] = ["gpt_oss", "llama4", "llama4_text"];

/// The way into an expert and the way out of it, in files that have a matrix for each; the way in makes the gate and what is gated
/// where it is `gate_up_proj` or `input_linear`.
const WAYS: [(&str, &str, bool); 6] = [
    ("gate_up_proj", "down_proj", true),
    ("input_linear.weight", "output_linear.weight", true),
    ("gate_proj", "down_proj", false),
    ("up_proj", "down_proj", false),
    ("w1", "w2", false),
    ("w3", "w2", false),
];

/// How a model stores its linear weights.
pub(super) struct Across<'a> {
    base: &'a Checkpoint,
    model_type: Option<&'a str>,
    /// `hidden_size`
    hidden: Option<usize>,
    /// All that are no slices.
    all: bool,
}

impl<'a> Across<'a> {
    pub fn new(family: &'a Family) -> Across<'a> {
        let (base, config, model_type) =
            (&family.base, &family.settings.config, family.settings.model_type());
        let size = config.get("hidden_size").or_else(|| config.get("text_config")?.get("hidden_size"));
        let hidden = size.and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        Across { base, model_type, hidden, all: stores_transposed(model_type, base) }
    }

    /// Whether a linear weight is stored as `d_in x d_out`: matrices of experts by the sizes of the way in and the way out, else by
    /// the model's width, else by its type.
    pub fn has(&self, name: &str) -> bool {
        let Some((whole, index)) = slice_of(name) else { return self.all };
        let by_type = || self.model_type.is_some_and(|own| MIXTURES.contains(&own));
        self.by_sizes(whole, index).unwrap_or_else(by_type)
    }

    fn by_sizes(&self, whole: &str, index: usize) -> Option<bool> {
        let shape = |name: &str| self.base.get(&slice_name(name, index))?.matrix();
        let (way_in, way_out, is_double) = WAYS.iter().find_map(|&(way_in, way_out, is_double)| {
            let stem = whole.strip_suffix(way_in).or_else(|| whole.strip_suffix(way_out))?;
            Some((shape(&format!("{stem}{way_in}"))?, shape(&format!("{stem}{way_out}"))?, is_double))
        })?;
        if is_double {
            // 2 wide x hidden and hidden x wide, or their transposes: no sizes are both
            let plain = way_in.0 == 2 * way_out.1 && way_in.1 == way_out.0;
            let across = way_in.1 == 2 * way_out.0 && way_in.0 == way_out.1;
            return (plain != across).then_some(across);
        }
        let (rows, cols) = way_in;
        self.hidden.filter(|_| rows != cols).map(|hidden| rows == hidden)
    }
}
