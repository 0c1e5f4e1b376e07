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

/// A place in the order of a row's magnitudes, the largest first and among equal ones the first in the row: before the cut lie
/// those above `bits`, and those of exactly these bits in the places before `places`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "merge", derive(serde::Serialize, serde::Deserialize))]
pub struct Cut {
    /// The 31 bits of a magnitude.
    pub bits: u32,
    /// How many places of the row count.
    pub places: u32,
}

impl Cut {
    /// Everything lies before it.
    pub const END: Cut = Cut { bits: 0, places: u32::MAX };
    /// Nothing lies before it.
    pub const START: Cut = Cut { bits: u32::MAX, places: 0 };

    /// The smallest magnitude at a place that lies before it, in bits; more than any has where none does.
    pub fn least(self, place: usize) -> u32 {
        if place < self.places as usize { self.bits } else { self.bits.saturating_add(1) }
    }

    /// The same cut for a part of the row that begins at the place `first`.
    pub fn from(self, first: usize) -> Cut {
        let places = (self.places as usize).saturating_sub(first);
        Cut { bits: self.bits, places: if self.places == u32::MAX { u32::MAX } else { places as u32 } }
    }
}

/// With what probability a number stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chance {
    /// Of the generator; another for every tensor of every model.
    pub key: u64,
    /// The probability in units of `2^-24`: of all numbers, or of the smallest of a row.
    pub least: u32,
    /// What is added to it for the largest of a row; linear in the rank between.
    pub span: u32,
}

impl Chance {
    /// A probability in units of `2^-24`.
    pub fn units(probability: f64) -> u32 {
        (probability.clamp(0.0, 1.0) * f64::from(1 << 24)).round() as u32
    }
}

/// What a sum of elected numbers is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divide {
    /// Nothing.
    Never,
    /// The sum of the agreeing weights, unless that is 0.
    UnlessZero,
    /// The same, or 1e-6 if that is more.
    BySome,
}

/// What T tasks make of each element together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Across<'a> {
    /// `sum_t w_t x_t`
    Weigh(&'a [f32]),
    /// 1 where `sum_t v_t x_t > 0`, else 0.
    Positive(&'a [f32]),
    /// `sum_t w_t x_t` over the tasks whose `v_t x_t` has the sign of `sum_t v_t x_t`, + where that is 0; the first T factors
    /// are the votes `v`, the others the weights `w`.
    Elect {
        /// `v`, then `w`.
        factors: &'a [f32],
        /// Whether the sum is divided by the agreeing weights.
        divide: Divide,
    },
    /// A task has the element where `|x_t| > epsilon`: the mean of those that have it, `f_t x_t` where one alone does, else 0.
    Share {
        /// What counts as zero.
        epsilon: f32,
        /// `f`
        factors: &'a [f32],
    },
    /// 1 where a task has the element alone, or (`shared`) together with another; else 0.
    Having {
        /// What counts as zero.
        epsilon: f32,
        /// The task.
        task: usize,
        /// Whether it is to be together with another.
        shared: bool,
    },
    /// `sum_t x_t` where `|x_t| > f_t |sum_s x_s - x_t|` in `least` tasks or more, else 0.
    Agree {
        /// `f`
        factors: &'a [f32],
        /// How many.
        least: usize,
    },
    /// The population variance.
    Variance,
    /// `x clamp(t / max(|x|, 1e-6), 0, 1)` of the first task.
    Approach(f32),
}

impl Across<'_> {
    /// The factors that the rule needs of T tasks.
    pub fn factors(&self) -> &[f32] {
        match self {
            Across::Weigh(factors)
            | Across::Positive(factors)
            | Across::Elect { factors, .. }
            | Across::Share { factors, .. }
            | Across::Agree { factors, .. } => factors,
            Across::Having { .. } | Across::Variance | Across::Approach(_) => &[],
        }
    }

    /// How many factors it needs of so many tasks.
    pub(crate) fn needs(&self, tasks: usize) -> usize {
        match self {
            Across::Weigh(_) | Across::Positive(_) | Across::Share { .. } | Across::Agree { .. } => tasks,
            Across::Elect { .. } => 2 * tasks,
            Across::Having { .. } | Across::Variance | Across::Approach(_) => 0,
        }
    }
}
