use crate::backend;

/// What can go wrong on the way through a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No forward pass for this kind of model.
    #[error(
        "{found}; forward passes exist for {}; for any other model, write the calibration file with the hooks of \
         docs/formats.md",
        super::SUPPORTED
    )]
    Unsupported {
        /// What was found instead, as a clause.
        found: String,
    },
    /// The configuration lacks something or contradicts itself.
    #[error("the model's configuration: {0}")]
    Config(String),
    /// The weights are not those of the architecture.
    #[error("the model lacks the tensor `{0}` that its configuration asks for; is the checkpoint complete?")]
    MissingTensor(String),
    /// A weight has another shape than the configuration says.
    #[error(
        "tensor `{name}` has shape {found:?}, but by the model's configuration it should have {expected:?}"
    )]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it should be.
        expected: Vec<usize>,
    },
    /// The weights could not be read.
    #[error(transparent)]
    Weights(#[from] super::WeightsError),
    /// The forward pass went out of range.
    #[error(
        "running it gave {value} in {place}: the weights or the configuration are damaged, or values grow past float32"
    )]
    NotFinite {
        /// Where it was first seen.
        place: String,
        /// "NaN" or "an infinity".
        value: &'static str,
    },
    /// The samples do not fit the model.
    #[error("{0}")]
    Samples(String),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] backend::Error),
}

/// Result of a step through a model.
pub type Result<T> = std::result::Result<T, Error>;
