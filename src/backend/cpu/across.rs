//! `across`: what the tasks of a merge make of each element together.

use super::parallel::ELEMENTS_PER_TASK;
use super::selection::trim_piece;
use super::{Across, CpuTensor, Cut, Divide, Shape, memory};
use rayon::prelude::*;

/// Elements worked on at a time: those of all tasks stay in the cache.
const BLOCK: usize = 1 << 10;

/// With cuts, of what they leave: trimmed in the cache.
pub fn across(x: &CpuTensor, cuts: Option<&[(Cut, Cut)]>, rule: Across<'_>) -> CpuTensor {
    let n = x.shape.matrix_len();
    let mut out = memory::take(n);
    out.par_chunks_mut(ELEMENTS_PER_TASK).enumerate().for_each(|(piece, out)| {
        let mut left = vec![0.0; if cuts.is_some() { x.shape.batch * BLOCK } else { 0 }];
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let first = piece * ELEMENTS_PER_TASK + block * BLOCK;
            let tasks: Vec<&[f32]> =
                (0..x.shape.batch).map(|t| &x.values[t * n + first..][..out.len()]).collect();
            let Some(cuts) = cuts else {
                combine(&tasks, rule, out);
                continue;
            };
            for ((left, x), &cuts) in left.chunks_mut(BLOCK).zip(&tasks).zip(cuts) {
                left[..x.len()].copy_from_slice(x);
                trim_piece(&mut left[..x.len()], None, cuts, first);
            }
            combine(&left.chunks(BLOCK).map(|left| &left[..out.len()]).collect::<Vec<_>>(), rule, out);
        }
    });
    CpuTensor::new(Shape { batch: 1, ..x.shape }, out)
}

fn combine(tasks: &[&[f32]], rule: Across<'_>, out: &mut [f32]) {
    match rule {
        Across::Weigh(weights) => weigh(tasks, weights, out),
        Across::Positive(votes) => {
            weigh(tasks, votes, out);
            out.iter_mut().for_each(|sum| *sum = f32::from(u8::from(*sum > 0.0)));
        }
        Across::Elect { factors, divide } => elect(tasks, factors, divide, out),
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

fn elect(tasks: &[&[f32]], factors: &[f32], divide: Divide, out: &mut [f32]) {
    const SIGN: u32 = 1 << 31;
    let (votes, weights) = factors.split_at(tasks.len());
    let (mut elected, mut agreeing) = ([0u32; BLOCK], [0f32; BLOCK]);
    let (elected, agreeing) = (&mut elected[..out.len()], &mut agreeing[..out.len()]);
    weigh(tasks, votes, out);
    elected.iter_mut().zip(&*out).for_each(|(sign, sum)| *sign = if *sum >= 0.0 { 0 } else { SIGN });
    out.fill(0.0);
    for ((x, &vote), &weight) in tasks.iter().zip(votes).zip(weights) {
        if vote == 0.0 {
            continue;
        }
        let own = vote.to_bits() & SIGN;
        for (((sum, total), &x), elected) in out.iter_mut().zip(&mut *agreeing).zip(*x).zip(&*elected) {
            // the sign bit of what the three make together; no product that may underflow, and no branch, which nobody could foresee
            let agrees = ((x.to_bits() ^ own ^ elected) >> 31).wrapping_sub(1);
            let agrees = if x == 0.0 { 0 } else { agrees };
            *sum += f32::from_bits((weight * x).to_bits() & agrees);
            *total += f32::from_bits(weight.to_bits() & agrees);
        }
    }
    for (sum, total) in out.iter_mut().zip(agreeing) {
        match divide {
            Divide::Never => {}
            Divide::UnlessZero => *sum /= if *total == 0.0 { 1.0 } else { *total },
            Divide::BySome => *sum /= total.max(1e-6),
        }
    }
}
