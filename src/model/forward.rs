//! Samples through a model, block by block.

use super::architectures::{self, Architecture};
use super::finite::{Finder, not_finite};
use super::{Block, Config, Error, InputKind, Pooling, Result, Samples, Weights};
use crate::backend::layers::Layers;
use std::ops::Range;
use std::rc::Rc;

/// Stands where tokens enter and leave the linear layers of the blocks.
#[allow(async_fn_in_trait)] // driven on the calling thread, like every future here
pub trait Tap<B: Layers> {
    /// All samples, part by part, will now pass block `index`.
    fn enter_block(&mut self, index: usize) {
        let _ = index;
    }

    /// `x` (`1 x tokens x d_in`, no padding) enters the layers of these weights, which share it; `part` says which tokens
    /// are whose.
    async fn input(&mut self, weights: &[&str], x: &B::Tensor, part: &Part<B>) -> Result<()>;

    /// `y` (`1 x tokens x d_out`) leaves the layer of a weight, and may be changed.
    fn output(&mut self, weight: &str, y: &mut B::Tensor) -> Result<()> {
        let _ = (weight, y);
        Ok(())
    }
}

/// Looks at nothing.
pub struct NoTap;

impl<B: Layers> Tap<B> for NoTap {
    async fn input(&mut self, _weights: &[&str], _x: &B::Tensor, _part: &Part<B>) -> Result<()> {
        Ok(())
    }
}

/// Some samples on their way through the blocks.
pub struct Part<B: Layers> {
    /// Tokens of each sample.
    pub lengths: Vec<usize>,
    /// The same, on the device.
    pub segments: Rc<B::Segments>,
    /// Tables of cosines and sines of rotary positions, one row a token, where the model has them.
    pub rotary: Vec<Rc<[B::Tensor; 2]>>,
    /// What scores get for relative positions, `heads x 1 x (2 longest - 1)`, where the model adds it.
    pub positions: Option<Rc<B::Tensor>>,
    /// `1 x tokens x d`.
    pub hidden: B::Tensor,
}

/// All samples on their way through the blocks, cut into parts that fit the device.
pub struct Hidden<B: Layers> {
    parts: Vec<Part<B>>,
}

/// The widest intermediate result of a part, in elements: enough rows for efficient products, little memory.
const PART_ELEMENTS: usize = 8 << 20;

/// A model: an architecture and where its weights are.
pub struct Model<'a, B: Layers> {
    backend: &'a B,
    weights: &'a dyn Weights,
    architecture: Box<dyn Architecture<B>>,
}

impl<'a, B: Layers> Model<'a, B> {
    /// The model that a configuration describes.
    pub fn new(backend: &'a B, config: Config<'_>, weights: &'a dyn Weights) -> Result<Self> {
        Ok(Model { backend, weights, architecture: architectures::of(config, weights)? })
    }

    /// How many blocks it has.
    pub fn blocks(&self) -> usize {
        self.architecture.sizes().blocks
    }

    /// The kind of samples it takes and their limits.
    pub fn inputs(&self) -> InputKind {
        self.architecture.sizes().inputs
    }

    /// Width of the hidden state.
    pub fn hidden_size(&self) -> usize {
        self.architecture.sizes().hidden
    }

    /// Width of a feature vector.
    pub fn feature_size(&self) -> usize {
        self.architecture.sizes().features
    }

    /// Embeds the samples: the hidden state before the first block.
    pub fn embed(&self, samples: &Samples) -> Result<Hidden<B>> {
        let mut parts = Vec::new();
        for range in self.cut(samples)? {
            parts.push(self.architecture.embed(self.backend, self.weights, &samples.slice(range))?);
        }
        Ok(Hidden { parts })
    }

    /// Sends the hidden state through block `index`, whose weights are read, used for all parts and dropped.
    pub async fn block(&self, index: usize, hidden: &mut Hidden<B>, tap: &mut impl Tap<B>) -> Result<()> {
        tap.enter_block(index);
        self.apply_block(&self.load_block(index)?, hidden, tap).await
    }

    /// The weights of block `index` on the device.
    pub fn load_block(&self, index: usize) -> Result<Block<B>> {
        self.architecture.block(self.backend, self.weights, index)
    }

    /// Sends the hidden state through a block that is loaded.
    pub async fn apply_block(
        &self,
        block: &Block<B>,
        hidden: &mut Hidden<B>,
        tap: &mut impl Tap<B>,
    ) -> Result<()> {
        for part in &mut hidden.parts {
            part.hidden = block.apply(self.backend, &part.hidden, part, tap).await?;
        }
        Ok(())
    }

    /// Features of all samples, `samples x d`, row-major, all finite. `pooling` counts where the architecture leaves it open.
    pub async fn features(&self, hidden: &Hidden<B>, pooling: Option<Pooling>) -> Result<Vec<f32>> {
        let mut features = Vec::new();
        for part in &hidden.parts {
            let part = self.architecture.features(self.backend, self.weights, part, pooling)?;
            features.extend(self.backend.download(&part).await?);
        }
        match not_finite(&features) {
            None => Ok(features),
            Some((_, value)) => Err(Error::NotFinite { place: "the features".into(), value }),
        }
    }

    /// All of it: embeds, goes through the blocks and pools.
    pub async fn run(
        &self,
        samples: &Samples,
        pooling: Option<Pooling>,
        tap: &mut impl Tap<B>,
    ) -> Result<Vec<f32>> {
        match self.run_blocks(self.embed(samples)?, pooling, tap).await {
            Err(error @ Error::NotFinite { .. }) => {
                Err(self.find(self.embed(samples)?).await.err().unwrap_or(error))
            }
            result => result,
        }
    }

    /// From samples that are embedded, and stay so.
    pub async fn run_embedded(
        &self,
        embedded: &Hidden<B>,
        pooling: Option<Pooling>,
        tap: &mut impl Tap<B>,
    ) -> Result<Vec<f32>> {
        match self.run_blocks(self.copy(embedded)?, pooling, tap).await {
            Err(error @ Error::NotFinite { .. }) => {
                Err(self.find(self.copy(embedded)?).await.err().unwrap_or(error))
            }
            result => result,
        }
    }

    /// Samples on their way, once more.
    pub fn copy(&self, embedded: &Hidden<B>) -> Result<Hidden<B>> {
        let copy = |part: &Part<B>| -> Result<Part<B>> {
            Ok(Part {
                lengths: part.lengths.clone(),
                segments: Rc::clone(&part.segments),
                rotary: part.rotary.clone(),
                positions: part.positions.clone(),
                hidden: self.backend.duplicate(&part.hidden)?,
            })
        };
        Ok(Hidden { parts: embedded.parts.iter().map(copy).collect::<Result<_>>()? })
    }

    /// Goes through the blocks once more to find the layer that the first value that is not finite enters, as an error.
    async fn find(&self, mut hidden: Hidden<B>) -> Result<()> {
        let mut finder = Finder { backend: self.backend };
        for index in 0..self.blocks() {
            self.block(index, &mut hidden, &mut finder).await?;
        }
        Ok(())
    }

    async fn run_blocks(
        &self,
        mut hidden: Hidden<B>,
        pooling: Option<Pooling>,
        tap: &mut impl Tap<B>,
    ) -> Result<Vec<f32>> {
        for index in 0..self.blocks() {
            self.block(index, &mut hidden, tap).await?;
        }
        self.features(&hidden, pooling).await
    }

    /// Tokens of every sample.
    pub fn tokens(&self, samples: &Samples) -> Result<Vec<usize>> {
        match samples {
            Samples::Text(texts) => Ok(texts.iter().map(|t| t.ids.len()).collect()),
            Samples::Images(images) => match self.inputs() {
                InputKind::Images { grid, tokens } => {
                    let [rows, columns] = grid.sides(images);
                    Ok(vec![tokens - grid.patches() + rows * columns; images.count])
                }
                InputKind::Text { .. } => {
                    Err(Error::Samples("the samples are images, but the model reads text".into()))
                }
            },
        }
    }

    /// Ranges of samples, each within the budget of a part unless it is a single sample.
    fn cut(&self, samples: &Samples) -> Result<Vec<Range<usize>>> {
        let limit = usize::try_from(self.backend.max_tensor_bytes() / 4).unwrap_or(usize::MAX);
        let budget = (limit.min(PART_ELEMENTS) / self.architecture.sizes().widest.max(1)).max(1);
        let (mut ranges, mut start, mut rows) = (Vec::new(), 0, 0);
        for (i, tokens) in self.tokens(samples)?.into_iter().enumerate() {
            if tokens == 0 {
                return Err(Error::Samples(format!("sample {i} (counted from 0) has no tokens")));
            }
            if rows + tokens > budget && i > start {
                ranges.push(start..i);
                (start, rows) = (i, 0);
            }
            rows += tokens;
        }
        ranges.push(start..samples.len());
        Ok(ranges)
    }
}
