//! What a batch holds: the experts' copies of layers of one shape.

use super::inputs::statistic;
use crate::calibration::Captured;
use crate::plan::{Expert, Layer};

/// One expert's copy of one layer.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    pub layer: &'a Layer,
    pub task: usize,
}

impl Member<'_> {
    /// Whether both are of the same layer.
    pub fn is_of_layer_of(&self, other: &Member<'_>) -> bool {
        self.layer.name == other.layer.name
    }
}

/// The copies that so many experts have of some layers: all of the first layer, then those of the next.
pub(super) fn members<'a>(layers: &[&'a Layer], tasks: usize) -> Vec<Member<'a>> {
    layers.iter().flat_map(|&layer| (0..tasks).map(move |task| Member { layer, task })).collect()
}

/// The members in order, in groups whose calibration is of one kind and whose deltas, inputs and output shifts fit into
/// tensors of `limit` bytes.
pub(super) fn cut<'m, 'a>(
    members: &'m [Member<'a>],
    experts: &[Expert],
    captured: &[Vec<Captured>],
    limit: u64,
) -> Vec<&'m [Member<'a>]> {
    let elements = |m: &Member| elements(m.layer, &experts[m.task], &captured[m.task]);
    let largest = members.iter().map(elements).max().unwrap_or(0);
    let at_once = usize::try_from(limit / (4 * largest.max(1)) as u64).unwrap_or(usize::MAX).max(1);
    let kind = |m: &Member| statistic(&experts[m.task], &captured[m.task], m.layer).map(|(kind, _)| kind);
    members.chunk_by(|a, b| kind(a) == kind(b)).flat_map(|alike| alike.chunks(at_once)).collect()
}

/// Values of the largest matrix of an expert's copy of a layer: its delta, its inputs or its output shift.
pub(super) fn elements(layer: &Layer, expert: &Expert, captured: &[Captured]) -> usize {
    let tokens = statistic(expert, captured, layer).map_or(0, |(_, tokens)| tokens);
    layer.elements().max(tokens * layer.d_in.max(layer.d_out))
}
