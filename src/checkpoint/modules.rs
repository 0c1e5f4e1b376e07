//! What transformers calls the modules of a model, where its files say otherwise: PEFT goes by the modules.

use super::Checkpoint;
use super::lora::module_of;
use serde_json::Value;

/// How the classes of a kind of model name their modules.
#[derive(Debug)]
struct Family {
    /// `model_type` in config.json.
    model_type: &'static str,
    /// The class without a head, in which `prefix` is missing.
    bare: &'static str,
    /// What stands before the modules of the bare model in a class with a head.
    prefix: &'static str,
    /// Whether it reads text.
    text: bool,
    /// What files call the blocks, and what they are called.
    blocks: Option<(&'static str, &'static str)>,
    /// What files call the parts of a block, and what they are called; the first that fits counts.
    parts: &'static [(&'static str, &'static str)],
}

const VIT: &[(&str, &str)] = &[
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
];

/// A family whose files and modules agree but for the prefix.
const fn same(model_type: &'static str, bare: &'static str, prefix: &'static str, text: bool) -> Family {
    Family { model_type, bare, prefix, text, blocks: None, parts: &[] }
}

/// As of transformers 5. All others: the names are those of the files.
const FAMILIES: [Family; 16] = [
    Family {
        blocks: Some(("encoder.layer.", "layers.")),
        parts: VIT,
        ..same("vit", "ViTModel", "vit.", false)
    },
    Family {
        blocks: Some(("encoder.layer.", "layers.")),
        parts: VIT,
        ..same("deit", "DeiTModel", "deit.", false)
    },
    Family { parts: VIT, ..same("dinov2", "Dinov2Model", "dinov2.", false) },
    same("clip_vision_model", "CLIPVisionModel", "vision_model.", false),
    same("siglip_vision_model", "SiglipVisionModel", "vision_model.", false),
    same("bert", "BertModel", "bert.", true),
    same("roberta", "RobertaModel", "roberta.", true),
    same("xlm-roberta", "XLMRobertaModel", "roberta.", true),
    same("electra", "ElectraModel", "electra.", true),
    same("distilbert", "DistilBertModel", "distilbert.", true),
    same("mpnet", "MPNetModel", "mpnet.", true),
    same("llama", "LlamaModel", "model.", true),
    same("mistral", "MistralModel", "model.", true),
    Family {
        parts: &[("block_sparse_moe.gate", "mlp.gate")],
        ..same("mixtral", "MixtralModel", "model.", true)
    },
    same("qwen2", "Qwen2Model", "model.", true),
    same("qwen3", "Qwen3Model", "model.", true),
];

/// The modules of a model, as the class that its `architectures` names has them.
#[derive(Clone, Debug, Default)]
pub struct ModuleNames {
    family: Option<&'static Family>,
    /// Whether the files have the family's prefix, and whether the modules do.
    in_files: bool,
    in_modules: bool,
    task_type: Option<&'static str>,
}

impl ModuleNames {
    /// By a model's `config.json` (null where there is none) and the names of its tensors.
    pub fn new<'a>(config: &Value, mut tensors: impl Iterator<Item = &'a str>) -> ModuleNames {
        let text = |key: &str| config.get(key).and_then(Value::as_str);
        let class = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        let family = FAMILIES.iter().find(|f| text("model_type") == Some(f.model_type));
        let in_files = family.is_some_and(|f| tensors.any(|name| name.starts_with(f.prefix)));
        let is_bare = family.is_some_and(|f| class.map_or(!in_files, |class| class == f.bare));
        let is_seq2seq = config.get("is_encoder_decoder").and_then(Value::as_bool).unwrap_or(false);
        // PEFT's classes for classifiers and answers want the head in the adapter: those get none
        let task_type = match (class, family) {
            (Some(class), _) if class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel") => {
                Some("CAUSAL_LM")
            }
            (Some(class), _) if is_seq2seq && class.ends_with("ForConditionalGeneration") => {
                Some("SEQ_2_SEQ_LM")
            }
            (Some(_), Some(family)) if is_bare && family.text => Some("FEATURE_EXTRACTION"),
            _ => None,
        };
        ModuleNames { family, in_files, in_modules: !is_bare, task_type }
    }

    /// PEFT's name of what the model is for, where an adapter alone serves it.
    pub fn task_type(&self) -> Option<&'static str> {
        self.task_type
    }

    /// The module of a weight.
    pub fn module(&self, weight: &str) -> Option<String> {
        let module = module_of(weight)?;
        let Some(family) = self.family else { return Some(module.to_owned()) };
        let inner = if self.in_files { module.strip_prefix(family.prefix) } else { Some(module) };
        let Some(inner) = inner else { return Some(module.to_owned()) }; // a head
        let prefix = if self.in_modules { family.prefix } else { "" };
        Some(format!("{prefix}{}", family.rename(inner)))
    }
}

/// Models whose linear weights are stored as `d_in x d_out`.
const TRANSPOSED: [&str; 2] = ["gpt2", "openai-gpt"];

/// Whether a model stores its linear weights transposed: by its type, or by a fused q, k and v that is wider than high.
pub fn stores_transposed(model_type: Option<&str>, model: &Checkpoint) -> bool {
    let by_type = model_type.is_some_and(|t| TRANSPOSED.contains(&t));
    let fused = model.names().filter(|name| name.ends_with("attn.c_attn.weight"));
    by_type || fused.filter_map(|name| model.get(name)?.matrix()).any(|(rows, columns)| columns == 3 * rows)
}

impl Family {
    fn rename(&self, module: &str) -> String {
        let renamed = |(from, to): &(&str, &str)| {
            let block = module.strip_suffix(from).filter(|block| block.ends_with('.'))?;
            Some(format!("{block}{to}"))
        };
        let name = self.parts.iter().find_map(renamed).unwrap_or_else(|| module.to_owned());
        let block = self.blocks.and_then(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
        block.unwrap_or(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn module(model_type: &str, class: Option<&str>, weight: &str) -> String {
        let config = json!({ "model_type": model_type, "architectures": class.map(|c| vec![c]) });
        ModuleNames::new(&config, [weight].into_iter()).module(weight).unwrap()
    }

    #[test]
    fn modules_are_those_of_the_class_that_the_configuration_names() {
        let query = "encoder.layer.3.attention.attention.query.weight";
        let with_head = format!("vit.{query}");
        for (weight, class, expected) in [
            (with_head.as_str(), Some("ViTForImageClassification"), "vit.layers.3.attention.q_proj"),
            (query, Some("ViTForImageClassification"), "vit.layers.3.attention.q_proj"),
            (with_head.as_str(), Some("ViTModel"), "layers.3.attention.q_proj"),
            (query, None, "layers.3.attention.q_proj"),
            ("encoder.layer.0.attention.output.dense.weight", Some("ViTModel"), "layers.0.attention.o_proj"),
            ("encoder.layer.0.output.dense.weight", Some("ViTModel"), "layers.0.mlp.fc2"),
            ("pooler.dense.weight", Some("ViTModel"), "pooler.dense"),
        ] {
            assert_eq!(module("vit", class, weight), expected);
        }
        let query = "encoder.layer.0.attention.attention.query.weight";
        assert_eq!(module("dinov2", Some("Dinov2Model"), query), "encoder.layer.0.attention.q_proj");
        let fc1 = "vision_model.encoder.layers.0.mlp.fc1.weight";
        assert_eq!(module("clip_vision_model", Some("CLIPVisionModel"), fc1), "encoder.layers.0.mlp.fc1");
        let projected = Some("CLIPVisionModelWithProjection");
        assert_eq!(module("clip_vision_model", projected, fc1), "vision_model.encoder.layers.0.mlp.fc1");
        assert_eq!(module("clip", Some("CLIPModel"), fc1), "vision_model.encoder.layers.0.mlp.fc1");
        let query = "layers.0.self_attn.q_proj.weight";
        assert_eq!(
            module("llama", Some("LlamaForCausalLM"), query),
            format!("model.{query}").replace(".weight", "")
        );
    }

    #[test]
    fn a_head_has_the_name_it_has() {
        let config = json!({ "model_type": "bert", "architectures": ["BertForSequenceClassification"] });
        let tensors = ["bert.encoder.layer.0.output.dense.weight", "classifier.weight"];
        let names = ModuleNames::new(&config, tensors.into_iter());
        assert_eq!(
            tensors.map(|t| names.module(t).unwrap()),
            ["bert.encoder.layer.0.output.dense", "classifier"]
        );
        assert_eq!(names.task_type(), None);
    }

    #[test]
    fn the_task_is_named_where_an_adapter_alone_serves_it() {
        let task = |model_type: &str, class: &str, seq2seq: bool| {
            let config =
                json!({ "model_type": model_type, "architectures": [class], "is_encoder_decoder": seq2seq });
            ModuleNames::new(&config, std::iter::empty()).task_type()
        };
        assert_eq!(task("llama", "LlamaForCausalLM", false), Some("CAUSAL_LM"));
        assert_eq!(task("gpt2", "GPT2LMHeadModel", false), Some("CAUSAL_LM"));
        assert_eq!(task("t5", "T5ForConditionalGeneration", true), Some("SEQ_2_SEQ_LM"));
        assert_eq!(task("bert", "BertModel", false), Some("FEATURE_EXTRACTION"));
        assert_eq!(task("vit", "ViTModel", false), None);
    }
}
