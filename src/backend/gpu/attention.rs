//! Softmax attention by two products and a softmax, tile by tile: the scores of some queries at a time, all heads of a
//! key group in one dispatch.

use super::layers::GpuSegments;
use super::operations::FLOPS_PER_ELEMENT;
use super::products::Product;
use super::{Gpu, GpuTensor, Result};
use crate::backend::layers::Attention;
use crate::kernels::{Mask, View, softmax};
use crate::matrix::{Op, Shape};
use std::ops::Range;

/// The most scores held at a time, in elements.
const SCORES: usize = 16 << 20;

/// Queries of one sample, and the keys that any of them sees.
struct Tile {
    /// First row of the sample.
    start: usize,
    queries: Range<usize>,
    keys: Range<usize>,
}

/// What attention reads.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub q: &'a GpuTensor,
    pub k: &'a GpuTensor,
    pub v: &'a GpuTensor,
    pub positions: Option<&'a GpuTensor>,
}

impl Gpu {
    /// `softmax(scale q k^T + p) v` in every segment and head. Shapes have been checked.
    pub(super) fn attend(
        &self,
        operands: Operands<'_>,
        segments: &GpuSegments,
        attention: Attention,
    ) -> Result<GpuTensor> {
        let out = self.allocate("attention", operands.q.shape)?;
        if out.shape.is_empty() {
            return Ok(out);
        }
        let limit = usize::try_from(self.bindings().limit / 4).unwrap_or(usize::MAX).min(SCORES);
        for segment in segments.starts.windows(2).filter(|s| s[1] > s[0]) {
            let keys = segment[1] - segment[0];
            let queries = (limit / (attention.key_heads * keys)).clamp(1, keys);
            for first in (segment[0]..segment[1]).step_by(queries) {
                let queries = first..segment[1].min(first + queries);
                let tile = Tile { start: segment[0], keys: attention.keys(segment, &queries), queries };
                for member in 0..attention.heads / attention.key_heads {
                    self.attend_tile(operands, &out, &tile, attention, member)?;
                }
            }
        }
        Ok(out)
    }

    /// The query heads `member`, `group + member`, ..., one of each key head's group.
    fn attend_tile(
        &self,
        Operands { q, k, v, positions }: Operands<'_>,
        out: &GpuTensor,
        tile: &Tile,
        attention: Attention,
        member: usize,
    ) -> Result<()> {
        let Attention { heads, key_heads, .. } = attention;
        let head_dim = q.shape.cols / heads;
        let group = heads / key_heads;
        let of_queries =
            |x| head_views(x, tile.queries.clone(), member * head_dim, key_heads, group * head_dim, head_dim);
        let of_keys = |x| head_views(x, tile.keys.clone(), 0, key_heads, head_dim, head_dim);
        let shape = Shape::new(key_heads, tile.queries.len(), tile.keys.len());
        let scores = self.allocate("attention scores", shape)?;

        let product = Product {
            alpha: attention.scale,
            a: of_queries(q),
            op_a: Op::None,
            b: of_keys(k),
            op_b: Op::Transpose,
            beta: 0.0,
            c: scores.view(),
        };
        self.product(&product)?;
        let position = |row: usize| row - tile.start;
        let mask = Mask {
            query: position(tile.queries.start),
            key: position(tile.keys.start),
            causal: attention.causal,
            window: attention.window.map(|w| w.max(1)),
        };
        let positions = positions.map(|p| View {
            buffer: p.buffer(),
            offset: (member * p.shape.cols) as u64,
            shape: Shape::new(key_heads, 1, p.shape.cols),
            row_stride: p.shape.cols,
            batch_stride: group * p.shape.cols,
        });
        let flops = FLOPS_PER_ELEMENT * shape.len() as u64;
        self.live().queue.record(flops, |recorder| {
            softmax(recorder, &scores.view(), mask, attention.cap, positions.as_ref())
        })?;
        self.product(&Product {
            alpha: 1.0,
            a: scores.view(),
            op_a: Op::None,
            b: of_keys(v),
            op_b: Op::None,
            beta: 0.0,
            c: of_queries(out),
        })
    }
}

impl Attention {
    /// The keys of a segment that any of the queries sees.
    fn keys(&self, segment: &[usize], queries: &Range<usize>) -> Range<usize> {
        let window = self.window.unwrap_or(usize::MAX).max(1);
        let oldest = (queries.start + 1).saturating_sub(window);
        let end = if self.causal { queries.end } else { (queries.end - 1).saturating_add(window) };
        segment[0].max(oldest)..segment[1].min(end)
    }
}

/// Heads as a batch: matrix `h` is the `head_dim` columns from `first + h * step` on of some rows.
fn head_views(
    x: &GpuTensor,
    rows: Range<usize>,
    first: usize,
    heads: usize,
    step: usize,
    head_dim: usize,
) -> View<'_> {
    let cols = x.shape.cols;
    View {
        buffer: x.buffer(),
        offset: (rows.start * cols + first) as u64,
        shape: Shape::new(heads, rows.len(), head_dim),
        row_stride: cols,
        batch_stride: step,
    }
}
