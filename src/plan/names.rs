//! What a tensor's name says: which block it is in, and what kind of weight it is.

use crate::checkpoint::slice_of;

/// The block a tensor belongs to: the name before its index, the index, and the name after it. The number of a layer in a
/// head (`classifier.1.weight`) is no block's.
pub(super) fn block(name: &str) -> Option<(&str, &str, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        if HEADS.contains(&part) {
            return None;
        }
        let end = start + part.len();
        if start > 0 && end < name.len() && !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            return Some((&name[..start - 1], part, &name[end + 1..]));
        }
        start = end + 1;
    }
    None
}

/// The index of the block a tensor belongs to.
pub fn block_index(name: &str) -> Option<usize> {
    block(name)?.1.parse().ok()
}

/// Whether a tensor outside of blocks comes before them: embeddings, and what is done to them at once.
pub(super) fn comes_first(name: &str) -> bool {
    name.split('.').any(|part| {
        part.contains("embed")
            || matches!(part, "wte" | "wpe" | "pre_layrnorm" | "ln_pre" | "conv1" | "patch_embed")
    })
}

/// The name with its block index, and the number of an expert in a mixture, replaced by `*`: layers of the same name are the
/// same kind of layer.
pub fn kind_of_layer(name: &str) -> String {
    let Some((before, _, after)) = block(name) else { return name.to_owned() };
    if let Some((weight, _)) = slice_of(after) {
        return format!("{before}.*.{weight}[*]");
    }
    match expert(after) {
        Some((mixture, _, weight)) => format!("{before}.*.{mixture}.*.{weight}"),
        None => format!("{before}.*.{after}"),
    }
}

/// In the name of a weight of an expert in a mixture: what stands before the expert's number, the number, and what follows.
fn expert(name: &str) -> Option<(&str, &str, &str)> {
    const EXPERTS: &str = "experts.";
    let at = name.find(EXPERTS).filter(|&at| at == 0 || name[..at].ends_with('.'))?;
    let end = at + EXPERTS.len();
    let (number, weight) = name[end..].split_once('.')?;
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    is_number.then_some((&name[..end - 1], number, weight))
}

/// Whether a tensor belongs to one expert of a mixture, which sees only the tokens that are sent to it.
pub fn is_of_expert(name: &str) -> bool {
    expert(name).is_some() || slice_of(name).is_some()
}

/// The linear weights of a CLIP-like vision transformer's block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VitWeight {
    Qkv,
    Fc1,
    Fc2,
}

/// Which of them a tensor is, by the part of its name after the block index (Hugging Face CLIP and ViT, OpenCLIP and
/// OpenAI CLIP, timm).
pub(super) fn vit_weight(after_block: &str) -> Option<VitWeight> {
    Some(match after_block {
        "mlp.fc1.weight" | "mlp.c_fc.weight" | "intermediate.dense.weight" => VitWeight::Fc1,
        "mlp.fc2.weight" | "mlp.c_proj.weight" | "output.dense.weight" => VitWeight::Fc2,
        "attn.in_proj_weight" | "self_attn.in_proj_weight" | "attn.qkv.weight" => VitWeight::Qkv,
        _ if projection(after_block).is_some() => VitWeight::Qkv,
        _ => return None,
    })
}

/// For the weight of a separate q, k or v projection: its place (0, 1, 2) in the stack, and the name of the stack.
pub(super) fn projection(name: &str) -> Option<(usize, String)> {
    const SPELLINGS: [([&str; 3], &str); 3] = [
        (["q_proj", "k_proj", "v_proj"], "qkv_proj"),
        (["query", "key", "value"], "query_key_value"),
        (["to_q", "to_k", "to_v"], "to_qkv"),
    ];
    let stem = name.strip_suffix(".weight")?;
    let (path, last) = stem.rsplit_once('.')?;
    // In cross attention the queries' input is not that of the keys and values.
    let cross = ["crossattention", "cross_attn", "encoder_attn", "EncDecAttention"];
    if path.split('.').any(|part| cross.contains(&part)) {
        return None;
    }
    SPELLINGS.iter().find_map(|(parts, fused)| {
        let place = parts.iter().position(|part| *part == last)?;
        Some((place, format!("{path}.{fused}.weight")))
    })
}

/// Vocabulary and token-type embeddings, whose rows belong to tokens rather than to directions, and tables of biases by
/// distance.
pub(super) fn is_vocabulary(name: &str) -> bool {
    const PARTS: [&str; 12] = [
        "word_embeddings",
        "word_embedding",
        "embed_tokens",
        "token_embedding",
        "token_embeddings",
        "tok_embeddings",
        "token_type_embeddings",
        "wte",
        "embed_in",
        "shared",
        "embed_tokens_per_layer",
        "relative_attention_bias",
    ];
    // in Mamba, RWKV and XLM the module itself is the table
    name.split('.').any(|part| PARTS.contains(&part)) || name.ends_with(".embeddings.weight")
}

/// A table of the vocabulary's input embeddings.
pub(super) fn is_input_embedding(name: &str) -> bool {
    const TABLES: [&str; 9] = [
        "word_embeddings",
        "word_embedding",
        "embed_tokens",
        "token_embedding",
        "token_embeddings",
        "tok_embeddings",
        "wte",
        "embed_in",
        "shared",
    ];
    let module = name.strip_suffix(".weight").unwrap_or(name);
    TABLES.contains(&module.rsplit('.').next().unwrap_or(module)) || name.ends_with(".embeddings.weight")
}

/// The matrix that makes logits over the vocabulary, which models may tie to the input embedding.
pub(super) fn is_output_embedding(name: &str) -> bool {
    const ENDINGS: [&str; 9] = [
        "lm_head.weight",
        "lm_head.decoder.weight",
        "predictions.decoder.weight",
        "embed_out.weight",
        "proj_out.weight",
        "vocab_projector.weight",
        "lm_loss.weight",
        "pred_layer.proj.weight",
        "generator_lm_head.weight",
    ];
    block(name).is_none() && ENDINGS.iter().any(|end| name == *end || name.ends_with(&format!(".{end}")))
}

/// Parts of a name that tell a head.
const HEADS: [&str; 11] = [
    "lm_head",
    "classifier",
    "classification_head",
    "pre_classifier",
    "score",
    "head",
    "fc",
    "qa_outputs",
    "embed_out",
    "cls",
    "mlm_head",
];

/// Heads: weights outside the blocks that map features to classes or tokens.
pub(super) fn is_head(name: &str) -> bool {
    block(name).is_none() && (name == "output.weight" || name.split('.').any(|part| HEADS.contains(&part)))
}

/// What a model has for its task alone: heads and poolers, which another task's model lacks.
pub(crate) fn is_task_part(name: &str) -> bool {
    const PARTS: [&str; 16] = [
        "pooler",
        "lm_loss",
        "pred_layer",
        "logits_proj",
        "sequence_summary",
        "vocab_transform",
        "vocab_layer_norm",
        "vocab_projector",
        "discriminator_predictions",
        "generator_predictions",
        "generator_lm_head",
        "proj_out",
        "final_logits_bias",
        "multiple_choice_head",
        "decode_head",
        "nsp_head",
    ];
    let bare = block(name).is_none() && name.split('.').any(|part| PARTS.contains(&part));
    bare || is_head(name)
        || matches!(name, "decoder.weight" | "decoder.bias" | "projector.weight" | "projector.bias")
}

/// Buffers that loaders compute from the configuration.
pub(super) fn is_recomputed(name: &str) -> bool {
    const BUFFERS: [&str; 7] = [
        "inv_freq",
        "original_inv_freq",
        "position_ids",
        "token_type_ids",
        "masked_bias",
        "relative_position_index",
        "attn_mask",
    ];
    let last = name.rsplit('.').next().unwrap_or(name);
    BUFFERS.contains(&last) || name.ends_with(".attn.bias") && name.contains(".h.")
}

/// Copies and counters that training keeps and no model uses.
pub(super) fn is_training_state(name: &str) -> bool {
    let first = name.split('.').next().unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or(name);
    matches!(first, "model_ema" | "ema" | "ema_model" | "optimizer") || last == "num_batches_tracked"
}

/// The tower of a model of two that a tensor belongs to, `joint` for what only the pair has (CLIP and SigLIP by the names of
/// Hugging Face and of OpenCLIP).
pub(super) fn tower(name: &str) -> Option<&'static str> {
    match name.split('.').next()? {
        "vision_model" | "visual_projection" | "visual" => Some("vision"),
        "text_model"
        | "text_projection"
        | "text"
        | "transformer"
        | "token_embedding"
        | "positional_embedding"
        | "ln_final" => Some("text"),
        "logit_scale" | "logit_bias" => Some("joint"),
        _ => None,
    }
}

/// The other spelling of a norm's scale or shift: `gamma` and `beta` of old checkpoints are `weight` and `bias` today.
pub(super) fn older_spelling(name: &str) -> Option<String> {
    const SPELLINGS: [(&str, &str); 4] =
        [(".gamma", ".weight"), (".beta", ".bias"), (".weight", ".gamma"), (".bias", ".beta")];
    SPELLINGS.iter().find_map(|(from, to)| Some(format!("{}{to}", name.strip_suffix(from)?)))
}

/// Whether a matrix of a block is the weight of a layer; `A_log`, stacked biases and tables are not.
pub(super) fn is_layer_weight(name: &str) -> bool {
    name.ends_with("weight") || slice_of(name).is_some()
}

/// The gate of a mixture of experts, by its name and by the experts that stand beside it (`has_experts` is asked for the
/// module that holds both).
pub(super) fn is_router_gate(name: &str, has_experts: impl Fn(&str) -> bool) -> bool {
    let Some(module) = name.strip_suffix(".weight") else { return false };
    if block(name).is_none() {
        return false;
    }
    let mut parts = module.rsplit('.');
    match parts.next() {
        Some("gate" | "shared_expert_gate") => {
            module.rsplit_once('.').is_some_and(|(parent, _)| has_experts(parent))
        }
        Some("router") => true,
        _ => parts.next() == Some("router"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_in_a_name_is_its_block() {
        assert_eq!(
            block("vision_model.encoder.layers.11.mlp.fc1.weight"),
            Some(("vision_model.encoder.layers", "11", "mlp.fc1.weight"))
        );
        assert_eq!(kind_of_layer("model.layers.3.experts.5.w1.weight"), "model.layers.*.experts.*.w1.weight");
        assert_eq!(
            kind_of_layer("model.layers.3.mlp.experts.down_proj[5]"),
            "model.layers.*.mlp.experts.down_proj[*]"
        );
        assert_eq!(block("embeddings.word_embeddings.weight"), None);
        assert_eq!(block("0.weight"), None);
        assert_eq!(block("layer.0"), None);
        assert_eq!(kind_of_layer("visual.proj"), "visual.proj");
    }

    #[test]
    fn q_k_and_v_stack_in_that_order() {
        let stack = |name| projection(name);
        let fused = "a.0.self_attn.qkv_proj.weight".to_owned();
        assert_eq!(stack("a.0.self_attn.q_proj.weight"), Some((0, fused.clone())));
        assert_eq!(stack("a.0.self_attn.k_proj.weight"), Some((1, fused.clone())));
        assert_eq!(stack("a.0.self_attn.v_proj.weight"), Some((2, fused)));
        assert_eq!(stack("a.0.self_attn.out_proj.weight"), None);
        assert_eq!(stack("a.0.self_attn.q_proj.bias"), None);
        assert_eq!(stack("d.0.encoder_attn.q_proj.weight"), None);
    }

    #[test]
    fn the_attention_output_of_a_vit_is_not_its_second_linear_layer() {
        assert_eq!(vit_weight("output.dense.weight"), Some(VitWeight::Fc2));
        assert_eq!(vit_weight("attention.output.dense.weight"), None);
        assert_eq!(vit_weight("attention.attention.query.weight"), Some(VitWeight::Qkv));
        assert_eq!(vit_weight("mlp.c_proj.weight"), Some(VitWeight::Fc2));
        assert_eq!(vit_weight("attn.out_proj.weight"), None);
    }

    #[test]
    fn heads_lie_outside_the_blocks() {
        assert!(is_head("lm_head.weight"));
        assert!(is_head("classifier.dense.weight"));
        assert!(!is_head("encoder.layer.0.output.dense.weight"));
        assert!(!is_head("visual_projection.weight"));
        assert!(is_vocabulary("roberta.embeddings.token_type_embeddings.weight"));
        assert!(!is_vocabulary("embeddings.position_embeddings.weight"));
    }
}
