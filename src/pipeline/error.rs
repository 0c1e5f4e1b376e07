use crate::{backend, calibration, checkpoint, data, model, plan};
use std::path::PathBuf;

/// Why a merge stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recipe does not fit the models.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// A weights file cannot be read, or the output not written.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// A calibration file cannot be used.
    #[error(transparent)]
    Calibration(#[from] calibration::Error),
    /// An expert cannot be run, or not on its samples.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// A layer is not one whose inputs are captured.
    #[error(
        "running expert `{expert}` showed no inputs of `{layer}`: calibration from data covers the linear layers of a \
         model's blocks; give calibration files, or take the layer out with `layers`"
    )]
    NotCaptured {
        /// The expert.
        expert: String,
        /// The layer.
        layer: String,
    },
    /// Parameters do not go together for a tensor.
    #[error("parameters for the tensor `{tensor}`: {reason}")]
    Parameters {
        /// The tensor.
        tensor: String,
        /// Which.
        reason: String,
    },
    /// The device failed.
    #[error("merging {layer}: {source}")]
    Device {
        /// The layer it was working on, quoted, or several.
        layer: String,
        /// What failed.
        source: backend::Error,
    },
    /// The merged values are not numbers.
    #[error("merging `{layer}` {what}: {cause}")]
    NotFinite {
        /// The layer or tensor.
        layer: String,
        /// What was found, and where.
        what: String,
        /// Which file or key it comes from, and what to do.
        cause: String,
    },
    /// A merged weight does not fit the output type.
    #[error(
        "tensor `{tensor}` of the merged model holds {value} at element {index} after rounding to {dtype}; {}",
        smaller(*.dtype)
    )]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Position in it.
        index: usize,
        /// "NaN" or "an infinity".
        value: &'static str,
        /// The output type.
        dtype: backend::Dtype,
    },
    /// The merged model gives no numbers at an alpha that is tried.
    #[error("with alpha {alpha:.3} the merged model cannot be measured on {}: {reason}", data.display())]
    Search {
        /// The alpha.
        alpha: f64,
        /// The samples.
        data: PathBuf,
        /// What was not finite.
        reason: String,
    },
    /// A model that is to become an adapter changes no weight that could have factors.
    #[error(
        "{} changes no linear weight of a block of its base, so that there is nothing to make an adapter of; name weights with \
         --layers, or check --base",
        model.display()
    )]
    NothingToExtract {
        /// The model.
        model: PathBuf,
    },
    /// A recipe whose method looks at no layer as a matrix.
    #[error(
        "merge_method {method} decomposes no layer of these models, so that there is nothing to inspect; give a recipe of the same \
         models with merge_method esm"
    )]
    NothingToInspect {
        /// The method.
        method: String,
    },
    /// Work that cannot be shared out among several runs.
    #[error("{reason}")]
    Share {
        /// Why, and what to do.
        reason: &'static str,
    },
    /// An output of ESM++ cannot be rescaled.
    #[error(
        "{} comes from merge_method esm++, whose low-rank experts are what the model merged with one alpha lacks; another \
         alpha needs other experts: merge again with --alpha",
        path.display()
    )]
    DependsOnAlpha {
        /// The output, or the deltas kept beside it.
        path: PathBuf,
    },
    /// The deltas cannot be kept where it was asked for.
    #[error("cannot keep the deltas in {}: {reason}", path.display())]
    KeepDelta {
        /// The path.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
}

/// What to do about a weight that does not fit a type.
fn smaller(dtype: backend::Dtype) -> &'static str {
    match dtype {
        backend::Dtype::F16 => {
            "choose another out_dtype (float32 or bfloat16), or a smaller `alpha`, `lambda` or `weight`"
        }
        _ => "choose a smaller `alpha`, `lambda` or `weight`, or look at the experts' values of this tensor",
    }
}

impl Error {
    /// What the device had to say, if it was its doing.
    pub(super) fn of_device(&self) -> Option<&backend::Error> {
        match self {
            Error::Device { source, .. } => Some(source),
            Error::Data(data::Error::Model { source: model::Error::Device(source), .. }) => Some(source),
            _ => None,
        }
    }

    /// For `map_err`: an error of the device while working on `layer`.
    pub(super) fn device(layer: &str) -> impl FnOnce(backend::Error) -> Error {
        let layer = format!("`{layer}`");
        move |source| Error::Device { layer, source }
    }

    /// The same while working on `layer` and `more` of its shape.
    pub(super) fn device_on_batch(layer: &str, more: usize) -> impl FnOnce(backend::Error) -> Error {
        let more = if more > 0 { format!(" and {more} more of its shape") } else { String::new() };
        let layer = format!("`{layer}`{more}");
        move |source| Error::Device { layer, source }
    }
}
