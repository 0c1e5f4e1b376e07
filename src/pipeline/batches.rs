//! Layers of one shape are merged side by side: that keeps a wide device busy where one layer would not, and waits once for
//! all of them.

use super::members::elements;
use super::spill::is_spilled;
use super::{Job, decompose};
use crate::backend::Backend;
use crate::plan::{Layer, Role};
use std::collections::HashMap;

/// What must be equal for layers to share a batch.
#[derive(PartialEq, Eq, Hash)]
struct Kind {
    role: Role,
    d_out: usize,
    d_in: usize,
    transposed: bool,
    rank: usize,
    mean_sigma: bool,
}

impl Kind {
    fn of(layer: &Layer) -> Option<Kind> {
        let &Layer { role, d_out, d_in, transposed, rank, mean_sigma, .. } = layer;
        let kind = Kind { role, d_out, d_in, transposed, rank, mean_sigma };
        matches!(role, Role::Esm | Role::TsvM | Role::Spectral).then_some(kind)
    }
}

/// The layers that go through the spill in the order in which they are merged: those of one kind side by side. Where experts
/// run meanwhile that is so within a block alone, since only the inputs of one block are at hand.
pub(super) fn order<B>(job: &Job<'_, B>, keep: bool) -> Vec<usize> {
    let layers = &job.plan.layers;
    let mut order: Vec<usize> = (0..layers.len()).filter(|&i| is_spilled(&layers[i], keep)).collect();
    order.sort_by_key(|&i| layers[i].block());
    let mut first = HashMap::new();
    for (place, &i) in order.iter().enumerate() {
        first.entry(Kind::of(&layers[i])).or_insert(place);
    }
    let within_blocks = experts_run(job);
    let place = |i: usize| first.get(&Kind::of(&layers[i])).copied();
    // what has no inputs comes first, so that a model merged so far has all that stands before its layers
    let sees = |i: usize| Kind::of(&layers[i]).is_some();
    order.sort_by_key(|&i| (layers[i].block().filter(|_| within_blocks), within_blocks && sees(i), place(i)));
    order
}

/// Whether the inputs of layers are captured during the merge.
fn experts_run<B>(job: &Job<'_, B>) -> bool {
    job.family.experts.iter().any(|expert| expert.proxies.is_some())
}

/// How many of the layers `order`, of which there is one at least, make the next batch.
pub(super) fn next<B: Backend>(job: &Job<'_, B>, order: &[usize]) -> usize {
    let layers = &job.plan.layers;
    let Some(&leader) = order.first() else { return 0 };
    let (Some(kind), false) = (Kind::of(&layers[leader]), decompose::is_untouched(job, &layers[leader]))
    else {
        return 1;
    };
    let within_blocks = experts_run(job);
    let alike = |&&i: &&usize| {
        let same_block = !within_blocks || layers[i].block() == layers[leader].block();
        Kind::of(&layers[i]).as_ref() == Some(&kind)
            && same_block
            && !decompose::is_untouched(job, &layers[i])
    };
    let bytes = |&i: &usize| {
        let of_expert = |expert| elements(&layers[i], expert, &[]);
        4 * job.family.experts.iter().map(of_expert).sum::<usize>() as u64
    };
    let mut room = job.backend.batch_bytes();
    let fits = |i: &&usize| {
        let left = room.checked_sub(bytes(i));
        room = left.unwrap_or(0);
        left.is_some()
    };
    order.iter().take_while(alike).take_while(fits).count().max(1)
}

/// The layers `order` as units of work, each the batch that a device without shortages merges at once.
pub(super) fn units<B: Backend>(job: &Job<'_, B>, order: &[usize]) -> Vec<Vec<usize>> {
    let (mut rest, mut units) = (order, Vec::new());
    while !rest.is_empty() {
        let (unit, others) = rest.split_at(next(job, rest).max(1));
        units.push(unit.to_vec());
        rest = others;
    }
    units
}

/// What a batch is called where progress is shown.
pub(super) fn name<B>(job: &Job<'_, B>, batch: &[usize]) -> String {
    let first = batch.first().map_or("", |&i| &job.plan.layers[i].name);
    match batch.len() {
        0 | 1 => first.to_owned(),
        n => format!("{first} and {} more of its shape", n - 1),
    }
}
