//! The modules of a model, as mergekit tells them apart: towers, encoder and decoder, or what comes before `.N.` in the names.

use super::Error;
use super::Family;
use super::names::block;
use crate::recipe::{self, Recipe};
use indexmap::IndexSet;

/// Which module a tensor is of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Layout {
    /// A text decoder, a vision tower of this name, and what projects from one to the other.
    Towers(&'static str),
    /// Encoder and decoder, and the embedding that both take.
    Seq2Seq,
    /// By what comes before the number of a layer; `default` has the rest, and all of a model with one of them.
    Stacks(Vec<String>),
}

impl Layout {
    /// By `model_type`, and by the names where that is none of the models with modules of their own.
    fn of<'a>(model_type: Option<&str>, names: impl Iterator<Item = &'a str>) -> Layout {
        match model_type {
            Some("gemma3" | "mistral3" | "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl" | "qwen3_vl_moe") => {
                Layout::Towers("vision_tower")
            }
            Some("llama4") => Layout::Towers("vision_model"),
            Some("t5" | "mt5" | "umt5" | "whisper") => Layout::Seq2Seq,
            _ => {
                let stacks: IndexSet<&str> = names.filter_map(|name| Some(block(name)?.0)).collect();
                let several = stacks.len() > 1;
                Layout::Stacks(stacks.into_iter().filter(|_| several).map(str::to_owned).collect())
            }
        }
    }

    fn module_of(&self, tensor: &str) -> &str {
        let has = |parts: &[&str]| tensor.split('.').any(|part| parts.contains(&part));
        match self {
            Layout::Towers(_) if has(&["multi_modal_projector", "merger", "deepstack_merger_list"]) => {
                "multi_modal_projector"
            }
            Layout::Towers(vision) if has(&["vision_tower", "vision_model", "visual"]) => vision,
            Layout::Towers(_) => "text_decoder",
            Layout::Seq2Seq if has(&["encoder"]) => "encoder",
            Layout::Seq2Seq if has(&["decoder"]) => "decoder",
            Layout::Seq2Seq => "shared",
            Layout::Stacks(stacks) => {
                let own = block(tensor).map(|(before, ..)| before);
                let found = stacks.iter().find(|stack| own == Some(stack.as_str()));
                found.map_or("default", String::as_str)
            }
        }
    }
}

/// The modules of a recipe, by what they hold.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Modules {
    layout: Layout,
    names: Vec<String>,
}

impl Modules {
    /// Those of a recipe; none if it has none. Every module of the model must be there, and no other.
    pub fn of(recipe: &Recipe, family: &Family) -> Result<Option<Modules>, Error> {
        if recipe.modules.is_empty() {
            return Ok(None);
        }
        let layout = Layout::of(family.settings.model_type(), family.base.names());
        let there: IndexSet<&str> = family.base.names().map(|name| layout.module_of(name)).collect();
        let names: Vec<String> = recipe.modules.iter().map(|module| module.name.clone()).collect();
        let wrong = |why: String| {
            let known: Vec<&str> = there.iter().copied().collect();
            let why =
                format!("{why}; the modules of {} are {}", family.base.path().display(), known.join(", "));
            Err(recipe::Error::new(&recipe.path, None, "modules", why).into())
        };
        if let Some(other) = names.iter().find(|name| !there.contains(name.as_str())) {
            return wrong(format!("there is no module `{other}`"));
        }
        if let Some(left) = there.iter().find(|module| !names.iter().any(|name| name == *module)) {
            return wrong(format!("nothing says what becomes of the module `{left}`"));
        }
        Ok(Some(Modules { layout, names }))
    }

    /// The place of a tensor's module among the recipe's.
    pub fn place(&self, tensor: &str) -> Option<usize> {
        let module = self.layout.module_of(tensor);
        self.names.iter().position(|name| name == module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_those_of_mergekit() {
        let of = |model_type, names: &[&'static str]| {
            let layout = Layout::of(Some(model_type), names.iter().copied());
            names.iter().map(|name| layout.module_of(name).to_owned()).collect::<Vec<_>>()
        };
        let names = [
            "language_model.model.layers.0.q.weight",
            "lm_head.weight",
            "multi_modal_projector.norm.weight",
            "vision_tower.vision_model.encoder.layers.3.w",
        ];
        assert_eq!(
            of("gemma3", &names),
            ["text_decoder", "text_decoder", "multi_modal_projector", "vision_tower"]
        );
        let names = ["model.layers.0.w", "visual.merger.ln_q.weight", "visual.blocks.0.w"];
        assert_eq!(of("qwen2_vl", &names), ["text_decoder", "multi_modal_projector", "vision_tower"]);
        let names = ["shared.weight", "encoder.block.0.w", "decoder.block.0.w", "lm_head.weight"];
        assert_eq!(of("t5", &names), ["shared", "encoder", "decoder", "shared"]);
        let names = ["text_model.encoder.layers.0.w", "vision_model.encoder.layers.1.w", "logit_scale"];
        assert_eq!(
            of("clip", &names),
            ["text_model.encoder.layers", "vision_model.encoder.layers", "default"]
        );
        let names = ["model.layers.0.w", "lm_head.weight"];
        assert_eq!(of("llama", &names), ["default", "default"]);
    }
}
