//! What a tensor's name says: which block it is in, and what kind of weight it is.

/// The block a tensor belongs to: the name before its index, the index, and the name after it.
pub(super) fn block(name: &str) -> Option<(&str, &str, &str)> {
    let mut start = 0;
    for part in name.split('.') {
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

/// The name with its block index replaced by `*`: layers of the same name are the same kind of layer.
pub fn kind_of_layer(name: &str) -> String {
    match block(name) {
        Some((before, _, after)) => format!("{before}.*.{after}"),
        None => name.to_owned(),
    }
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

/// Vocabulary and token-type embeddings, whose rows belong to tokens rather than to directions.
pub(super) fn is_vocabulary(name: &str) -> bool {
    const PARTS: [&str; 11] = [
        "word_embeddings",
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
    name.split('.').any(|part| PARTS.contains(&part))
}

/// Heads: weights outside the blocks that map features to classes or tokens.
pub(super) fn is_head(name: &str) -> bool {
    const PARTS: [&str; 11] = [
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
    block(name).is_none() && (name == "output.weight" || name.split('.').any(|part| PARTS.contains(&part)))
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
        assert_eq!(kind_of_layer("model.layers.3.experts.5.w1.weight"), "model.layers.*.experts.5.w1.weight");
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
