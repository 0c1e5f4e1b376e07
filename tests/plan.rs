//! What happens to which tensor, for the architectures with rules of their own. Sizes are tiny: only names, numbers of
//! dimensions and the recipe decide.

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::plan::{Family, Layer, Plan, Role, plan};
use esmerge::recipe::{Overrides, Recipe};
use std::collections::BTreeMap;
use std::fs;
use synthetic::{Tensor, Tensors, write_tensors};

/// The plan for a base with these tensors and two experts, data-free.
fn plan_of(model_type: Option<&str>, tensors: &[(&str, &[usize])], parameters: &str) -> Plan {
    let folder = tempfile::tempdir().unwrap();
    let zeros = |shape: &[usize]| Tensor::float(Dtype::F16, shape, &vec![0.0; shape.iter().product()]);
    let model: Tensors = tensors.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))).collect();
    for name in ["base", "a", "b"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        write_tensors(&folder.path().join(name).join("model.safetensors"), &model, &BTreeMap::new());
    }
    if let Some(model_type) = model_type {
        fs::write(folder.path().join("base/config.json"), format!(r#"{{"model_type": "{model_type}"}}"#))
            .unwrap();
    }
    let text = format!(
        "merge_method: esm\nbase_model: base\nmodels: [{{model: a, calibration: none}}, {{model: b, calibration: none}}]\n\
         parameters: {{alpha: 1{parameters}}}\n"
    );
    let recipe = Recipe::parse(&text, &folder.path().join("recipe.yaml"), &Overrides::default()).unwrap();
    plan(&recipe, &Family::open(&recipe).unwrap()).unwrap()
}

fn layer<'a>(plan: &'a Plan, tensor: &str) -> &'a Layer {
    plan.layers.iter().find(|l| l.parts.iter().any(|p| p.name == tensor)).unwrap()
}

fn assert_roles(plan: &Plan, expected: &[(&str, Role)]) {
    for (name, role) in expected {
        assert_eq!(layer(plan, name).role, *role, "{name}");
    }
}

#[test]
fn openclip_names() {
    let tensors: [(&str, &[usize]); 11] = [
        ("visual.class_embedding", &[8]),
        ("visual.conv1.weight", &[8, 3, 2, 2]),
        ("visual.positional_embedding", &[5, 8]),
        ("visual.proj", &[8, 6]),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", &[24, 8]),
        ("visual.transformer.resblocks.0.attn.in_proj_bias", &[24]),
        ("visual.transformer.resblocks.0.attn.out_proj.weight", &[8, 8]),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight", &[32, 8]),
        ("visual.transformer.resblocks.0.mlp.c_proj.weight", &[8, 32]),
        ("transformer.resblocks.0.mlp.c_fc.weight", &[32, 8]),
        ("token_embedding.weight", &[20, 8]),
    ];
    let plan = plan_of(None, &tensors, "");
    assert_roles(
        &plan,
        &[
            ("visual.class_embedding", Role::Sum),
            ("visual.conv1.weight", Role::Sum),
            ("visual.positional_embedding", Role::TsvM),
            ("visual.proj", Role::TsvM),
            ("visual.transformer.resblocks.0.attn.in_proj_weight", Role::Esm),
            ("visual.transformer.resblocks.0.attn.in_proj_bias", Role::Sum),
            ("visual.transformer.resblocks.0.attn.out_proj.weight", Role::TsvM),
            ("visual.transformer.resblocks.0.mlp.c_fc.weight", Role::Esm),
            ("visual.transformer.resblocks.0.mlp.c_proj.weight", Role::Esm),
            ("transformer.resblocks.0.mlp.c_fc.weight", Role::TsvM),
            ("token_embedding.weight", Role::Sum),
        ],
    );
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    let group = |name| layer(&plan, name).group.as_deref();
    let fc = "visual.transformer.resblocks.*.mlp.c_fc.weight";
    assert_eq!(group("visual.transformer.resblocks.0.mlp.c_fc.weight"), Some(fc));
    assert_eq!(group("visual.class_embedding"), None);
}

#[test]
fn the_text_tower_of_a_clip_follows_the_rule_for_other_matrices() {
    let tensors: [(&str, &[usize]); 7] = [
        ("vision_model.encoder.layers.0.mlp.fc1.weight", &[32, 8]),
        ("text_model.encoder.layers.0.mlp.fc1.weight", &[32, 8]),
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", &[8, 8]),
        ("text_model.embeddings.token_embedding.weight", &[20, 8]),
        ("text_projection.weight", &[8, 8]),
        ("visual_projection.weight", &[8, 8]),
        ("logit_scale", &[]),
    ];
    assert_roles(
        &plan_of(Some("clip"), &tensors, ""),
        &[
            ("vision_model.encoder.layers.0.mlp.fc1.weight", Role::Esm),
            ("text_model.encoder.layers.0.mlp.fc1.weight", Role::TsvM),
            ("text_model.encoder.layers.0.self_attn.q_proj.weight", Role::TsvM),
            ("text_model.embeddings.token_embedding.weight", Role::Sum),
            ("text_projection.weight", Role::TsvM),
            ("visual_projection.weight", Role::TsvM),
            ("logit_scale", Role::Sum),
        ],
    );
    // a text model by itself is the tower
    let text = [("text_model.encoder.layers.0.mlp.fc1.weight", &[32, 8][..])];
    assert_roles(&plan_of(Some("clip_text_model"), &text, ""), &[(text[0].0, Role::Esm)]);
}

#[test]
fn of_a_model_with_an_encoder_and_a_decoder_the_encoder_is_esms() {
    let tensors: [(&str, &[usize]); 4] = [
        ("encoder.block.0.layer.0.SelfAttention.q.weight", &[8, 8]),
        ("decoder.block.0.layer.0.SelfAttention.q.weight", &[8, 8]),
        ("decoder.block.0.layer.1.EncDecAttention.q.weight", &[8, 8]),
        ("shared.weight", &[20, 8]),
    ];
    assert_roles(
        &plan_of(Some("t5"), &tensors, ""),
        &[
            (tensors[0].0, Role::Esm),
            (tensors[1].0, Role::TsvM),
            (tensors[2].0, Role::TsvM),
            (tensors[3].0, Role::Sum),
        ],
    );
}

#[test]
fn hugging_face_vit_names() {
    let block = |rest: &str| format!("vit.encoder.layer.3.{rest}.weight");
    let [q, k, v, out, fc1, fc2] = [
        block("attention.attention.query"),
        block("attention.attention.key"),
        block("attention.attention.value"),
        block("attention.output.dense"),
        block("intermediate.dense"),
        block("output.dense"),
    ];
    let square: &[usize] = &[8, 8];
    let tensors: [(&str, &[usize]); 8] = [
        (&v, square),
        (&k, square),
        (&q, square),
        (&out, square),
        (&fc1, &[32, 8]),
        (&fc2, &[8, 32]),
        ("vit.embeddings.position_embeddings", &[1, 5, 8]),
        ("classifier.weight", &[3, 8]),
    ];
    let plan = plan_of(Some("vit"), &tensors, "");
    assert_roles(&plan, &[(&out, Role::TsvM), (&fc1, Role::Esm), (&fc2, Role::Esm)]);
    assert_roles(
        &plan,
        &[("vit.embeddings.position_embeddings", Role::Sum), ("classifier.weight", Role::Sum)],
    );
    let qkv = layer(&plan, &q);
    let parts: Vec<&str> = qkv.parts.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(parts, [&q, &k, &v], "stacked in this order, whatever the file's");
    assert_eq!((qkv.d_out, qkv.d_in, qkv.rank), (24, 8, 12));
}

const BERT: [(&str, &[usize]); 9] = [
    ("embeddings.word_embeddings.weight", &[30, 8]),
    ("embeddings.token_type_embeddings.weight", &[2, 8]),
    ("embeddings.position_embeddings.weight", &[12, 8]),
    ("encoder.layer.0.attention.self.query.weight", &[8, 8]),
    ("encoder.layer.0.attention.output.dense.weight", &[8, 8]),
    ("encoder.layer.0.intermediate.dense.weight", &[32, 8]),
    ("encoder.layer.0.output.dense.weight", &[8, 32]),
    ("pooler.dense.weight", &[8, 8]),
    ("classifier.weight", &[3, 8]),
];

#[test]
fn bert_takes_every_linear_weight_of_a_block() {
    let plan = plan_of(Some("bert"), &BERT, "");
    assert_roles(
        &plan,
        &[
            ("embeddings.word_embeddings.weight", Role::Sum),
            ("embeddings.token_type_embeddings.weight", Role::Sum),
            ("embeddings.position_embeddings.weight", Role::TsvM),
            ("encoder.layer.0.attention.self.query.weight", Role::Esm),
            ("encoder.layer.0.attention.output.dense.weight", Role::Esm),
            ("encoder.layer.0.intermediate.dense.weight", Role::Esm),
            ("encoder.layer.0.output.dense.weight", Role::Esm),
            ("pooler.dense.weight", Role::TsvM),
            ("classifier.weight", Role::Sum),
        ],
    );
    assert!(plan.warnings.is_empty());
    assert!(plan.layers.iter().all(|l| !l.mean_sigma && l.scaled == (l.role == Role::Esm)));
}

#[test]
fn the_lm_preset_scales_all_and_multiplies_tsv_m_by_its_mean_sigma() {
    let plan = plan_of(Some("roberta"), &BERT, ", preset: esm-lm");
    assert!(plan.layers.iter().all(|l| l.scaled && l.mean_sigma == (l.role == Role::TsvM)));
}

#[test]
fn llama_projections_of_different_heights_stay_apart_unless_fused() {
    let tensors: [(&str, &[usize]); 6] = [
        ("model.embed_tokens.weight", &[30, 8]),
        ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
        ("model.layers.0.self_attn.k_proj.weight", &[4, 8]),
        ("model.layers.0.self_attn.v_proj.weight", &[4, 8]),
        ("model.layers.0.mlp.down_proj.weight", &[8, 16]),
        ("lm_head.weight", &[30, 8]),
    ];
    let apart = plan_of(Some("llama"), &tensors, "");
    assert_roles(&apart, &[("model.embed_tokens.weight", Role::Sum), ("lm_head.weight", Role::Sum)]);
    assert_eq!(layer(&apart, tensors[2].0).parts.len(), 1);
    assert_eq!(layer(&apart, tensors[4].0).rank, 4);
    let fused = plan_of(Some("llama"), &tensors, ", fuse_qkv: true");
    assert_eq!((layer(&fused, tensors[2].0).d_out, layer(&fused, tensors[2].0).rank), (16, 8));
}

#[test]
fn every_value_is_in_one_layer() {
    let plan = plan_of(Some("bert"), &BERT, "");
    let values: usize = plan.layers.iter().map(Layer::elements).sum();
    let all: usize = BERT.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(values, all);
}
