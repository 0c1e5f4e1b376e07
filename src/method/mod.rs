//! The merging methods: each equation of the papers is a function of its name.
//!
//! *Paper 1* is "Model Merging in the Essential Subspace" (CVPR 2026, arXiv 2602.20208), *paper 2* "Essential Subspace
//! Merging for Multi-Task Learning" (arXiv 2606.19164). A method sees tensors on a backend and nothing else: no files,
//! no layer names. Throughout, T tasks share a linear layer `y = W x` with `W` of `d_out x d_in`; `dW_t = W_t - W_0`.
//! L layers of one shape are merged in one batch: first all tasks of the first layer, then those of the next.

pub mod arcee_fusion;
pub mod arithmetic;
pub mod assembly;
pub mod breadcrumbs;
pub mod calibrate;
pub mod consensus_ta;
pub mod dare;
pub mod dc_merge;
pub mod della;
mod election;
pub mod elementwise;
pub mod esd;
pub mod esm;
pub mod esm_plus;
mod fusion;
pub mod gram;
pub mod head_refit;
mod held;
pub mod iso;
pub mod karcher;
pub mod knots;
pub mod linear;
pub mod low_rank;
pub mod model_stock;
pub mod multislerp;
pub mod nearswap;
pub mod nuslerp;
pub mod options;
pub mod passthrough;
pub mod ram;
pub mod ranks;
pub mod regmean;
pub mod sce;
pub mod slerp;
pub mod spectral;
pub mod swudi;
pub mod table;
pub mod ties;
pub mod tsv;
pub mod values;

pub use calibrate::Calibrate;
pub use elementwise::{Elementwise, Slab, Slabs};
pub use fusion::{MergedFactors, MergedLayer, MergedLayers};
pub use options::{AlphaScope, Decomposition, EsmOptions, Fusion, Preset, Scale, TaskNorm};
pub use spectral::{Matrices, Spectral};
pub use table::Description;
pub use values::{Value, Values};

use crate::backend::{Backend, Result, Shape, Tensor};
use crate::linalg::Accuracy;

/// What every method needs to know about how to compute.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solver {
    /// Accuracy against time.
    pub accuracy: Accuracy,
    /// Seed of the random starts.
    pub seed: u64,
}

/// One tensor of all batches, in order; where one has fewer rows than another, rows of zeros follow.
pub(crate) fn join_batches<B: Backend>(backend: &B, mut parts: Vec<B::Tensor>) -> Result<B::Tensor> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let total = parts.iter().map(|p| p.shape().batch).sum();
    let first = parts.first().map_or(Shape::new(0, 0, 0), Tensor::shape);
    let most = parts.iter().map(|p| p.shape().rows).max().unwrap_or(0);
    let mut joined = backend.zeros(Shape { batch: total, rows: most, ..first })?;
    let mut at = 0;
    for part in &parts {
        let Shape { batch, rows, cols } = part.shape();
        backend.copy_block(part, [0, 0, 0], &mut joined, [at, 0, 0], [batch, rows, cols])?;
        at += batch;
    }
    Ok(joined)
}

/// The elementwise methods: their enum, and what hands a tensor to one of them.
macro_rules! elementwise {
    ($($name:ident: $method:ty = $description:path;)*) => {
        /// An elementwise method with its parameters for a tensor.
        #[allow(missing_docs)]
        pub enum Streamed {
            $($name($method),)*
        }

        /// What such a method has learnt of a tensor.
        #[allow(missing_docs)]
        pub enum Learned {
            $($name(<$method as Elementwise>::Learned),)*
        }

        const ELEMENTWISE: &[&Description] = &[$(&$description),*];

        impl Streamed {
            /// The method that is described so; none if it is no elementwise one.
            ///
            /// # Errors
            /// Says which parameters do not go together.
            pub fn new(method: &Description, values: &Values) -> std::result::Result<Option<Streamed>, String> {
                $(if method.name == $description.name {
                    return <$method>::new(values).map(Streamed::$name).map(Some);
                })*
                Ok(None)
            }

            /// [`Elementwise::by_rows`]
            pub fn by_rows(&self) -> bool {
                match self {
                    $(Streamed::$name(method) => method.by_rows(),)*
                }
            }

            /// [`Elementwise::learn`]
            ///
            /// # Errors
            /// Of the slabs or the device.
            pub async fn learn<B: Backend, S: Slabs<B>>(
                &self,
                backend: &B,
                slabs: &mut S,
            ) -> std::result::Result<Learned, S::Error> {
                Ok(match self {
                    $(Streamed::$name(method) => Learned::$name(method.learn(backend, slabs).await?),)*
                })
            }

            /// [`Elementwise::apply`], of what the same method has learnt.
            ///
            /// # Errors
            /// Of the device.
            pub async fn apply<B: Backend>(
                &self,
                backend: &B,
                learned: &Learned,
                slab: Slab<B::Tensor>,
            ) -> Result<B::Tensor> {
                match (self, learned) {
                    $((Streamed::$name(method), Learned::$name(learned)) => method.apply(backend, learned, slab).await,)*
                    _ => Err(crate::backend::Error::Internal("another method has learnt of this tensor".to_owned())),
                }
            }
        }
    };
}

elementwise! {
    Linear: linear::Linear = linear::METHOD;
    TaskArithmetic: arithmetic::TaskArithmetic = arithmetic::METHOD;
    Ties: ties::Ties = ties::METHOD;
    DareLinear: dare::Dare<false> = dare::METHOD;
    DareTies: dare::Dare<true> = dare::WITH_ELECTION;
    Della: della::Della<true> = della::METHOD;
    DellaLinear: della::Della<false> = della::LINEAR;
    Breadcrumbs: breadcrumbs::Breadcrumbs<false> = breadcrumbs::METHOD;
    BreadcrumbsTies: breadcrumbs::Breadcrumbs<true> = breadcrumbs::WITH_ELECTION;
    Slerp: slerp::Slerp = slerp::METHOD;
    NuSlerp: nuslerp::NuSlerp = nuslerp::METHOD;
    MultiSlerp: multislerp::MultiSlerp = multislerp::METHOD;
    Karcher: karcher::Karcher = karcher::METHOD;
    ModelStock: model_stock::ModelStock = model_stock::METHOD;
    NearSwap: nearswap::NearSwap = nearswap::METHOD;
    Sce: sce::Sce = sce::METHOD;
    Ram: ram::Ram<false> = ram::METHOD;
    RamPlus: ram::Ram<true> = ram::PLUS;
    ArceeFusion: arcee_fusion::ArceeFusion = arcee_fusion::METHOD;
    ConsensusTa: consensus_ta::ConsensusTa = consensus_ta::METHOD;
    Passthrough: passthrough::Passthrough = passthrough::METHOD;
}

/// The methods for matrices of layers: their enum, and what hands a layer to one of them.
macro_rules! spectral {
    ($($name:ident: $method:ty = $description:path;)*) => {
        /// A method for the matrices of layers with its parameters.
        #[allow(missing_docs)]
        pub enum Decomposed {
            $($name($method),)*
        }

        const SPECTRAL: &[&Description] = &[$(&$description),*];

        impl Decomposed {
            /// The method that is described so; none if it is no such one.
            ///
            /// # Errors
            /// Says which parameters do not go together.
            pub fn new(method: &Description, values: &Values) -> std::result::Result<Option<Decomposed>, String> {
                $(if method.name == $description.name {
                    return <$method>::new(values).map(Decomposed::$name).map(Some);
                })*
                Ok(None)
            }

            /// [`Spectral::wants_base`]
            pub fn wants_base(&self) -> bool {
                match self {
                    $(Decomposed::$name(method) => method.wants_base(),)*
                }
            }

            /// [`Spectral::turns_with_outputs`]
            pub fn turns_with_outputs(&self) -> bool {
                match self {
                    $(Decomposed::$name(method) => method.turns_with_outputs(),)*
                }
            }

            /// [`Spectral::merge`]
            ///
            /// # Errors
            /// Of the device.
            pub async fn merge<B: Backend>(
                &self,
                backend: &B,
                layer: &Matrices<'_, B::Tensor>,
                solver: Solver,
            ) -> Result<B::Tensor> {
                match self {
                    $(Decomposed::$name(method) => method.merge(backend, layer, solver).await,)*
                }
            }
        }
    };
}

spectral! {
    TsvM: tsv::TsvM = tsv::METHOD;
    IsoC: iso::IsoC = iso::METHOD;
    IsoCts: iso::IsoCts = iso::COMMON_AND_SPECIFIC;
    Swudi: swudi::Swudi = swudi::METHOD;
    DcMerge: dc_merge::DcMerge = dc_merge::METHOD;
    KnotsTies: knots::KnotsTies = knots::METHOD;
    KnotsDareTies: knots::KnotsDareTies = knots::DROPPED;
    RegMean: regmean::RegMean = regmean::METHOD;
    RegMeanPlus: regmean::RegMean = regmean::PLUS;
}

/// All methods.
pub fn methods() -> impl Iterator<Item = &'static Description> {
    [&esm::METHOD, &esm_plus::METHOD].into_iter().chain(SPECTRAL.iter().chain(ELEMENTWISE).copied())
}
