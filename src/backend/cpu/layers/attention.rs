//! `attention`: softmax attention by tiles of queries, so that no more than `TILE x keys` scores exist a thread.

use super::activation::tanh;
use super::exp::exp;
use super::{Attention, CpuSegments, CpuTensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::ops::Range;

/// Queries handled at a time.
const TILE: usize = 64;

pub fn attention(
    q: &CpuTensor,
    k: &CpuTensor,
    v: &CpuTensor,
    segments: &CpuSegments,
    attention: Attention,
    positions: Option<&CpuTensor>,
) -> CpuTensor {
    let mut out = CpuTensor::new(q.shape, vec![0f32; q.values.len()]);
    tiles(&mut out, segments).into_par_iter().for_each(|(rows, segment, out)| {
        let mut scores = Vec::new();
        for index in 0..attention.heads {
            let positions = positions.map(|p| &p.values[index * p.shape.cols..(index + 1) * p.shape.cols]);
            let head = Head { index, attention: &attention, positions };
            attend([q, k, v], head, rows.clone(), segment.clone(), &mut scores, out);
        }
    });
    out
}

type Tile<'a> = (Range<usize>, Range<usize>, &'a mut [f32]);

/// Cuts the output into tiles of rows that lie in one segment.
fn tiles<'a>(out: &'a mut CpuTensor, segments: &CpuSegments) -> Vec<Tile<'a>> {
    let cols = out.shape.cols;
    let mut rest = &mut out.values[..];
    let mut tiles = Vec::new();
    for segment in segments.starts.windows(2) {
        for start in (segment[0]..segment[1]).step_by(TILE) {
            let rows = start..(start + TILE).min(segment[1]);
            let (tile, after) = rest.split_at_mut(rows.len() * cols);
            tiles.push((rows, segment[0]..segment[1], tile));
            rest = after;
        }
    }
    tiles
}

/// One of the heads.
#[derive(Clone, Copy)]
struct Head<'a> {
    index: usize,
    attention: &'a Attention,
    /// What its scores get for relative positions.
    positions: Option<&'a [f32]>,
}

/// One head of one tile.
fn attend(
    [q, k, v]: [&CpuTensor; 3],
    Head { index: head, attention, positions }: Head<'_>,
    rows: Range<usize>,
    segment: Range<usize>,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let head_dim = q.shape.cols / attention.heads;
    let key_head = head / (attention.heads / attention.key_heads);
    // the keys that any query of the tile may see
    let keys = first_key(attention, rows.start, &segment)..last_key(attention, rows.end - 1, &segment);
    scores.clear();
    scores.resize(rows.len() * keys.len(), 0.0);
    let all = MatMut::from_row_major_slice_mut(&mut scores[..], rows.len(), keys.len());
    let k_head = columns(k, keys.clone(), key_head, head_dim);
    let q_head = columns(q, rows.clone(), head, head_dim);
    matmul(all, Accum::Replace, q_head, k_head.transpose(), attention.scale, Par::Seq);

    for (row, scores) in rows.clone().zip(scores.chunks_mut(keys.len())) {
        let seen = first_key(attention, row, &segment)..last_key(attention, row, &segment);
        let seen = seen.start - keys.start..seen.end - keys.start;
        if let Some(cap) = attention.cap {
            scores[seen.clone()].iter_mut().for_each(|s| *s = cap * tanh(*s / cap));
        }
        if let Some(positions) = positions {
            let first = positions.len() / 2 + keys.start - row; // of the tile's first key
            scores.iter_mut().zip(&positions[first..]).for_each(|(s, p)| *s += p);
        }
        softmax(scores, seen);
    }

    let weights = MatRef::from_row_major_slice(&scores[..], rows.len(), keys.len());
    let stride = q.shape.cols;
    let own = &mut out[head * head_dim..(rows.len() - 1) * stride + (head + 1) * head_dim];
    // faer 0.24 takes the strides of the row-major constructor the wrong way round
    let into =
        MatMut::from_column_major_slice_with_stride_mut(own, head_dim, rows.len(), stride).transpose_mut();
    matmul(into, Accum::Replace, weights, columns(v, keys, key_head, head_dim), 1.0, Par::Seq);
}

/// The first key that the query in `row` sees.
fn first_key(attention: &Attention, row: usize, segment: &Range<usize>) -> usize {
    match attention.window {
        Some(window) => segment.start.max((row + 1).saturating_sub(window.max(1))),
        None => segment.start,
    }
}

/// The end of the keys that the query in `row` sees.
fn last_key(attention: &Attention, row: usize, segment: &Range<usize>) -> usize {
    match attention.window {
        _ if attention.causal => row + 1,
        Some(window) => segment.end.min(row.saturating_add(window.max(1))),
        None => segment.end,
    }
}

/// Rows `rows` and the columns of one head.
fn columns(x: &CpuTensor, rows: Range<usize>, head: usize, head_dim: usize) -> MatRef<'_, f32> {
    let stride = x.shape.cols;
    let values =
        &x.values[rows.start * stride + head * head_dim..(rows.end - 1) * stride + (head + 1) * head_dim];
    MatRef::from_row_major_slice_with_stride(values, rows.len(), head_dim, stride)
}

/// `exp(s - max) / sum` over the keys seen, 0 at the others.
fn softmax(scores: &mut [f32], seen: Range<usize>) {
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
    let seen = &mut scores[seen];
    let max = seen.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
    let mut sum = 0f64;
    for s in seen.iter_mut() {
        *s = exp(*s - max);
    }
    for s in seen.iter() {
        sum += f64::from(*s);
    }
    let scale = sum.recip() as f32;
    seen.iter_mut().for_each(|s| *s *= scale);
}
