//! The encoder of T5: RMS norms, no positions but what scores get for how far a key is from the query.

use super::super::{
    After, Block, Config, Error, FeedForward, Gated, InputKind, Loader, Order, Part, Pooling, Qkv, Result,
    Samples, SelfAttention, WayIn, Weights, prefix_of,
};
use super::text::Packed;
use super::{Architecture, Sizes, pool_normed};
use crate::backend::Shape;
use crate::backend::layers::{Activation, Attention, Layers};
use std::rc::Rc;

/// Sizes of an encoder.
pub struct T5 {
    prefix: &'static str,
    blocks: usize,
    hidden: usize,
    wide: usize,
    heads: usize,
    head_dim: usize,
    vocabulary: usize,
    buckets: usize,
    farthest: usize,
    gated: bool,
    activation: Activation,
    epsilon: f32,
}

/// Where the first block keeps what scores get: a row a bucket, a column a head.
const POSITIONS: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";

impl T5 {
    pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<T5> {
        let prefix = prefix_of(weights, &["", "transformer."], "encoder.final_layer_norm.weight")
            .ok_or_else(|| Error::MissingTensor("encoder.final_layer_norm.weight".into()))?;
        let feed_forward = config.text("feed_forward_proj").unwrap_or("relu");
        let gated = feed_forward.strip_prefix("gated-");
        let activation = match gated.unwrap_or(feed_forward) {
            // what transformers takes `gated-gelu` for
            "gelu" if gated.is_some() => Activation::GeluTanh,
            "gelu" => Activation::Gelu,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            other => {
                let found = format!("the activation `{other}` (`feed_forward_proj`) is not known");
                return Err(Error::Unsupported { found });
            }
        };
        let buckets = config.size_or("relative_attention_num_buckets", 32)?;
        let farthest = config.size_or("relative_attention_max_distance", 128)?;
        if buckets < 4 || farthest <= buckets / 4 {
            return Err(Error::Config(format!(
                "{buckets} buckets (`relative_attention_num_buckets`) do not reach to a distance of {farthest}"
            )));
        }
        Ok(T5 {
            prefix,
            blocks: config.blocks("num_layers")?,
            hidden: config.size("d_model")?,
            wide: config.size("d_ff")?,
            heads: config.size("num_heads")?,
            head_dim: config.size("d_kv")?,
            vocabulary: config.size("vocab_size")?,
            buckets,
            farthest,
            gated: gated.is_some(),
            activation,
            epsilon: config.number_or("layer_norm_epsilon", 1e-6)? as f32,
        })
    }

    /// What scores get for relative positions in samples of up to so many tokens.
    fn positions<B: Layers>(&self, backend: &B, weights: &dyn Weights, longest: usize) -> Result<B::Tensor> {
        let name = format!("{}{POSITIONS}", self.prefix);
        let expected = vec![self.buckets, self.heads];
        match weights.shape(&name) {
            None => return Err(Error::MissingTensor(name)),
            Some(found) if found != expected => return Err(Error::TensorShape { name, found, expected }),
            Some(_) => {}
        }
        let table = weights.read(&name, 0..self.buckets * self.heads)?.to_f32();
        let reach = longest.max(1) as isize;
        let mut values = Vec::with_capacity(self.heads * (2 * longest).saturating_sub(1));
        for head in 0..self.heads {
            let of = |key_after_query| {
                table[bucket(key_after_query, self.buckets, self.farthest) * self.heads + head]
            };
            values.extend((1 - reach..reach).map(of));
        }
        Ok(backend.upload(Shape::new(self.heads, 1, (2 * reach - 1) as usize), &values)?)
    }
}

/// The bucket of a distance, counted from the query to the key: half of the buckets are for keys after the query; of each half
/// one half has a distance each, the other is spaced by logarithms up to the farthest. In f32, as the library computes it.
fn bucket(distance: isize, buckets: usize, farthest: usize) -> usize {
    let half = buckets / 2;
    let side = if distance > 0 { half } else { 0 };
    let distance = distance.unsigned_abs();
    let exact = half / 2;
    if distance < exact {
        return side + distance;
    }
    let span = (farthest as f64 / exact as f64).ln() as f32;
    let beyond = (distance as f32 / exact as f32).ln() / span * (half - exact) as f32;
    side + (exact + beyond as usize).min(half - 1)
}

impl<B: Layers> Architecture<B> for T5 {
    fn sizes(&self) -> Sizes {
        let hidden = self.hidden;
        let inputs = InputKind::Text { vocabulary: self.vocabulary, longest: None, types: None };
        let widest = self.wide.max(self.heads * self.head_dim);
        Sizes { blocks: self.blocks, hidden, features: hidden, widest, inputs }
    }

    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>> {
        let load = Loader::new(backend, weights, self.prefix);
        let packed = Packed::new(samples, None)?;
        let longest = packed.lengths.iter().copied().max().unwrap_or(0);
        let positions = Some(Rc::new(self.positions(backend, weights, longest)?));
        let table = if load.has("shared.weight") { "shared.weight" } else { "encoder.embed_tokens.weight" };
        let hidden = load.embedding(table, self.hidden, &packed.ids)?;
        Ok(Part { positions, ..packed.embedded(backend, hidden)? })
    }

    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>> {
        let (load, d, wide) = (Loader::new(backend, weights, self.prefix), self.hidden, self.wide);
        let at = format!("encoder.block.{index}.layer");
        let linear = |name: &str, d_in, d_out| load.linear(&format!("{at}.{name}"), d_in, d_out);
        let norm = |name: &str| load.rms_norm(&format!("{at}.{name}"), d, self.epsilon);
        let inner = self.heads * self.head_dim;
        let (down, activation) = (linear("1.DenseReluDense.wo", wide, d)?, self.activation);
        Ok(Block {
            order: Order::NormFirst,
            attention: SelfAttention {
                qkv: Qkv::Separate([
                    linear("0.SelfAttention.q", d, inner)?,
                    linear("0.SelfAttention.k", d, inner)?,
                    linear("0.SelfAttention.v", d, inner)?,
                ]),
                head_norms: None,
                rotary: None,
                out: linear("0.SelfAttention.o", inner, d)?,
                // the scale is in the weights
                attention: Attention {
                    heads: self.heads,
                    key_heads: self.heads,
                    causal: false,
                    window: None,
                    scale: 1.0,
                    cap: None,
                },
            },
            attention_norm: norm("0.layer_norm")?,
            after_attention: After::Nothing,
            feed_forward: if self.gated {
                let [gate, up] =
                    ["wi_0", "wi_1"].map(|name| linear(&format!("1.DenseReluDense.{name}"), d, wide));
                let way_in = WayIn::Separate { gate: gate?, up: up? };
                FeedForward::Gated(Gated { way_in, down, activation })
            } else {
                FeedForward::Plain { up: linear("1.DenseReluDense.wi", d, wide)?, down, activation }
            },
            feed_forward_norm: norm("1.layer_norm")?,
            after_feed_forward: After::Nothing,
        })
    }

    /// After the last norm, the mean of the tokens unless the task pools otherwise.
    fn features(
        &self,
        backend: &B,
        weights: &dyn Weights,
        part: &Part<B>,
        pooling: Option<Pooling>,
    ) -> Result<B::Tensor> {
        let load = Loader::new(backend, weights, self.prefix);
        let norm = load.rms_norm("encoder.final_layer_norm", self.hidden, self.epsilon)?;
        pool_normed(backend, &norm, part, pooling.unwrap_or(Pooling::Mean))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_the_paper() {
        let of =
            |distances: &[isize]| -> Vec<usize> { distances.iter().map(|&d| bucket(d, 32, 128)).collect() };
        assert_eq!(
            of(&[0, -1, -7, -8, -11, -12, -16, -127, -128, -5000]),
            [0, 1, 7, 8, 8, 9, 10, 15, 15, 15]
        );
        assert_eq!(of(&[1, 7, 8, 12, 16, 32, 64, 128, 5000]), [17, 23, 24, 25, 26, 28, 30, 31, 31]);
    }
}
