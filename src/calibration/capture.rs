//! The inputs of an expert's linear layers, captured block by block while its samples pass.

use super::Entry;
use crate::backend::layers::Layers;
use crate::backend::{Backend, Shape, Tensor};
use crate::model::{Error, Hidden, Model, NoTap, Part, Result, Samples, Tap, not_finite};

/// An expert on its way through its samples. Each call of [`next_block`](Capture::next_block) gives the inputs of one
/// more block; no more than one block's inputs are in memory.
pub struct Capture<'a, B: Layers> {
    backend: &'a B,
    model: Model<'a, B>,
    hidden: Hidden<B>,
    next: usize,
    tokens: usize,
    max_size: u64,
}

/// Inputs of one weight, and the weights that share them.
#[derive(Clone, Debug, PartialEq)]
pub struct Captured {
    /// The weight.
    pub weight: String,
    /// Others with the same inputs.
    pub sharing: Vec<String>,
    /// The inputs.
    pub entry: Entry,
}

impl Captured {
    /// Whether these are the inputs of a weight.
    pub fn is_of(&self, weight: &str) -> bool {
        self.weight == weight || self.sharing.iter().any(|other| other == weight)
    }

    /// The same inputs under other names: `names` gives each weight's, one or several.
    pub fn renamed(self, names: impl Fn(&str) -> Vec<String>) -> Captured {
        let mut all: Vec<String> = Vec::new();
        for own in std::iter::once(&self.weight).chain(&self.sharing) {
            let new = names(own).into_iter().filter(|name| !all.contains(name)).collect::<Vec<_>>();
            all.extend(new);
        }
        let mut all = all.into_iter();
        Captured { weight: all.next().unwrap_or(self.weight), sharing: all.collect(), entry: self.entry }
    }
}

/// Bytes of a calibration past which Gram matrices take the place of tokens, unless the user says otherwise.
pub const MAX_SIZE: u64 = 2 << 30;

impl<'a, B: Layers> Capture<'a, B> {
    /// Embeds the samples. `max_size` is what raw tokens of all blocks may take in bytes; past it, the layers that save
    /// most by it are given as Gram matrices.
    pub fn new(backend: &'a B, model: Model<'a, B>, samples: &Samples, max_size: u64) -> Result<Self> {
        let tokens = model.tokens(samples)?.iter().sum();
        let hidden = model.embed(samples)?;
        Ok(Capture { backend, model, hidden, next: 0, tokens, max_size })
    }

    /// The same, of samples that pass another model's embedding and blocks ([`pass`](Capture::pass)) before they come to a block of
    /// this one ([`inputs_here`](Capture::inputs_here)).
    pub fn behind(
        before: &Model<'_, B>,
        backend: &'a B,
        model: Model<'a, B>,
        samples: &Samples,
        max_size: u64,
    ) -> Result<Self> {
        let tokens = model.tokens(samples)?.iter().sum();
        let hidden = before.embed(samples)?;
        Ok(Capture { backend, model, hidden, next: 0, tokens, max_size })
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.model.blocks()
    }

    /// The block whose inputs come next.
    pub fn next_index(&self) -> usize {
        self.next
    }

    /// Runs the next block and gives the inputs of its layers for which `wanted` says so, in the order in which they
    /// take them. Which of them are Gram matrices does not depend on `wanted`.
    pub async fn next_block(&mut self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Captured>> {
        let captured = self.through_next(&wanted).await?;
        self.next += 1;
        Ok(captured)
    }

    /// The inputs of the next block's layers as [`next_block`](Capture::next_block) gives them, without going on.
    pub async fn inputs_here(&mut self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Captured>> {
        let before = self.model.copy(&self.hidden)?;
        let captured = self.through_next(&wanted).await;
        self.hidden = before;
        captured
    }

    /// Goes on through the next block of another model.
    pub async fn pass(&mut self, other: &Model<'_, B>) -> Result<()> {
        other.block(self.next, &mut self.hidden, &mut NoTap).await?;
        self.next += 1;
        Ok(())
    }

    /// Runs the next block and looks at nothing.
    pub async fn skip_block(&mut self) -> Result<()> {
        self.model.block(self.next, &mut self.hidden, &mut NoTap).await?;
        self.next += 1;
        Ok(())
    }

    async fn through_next(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Captured>> {
        let block = self.model.load_block(self.next)?;
        let as_gram = self.grams(&block.inputs());
        let mut tap = Collector { backend: self.backend, wanted, as_gram: &as_gram, layers: Vec::new() };
        self.model.apply_block(&block, &mut self.hidden, &mut tap).await?;
        drop(block);
        let mut captured = Vec::new();
        for layer in tap.layers {
            captured.push(layer.finish(self.backend).await?);
        }
        Ok(captured)
    }

    /// Which weights' inputs become Grams: those that save most, until a block's share of `max_size` is kept.
    fn grams(&self, inputs: &[(&str, usize)]) -> Vec<String> {
        let raw = |d: usize| 4 * self.tokens as u64 * d as u64;
        let gram = |d: usize| 4 * (d as u64).pow(2);
        let budget = self.max_size / self.blocks().max(1) as u64;
        let mut total: u64 = inputs.iter().map(|&(_, d)| raw(d)).sum();
        let mut by_saving: Vec<(u64, &str)> =
            inputs.iter().map(|&(name, d)| (raw(d).saturating_sub(gram(d)), name)).collect();
        by_saving.sort_by(|a, b| b.cmp(a));
        let mut chosen = Vec::new();
        for (saving, name) in by_saving {
            if total <= budget || saving == 0 {
                break;
            }
            total -= saving;
            chosen.push(name.to_owned());
        }
        chosen
    }
}

/// Collects inputs as they pass.
struct Collector<'a, B: Backend> {
    backend: &'a B,
    wanted: &'a dyn Fn(&str) -> bool,
    as_gram: &'a [String],
    layers: Vec<Layer<B>>,
}

/// What has been seen of one layer.
struct Layer<B: Backend> {
    names: Vec<String>,
    d_in: usize,
    /// So far: fewer than the samples have, where an expert of a mixture sees some of them.
    tokens: usize,
    statistic: Statistic<B>,
    /// Of all tokens so far.
    sum: Vec<f64>,
}

enum Statistic<B: Backend> {
    /// One matrix a part of the samples.
    Tokens(Vec<B::Tensor>),
    /// `X^T X` as `high + low`.
    Gram { high: B::Tensor, low: B::Tensor, sums: Vec<(usize, B::Tensor)> },
}

impl<B: Layers> Tap<B> for Collector<'_, B> {
    async fn input(&mut self, weights: &[&str], x: &B::Tensor, _part: &Part<B>) -> Result<()> {
        if !weights.iter().any(|w| (self.wanted)(w)) {
            return Ok(());
        }
        let at = match self.layers.iter().position(|l| l.names[0] == weights[0]) {
            Some(at) => at,
            None => {
                self.layers.push(self.layer(weights, x.shape().cols)?);
                self.layers.len() - 1
            }
        };
        self.layers[at].tokens += x.shape().rows;
        match &mut self.layers[at].statistic {
            Statistic::Tokens(parts) => parts.push(self.backend.duplicate(x)?),
            Statistic::Gram { high, low, sums } => {
                self.backend.accumulate_gram(x, high, low)?;
                let whole = self.backend.segments(&[x.shape().rows])?;
                sums.push((x.shape().rows, self.backend.mean_rows(x, &whole)?));
            }
        }
        Ok(())
    }
}

impl<B: Layers> Collector<'_, B> {
    fn layer(&self, weights: &[&str], d_in: usize) -> Result<Layer<B>> {
        let statistic = if self.as_gram.iter().any(|name| name == weights[0]) {
            let square = Shape::matrix(d_in, d_in);
            let (high, low) = (self.backend.zeros(square)?, self.backend.zeros(square)?);
            Statistic::Gram { high, low, sums: Vec::new() }
        } else {
            Statistic::Tokens(Vec::new())
        };
        let names = weights.iter().map(|&w| w.to_owned()).collect();
        Ok(Layer { names, d_in, tokens: 0, statistic, sum: vec![0.0; d_in] })
    }
}

impl<B: Layers> Layer<B> {
    /// Reads everything back; the prototype is summed in f64.
    async fn finish(mut self, backend: &B) -> Result<Captured> {
        let tokens = self.tokens;
        let mut entry = Entry { tokens, d_in: self.d_in, ..Entry::default() };
        match self.statistic {
            Statistic::Tokens(parts) => {
                let mut all = Vec::with_capacity(tokens * self.d_in);
                for part in parts {
                    all.extend(backend.download(&part).await?);
                }
                for token in all.chunks(self.d_in) {
                    self.sum.iter_mut().zip(token).for_each(|(s, &v)| *s += f64::from(v));
                }
                entry.input = Some(all);
            }
            Statistic::Gram { high, sums, .. } => {
                for (rows, mean) in sums {
                    let mean = backend.download(&mean).await?;
                    self.sum.iter_mut().zip(mean).for_each(|(s, v)| *s += rows as f64 * f64::from(v));
                }
                entry.gram = Some(backend.download(&high).await?);
            }
        }
        entry.mean = Some(self.sum.iter().map(|s| (s / tokens as f64) as f32).collect());
        let weight = self.names.remove(0);
        for values in [&entry.input, &entry.gram, &entry.mean].into_iter().flatten() {
            if let Some((_, value)) = not_finite(values) {
                return Err(Error::not_finite_input(&weight, value));
            }
        }
        Ok(Captured { weight, sharing: self.names, entry })
    }
}
