//! The architectures, one file each.

mod bert;
mod clip;
mod decoder;
mod rope;
mod vision;
mod vit;

pub use vision::Grid;

use super::inputs::InputKind;
use super::{Block, Config, Error, Part, Pooling, Result, Samples, Weights};
use crate::backend::layers::Layers;

/// The architectures there are, for messages.
pub const SUPPORTED: &str = "CLIP vision towers (Hugging Face, OpenCLIP and OpenAI names), ViT, BERT, RoBERTa (also \
                             MiniLM and XLM-RoBERTa), Llama, Mistral and Qwen2";

/// How a kind of model is run.
pub trait Architecture<B: Layers> {
    /// How many blocks it has.
    fn blocks(&self) -> usize;

    /// Width of the hidden state.
    fn hidden_size(&self) -> usize;

    /// Width of a feature vector.
    fn feature_size(&self) -> usize {
        self.hidden_size()
    }

    /// The most columns of any intermediate result, which decides how many samples go together.
    fn widest(&self) -> usize;

    /// What it takes.
    fn inputs(&self) -> InputKind;

    /// The hidden state before the first block.
    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>>;

    /// The weights of one block.
    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>>;

    /// One row a sample from the hidden state after the last block.
    fn features(
        &self,
        backend: &B,
        weights: &dyn Weights,
        part: &Part<B>,
        pooling: Option<Pooling>,
    ) -> Result<B::Tensor>;
}

/// The architecture that a configuration names.
pub(super) fn of<B: Layers>(config: Config<'_>, weights: &dyn Weights) -> Result<Box<dyn Architecture<B>>> {
    if config.object("model_cfg").is_some() {
        return Ok(Box::new(clip::Clip::new(config, weights)?));
    }
    match config.text("model_type") {
        Some("clip" | "clip_vision_model") => Ok(Box::new(clip::Clip::new(config, weights)?)),
        Some("vit") => Ok(Box::new(vit::Vit::new(config, weights)?)),
        Some("bert" | "roberta" | "xlm-roberta") => Ok(Box::new(bert::Bert::new(config, weights)?)),
        Some("llama" | "mistral" | "qwen2") => Ok(Box::new(decoder::Decoder::new(config, weights)?)),
        Some(other) => Err(Error::Unsupported { found: format!("the architecture `{other}` cannot be run") }),
        None => Err(Error::Unsupported { found: "the configuration has no `model_type`".into() }),
    }
}

/// The rows of a pooled feature in a packed hidden state: first or last token of each sample.
fn ends(lengths: &[usize], pooling: Pooling) -> Vec<u32> {
    let mut end = 0;
    let each = lengths.iter().map(|length| {
        end += length;
        (if pooling == Pooling::First { end - length } else { end - 1 }) as u32
    });
    each.collect()
}

/// One row a sample.
fn pool<B: Layers>(backend: &B, x: &B::Tensor, part: &Part<B>, pooling: Pooling) -> Result<B::Tensor> {
    Ok(match pooling {
        Pooling::Mean => backend.mean_rows(x, &part.segments)?,
        Pooling::First | Pooling::Last => backend.gather_rows(x, &ends(&part.lengths, pooling))?,
    })
}

/// Refuses texts longer than the model's position table. `name` says which sample it is.
pub(super) fn check_lengths(lengths: &[usize], longest: usize, name: &dyn Fn(usize) -> String) -> Result<()> {
    match lengths.iter().position(|&n| n > longest) {
        None => Ok(()),
        Some(i) => Err(Error::Samples(format!(
            "{} has {} tokens, more than the model's position table of {longest}; shorten the texts or let the tokenizer \
             truncate them (--max-length, or `max_length` in a recipe)",
            name(i),
            lengths[i]
        ))),
    }
}

/// A sample by its place.
pub(super) fn counted(i: usize) -> String {
    format!("sample {i}")
}
