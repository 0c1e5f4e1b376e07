//! The architectures, one file each, over shared parts: [`text`], [`vision`], [`rope`], and for what comes in families
//! [`encoder`], [`decoder`] and [`tower`].

mod bert;
mod clip;
mod decoder;
mod dinov2;
mod distilbert;
mod encoder;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod mixtures;
mod modern_bert;
mod phi;
mod qwen;
mod rope;
mod siglip;
mod t5;
mod text;
mod tower;
mod vision;
mod vit;

pub(super) use text::check_lengths;
pub use vision::Grid;

use super::inputs::InputKind;
use super::{Block, Config, Error, Norm, Part, Pooling, Result, Samples, Weights};
use crate::backend::layers::Layers;

/// Sizes of a model.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// How many blocks it has.
    pub blocks: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Width of a feature vector.
    pub features: usize,
    /// The most columns of any intermediate result, which decides how many samples go together.
    pub widest: usize,
    /// What it takes.
    pub inputs: InputKind,
}

/// How a kind of model is run.
pub trait Architecture<B: Layers> {
    /// Its sizes.
    fn sizes(&self) -> Sizes;

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

/// The table of architectures: their `model_type`s, what they are called in messages, and what makes one of a configuration.
macro_rules! architectures {
    ($($types:pat => $new:expr, $title:literal;)*) => {
        /// The architectures there are, for messages.
        pub const SUPPORTED: &str = joined!($($title,)*);

        /// The architecture of a `model_type`.
        fn by_type<B: Layers>(
            name: &str,
            config: Config<'_>,
            weights: &dyn Weights,
        ) -> Result<Box<dyn Architecture<B>>> {
            match name {
                $($types => Ok(Box::new($new(config, weights)?)),)*
                other => Err(Error::Unsupported { found: format!("the architecture `{other}` cannot be run") }),
            }
        }
    };
}

macro_rules! joined {
    ($first:literal, $($other:literal,)*) => { concat!($first, $(", ", $other),*) };
}

architectures! {
    "clip" | "clip_vision_model" => clip::new, "CLIP vision towers (Hugging Face, OpenCLIP and OpenAI names)";
    "siglip" | "siglip_vision_model" => siglip::new, "SigLIP vision towers";
    "vit" => vit::new, "ViT";
    "dinov2" => dinov2::new, "DINOv2";
    "bert" => bert::bert, "BERT (also MiniLM)";
    "roberta" | "xlm-roberta" => bert::roberta, "RoBERTa and XLM-RoBERTa";
    "distilbert" => distilbert::new, "DistilBERT";
    "modernbert" => modern_bert::ModernBert::new, "ModernBERT";
    "t5" | "mt5" => t5::T5::new, "encoders of T5";
    "llama" | "mistral" => llama::new, "Llama and Mistral";
    "qwen2" | "qwen3" => qwen::new, "Qwen2 and Qwen3";
    "gemma" | "gemma2" | "gemma3" | "gemma3_text" => gemma::new, "Gemma, Gemma 2 and 3";
    "phi3" => phi::new, "Phi-3";
    "mixtral" | "qwen3_moe" => mixtures::new, "Mixtral and Qwen3-MoE";
    "gpt2" => gpt2::Gpt2::new, "GPT-2";
    "gpt_neox" => gpt_neox::GptNeoX::new, "GPT-NeoX";
}

/// The architecture that a configuration names.
pub(super) fn of<B: Layers>(config: Config<'_>, weights: &dyn Weights) -> Result<Box<dyn Architecture<B>>> {
    if config.object("model_cfg").is_some() {
        return Ok(Box::new(clip::new(config, weights)?));
    }
    match config.text("model_type") {
        Some(name) => by_type(name, config, weights),
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

/// The norm of all tokens, then one row a sample.
fn pool_normed<B: Layers>(
    backend: &B,
    norm: &Norm<B>,
    part: &Part<B>,
    pooling: Pooling,
) -> Result<B::Tensor> {
    pool(backend, &norm.apply(backend, &part.hidden)?, part, pooling)
}

/// One row a sample.
fn pool<B: Layers>(backend: &B, x: &B::Tensor, part: &Part<B>, pooling: Pooling) -> Result<B::Tensor> {
    Ok(match pooling {
        Pooling::Mean => backend.mean_rows(x, &part.segments)?,
        Pooling::First | Pooling::Last => backend.gather_rows(x, &ends(&part.lengths, pooling))?,
    })
}
