//! Mixtures of experts: Mixtral, and Qwen3-MoE.

use super::super::{Config, Error, Result, Weights};
use super::decoder::{Decoder, MixtureKind};

pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Decoder> {
    let decoder = Decoder::plain(config, weights)?;
    let mixtral = config.text("model_type") == Some("mixtral");
    let mixture = if mixtral {
        MixtureKind {
            experts: config.size("num_local_experts")?,
            chosen: config.size_or("num_experts_per_tok", 2)?,
            wide: decoder.wide,
            normalized: true,
            router: "block_sparse_moe.gate",
            expert: "block_sparse_moe.experts",
            layers: ["w1", "w3", "w2"],
        }
    } else {
        MixtureKind {
            experts: match config.optional_size("num_local_experts")? {
                Some(experts) => experts,
                None => config.size("num_experts")?,
            },
            chosen: config.size_or("num_experts_per_tok", 8)?,
            wide: config.size("moe_intermediate_size")?,
            normalized: config.flag("norm_topk_prob"),
            router: "mlp.gate",
            expert: "mlp.experts",
            layers: ["gate_proj", "up_proj", "down_proj"],
        }
    };
    if mixture.chosen > mixture.experts {
        return Err(Error::Config(format!(
            "of {} experts {} cannot be chosen (`num_experts_per_tok`)",
            mixture.experts, mixture.chosen
        )));
    }
    let dense = |i: usize| {
        let listed = config.get("mlp_only_layers").and_then(|l| l.as_array());
        listed.is_some_and(|l| l.iter().any(|n| n.as_u64() == Some(i as u64)))
    };
    let step = config.size_or("decoder_sparse_step", 1)?;
    let mut decoder = Decoder { mixture: Some(mixture), head_norms: !mixtral, ..decoder };
    for (i, block) in decoder.blocks.iter_mut().enumerate() {
        block.mixture = mixtral || (i + 1) % step == 0 && !dense(i);
    }
    if mixtral {
        return decoder.windowed(config, |_| false);
    }
    let first = config.index_or("max_window_layers", 28)?;
    if config.flag("use_sliding_window") { decoder.windowed(config, |i| i < first) } else { Ok(decoder) }
}
