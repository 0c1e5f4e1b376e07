//! Modules of Stable Diffusion's UNets and of Flux by the names of the original code (`input_blocks.4.1...`, `double_blocks.0...`), in
//! which adapters are often trained, as diffusers has them (`down_blocks.1.attentions.0...`). Both here with `_` for `.`.

/// Layers of a block: two of the encoder's with its downsampler, three of the decoder's.
const LAYERS: usize = 3;

/// Parts of a residual block.
const RESNET: [(&str, &str); 6] = [
    ("in_layers_0", "norm1"),
    ("in_layers_2", "conv1"),
    ("emb_layers_1", "time_emb_proj"),
    ("out_layers_0", "norm2"),
    ("out_layers_3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// What lies outside of the blocks of a UNet.
const SINGLE: [(&str, &str); 7] = [
    ("time_embed_0", "time_embedding_linear_1"),
    ("time_embed_2", "time_embedding_linear_2"),
    ("label_emb_0_0", "add_embedding_linear_1"),
    ("label_emb_0_2", "add_embedding_linear_2"),
    ("input_blocks_0_0", "conv_in"),
    ("out_0", "conv_norm_out"),
    ("out_2", "conv_out"),
];

/// Parts of Flux's double blocks, of an image's half or of a text's.
const DOUBLE_BLOCK: [(&str, &[&str]); 10] = [
    ("img_attn_qkv", &["attn_to_q", "attn_to_k", "attn_to_v"]),
    ("img_attn_proj", &["attn_to_out_0"]),
    ("img_mlp_0", &["ff_net_0_proj"]),
    ("img_mlp_2", &["ff_net_2"]),
    ("img_mod_lin", &["norm1_linear"]),
    ("txt_attn_qkv", &["attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj"]),
    ("txt_attn_proj", &["attn_to_add_out"]),
    ("txt_mlp_0", &["ff_context_net_0_proj"]),
    ("txt_mlp_2", &["ff_context_net_2"]),
    ("txt_mod_lin", &["norm1_context_linear"]),
];

/// Parts of its single blocks.
const SINGLE_BLOCK: [(&str, &[&str]); 3] = [
    ("linear1", &["attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp"]),
    ("linear2", &["proj_out"]),
    ("modulation_lin", &["norm_linear"]),
];

/// What lies outside of them. (`final_layer_adaLN_modulation_1` makes shift and scale, which diffusers has the other way round.)
const OUTSIDE: [(&str, &str); 9] = [
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("time_in_in_layer", "time_text_embed_timestep_embedder_linear_1"),
    ("time_in_out_layer", "time_text_embed_timestep_embedder_linear_2"),
    ("guidance_in_in_layer", "time_text_embed_guidance_embedder_linear_1"),
    ("guidance_in_out_layer", "time_text_embed_guidance_embedder_linear_2"),
    ("vector_in_in_layer", "time_text_embed_text_embedder_linear_1"),
    ("vector_in_out_layer", "time_text_embed_text_embedder_linear_2"),
    ("final_layer_linear", "proj_out"),
];

/// diffusers' name of a module, or the names of those whose weights one below the other are its weight; none if it is not one of
/// the original's.
pub(super) fn in_diffusers(name: &str) -> Option<Vec<String>> {
    in_flux(name).or_else(|| in_unet(name).map(|module| vec![module]))
}

fn in_flux(name: &str) -> Option<Vec<String>> {
    if let Some((_, theirs)) = OUTSIDE.iter().find(|(own, _)| *own == name) {
        return Some(vec![(*theirs).to_owned()]);
    }
    let double =
        name.strip_prefix("double_blocks_").map(|rest| (rest, "transformer_blocks", &DOUBLE_BLOCK[..]));
    let single = || {
        name.strip_prefix("single_blocks_").map(|rest| (rest, "single_transformer_blocks", &SINGLE_BLOCK[..]))
    };
    let (rest, blocks, parts) = double.or_else(single)?;
    let (block, part) = number(rest)?;
    let (_, theirs) = parts.iter().find(|(own, _)| *own == part)?;
    Some(theirs.iter().map(|module| format!("{blocks}_{block}_{module}")).collect())
}

fn in_unet(name: &str) -> Option<String> {
    if let Some((_, theirs)) = SINGLE.iter().find(|(own, _)| *own == name) {
        return Some((*theirs).to_owned());
    }
    if let Some(rest) = name.strip_prefix("input_blocks_") {
        let (layer, part, rest) = place(rest)?;
        let (block, within) = (layer.checked_sub(1)? / LAYERS, (layer - 1) % LAYERS);
        return match (within, part) {
            (2, 0) => (rest == "op").then(|| format!("down_blocks_{block}_downsamplers_0_conv")),
            _ => inside(&format!("down_blocks_{block}"), within, part, rest),
        };
    }
    if let Some(rest) = name.strip_prefix("output_blocks_") {
        let (layer, part, rest) = place(rest)?;
        let block = layer / LAYERS;
        return match rest {
            "conv" => Some(format!("up_blocks_{block}_upsamplers_0_conv")),
            _ => inside(&format!("up_blocks_{block}"), layer % LAYERS, part, rest),
        };
    }
    let (part, rest) = number(name.strip_prefix("middle_block_")?)?;
    match part {
        0 | 2 => inside("mid_block", part / 2, 0, rest),
        1 => inside("mid_block", 0, 1, rest),
        _ => None,
    }
}

/// A residual block (part 0) or a transformer (part 1) of a block.
fn inside(block: &str, layer: usize, part: usize, rest: &str) -> Option<String> {
    match part {
        0 => {
            let (_, theirs) = RESNET.iter().find(|(own, _)| *own == rest)?;
            Some(format!("{block}_resnets_{layer}_{theirs}"))
        }
        1 => Some(format!("{block}_attentions_{layer}_{rest}")),
        _ => None,
    }
}

/// The layer, the part of it, and what follows.
fn place(text: &str) -> Option<(usize, usize, &str)> {
    let (layer, rest) = number(text)?;
    let (part, rest) = number(rest)?;
    Some((layer, part, rest))
}

fn number(text: &str) -> Option<(usize, &str)> {
    let (number, rest) = text.split_once('_')?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_names_of_flux_are_diffusers_modules_some_of_them_several() {
        for (own, theirs) in [
            ("double_blocks_18_img_attn_qkv", &["attn_to_q", "attn_to_k", "attn_to_v"][..]),
            ("double_blocks_18_txt_attn_qkv", &["attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj"]),
            ("double_blocks_18_txt_mlp_2", &["ff_context_net_2"]),
        ] {
            let theirs = theirs.iter().map(|part| format!("transformer_blocks_18_{part}")).collect();
            assert_eq!(in_diffusers(own), Some(theirs));
        }
        let single = ["attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp"];
        let single = single.map(|part| format!("single_transformer_blocks_3_{part}")).to_vec();
        assert_eq!(in_diffusers("single_blocks_3_linear1"), Some(single));
        assert_eq!(in_diffusers("final_layer_linear"), Some(vec!["proj_out".to_owned()]));
        for other in
            ["double_blocks_0_img_attn_norm", "single_blocks_linear1", "final_layer_adaLN_modulation_1"]
        {
            assert_eq!(in_diffusers(other), None, "{other}");
        }
    }

    #[test]
    fn original_names_of_sdxl_are_diffusers_modules() {
        for (own, theirs) in [
            (
                "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
                "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
            ),
            ("input_blocks_8_1_proj_in", "down_blocks_2_attentions_1_proj_in"),
            ("input_blocks_1_0_in_layers_2", "down_blocks_0_resnets_0_conv1"),
            ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
            (
                "middle_block_1_transformer_blocks_9_ff_net_2",
                "mid_block_attentions_0_transformer_blocks_9_ff_net_2",
            ),
            ("middle_block_2_out_layers_3", "mid_block_resnets_1_conv2"),
            (
                "output_blocks_5_1_transformer_blocks_1_attn2_to_k",
                "up_blocks_1_attentions_2_transformer_blocks_1_attn2_to_k",
            ),
            ("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
            ("output_blocks_8_0_skip_connection", "up_blocks_2_resnets_2_conv_shortcut"),
            ("label_emb_0_2", "add_embedding_linear_2"),
        ] {
            assert_eq!(in_diffusers(own), Some(vec![theirs.to_owned()]));
        }
        for other in [
            "down_blocks_0_resnets_0_conv1",
            "input_blocks_0_1_x",
            "input_blocks_",
            "middle_block_7_x",
            "output_blocks_x_1_y",
        ] {
            assert_eq!(in_diffusers(other), None, "{other}");
        }
    }
}
