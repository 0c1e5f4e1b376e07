//! `histogram`, `magnitude_sums`, `trim`, `drop_out` and `row_ranks`.

use super::parallel::{ELEMENTS_PER_TASK, for_each_piece};
use super::random::threefry2x32;
use super::{Chance, CountBy, CpuTensor, Cut, MagnitudeSum, memory};
use rayon::prelude::*;

/// Numbers that a thread counts into its own counts: many for each of them.
const COUNTED_BY_A_THREAD: usize = 1 << 20;

fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

pub fn histogram(x: &CpuTensor, by: &[CountBy]) -> Vec<Vec<u32>> {
    by.iter().enumerate().map(|(b, &by)| histogram_of(x.matrix(b), by)).collect()
}

fn histogram_of(x: &[f32], by: CountBy) -> Vec<u32> {
    let counts = by.counts(x.len());
    let of_piece = |(piece, x): (usize, &[f32])| {
        let mut counts = vec![0u32; counts];
        match by {
            CountBy::High => count_upper_bits(x, &mut counts),
            CountBy::Low(upper) => x.iter().map(|&x| magnitude(x)).for_each(|m| {
                if m >> 16 == upper {
                    counts[(m & 0xffff) as usize] += 1;
                }
            }),
            CountBy::Places { magnitude: wanted, shift } => {
                let first = piece * COUNTED_BY_A_THREAD;
                (first..)
                    .zip(x)
                    .filter(|(_, x)| magnitude(**x) == wanted)
                    .for_each(|(i, _)| counts[i >> shift] += 1);
            }
        }
        counts
    };
    let add = |mut sum: Vec<u32>, counts: Vec<u32>| {
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        sum
    };
    x.par_chunks(COUNTED_BY_A_THREAD)
        .enumerate()
        .map(of_piece)
        .reduce_with(add)
        .unwrap_or_else(|| vec![0; counts])
}

/// Equal numbers often follow each other: two sets of counts, so that one does not wait for the other.
fn count_upper_bits(x: &[f32], counts: &mut [u32]) {
    const KEYS: usize = 1 << 15;
    let mut sets = [vec![0u32; KEYS], vec![0u32; KEYS]];
    let [even, odd] = &mut sets;
    let (even, odd): (&mut [u32], &mut [u32]) = (&mut even[..KEYS], &mut odd[..KEYS]);
    let key = |x: f32| (magnitude(x) >> 16) as usize % KEYS;
    let (pairs, last) = x.as_chunks::<2>();
    for &[a, b] in pairs {
        even[key(a)] += 1;
        odd[key(b)] += 1;
    }
    last.iter().for_each(|&x| even[key(x)] += 1);
    counts.iter_mut().zip(even.iter().zip(odd)).for_each(|(sum, (a, b))| *sum += *a + *b);
}

pub fn magnitude_sums(x: &CpuTensor) -> Vec<MagnitudeSum> {
    let of_piece = |x: &[f32]| {
        let mut sum = MagnitudeSum::zero();
        x.iter().for_each(|&x| sum.add(x));
        sum
    };
    let add = |mut sum: MagnitudeSum, part: MagnitudeSum| {
        sum += &part;
        sum
    };
    let of_member = |b| {
        x.matrix(b)
            .par_chunks(ELEMENTS_PER_TASK)
            .map(of_piece)
            .reduce_with(add)
            .unwrap_or_else(MagnitudeSum::zero)
    };
    (0..x.shape.batch).map(of_member).collect()
}

pub fn trim(x: &mut CpuTensor, by: Option<&CpuTensor>, cuts: &[(Cut, Cut)]) {
    let n = x.shape.matrix_len().max(1);
    for (matrix, &cuts) in x.values.chunks_mut(n).zip(cuts) {
        for_each_piece(matrix, 1, |first, piece| trim_piece(piece, by.map(|by| &by.values[..]), cuts, first));
    }
}

/// The numbers of a matrix from `first` on.
pub fn trim_piece(piece: &mut [f32], by: Option<&[f32]>, (keep, drop): (Cut, Cut), first: usize) {
    // between the places where a cut changes, magnitudes alone decide
    let end = first + piece.len();
    let mut ends = [keep.places as usize, drop.places as usize, end].map(|place| place.clamp(first, end));
    ends.sort_unstable();
    let mut begin = first;
    for end in ends {
        let (least, below) = (keep.least(begin), drop.least(begin));
        let stays = |m: u32| m >= least && m < below;
        let part = &mut piece[begin - first..end - first];
        match by {
            None => part.iter_mut().for_each(|x| *x = if stays(magnitude(*x)) { *x } else { 0.0 }),
            Some(by) => part.iter_mut().zip(&by[begin..end]).for_each(|(x, &by)| {
                *x = if stays(magnitude(by)) { *x } else { 0.0 };
            }),
        }
        begin = end;
    }
}

pub fn drop_out(x: &mut CpuTensor, ranks: Option<&CpuTensor>, chances: &[Chance], first: usize) {
    let (n, cols) = (x.shape.matrix_len().max(1), x.shape.cols);
    let steps = cols.max(2) as u32 - 1;
    for (b, (matrix, &Chance { key, least, span })) in x.values.chunks_mut(n).zip(chances).enumerate() {
        let key = [key as u32, (key >> 32) as u32];
        let rise = |at: usize| match ranks {
            None => 0,
            Some(ranks) => {
                let rank = ranks.matrix(b)[at] as u32;
                let rest = if steps < 1 << 16 { (span % steps * rank) / steps } else { 0 };
                span / steps * rank + rest
            }
        };
        for_each_piece(matrix, 1, |start, piece| {
            for (i, x) in piece.iter_mut().enumerate() {
                let place = (first + start + i) as u32;
                let chance = threefry2x32(key, [place, 0])[0] >> 8;
                if chance >= least + rise(start + i) {
                    *x = 0.0;
                }
            }
        });
    }
}

pub fn row_ranks(x: &CpuTensor) -> CpuTensor {
    let cols = x.shape.cols.max(1);
    let mut ranks = memory::take(x.shape.len());
    ranks.par_chunks_mut(cols).zip(x.values.par_chunks(cols)).for_each(|(ranks, row)| {
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        order.sort_unstable_by_key(|&j| (magnitude(row[j as usize]), std::cmp::Reverse(j)));
        order.iter().enumerate().for_each(|(rank, &j)| ranks[j as usize] = rank as f32);
    });
    CpuTensor::new(x.shape, ranks)
}
