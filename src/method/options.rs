//! The switches of Essential Subspace Merging, and the presets that set them.

use crate::backend::Polarity;

/// A polarized scaling `(v / mean v)^exponent`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// 2 in the papers; 1 to 3 give the same accuracy.
    pub exponent: f64,
    /// The whole rule, or one of the ablations.
    pub polarity: Polarity,
}

impl Default for Scale {
    fn default() -> Self {
        Scale { exponent: 2.0, polarity: Polarity::Full }
    }
}

/// Where a task's directions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Decomposition {
    /// Principal components of the output shift (Essential Subspace Decomposition).
    #[default]
    Esd,
    /// Left singular vectors of `dW`, whatever the calibration.
    Svd,
}

/// How the concatenated bases are fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fusion {
    /// Nearest orthonormal matrix, `U V^T`.
    #[default]
    Polar,
    /// Orthonormal factor of a thin QR along the short side.
    Qr,
    /// The plain product of the concatenations, without mean-sigma factors.
    Concat,
}

/// The norm that inter-task scaling compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TaskNorm {
    /// `||dW_t||_F`
    #[default]
    Full,
    /// `||E_r^T dW_t||_F`
    Truncated,
    /// What the released code computes when there are fewer tokens than outputs: the basis of `m = min(n, d_out)` vectors
    /// is completed with the unit vectors `e_m ...`, which are not orthogonal to it.
    CodePadded,
}

/// Which tensors `alpha` multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AlphaScope {
    /// Those merged by ESM; the others enter with coefficient 1.
    #[default]
    Esm,
    /// All.
    All,
}

/// Every switch of the static merge of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EsmOptions {
    /// Source of the bases.
    pub decomposition: Decomposition,
    /// Exponent of the eigenvalue weighting; 0 switches it off.
    pub eigen_weight_power: f64,
    /// Scaling between tasks.
    pub inter_task: Option<Scale>,
    /// The norm it compares.
    pub inter_task_norm: TaskNorm,
    /// Scaling between input dimensions.
    pub inter_dimension: Option<Scale>,
    /// Scaling between the layers of a group.
    pub inter_layer: Option<Scale>,
    /// How the concatenations are fused.
    pub fusion: Fusion,
    /// Whether the product is multiplied by the mean singular values of both concatenations.
    pub mean_sigma: bool,
    /// Constant factor of the merged delta.
    pub gain: f64,
}

/// The four variants of the method that exist in print or in code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Preset {
    /// The released ViT code.
    #[default]
    Esm,
    /// The equations of paper 2.
    EsmPaper,
    /// Paper 1: no eigenvalue weighting.
    EsmCvpr,
    /// The released RoBERTa code.
    EsmLm,
}

impl Preset {
    /// All presets, by the names that recipes use.
    pub const NAMES: [(&'static str, Preset); 4] = [
        ("esm", Preset::Esm),
        ("esm-paper", Preset::EsmPaper),
        ("esm-cvpr", Preset::EsmCvpr),
        ("esm-lm", Preset::EsmLm),
    ];

    /// The switches of one layer.
    pub fn options(self) -> EsmOptions {
        let on = Some(Scale::default());
        let esm = EsmOptions {
            decomposition: Decomposition::Esd,
            eigen_weight_power: 0.15,
            inter_task: on,
            inter_task_norm: TaskNorm::Full,
            inter_dimension: on,
            inter_layer: on,
            fusion: Fusion::Polar,
            mean_sigma: true,
            gain: 2.0,
        };
        match self {
            Preset::Esm => esm,
            Preset::EsmPaper => EsmOptions { mean_sigma: false, gain: 1.0, ..esm },
            Preset::EsmCvpr => EsmOptions { eigen_weight_power: 0.0, ..esm },
            Preset::EsmLm => EsmOptions { inter_task: None, inter_dimension: None, gain: 1.0, ..esm },
        }
    }

    /// Which tensors `alpha` multiplies.
    pub fn alpha_scope(self) -> AlphaScope {
        match self {
            Preset::Esm | Preset::EsmCvpr => AlphaScope::Esm,
            Preset::EsmPaper | Preset::EsmLm => AlphaScope::All,
        }
    }

    /// Whether a layer that falls back to TSV-M is multiplied by the mean singular values of its two concatenations, as
    /// the released RoBERTa code does.
    pub fn tsv_mean_sigma(self) -> bool {
        self == Preset::EsmLm
    }
}
