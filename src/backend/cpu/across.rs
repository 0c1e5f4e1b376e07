//! `across`: what the tasks of a merge make of each element together.

use super::parallel::ELEMENTS_PER_TASK;
use super::selection::trim_piece;
use super::{Across, CpuTensor, Cut, Divide, Shape, memory};
use rayon::prelude::*;

/// Elements worked on at a time: those of all tasks stay in the cache.
const BLOCK: usize = 1 << 10;

/// With cuts, of what they leave.
pub fn across(x: &CpuTensor, cuts: Option<&[(Cut, Cut)]>, rule: Across<'_>) -> CpuTensor {
    let n = x.shape.matrix_len();
    let mut out = memory::take(n);
    out.par_chunks_mut(ELEMENTS_PER_TASK).enumerate().for_each(|(piece, out)| {
        let mut left = vec![0.0; if cuts.is_some() { x.shape.batch * BLOCK } else { 0 }];
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let first = piece * ELEMENTS_PER_TASK + block * BLOCK;
            let tasks: Vec<&[f32]> =
                (0..x.shape.batch).map(|t| &x.values[t * n + first..][..out.len()]).collect();
            match (cuts, rule) {
                (None, _) => combine(&tasks, rule, out),
                (Some(cuts), Across::Elect { factors, divide })
                    if cuts.iter().all(|cuts| !changes(*cuts, first, out.len())) =>
                {
                    let kept: Vec<Kept> = cuts.iter().map(|cuts| Kept::at(*cuts, first)).collect();
                    elect(&tasks, &kept, factors, divide, out);
                }
                (Some(cuts), _) => {
                    for ((left, x), &cuts) in left.chunks_mut(BLOCK).zip(&tasks).zip(cuts) {
                        left[..x.len()].copy_from_slice(x);
                        trim_piece(&mut left[..x.len()], None, cuts, first);
                    }
                    let left: Vec<&[f32]> = left.chunks(BLOCK).map(|left| &left[..out.len()]).collect();
                    combine(&left, rule, out);
                }
            }
        }
    });
    CpuTensor::new(Shape { batch: 1, ..x.shape }, out)
}

/// Whether a cut lies among equal magnitudes at one of these places.
fn changes((keep, drop): (Cut, Cut), first: usize, len: usize) -> bool {
    [keep, drop].iter().any(|cut| (first + 1..first + len).contains(&(cut.places as usize)))
}

/// Magnitudes that stay: all from `least` to what is less than `below`.
#[derive(Clone, Copy)]
struct Kept {
    least: u32,
    below: u32,
}

impl Kept {
    const ALL: Kept = Kept { least: 0, below: u32::MAX };

    fn at((keep, drop): (Cut, Cut), place: usize) -> Kept {
        Kept { least: keep.least(place), below: drop.least(place) }
    }

    /// All bits set if `x` stays, else none: a branch would be foreseen by chance.
    fn mask(self, x: f32) -> u32 {
        let magnitude = x.to_bits() & !SIGN;
        u32::from(magnitude >= self.least && magnitude < self.below).wrapping_neg()
    }
}

const SIGN: u32 = 1 << 31;

fn combine(tasks: &[&[f32]], rule: Across<'_>, out: &mut [f32]) {
    match rule {
        Across::Weigh(weights) => weigh(tasks, weights, out),
        Across::Positive(votes) => {
            weigh(tasks, votes, out);
            out.iter_mut().for_each(|sum| *sum = f32::from(u8::from(*sum > 0.0)));
        }
        Across::Elect { factors, divide } => {
            elect(tasks, &vec![Kept::ALL; tasks.len()], factors, divide, out);
        }
        Across::Share { epsilon, factors } => each(tasks, out, |own| {
            let those = || own.iter().zip(factors).filter(|(x, _)| x.abs() > epsilon);
            match those().count() {
                0 => 0.0,
                1 => those().map(|(x, f)| f * x).sum(),
                n => those().map(|(x, _)| x).sum::<f32>() / n as f32,
            }
        }),
        Across::Having { epsilon, task, shared } => each(tasks, out, |own| {
            let has = |x: &f32| x.abs() > epsilon;
            let others = own.iter().enumerate().any(|(t, x)| t != task && has(x));
            f32::from(own.get(task).is_some_and(has) && others == shared)
        }),
        Across::Agree { factors, least } => each(tasks, out, |own| {
            let sum: f32 = own.iter().sum();
            let counted = own.iter().zip(factors).filter(|(x, f)| x.abs() > *f * (sum - *x).abs()).count();
            if counted >= least { sum } else { 0.0 }
        }),
        Across::Variance => each(tasks, out, |own| {
            let mean = own.iter().sum::<f32>() / own.len() as f32;
            own.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / own.len() as f32
        }),
        Across::Approach(t) => each(&tasks[..1], out, |own| {
            own.iter().map(|x| x * (t / x.abs().max(1e-6)).clamp(0.0, 1.0)).sum()
        }),
    }
}

/// Element by element, of the numbers of all tasks.
fn each(tasks: &[&[f32]], out: &mut [f32], f: impl Fn(&[f32]) -> f32) {
    let mut own = vec![0.0; tasks.len()];
    for (i, out) in out.iter_mut().enumerate() {
        own.iter_mut().zip(tasks).for_each(|(own, x)| *own = x[i]);
        *out = f(&own);
    }
}

fn weigh(tasks: &[&[f32]], weights: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (x, &weight) in tasks.iter().zip(weights) {
        out.iter_mut().zip(*x).for_each(|(sum, x)| *sum += weight * x);
    }
}

/// Elements elected at a time: what becomes of them stays in registers.
const LANES: usize = 16;

fn elect(tasks: &[&[f32]], kept: &[Kept], factors: &[f32], divide: Divide, out: &mut [f32]) {
    let (blocks, rest) = out.as_chunks_mut::<LANES>();
    let last = LANES * blocks.len();
    for (block, out) in blocks.iter_mut().enumerate() {
        *out = elect_lanes(kept, factors, divide, |t| {
            let mut own = [0.0; LANES];
            own.copy_from_slice(&tasks[t][LANES * block..][..LANES]);
            own
        });
    }
    if !rest.is_empty() {
        let elected = elect_lanes(kept, factors, divide, |t| {
            let mut own = [0.0; LANES];
            own[..rest.len()].copy_from_slice(&tasks[t][last..]);
            own
        });
        rest.copy_from_slice(&elected[..rest.len()]);
    }
}

#[inline(always)]
fn elect_lanes(
    kept: &[Kept],
    factors: &[f32],
    divide: Divide,
    of_task: impl Fn(usize) -> [f32; LANES],
) -> [f32; LANES] {
    let (votes, weights) = factors.split_at(kept.len());
    let mut votes_sum = [0f32; LANES];
    for (t, (&kept, &vote)) in kept.iter().zip(votes).enumerate() {
        for (sum, x) in votes_sum.iter_mut().zip(of_task(t)) {
            *sum += vote * f32::from_bits(x.to_bits() & kept.mask(x));
        }
    }
    let elected = votes_sum.map(|sum| if sum >= 0.0 { 0 } else { SIGN });
    let (mut sums, mut agreeing) = ([0f32; LANES], [0f32; LANES]);
    for (t, ((&kept, &vote), &weight)) in kept.iter().zip(votes).zip(weights).enumerate() {
        if vote == 0.0 {
            continue;
        }
        let own = vote.to_bits() & SIGN;
        for (((sum, total), elected), x) in sums.iter_mut().zip(&mut agreeing).zip(elected).zip(of_task(t)) {
            // the sign bit of what the three make together; no product that may underflow
            let agrees = ((x.to_bits() ^ own ^ elected) >> 31).wrapping_sub(1);
            let agrees = agrees & kept.mask(x) & if x == 0.0 { 0 } else { u32::MAX };
            *sum += f32::from_bits((weight * x).to_bits() & agrees);
            *total += f32::from_bits(weight.to_bits() & agrees);
        }
    }
    for (sum, total) in sums.iter_mut().zip(agreeing) {
        match divide {
            Divide::Never => {}
            Divide::UnlessZero => *sum /= if total == 0.0 { 1.0 } else { total },
            Divide::BySome => *sum /= total.max(1e-6),
        }
    }
    sums
}
