//! Tensors in memory, cut into slabs of any size.

#![allow(dead_code)] // each test binary uses some of these

use esmerge::backend::{Backend, Error, Result, Shape, Tensor};
use esmerge::method::{Slab, Slabs};
use std::ops::Range;
use std::rc::Rc;

/// A tensor's base and differences, as rows of its last axis.
pub struct Held<'a, B: Backend> {
    pub backend: &'a B,
    pub base: B::Tensor,
    pub deltas: B::Tensor,
    /// Values of a slab; whole rows of it where slabs are by rows.
    pub size: usize,
    pub by_rows: bool,
    now: Option<(usize, Slab<B::Tensor>)>,
}

impl<'a, B: Backend> Held<'a, B> {
    pub fn new(backend: &'a B, base: B::Tensor, deltas: B::Tensor, size: usize, by_rows: bool) -> Self {
        Held { backend, base, deltas, size, by_rows, now: None }
    }

    /// Values of a slab.
    fn range(&self, index: usize) -> Range<usize> {
        let cols = self.base.shape().cols.max(1);
        let size = if self.by_rows { (self.size / cols).max(1) * cols } else { self.size };
        index * size..self.elements().min((index + 1) * size)
    }

    /// A slab of one's own.
    pub fn cut(&self, index: usize) -> Result<Slab<B::Tensor>> {
        let (range, cols) = (self.range(index), self.base.shape().cols);
        let part = |x: &B::Tensor| {
            let shape = x.shape();
            let flat = self.backend.duplicate(x)?.reshape(Shape::new(shape.batch, 1, shape.matrix_len()))?;
            let part = self.backend.slice(&flat, 0..shape.batch, 0..1, range.clone())?;
            match self.by_rows {
                true => part.reshape(Shape::new(shape.batch, range.len() / cols, cols)),
                false => Ok(part),
            }
        };
        Ok(Slab { base: Rc::new(part(&self.base)?), deltas: part(&self.deltas)?, first: range.start })
    }
}

impl<B: Backend> Slabs<B> for Held<'_, B> {
    type Error = Error;

    fn count(&self) -> usize {
        (0..).take_while(|&i| self.range(i).start < self.elements()).count()
    }

    fn elements(&self) -> usize {
        self.base.shape().len()
    }

    async fn slab(&mut self, index: usize) -> Result<&Slab<B::Tensor>> {
        let slab = self.cut(index)?;
        Ok(&self.now.insert((index, slab)).1)
    }
}

/// Several tensors, one after the other.
pub struct All<'a, B: Backend>(pub Vec<Held<'a, B>>);

impl<B: Backend> Slabs<B> for All<'_, B> {
    type Error = Error;

    fn count(&self) -> usize {
        self.0.iter().map(Slabs::count).sum()
    }

    fn elements(&self) -> usize {
        self.0.iter().map(Slabs::elements).sum()
    }

    async fn slab(&mut self, index: usize) -> Result<&Slab<B::Tensor>> {
        let mut index = index;
        for held in &mut self.0 {
            if index < held.count() {
                return held.slab(index).await;
            }
            index -= held.count();
        }
        Err(Error::Internal("no such slab".into()))
    }
}
