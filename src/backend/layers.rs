//! The operations of a forward pass, on the same batched tensor as the linear algebra.
//!
//! Hidden states are *packed*: the tokens of all samples stand one below another in one matrix `1 x n x d`, without
//! padding, and [`Layers::Segments`] says which rows belong to which sample. A linear layer is then one product, its
//! input is exactly what calibration wants, and only attention and pooling need to know the samples.

use super::{Backend, Result, Shape, Tensor};
pub use crate::kernels::Activation;

/// What kind of attention is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads; the columns of `q` are `heads x head_dim`.
    pub heads: usize,
    /// Key and value heads; query head `h` reads key head `h / (heads / key_heads)` (grouped queries).
    pub key_heads: usize,
    /// Whether a token sees only itself and those before it in its sample.
    pub causal: bool,
    /// The most tokens that a token sees in one direction, itself included; `None` for all.
    pub window: Option<usize>,
    /// Factor of the scores, as a rule `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// `cap tanh(s / cap)` in place of every score `s` (Gemma 2); `None` leaves them.
    pub cap: Option<f32>,
}

impl Attention {
    /// Whether queries, keys, values and positions fit it, for samples of at most `longest` tokens.
    pub(super) fn fits(&self, [q, k, v]: [Shape; 3], positions: Option<Shape>, longest: usize) -> bool {
        let Attention { heads, key_heads, .. } = *self;
        let grouped = key_heads > 0 && heads > 0 && heads.is_multiple_of(key_heads);
        grouped
            && q.batch == 1
            && q.cols.is_multiple_of(heads)
            && k == Shape::matrix(q.rows, key_heads * (q.cols / heads))
            && v == k
            && positions.is_none_or(|p| {
                p == Shape::new(heads, 1, p.cols) && p.cols % 2 == 1 && p.cols / 2 + 1 >= longest
            })
    }
}

/// The layers of a transformer's forward pass. Shapes that do not fit give [`Error::Shape`](super::Error::Shape).
pub trait Layers: Backend {
    /// Which rows of a packed matrix belong to which sample, on the device.
    type Segments;

    /// Segments of the given lengths, one after another.
    fn segments(&self, lengths: &[usize]) -> Result<Self::Segments>;

    /// `out[i, :] = x[rows[i], :]`: an embedding, or the choice of some tokens. `x` is `1 x n x d`.
    fn gather_rows(&self, x: &Self::Tensor, rows: &[u32]) -> Result<Self::Tensor>;

    /// Non-overlapping square patches as rows (the im2col of a convolution whose stride is its kernel): `images` is
    /// `(samples * channels) x height x width`, the result `1 x (samples * patches) x (channels * size * size)`, patches row
    /// by row, a patch's values ordered `channel, y, x` as in a convolution's weight.
    fn patches(&self, images: &Self::Tensor, channels: usize, size: usize) -> Result<Self::Tensor>;

    /// `(x - mean) / sqrt(variance + epsilon) * weight + bias` in every row; `weight` and `bias` are `1 x 1 x d`.
    fn layer_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: &Self::Tensor,
        epsilon: f32,
    ) -> Result<Self::Tensor>;

    /// `x / sqrt(mean(x^2) + epsilon) * weight` in every row; `weight` is `1 x 1 x d`.
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Tensor, epsilon: f32) -> Result<Self::Tensor>;

    /// `x[b, i, j] += bias[j]`, with `bias` of shape `1 x 1 x cols`.
    fn add_bias(&self, x: &mut Self::Tensor, bias: &Self::Tensor) -> Result<()>;

    /// `x = activation(x)`.
    fn activate(&self, x: &mut Self::Tensor, activation: Activation) -> Result<()>;

    /// `gate = activation(gate) * up`, element by element: SwiGLU and its kin.
    fn activate_gated(
        &self,
        gate: &mut Self::Tensor,
        up: &Self::Tensor,
        activation: Activation,
    ) -> Result<()>;

    /// Rotary position embedding in the Llama layout: in every head of row `i` the pair `(x_j, x_(j+h))` is turned by the
    /// angle whose cosine and sine are `cos[i, j]` and `sin[i, j]`. The tables are `1 x n x h`; what a head has beyond its
    /// first `2 h` columns stays. The columns of `x` are a multiple of `head_dim`.
    fn rotary(
        &self,
        x: &mut Self::Tensor,
        cos: &Self::Tensor,
        sin: &Self::Tensor,
        head_dim: usize,
    ) -> Result<()>;

    /// `softmax(scale q k^T + p) v` in every sample and head, without ever holding all scores: `q` is
    /// `1 x n x (heads * head_dim)`, `k` and `v` are `1 x n x (key_heads * head_dim)`, the result has the shape of `q`.
    /// Where there are `positions`, `heads x 1 x (2 m - 1)` with `m` at least as long as every sample, `p_ij` is column
    /// `m - 1 + j - i` of the head's row; else 0.
    fn attention(
        &self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
        segments: &Self::Segments,
        attention: Attention,
        positions: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// The mean row of every segment, `1 x samples x d`.
    fn mean_rows(&self, x: &Self::Tensor, segments: &Self::Segments) -> Result<Self::Tensor>;

    /// Scales every row to unit Euclidean length; zero rows stay.
    fn normalize_rows(&self, x: &mut Self::Tensor) -> Result<()> {
        let norms = self.row_norms(x)?;
        self.divide_rows(x, &norms)
    }

    /// `high + low += x^T x` for `x` of `1 x n x d`: a Gram matrix summed over slabs of tokens to about twice the
    /// precision of f32, as the unevaluated sum of two `1 x d x d` matrices of which `high` is the nearest f32.
    fn accumulate_gram(
        &self,
        x: &Self::Tensor,
        high: &mut Self::Tensor,
        low: &mut Self::Tensor,
    ) -> Result<()>;

    /// `y += x`: a residual connection.
    fn add(&self, x: &Self::Tensor, y: &mut Self::Tensor) -> Result<()> {
        self.axpby(1.0, x, 1.0, y)
    }

    /// A matrix of the rows of `parts`, one below another; all have one batch and the same columns.
    fn stack_rows(&self, parts: &[&Self::Tensor]) -> Result<Self::Tensor> {
        let rows = parts.iter().map(|p| p.shape().rows).sum();
        let cols = parts.first().map_or(0, |p| p.shape().cols);
        let mut out = self.zeros(Shape::matrix(rows, cols))?;
        let mut at = 0;
        for part in parts {
            let s = part.shape();
            self.copy_block(part, [0; 3], &mut out, [0, at, 0], [1, s.rows, s.cols])?;
            at += s.rows;
        }
        Ok(out)
    }
}
