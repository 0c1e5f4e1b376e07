//! The modules of a sentence-transformers model that have weights of their own (`2_Dense`): summed as tensors are that no
//! decomposition applies to, or the base's where the experts have others.

use super::assemble::{Files, Source, Step, write_model};
use super::flow::Flow;
use super::sums::Merged;
use super::{Error, Job, Progress};
use crate::backend::Backend;
use crate::checkpoint::{self, Checkpoint, Sidecars};
use crate::method::AlphaScope;
use crate::plan::{Expert, Family};
use crate::recipe::Method;
use indexmap::IndexMap;

/// A module, and how it gets into the output.
pub(super) struct Module {
    /// Its folder.
    pub name: String,
    /// The module in base and experts where it is merged, else why it is the base's.
    family: Result<Box<Family>, String>,
}

/// Looks at the modules of a family, before it is merged.
pub(super) fn find(family: &Family, sidecars: &Sidecars) -> Vec<Module> {
    let module = |name: &str| Module { name: name.to_owned(), family: family_of(family, name).map(Box::new) };
    sidecars.modules().into_iter().map(module).collect()
}

impl Module {
    /// What the user should know of it.
    pub fn note(&self) -> Option<String> {
        let why = self.family.as_ref().err()?;
        Some(format!("the module {} is the base's, not merged: {why}", self.name))
    }

    /// Whether its weights are summed.
    pub fn is_merged(&self) -> bool {
        self.family.is_ok()
    }

    /// Writes the weights.
    pub async fn write<B: Backend>(
        &self,
        job: &Job<'_, B>,
        sidecars: &Sidecars,
        files: &Files<'_>,
        flow: &mut Flow,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let Ok(family) = &self.family else {
            return Ok(sidecars.copy_weights(&self.name, files.root)?);
        };
        let folder = files.root.join(&self.name);
        crate::host::fs::create_dir_all(&folder).map_err(checkpoint::Error::io("create", &folder))?;
        let job = Job { family, ..*job };
        let counted = flow.rounding.clone(); // of the model alone
        let deltas = Merged::new(&job, None);
        let (backend, base) = (job.backend, &family.base);
        let source = Source { backend, base, steps: &steps(&job), deltas: &deltas };
        let files = Files { always_index: false, ..*files };
        write_model(&source, &folder, &files, flow, progress).await?;
        flow.rounding = counted;
        Ok(())
    }
}

fn steps<B>(job: &Job<'_, B>) -> IndexMap<String, Step> {
    let alpha = match &job.recipe.method {
        Method::Esm(esm) if esm.alpha_scope != AlphaScope::All => 1.0,
        _ => job.plan.alpha,
    };
    let base = &job.family.base;
    let step = |name: &str| match base.written_as(name) {
        Some(stored) => Step::Merge { alpha, beta: 1.0, dtype: job.recipe.out_dtype.unwrap_or(stored) },
        None => Step::Copy,
    };
    base.names().map(|name| (name.to_owned(), step(name))).collect()
}

/// The module as a family of its own, if every expert has it with the same tensors.
fn family_of(family: &Family, name: &str) -> Result<Family, String> {
    let open = |model: &Checkpoint| {
        let folder = model.folder().ok_or_else(|| format!("{} is not a folder", model.path().display()))?;
        Checkpoint::open(&folder.join(name)).map_err(|e| e.to_string())
    };
    let base = open(&family.base)?;
    let expert = |expert: &Expert| {
        if expert.is_delta {
            return Err(format!("expert `{}` is a task vector, which has no modules", expert.name));
        }
        if expert.adapter.is_some() {
            return Err(format!("expert `{}` is an adapter, which has no modules", expert.name));
        }
        let weights = open(&expert.weights)?;
        let differs = |tensor: &&str| {
            let (of_base, of_expert) = (base.get(tensor), weights.get(tensor));
            of_base.is_some_and(|m| m.float().is_some())
                && of_expert.filter(|m| m.float().is_some()).map(|m| &m.shape) != of_base.map(|m| &m.shape)
        };
        match base.names().find(differs) {
            Some(tensor) => Err(format!("`{tensor}` has no tensor of its shape in expert `{}`", expert.name)),
            None => Ok(Expert { weights, calibration: None, proxies: None, ..expert.clone() }),
        }
    };
    let experts = family.experts.iter().map(expert).collect::<Result<Vec<_>, _>>()?;
    Ok(Family { base, experts, ..family.clone() })
}
