//! Where a model's weights come from, and how they come to the device.

use super::{Error, Linear, Norm, Result};
use crate::backend::layers::Layers;
use crate::backend::{Backend, Dtype, Op, Shape};
use std::ops::Range;

/// Why weights could not be read: whatever the source says.
pub type WeightsError = Box<dyn std::error::Error + Send + Sync>;

/// Values as they are stored, little-endian.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Their type.
    pub dtype: Dtype,
    /// The values.
    pub bytes: Vec<u8>,
}

impl Stored {
    /// The values as f32, exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        let pairs = || self.bytes.chunks_exact(2);
        match self.dtype {
            Dtype::F32 => bytemuck::pod_collect_to_vec(&self.bytes),
            Dtype::F16 => pairs().map(|p| half::f16::from_le_bytes([p[0], p[1]]).to_f32()).collect(),
            Dtype::Bf16 => pairs().map(|p| half::bf16::from_le_bytes([p[0], p[1]]).to_f32()).collect(),
        }
    }
}

/// A source of weights that gives one tensor, or a part of it, at a time.
pub trait Weights {
    /// The shape of a tensor; `None` if there is none of this name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The values `range` of the flattened tensor.
    fn read(&self, name: &str, range: Range<usize>) -> std::result::Result<Stored, WeightsError>;
}

/// Brings weights to the device, checked against the shapes that the configuration implies.
pub struct Loader<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    weights: &'a dyn Weights,
    /// What stands before every name: `bert.`, or nothing.
    prefix: &'a str,
}

impl<'a, B: Layers> Loader<'a, B> {
    /// A loader of the tensors whose names begin with `prefix`.
    pub fn new(backend: &'a B, weights: &'a dyn Weights, prefix: &'a str) -> Self {
        Loader { backend, weights, prefix }
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.weights.shape(&self.full(name)).is_some()
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let name = self.full(name);
        self.weights.shape(&name).ok_or(Error::MissingTensor(name))
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A whole tensor of the given shape, as `rows x cols` on the device; `rows` is the product of all but the last
    /// `flatten` dimensions.
    fn tensor(&self, name: &str, expected: &[usize], rows: usize) -> Result<B::Tensor> {
        let full = self.full(name);
        let found = self.weights.shape(&full).ok_or_else(|| Error::MissingTensor(full.clone()))?;
        if found != expected {
            return Err(Error::TensorShape { name: full, found, expected: expected.to_vec() });
        }
        let n: usize = expected.iter().product();
        let stored = self.weights.read(&full, 0..n)?;
        let shape = Shape::matrix(rows, n / rows.max(1));
        Ok(self.backend.unpack(shape, stored.dtype, &stored.bytes)?)
    }

    /// A matrix, `1 x rows x cols`.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<B::Tensor> {
        self.tensor(name, &[rows, cols], rows)
    }

    /// A vector, `1 x 1 x d`.
    pub fn vector(&self, name: &str, d: usize) -> Result<B::Tensor> {
        self.tensor(name, &[d], 1)
    }

    /// The weight of a convolution over patches, `1 x d x (channels size size)`.
    pub fn patch_weight(&self, name: &str, d: usize, channels: usize, size: usize) -> Result<B::Tensor> {
        self.tensor(name, &[d, channels, size, size], d)
    }

    /// A tensor with the given dimensions of size 1 in front of a `rows x cols` matrix, as that matrix.
    pub fn with_leading_ones(&self, name: &str, ones: usize, rows: usize, cols: usize) -> Result<B::Tensor> {
        let expected: Vec<usize> = std::iter::repeat_n(1, ones).chain([rows, cols]).collect();
        self.tensor(name, &expected, rows)
    }

    /// Some rows of a table of embeddings, in the order asked for. Only those rows are read.
    pub fn embedding(&self, name: &str, d: usize, ids: &[u32]) -> Result<B::Tensor> {
        let shape = self.shape(name)?;
        if shape.len() != 2 || shape[1] != d {
            let expected = vec![shape.first().copied().unwrap_or(0), d];
            return Err(Error::TensorShape { name: self.full(name), found: shape, expected });
        }
        let mut wanted = ids.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        if let Some(&outside) = wanted.last().filter(|&&id| id as usize >= shape[0]) {
            return Err(Error::Samples(format!(
                "a sample holds the id {outside}, but the table `{}` has only {} rows; was it made by another \
                 tokenizer?",
                self.full(name),
                shape[0]
            )));
        }
        let table = self.rows(&self.full(name), d, &wanted)?;
        let at: Vec<u32> = ids.iter().map(|id| wanted.partition_point(|w| w < id) as u32).collect();
        Ok(self.backend.gather_rows(&table, &at)?)
    }

    /// Rows of a matrix, ascending, read run by run.
    fn rows(&self, name: &str, d: usize, rows: &[u32]) -> Result<B::Tensor> {
        let mut table: Option<Stored> = None;
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let first = run[0] as usize;
            let mut part = self.weights.read(name, first * d..(first + run.len()) * d)?;
            match &mut table {
                None => table = Some(part),
                Some(table) => table.bytes.append(&mut part.bytes),
            }
        }
        let Stored { dtype, bytes } = table.unwrap_or(Stored { dtype: Dtype::F32, bytes: Vec::new() });
        Ok(self.backend.unpack(Shape::matrix(rows.len(), d), dtype, &bytes)?)
    }

    /// The linear layer `name.weight`, with `name.bias` if there is one.
    pub fn linear(&self, name: &str, d_in: usize, d_out: usize) -> Result<Linear<B>> {
        self.linear_named(&format!("{name}.weight"), &format!("{name}.bias"), d_in, d_out)
    }

    /// A linear layer whose weight and bias have names of their own.
    pub fn linear_named(&self, weight: &str, bias: &str, d_in: usize, d_out: usize) -> Result<Linear<B>> {
        let bias = if self.has(bias) { Some(self.vector(bias, d_out)?) } else { None };
        let matrix = self.matrix(weight, d_out, d_in)?;
        Ok(Linear { name: self.full(weight), weight: matrix, bias, op: Op::Transpose })
    }

    /// The linear layer `name.weight`, whose weight is stored as `d_in x d_out` (`Conv1D`).
    pub fn linear_across(&self, name: &str, d_in: usize, d_out: usize) -> Result<Linear<B>> {
        let (weight, bias) = (format!("{name}.weight"), self.vector(&format!("{name}.bias"), d_out)?);
        let matrix = self.matrix(&weight, d_in, d_out)?;
        Ok(Linear { name: self.full(&weight), weight: matrix, bias: Some(bias), op: Op::None })
    }

    /// Whether there is a tensor of this name that holds a matrix for each expert of a mixture.
    pub fn has_of_all(&self, name: &str) -> bool {
        self.has(&of_all(name, 0))
    }

    /// The linear layer of one expert of a mixture, whose tensor `name` holds those of all.
    pub fn linear_of_all(&self, name: &str, expert: usize, d_in: usize, d_out: usize) -> Result<Linear<B>> {
        let name = of_all(name, expert);
        let weight = self.matrix(&name, d_out, d_in)?;
        Ok(Linear { name: self.full(&name), weight, bias: None, op: Op::Transpose })
    }

    /// The layer norm `name.weight`, `name.bias`.
    pub fn layer_norm(&self, name: &str, d: usize, epsilon: f32) -> Result<Norm<B>> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        Ok(Norm::Layer { weight: self.vector(&weight, d)?, bias: self.vector(&bias, d)?, epsilon })
    }

    /// The layer norm `name.weight`, and `name.bias` where there is one.
    pub fn layer_norm_without_bias(&self, name: &str, d: usize, epsilon: f32) -> Result<Norm<B>> {
        if self.has(&format!("{name}.bias")) {
            return self.layer_norm(name, d, epsilon);
        }
        let bias = self.backend.zeros(Shape::matrix(1, d))?;
        Ok(Norm::Layer { weight: self.vector(&format!("{name}.weight"), d)?, bias, epsilon })
    }

    /// The RMS norm `name.weight`.
    pub fn rms_norm(&self, name: &str, d: usize, epsilon: f32) -> Result<Norm<B>> {
        Ok(Norm::Rms { weight: self.vector(&format!("{name}.weight"), d)?, epsilon })
    }

    /// The RMS norm whose weight is `1 + name.weight` (Gemma).
    pub fn rms_norm_from_one(&self, name: &str, d: usize, epsilon: f32) -> Result<Norm<B>> {
        let mut weight = self.backend.upload(Shape::matrix(1, d), &vec![1.0; d])?;
        self.backend.axpby(1.0, &self.vector(&format!("{name}.weight"), d)?, 1.0, &mut weight)?;
        Ok(Norm::Rms { weight, epsilon })
    }
}

/// What a source of weights calls the matrix of one expert in a tensor of all.
fn of_all(name: &str, expert: usize) -> String {
    format!("{name}[{expert}]")
}

/// The first of some prefixes under which a tensor is found.
pub fn prefix_of<'p>(weights: &dyn Weights, candidates: &[&'p str], probe: &str) -> Option<&'p str> {
    candidates.iter().copied().find(|prefix| weights.shape(&format!("{prefix}{probe}")).is_some())
}
