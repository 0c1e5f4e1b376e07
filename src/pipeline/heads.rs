//! The heads of the experts, beside the merged model.

use super::{Error, Job};
use crate::backend::layers::Layers;
use crate::data::{HEADS, ModelSource, Proxies};
use crate::heads::{self, Expert, HeadReport};
use crate::method::head_refit::{self, ADVISED_PROXIES, Mode};
use crate::plan::{expert_source, head_data};
use crate::recipe::{Calibration, Recipe};
use std::path::Path;

/// Heads to be written, and how.
pub(super) struct Found {
    experts: Vec<Expert>,
    heads: head_refit::Heads,
}

/// The heads that the recipe asks for, found before any work, with enough samples of each; none if it speaks of none.
pub(super) fn find(recipe: &Recipe) -> Result<Option<Found>, Error> {
    let Some(heads) = recipe.heads else { return Ok(None) };
    let base = ModelSource::checkpoint(&recipe.base_model)?;
    let inputs = base.model(&crate::backend::cpu::Cpu)?.inputs();
    let mut experts = Vec::new();
    for (t, model) in recipe.models.iter().enumerate() {
        let data = head_data(model);
        let expert = Expert::open(&model.name, expert_source(recipe, t)?, data.as_deref())?;
        if heads.mode != Mode::Keep {
            expert.proxies(&choice(recipe), &base, inputs)?;
        }
        experts.push(expert);
    }
    Ok(Some(Found { experts, heads }))
}

/// Finds what a merge would only miss when it looks for heads; a dry run asks.
pub fn check_heads(recipe: &Recipe) -> Result<(), Error> {
    find(recipe).map(drop)
}

fn choice(recipe: &Recipe) -> Proxies {
    let of_model = |calibration: &Calibration| match calibration {
        Calibration::Data(proxies) => proxies.max_length,
        _ => None,
    };
    let max_length = recipe.models.iter().find_map(|model| of_model(&model.calibration));
    Proxies { samples: ADVISED_PROXIES, seed: recipe.seed, max_length }
}

/// Writes the heads into the folder of the merged model.
pub(super) async fn write<B: Layers>(
    job: &Job<'_, B>,
    found: Found,
    folder: &Path,
) -> Result<Vec<HeadReport>, Error> {
    let merged = ModelSource::checkpoint(folder)?;
    let Found { experts, heads } = found;
    let done = heads::refit_all(job.backend, &merged, experts, &heads, &choice(job.recipe), |_| {}).await?;
    heads::write(&folder.join(HEADS), &done)?;
    Ok(heads::reports(&done))
}
