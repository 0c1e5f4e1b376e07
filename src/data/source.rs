//! A model on disk as a source of weights: a checkpoint, or a base with deltas added in f32.

use super::error::read_json;
use super::{Error, Preprocessor};
use crate::adapter::Adapter;
use crate::backend::Dtype;
use crate::backend::cpu::Cpu;
use crate::backend::layers::Layers;
use crate::checkpoint::{Checkpoint, DeltaFile};
use crate::host::PathExt;
use crate::hub;
use crate::model::{Config, Grid, Model, Stored, Weights, WeightsError};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A model that can be run.
#[derive(Clone, Debug)]
pub struct ModelSource {
    path: PathBuf,
    base: Checkpoint,
    delta: Option<Delta>,
    adapter: Option<Adapter>,
    config: Value,
}

#[derive(Clone, Debug)]
struct Delta {
    weights: Checkpoint,
    /// What each tensor's delta is multiplied by; 1 where it is not named.
    factors: BTreeMap<String, f64>,
    /// Inter-layer scale and whether alpha multiplies, for a file that a merge kept.
    kept: Option<DeltaFile>,
}

/// What separates a base from its deltas in the name of a model.
const DELTA: &str = "+delta:";

impl ModelSource {
    /// Opens a folder, a file, `BASE+delta:FILE`, or `MODEL+ADAPTER`; models may be named as in the Hugging Face hub, if they are in
    /// its cache.
    pub fn open(name: &str) -> Result<ModelSource, Error> {
        if let Some((base, delta)) = name.split_once(DELTA) {
            return ModelSource::with_delta(&hub::existing(base)?, Path::new(delta));
        }
        let path = hub::existing(name)?;
        if Adapter::is_one(&path) {
            let reason = format!("this is an adapter; write it behind its model: MODEL+{name}");
            return Err(Error::bad(&path, reason));
        }
        let halves = || name.match_indices('+').map(|(plus, _)| (&name[..plus], &name[plus + 1..]));
        for (model, adapter) in halves().filter(|_| !path.is_there()) {
            if let Some(model) = hub::existing(model).ok().filter(|model| model.is_there()) {
                return ModelSource::with_adapter(&model, &hub::existing(adapter)?);
            }
        }
        if let Some((model, _)) = halves().next().filter(|_| !path.is_there()) {
            hub::existing(model)?;
        }
        ModelSource::checkpoint(&path)
    }

    /// A model with an adapter added. Heads that the adapter holds and the model has no place for are left out: nothing that is
    /// run here looks at them.
    pub fn with_adapter(model: &Path, adapter: &Path) -> Result<ModelSource, Error> {
        let mut source = ModelSource::checkpoint(model)?;
        source.adapter = Some(Adapter::open(adapter, &source.base, &source.config)?);
        source.path = PathBuf::from(format!("{}+{}", model.display(), adapter.display()));
        Ok(source)
    }

    /// Opens a folder or a file.
    pub fn checkpoint(path: &Path) -> Result<ModelSource, Error> {
        let base = Checkpoint::open(path)?.with_modern_norms();
        let config = config(&base)?;
        Ok(ModelSource { path: path.to_path_buf(), base, delta: None, adapter: None, config })
    }

    /// A base with deltas. Those of a file that a merge kept are scaled by its betas and its alpha.
    pub fn with_delta(base: &Path, delta: &Path) -> Result<ModelSource, Error> {
        let mut model = ModelSource::checkpoint(base)?;
        let weights = Checkpoint::open(delta)?;
        for name in weights.names() {
            let (of_delta, of_base) = (weights.get(name), model.base.get(name));
            match (of_delta, of_base) {
                (Some(d), Some(b)) if d.shape == b.shape => {}
                (_, None) => {
                    let reason = format!("its tensor `{name}` is not one of {}", base.display());
                    return Err(Error::bad(delta, reason));
                }
                _ => {
                    let reason = format!("its tensor `{name}` has another shape than in {}", base.display());
                    return Err(Error::bad(delta, reason));
                }
            }
        }
        let kept = DeltaFile::open(delta).ok();
        let alpha = kept.as_ref().map(|k| k.meta().alpha);
        model.delta = Some(Delta { weights, factors: BTreeMap::new(), kept });
        model.path = PathBuf::from(format!("{}{DELTA}{}", base.display(), delta.display()));
        if let Some(alpha) = alpha {
            model.set_alpha(alpha);
        }
        Ok(model)
    }

    /// Sets the alpha of deltas that a merge kept; of other deltas, their factor. A model without deltas has no alpha.
    pub fn set_alpha(&mut self, alpha: f64) {
        let Some(delta) = &mut self.delta else { return };
        let factor = |name: &str| match delta.kept.as_ref().map(|k| k.meta().tensors.get(name)) {
            Some(Some(entry)) => entry.beta * if entry.alpha { alpha } else { 1.0 },
            Some(None) => 1.0,
            None => alpha,
        };
        delta.factors = delta.weights.names().map(|n| (n.to_owned(), factor(n))).collect();
    }

    /// How it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint whose values make this model differ from others of its family: the deltas, the adapter, or the weights.
    pub fn own_weights(&self) -> &Checkpoint {
        let delta = self.delta.as_ref().map(|d| &d.weights);
        delta.or(self.adapter.as_ref().map(Adapter::file)).unwrap_or(&self.base)
    }

    /// The folder of configuration, tokenizer and preprocessor files.
    pub fn folder(&self) -> Option<&Path> {
        self.base.folder()
    }

    /// Its configuration.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// What makes raw images ready for it, if it takes images in this grid.
    pub fn preprocessor(&self, grid: Grid) -> Result<Preprocessor, Error> {
        Preprocessor::open(self.folder(), &self.config, grid)
    }

    /// The model, ready to run.
    pub fn model<'a, B: Layers>(&'a self, backend: &'a B) -> Result<Model<'a, B>, Error> {
        Model::new(backend, Config::new(&self.config), self).map_err(Error::model(&self.path))
    }
}

/// `open_clip_config.json` where the weights have OpenCLIP's names, else `config.json`.
fn config(model: &Checkpoint) -> Result<Value, Error> {
    let Some(folder) = model.folder() else {
        return Err(Error::bad(
            model.path(),
            "a model that is to be run needs its config.json beside it; give a folder with both",
        ));
    };
    let open_clip = folder.join("open_clip_config.json");
    let usual = folder.join("config.json");
    let fused = model.names().any(|n| n.ends_with("resblocks.0.attn.in_proj_weight"));
    if open_clip.leads_to_file() && (fused || !usual.leads_to_file()) {
        return read_json(&open_clip);
    }
    if usual.leads_to_file() {
        return read_json(&usual);
    }
    if fused {
        return Ok(serde_json::json!({ "model_cfg": { "quick_gelu": true } })); // an OpenAI state dict
    }
    Err(Error::bad(folder, "there is no config.json, which says what kind of model this is; download it"))
}

impl Weights for ModelSource {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.get(name).map(|meta| meta.shape.clone())
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Stored, WeightsError> {
        if let Some(adapter) = self.adapter.as_ref().filter(|adapter| adapter.changes(name)) {
            return with_adapter(&self.base, adapter, name, range);
        }
        let stored = read(&self.base, name, range.clone())?;
        let Some(delta) = self.delta.as_ref().filter(|d| d.weights.get(name).is_some()) else {
            return Ok(stored);
        };
        let factor = delta.factors.get(name).copied().unwrap_or(1.0) as f32;
        let mut sum = stored.to_f32();
        let deltas = read(&delta.weights, name, range)?.to_f32();
        sum.iter_mut().zip(deltas).for_each(|(w, d)| *w += factor * d);
        Ok(Stored { dtype: Dtype::F32, bytes: bytemuck::cast_slice(&sum).to_vec() })
    }
}

/// Values of a tensor that an adapter changes: its own or the model's, and what its factors make.
fn with_adapter(
    model: &Checkpoint,
    adapter: &Adapter,
    name: &str,
    range: Range<usize>,
) -> Result<Stored, WeightsError> {
    let saved = Some(adapter.saved()).filter(|saved| saved.get(name).is_some());
    let mut sum = read(saved.unwrap_or(model), name, range.clone())?.to_f32();
    let extents = adapter.extents(name, &range)?;
    let stored = extents.iter().map(|extent| extent.read()).collect::<Result<Vec<_>, _>>()?;
    let dtypes = extents.iter().map(|extent| extent.dtype().unwrap_or(Dtype::F32));
    let factors: Vec<_> = dtypes.zip(stored.iter().map(Vec::as_slice)).collect();
    if let Some(difference) = adapter.difference(&Cpu, name, &range, &factors)? {
        sum.iter_mut().zip(difference.values()).for_each(|(w, d)| *w += d);
    }
    Ok(Stored { dtype: Dtype::F32, bytes: bytemuck::cast_slice(&sum).to_vec() })
}

fn read(model: &Checkpoint, name: &str, range: Range<usize>) -> Result<Stored, WeightsError> {
    let bytes = model.read_values(name, range)?;
    let dtype = model.get(name).and_then(|m| m.float()).unwrap_or(Dtype::F32); // read_values refuses all others
    Ok(Stored { dtype, bytes })
}
