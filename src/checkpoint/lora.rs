//! LoRA adapters as PEFT keeps them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

use super::scan::widen;
use super::{Error, ModuleNames, Stored, TensorFile, TensorSpec, TensorWriter};
use crate::backend::Dtype;
use crate::files;
use crate::host::PathExt;
use crate::host::fs;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// The file of an adapter's settings.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The file of its weights.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// What stands before a module's path in PEFT's keys.
pub const PEFT_PREFIX: &str = "base_model.model.";

/// The module that the weight of a linear layer belongs to. `torch.nn.MultiheadAttention` keeps its q, k and v in one
/// parameter of its own, and PEFT gives that to the attention module.
pub fn module_of(weight: &str) -> Option<&str> {
    [".weight", ".in_proj_weight"].into_iter().find_map(|ending| weight.strip_suffix(ending))
}

/// The keys of a module's `A` (`r x d_in`) and `B` (`d_out x r`) in an adapter's file; the module may be given by its weight.
pub fn lora_keys(weight: &str) -> [String; 2] {
    let module = module_of(weight).unwrap_or(weight);
    ["lora_A", "lora_B"].map(|factor| format!("{PEFT_PREFIX}{module}.{factor}.weight"))
}

/// What a module is that an adapter changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraModule {
    /// A linear layer, of weight `d_out x d_in`.
    #[default]
    Linear,
    /// One whose weight is stored as `d_in x d_out` (GPT-2's `Conv1D`).
    Across,
    /// A table of `d_in` rows of `d_out` numbers.
    Embedding,
}

impl LoraModule {
    /// The keys of `A` and `B` of a module.
    fn keys(self, module: &str) -> [String; 2] {
        match self {
            LoraModule::Linear | LoraModule::Across => lora_keys(module),
            LoraModule::Embedding => ["lora_embedding_A", "lora_embedding_B"]
                .map(|factor| format!("{PEFT_PREFIX}{module}.{factor}")),
        }
    }
}

/// One weight that an adapter changes, `W + B A` or `W + (B A)^T`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraWeight {
    /// The weight's name in the model.
    pub name: String,
    /// Columns of `B`, rows of `A`.
    pub rank: usize,
    /// Rows of `B`.
    pub d_out: usize,
    /// Columns of `A`.
    pub d_in: usize,
    /// What its module is.
    pub module: LoraModule,
}

/// An adapter being written, its weights in the order given at the start.
pub struct LoraWriter {
    writer: TensorWriter,
}

impl LoraWriter {
    /// Creates the folder with the adapter's settings. `r` is the largest rank, `base` where the model lies, `matrices` names
    /// all matrices of that model, and `names` says what their modules are called.
    pub fn create<'a>(
        folder: &Path,
        weights: &[LoraWeight],
        r: usize,
        base: &str,
        matrices: impl IntoIterator<Item = &'a str>,
        names: &ModuleNames,
    ) -> Result<LoraWriter, Error> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join(ADAPTER_CONFIG);
        let settings = settings(weights, r, base, matrices, names);
        let mut text =
            serde_json::to_vec_pretty(&settings).map_err(|e| Error::io("write", &path)(e.into()))?;
        text.push(b'\n');
        fs::write(&path, text).map_err(Error::io("write", &path))?;

        let spec = |name: String, shape| TensorSpec { name, dtype: Stored::F32, shape };
        let factors = |w: &LoraWeight| {
            let [a, b] = w.module.keys(&names.module(&w.name).unwrap_or_else(|| w.name.clone()));
            [spec(a, vec![w.rank, w.d_in]), spec(b, vec![w.d_out, w.rank])]
        };
        let specs: Vec<TensorSpec> = weights.iter().flat_map(factors).collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let writer = TensorWriter::create(&folder.join(ADAPTER_WEIGHTS), &specs, &metadata)?;
        Ok(LoraWriter { writer })
    }

    /// Appends `A` and `B` of the next weight, row-major.
    pub fn write(&mut self, a: &[f32], b: &[f32]) -> Result<(), Error> {
        self.writer.write(bytemuck::cast_slice(a))?;
        self.writer.write(bytemuck::cast_slice(b))
    }

    /// Flushes the file to the disk.
    pub fn finish(self) -> Result<(), Error> {
        self.writer.finish().map(drop)
    }
}

/// An adapter, opened: only such whose factors apply as they are, `W + B A`.
#[derive(Clone, Debug)]
pub struct LoraFile {
    file: TensorFile,
}

#[derive(Deserialize)]
struct Settings {
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    rank_pattern: BTreeMap<String, f64>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    #[serde(default)]
    use_dora: bool,
}

impl LoraFile {
    /// Opens the adapter in a folder.
    pub fn open(folder: &Path) -> Result<LoraFile, Error> {
        let (settings, weights) = (folder.join(ADAPTER_CONFIG), folder.join(ADAPTER_WEIGHTS));
        for path in [&settings, &weights] {
            if !path.leads_to_file() {
                let hint = "an adapter is a folder with adapter_config.json and adapter_model.safetensors";
                return Err(Error::NotFound { path: path.clone(), hint });
            }
        }
        let bad = |reason: String| Error::BadAdapter { path: settings.clone(), reason };
        let text = files::read(&settings, files::SETTINGS).map_err(Error::io("read", &settings))?;
        let read: Settings = serde_json::from_slice(&text)
            .map_err(|e| bad(format!("it is not the configuration of a LoRA adapter ({e})")))?;
        if read.lora_alpha != read.r as f64 || read.rank_pattern != read.alpha_pattern || read.use_dora {
            return Err(bad(
                "only adapters that apply without a factor are read here: lora_alpha = r, alpha_pattern = rank_pattern, \
                 no DoRA"
                    .to_owned(),
            ));
        }
        Ok(LoraFile { file: TensorFile::open(&weights)? })
    }

    /// Where the factors lie.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The keys of a weight's factors: by the module's name, or, in a file of an earlier version, by the weight's.
    pub fn keys(&self, weight: &str, names: &ModuleNames) -> [String; 2] {
        let by_module = names.module(weight).map(|module| lora_keys(&module));
        let present = by_module.filter(|[a, _]| self.file.tensors().contains_key(a));
        present.unwrap_or_else(|| lora_keys(weight))
    }

    /// Rows and columns of a factor, if the file has it.
    pub fn shape(&self, key: &str) -> Option<(usize, usize)> {
        let meta = self.file.tensors().get(key)?;
        meta.matrix().filter(|_| meta.float().is_some())
    }

    /// The values of a factor.
    pub fn read(&self, key: &str) -> Result<Vec<f32>, Error> {
        let meta = self.file.meta(key)?;
        let bytes = self.file.read_values(key, 0..meta.elements())?;
        Ok(widen(meta.float().unwrap_or(Dtype::F32), &bytes))
    }
}

/// `adapter_config.json`. `lora_alpha = r` makes PEFT's factor `lora_alpha / r` one; a weight of a smaller rank is named
/// with its own of both.
fn settings<'a>(
    weights: &[LoraWeight],
    r: usize,
    base: &str,
    matrices: impl IntoIterator<Item = &'a str>,
    names: &ModuleNames,
) -> Value {
    let smaller: Map<String, Value> = weights
        .iter()
        .filter(|w| w.rank != r)
        .filter_map(|w| Some((names.module(&w.name)?, Value::from(w.rank))))
        .collect();
    json!({
        "peft_type": "LORA",
        "task_type": names.task_type(),
        "base_model_name_or_path": base,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "target_modules": target_modules(weights, matrices, names),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": weights.iter().any(|w| w.module == LoraModule::Across),
        "use_rslora": false,
        "use_dora": false,
        "modules_to_save": null,
        "inference_mode": true,
    })
}

/// The modules, by the last part of their path where that says it all: where no other matrix of the model ends in it.
fn target_modules<'a>(
    weights: &[LoraWeight],
    matrices: impl IntoIterator<Item = &'a str>,
    names: &ModuleNames,
) -> Vec<String> {
    fn leaf(module: &str) -> &str {
        module.rsplit('.').next().unwrap_or(module)
    }
    let ordered: Vec<String> = weights.iter().filter_map(|w| names.module(&w.name)).collect();
    let modules: HashSet<&str> = ordered.iter().map(String::as_str).collect();
    let others = matrices.into_iter().map(|name| names.module(name).unwrap_or_else(|| name.to_owned()));
    let ambiguous: HashSet<String> =
        others.filter(|m| !modules.contains(m.as_str())).map(|m| leaf(&m).to_owned()).collect();
    let mut targets = Vec::new();
    let mut named = HashSet::new();
    for module in &ordered {
        let target = if ambiguous.contains(leaf(module)) { module } else { leaf(module) };
        if named.insert(target) {
            targets.push(target.to_owned());
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(name: &str, rank: usize) -> LoraWeight {
        LoraWeight { name: name.to_owned(), rank, d_out: 4, d_in: 3, module: LoraModule::Linear }
    }

    #[test]
    fn a_leaf_names_its_modules_unless_another_matrix_has_it() {
        let weights =
            ["b.0.query.weight", "b.1.query.weight", "b.0.dense.weight"].map(|name| weight(name, 8));
        let matrices = ["b.0.query.weight", "b.1.query.weight", "b.0.dense.weight", "pooler.dense.weight"];
        assert_eq!(target_modules(&weights, matrices, &ModuleNames::default()), ["query", "b.0.dense"]);
        assert_eq!(target_modules(&weights, [], &ModuleNames::default()), ["query", "dense"]);
    }

    #[test]
    fn a_smaller_rank_is_named_with_its_alpha() {
        let names = ModuleNames::default();
        let settings = settings(&[weight("a.0.q.weight", 8), weight("a.0.k.weight", 3)], 8, "..", [], &names);
        assert_eq!(settings["rank_pattern"], json!({ "a.0.k": 3 }));
        assert_eq!(settings["alpha_pattern"], settings["rank_pattern"]);
        assert_eq!((&settings["r"], &settings["lora_alpha"]), (&json!(8), &json!(8)));
    }

    #[test]
    fn a_fused_attention_weight_belongs_to_the_attention() {
        let [a, _] = lora_keys("visual.blocks.0.attn.in_proj_weight");
        assert_eq!(a, "base_model.model.visual.blocks.0.attn.lora_A.weight");
        assert_eq!(module_of("visual.positional_embedding"), None);
    }
}
