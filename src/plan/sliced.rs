//! Models put together of layers of other models, for recipes with `slices`.

use super::Error;
use super::family::open;
use super::names::{block, block_index, comes_first};
use super::vocabulary::Aligned;
use crate::checkpoint::{self, Checkpoint};
use crate::recipe::{Recipe, Slice};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The models of a recipe with slices, under the names of the output.
pub(super) struct Composed {
    pub base: Checkpoint,
    /// In the order of the recipe's models.
    pub experts: Vec<Checkpoint>,
}

/// Opens all models whose layers are taken; none if the recipe has no slices.
pub(super) fn compose(recipe: &Recipe, aligned: Option<&Aligned>) -> Result<Option<Composed>, Error> {
    if recipe.slices.is_empty() {
        return Ok(None);
    }
    let mut opened = HashMap::new();
    let paths = recipe.slices.iter().flat_map(|slice| {
        std::iter::once(&slice.base.0).chain(slice.sources.iter().map(|source| &source.path))
    });
    for path in paths {
        if !opened.contains_key(path) {
            opened.insert(path.clone(), open(path, aligned)?);
        }
    }
    let base = composed(&recipe.base_model, &opened, &recipe.slices, |slice| (&slice.base.0, slice.base.1))?;
    let expert = |k: usize| {
        let source = recipe.models[k].source.path();
        composed(source, &opened, &recipe.slices, |slice| (&slice.sources[k].path, slice.sources[k].first))
    };
    let experts = (0..recipe.models.len()).map(expert).collect::<Result<_, _>>()?;
    Ok(Some(Composed { base, experts }))
}

/// A model of which each slice is some layers of another; `path` names it.
fn composed(
    path: &Path,
    opened: &HashMap<PathBuf, Checkpoint>,
    slices: &[Slice],
    source: impl Fn(&Slice) -> (&PathBuf, usize),
) -> Result<Checkpoint, Error> {
    let mut parts: Vec<(String, &Checkpoint, &str)> = Vec::new();
    for (i, slice) in slices.iter().enumerate() {
        let (path, first) = source(slice);
        let Some(model) = opened.get(path) else { continue };
        let last = i + 1 == slices.len();
        let outside = |name: &&str| block_index(name).is_none();
        if i == 0 {
            let before = model.names().filter(outside).filter(|name| comes_first(name));
            parts.extend(before.map(|name| (name.to_owned(), model, name)));
        }
        let range = first..first + slice.layers.len();
        check_range(model, &range)?;
        for name in model.names() {
            let Some((before, index, after)) = block(name) else { continue };
            let Some(layer) = index.parse().ok().filter(|layer| range.contains(layer)) else { continue };
            parts.push((format!("{before}.{}.{after}", slice.layers.start + layer - first), model, name));
        }
        if last {
            let after = model.names().filter(outside).filter(|name| !comes_first(name));
            parts.extend(after.map(|name| (name.to_owned(), model, name)));
        }
    }
    let own = opened.get(path).or_else(|| slices.first().and_then(|slice| opened.get(source(slice).0)));
    let Some(own) = own else {
        let (path, hint) = (path.to_path_buf(), "it is not among the sources of the slices");
        return Err(checkpoint::Error::NotFound { path, hint }.into());
    };
    Ok(own.composed(&parts))
}

fn check_range(model: &Checkpoint, range: &Range<usize>) -> Result<(), Error> {
    let layers = model.names().filter_map(block_index).max().map_or(0, |last| last + 1);
    if range.end <= layers {
        return Ok(());
    }
    let reason = format!("`layer_range` [{}, {}] reaches past its {layers} layers", range.start, range.end);
    Err(Error::Unsupported { path: model.path().to_path_buf(), reason })
}
