//! The words for batched matrices that the kernels and both backends share.

use std::fmt;

/// Shape of a batched matrix: `batch x rows x cols`, row-major, the batch outermost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// How many matrices.
    pub batch: usize,
    /// Rows of each.
    pub rows: usize,
    /// Columns of each, contiguous in memory.
    pub cols: usize,
}

impl Shape {
    /// `batch x rows x cols`.
    pub const fn new(batch: usize, rows: usize, cols: usize) -> Self {
        Shape { batch, rows, cols }
    }

    /// One matrix.
    pub const fn matrix(rows: usize, cols: usize) -> Self {
        Shape::new(1, rows, cols)
    }

    /// Elements of one member of the batch.
    pub const fn matrix_len(self) -> usize {
        self.rows * self.cols
    }

    /// Elements in all.
    pub const fn len(self) -> usize {
        self.batch * self.rows * self.cols
    }

    /// Whether there is no element.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Bytes as f32.
    pub const fn bytes(self) -> u64 {
        self.len() as u64 * 4
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} x {} x {}]", self.batch, self.rows, self.cols)
    }
}

/// How numbers are stored in a checkpoint. Arithmetic is always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
}

impl Dtype {
    /// Bytes of one value.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// The type of this name, in the spellings of PyTorch, mergekit and safetensors.
    pub fn from_name(name: &str) -> Option<Dtype> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" | "fp32" | "f32" | "F32" => Some(Dtype::F32),
            "float16" | "fp16" | "f16" | "F16" => Some(Dtype::F16),
            "bfloat16" | "bf16" | "BF16" => Some(Dtype::Bf16),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        })
    }
}

/// Whether a matrix enters a product as it is or transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// `X`
    None,
    /// `X^T`
    Transpose,
}

impl Op {
    /// Rows and columns of `op(X)` for an `X` of the given shape.
    pub fn apply(self, shape: Shape) -> (usize, usize) {
        match self {
            Op::None => (shape.rows, shape.cols),
            Op::Transpose => (shape.cols, shape.rows),
        }
    }
}

/// How a polarized scale `g = (v / mean v)^p` is used (the ablations of the papers; [`Polarity::Full`] is the method).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Polarity {
    /// `g`
    #[default]
    Full,
    /// `max(g, 1)`: amplify only
    Amplify,
    /// `min(g, 1)`: suppress only
    Suppress,
    /// `1 / g`, and 0 where `g` is 0
    Reversed,
}

impl Polarity {
    /// `(v / mean)^exponent`, turned; 0 where the mean is 0.
    pub fn scale(self, v: f64, mean: f64, exponent: f64) -> f64 {
        let g = if mean > 0.0 { (v / mean).powf(exponent) } else { 0.0 };
        match self {
            Polarity::Full => g,
            Polarity::Amplify => g.max(1.0),
            Polarity::Suppress => g.min(1.0),
            Polarity::Reversed if g > 0.0 => 1.0 / g,
            Polarity::Reversed => 0.0,
        }
    }
}
