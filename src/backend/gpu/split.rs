//! Cutting an operation into parts whose operands a device can bind.

use crate::kernels::View;
use crate::matrix::Shape;
use std::ops::Range;

/// A part of a batched matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub batches: Range<usize>,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

impl Block {
    pub fn shape(&self) -> Shape {
        Shape::new(self.batches.len(), self.rows.len(), self.cols.len())
    }

    /// The part of a view.
    pub fn of<'a>(&self, view: &View<'a>) -> View<'a> {
        view.block(self.batches.clone(), self.rows.clone(), self.cols.clone())
    }
}

/// What of a view one binding holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bindings {
    /// Bytes.
    pub limit: u64,
    /// Bytes by which a binding may have to start before its view.
    pub alignment: u64,
}

impl Bindings {
    pub fn hold(self, view: &View<'_>) -> bool {
        let start = 4 * view.offset % self.alignment;
        start + 4 * view.span() <= self.limit
    }

    /// Rows of `cols` elements that a binding holds wherever they start; at least 1.
    pub fn rows(self, cols: usize) -> usize {
        ((self.limit.saturating_sub(self.alignment) / 4) as usize / cols.max(1)).max(1)
    }
}

/// The parts of `shape`, in order, each of which `fits`: by matrices, then by rows, then by columns. A single element is
/// not cut further, whether it fits or not.
pub(super) fn split(shape: Shape, fits: &dyn Fn(&Block) -> bool) -> Vec<Block> {
    let mut parts = Vec::new();
    let all = Block { batches: 0..shape.batch, rows: 0..shape.rows, cols: 0..shape.cols };
    halve_until(all, fits, &mut parts);
    parts
}

fn halve_until(block: Block, fits: &dyn Fn(&Block) -> bool, parts: &mut Vec<Block>) {
    let shape = block.shape();
    if shape.len() <= 1 || fits(&block) {
        parts.push(block);
        return;
    }
    let (mut first, mut second) = (block.clone(), block);
    if shape.batch > 1 {
        (first.batches, second.batches) = halves(&first.batches, 1);
    } else if shape.rows > 1 {
        (first.rows, second.rows) = halves(&first.rows, 1);
    } else {
        (first.cols, second.cols) = halves(&first.cols, 1);
    }
    halve_until(first, fits, parts);
    halve_until(second, fits, parts);
}

/// A range cut in the middle, at a multiple of `unit` from its start if it is longer than that.
pub(super) fn halves(range: &Range<usize>, unit: usize) -> (Range<usize>, Range<usize>) {
    let half = range.len().div_ceil(2);
    let half = if range.len() > unit { half.next_multiple_of(unit) } else { half };
    let middle = range.start + half.min(range.len());
    (range.start..middle, middle..range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_shape_once_and_fit() {
        let shape = Shape::new(3, 7, 11);
        for most in [1, 5, 11, 40, 77, 200, 1000] {
            let parts = split(shape, &|block| block.shape().len() <= most);
            assert!(parts.iter().all(|p| p.shape().len() <= most));
            let mut seen = vec![0; shape.len()];
            for p in &parts {
                for b in p.batches.clone() {
                    for i in p.rows.clone() {
                        p.cols.clone().for_each(|j| seen[(b * 7 + i) * 11 + j] += 1);
                    }
                }
            }
            assert!(seen.iter().all(|&n| n == 1));
        }
    }

    #[test]
    fn halves_meet_at_a_multiple_of_the_unit() {
        assert_eq!(halves(&(10..110), 64), (10..74, 74..110));
        assert_eq!(halves(&(0..130), 64), (0..128, 128..130));
        assert_eq!(halves(&(0..64), 64), (0..32, 32..64));
        assert_eq!(halves(&(0..1), 64), (0..1, 1..1));
    }
}
