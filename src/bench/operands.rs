//! What a case works on, made the same way on every device.

use super::{Case, Kernel, Size};
use crate::backend::{Backend, Dtype, Op, Result, Shape};

/// Of LayerNorm.
pub(super) const EPSILON: f32 = 1e-5;

/// Operands of any kernel; what one does not need is empty.
pub(super) struct Operands<T> {
    /// What is read.
    pub x: T,
    /// What else is read: the other factor, or the factors of a scaling.
    pub y: T,
    /// What is written, and, in place, read.
    pub out: T,
    /// Stored numbers.
    pub stored: Vec<u8>,
}

impl Case {
    /// The matrices of every case that has no depth.
    pub(super) fn shape(&self) -> Shape {
        Shape::new(self.size.batch, self.size.rows, self.size.cols)
    }
}

pub(super) async fn operands<B: Backend>(backend: &B, case: &Case) -> Result<Operands<B::Tensor>> {
    let (shape, square) = (case.shape(), Shape::new(case.size.batch, case.size.rows, case.size.rows));
    let random = |shape: Shape, stream: u32| backend.random_normal(shape, 1, stream);
    let ones = |shape: Shape| backend.upload(shape, &vec![1.0; shape.len()]);
    let nothing = || backend.zeros(Shape::matrix(0, 0));
    let mut stored = Vec::new();
    let (x, y, out) = match case.kernel {
        Kernel::Gemm(op_a, op_b) => {
            let (a, b) = factors(case.size, op_a, op_b);
            (random(a, 0)?, random(b, 1)?, backend.zeros(shape)?)
        }
        Kernel::Syrk(op) => {
            let x = if op == Op::None { shape } else { transposed(shape) };
            (random(x, 0)?, nothing()?, backend.zeros(square)?)
        }
        Kernel::Unpack => {
            stored = backend.pack(&random(shape, 0)?, case.dtype).await?;
            let mut words = stored.clone();
            words.resize(words.len().next_multiple_of(4), 0);
            let words = backend.unpack(Shape::matrix(1, words.len() / 4), Dtype::F32, &words)?;
            (words, nothing()?, backend.zeros(shape)?)
        }
        Kernel::Pack => {
            let words = (shape.len() * case.dtype.size()).div_ceil(4);
            (random(shape, 0)?, nothing()?, backend.zeros(Shape::matrix(1, words))?)
        }
        Kernel::ScaleRows => (nothing()?, ones(Shape { cols: 1, ..shape })?, random(shape, 0)?),
        Kernel::ScaleColumns => (nothing()?, ones(Shape { rows: 1, ..shape })?, random(shape, 0)?),
        Kernel::ReduceRows => (random(shape, 0)?, nothing()?, backend.zeros(Shape { cols: 1, ..shape })?),
        Kernel::ReduceColumns => (random(shape, 0)?, nothing()?, backend.zeros(Shape { rows: 1, ..shape })?),
        Kernel::InverseCholesky | Kernel::SymmetricEigen => {
            // Of more columns than rows: its condition is that of a merge's bases.
            let factor = random(Shape { cols: shape.cols + shape.cols / 2 + 1, ..shape }, 0)?;
            let values = backend.zeros(Shape { rows: 1, ..shape })?;
            (backend.gram(&factor, Op::None)?, values, backend.zeros(shape)?)
        }
        Kernel::LayerNorm => (random(shape, 0)?, ones(Shape::matrix(1, shape.cols))?, backend.zeros(shape)?),
        Kernel::Attention => {
            // The samples of a packed matrix stand one below another.
            (random(Shape::matrix(shape.batch * shape.rows, shape.cols), 0)?, nothing()?, nothing()?)
        }
        Kernel::OrthonormalizeRows | Kernel::Polar => (random(shape, 0)?, nothing()?, nothing()?),
        Kernel::LeadingEigenpairs => (decaying(backend, case.size)?, nothing()?, nothing()?),
        Kernel::Axpby | Kernel::CopyBlock | Kernel::RandomNormal => {
            (random(shape, 0)?, nothing()?, random(shape, 1)?)
        }
    };
    Ok(Operands { x, y, out, stored })
}

/// `X`, `N x D`, whose columns shrink like 1 / sqrt(j): so do the singular values, about.
fn decaying<B: Backend>(backend: &B, size: Size) -> Result<B::Tensor> {
    let mut x = backend.random_normal(Shape::new(size.batch, size.depth.unwrap_or(0), size.cols), 1, 0)?;
    let scale: Vec<f32> = (1..=size.cols).map(|j| 1.0 / (j as f32).sqrt()).collect();
    backend.scale_columns(&mut x, &backend.upload(Shape::matrix(1, size.cols), &scale)?)?;
    Ok(x)
}

/// Shapes of both factors of a product, as they lie.
fn factors(size: Size, op_a: Op, op_b: Op) -> (Shape, Shape) {
    let depth = size.depth.unwrap_or(0);
    let (a, b) = (Shape::new(size.batch, size.rows, depth), Shape::new(size.batch, depth, size.cols));
    let stored = |shape: Shape, op: Op| if op == Op::None { shape } else { transposed(shape) };
    (stored(a, op_a), stored(b, op_b))
}

fn transposed(shape: Shape) -> Shape {
    Shape::new(shape.batch, shape.cols, shape.rows)
}
