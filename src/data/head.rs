//! What makes answers of a model's hidden state.

use crate::model::Pooling;

/// Everything between a model's last hidden state and its answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Classifier {
    /// How features are pooled, where the model leaves it open.
    pub pooling: Option<Pooling>,
    /// A layer before the head, where the architecture has one.
    pub dense: Option<Dense>,
    /// What makes logits.
    pub head: Head,
}

/// `act(W x + b)`: the pooler of BERT, the dense layer of RoBERTa's head.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    /// `d_out x d_in`.
    pub weight: Vec<f32>,
    /// `d_out`.
    pub bias: Vec<f32>,
    /// What follows.
    pub activation: Squash,
}

/// Activations between a dense layer and a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Squash {
    /// `tanh x`
    Tanh,
    /// `max(x, 0)`
    Relu,
}

impl Squash {
    /// All of them, by the names that head files use.
    pub const NAMES: [(&'static str, Squash); 2] = [("tanh", Squash::Tanh), ("relu", Squash::Relu)];

    /// Its name in a head file.
    pub fn name(self) -> &'static str {
        match self {
            Squash::Tanh => "tanh",
            Squash::Relu => "relu",
        }
    }

    /// Of one value.
    pub fn of(self, x: f64) -> f64 {
        match self {
            Squash::Tanh => x.tanh(),
            Squash::Relu => x.max(0.0),
        }
    }
}

impl Dense {
    /// Width of what it gives.
    pub fn width(&self) -> usize {
        self.bias.len()
    }

    /// Width of the features it takes.
    pub fn inputs(&self) -> usize {
        self.weight.len() / self.bias.len().max(1)
    }
}

/// What makes logits of features.
#[derive(Clone, Debug, PartialEq)]
pub enum Head {
    /// `scale * cosine` with the embedding of each class, as CLIP has it.
    Cosine {
        /// `classes x d`.
        classes: Vec<f32>,
        /// Width of a feature.
        d: usize,
        /// Irrelevant to accuracy, kept for logits.
        scale: f32,
    },
    /// `scale * <x / |x|, class>`: what a cosine head becomes by a refit, where the lengths of the rows count.
    Dot {
        /// `classes x d`.
        classes: Vec<f32>,
        /// Width of a feature.
        d: usize,
        /// As of cosines.
        scale: f32,
    },
    /// `W x + b`.
    Linear {
        /// `classes x d`.
        weight: Vec<f32>,
        /// Width of a feature.
        d: usize,
        /// One a class.
        bias: Vec<f32>,
    },
}

impl Head {
    /// Number of classes.
    pub fn classes(&self) -> usize {
        match self {
            Head::Cosine { classes, d, .. } | Head::Dot { classes, d, .. } => classes.len() / (*d).max(1),
            Head::Linear { bias, .. } => bias.len(),
        }
    }

    /// Whether it adds anything to its products: a bias of zeros is none.
    pub fn has_bias(&self) -> bool {
        matches!(self, Head::Linear { bias, .. } if bias.iter().any(|&b| b != 0.0))
    }

    /// Width of the features it takes.
    pub fn width(&self) -> usize {
        match self {
            Head::Cosine { d, .. } | Head::Dot { d, .. } | Head::Linear { d, .. } => *d,
        }
    }
}

impl Classifier {
    /// Width of the features it takes from the model.
    pub fn width(&self) -> usize {
        self.dense.as_ref().map_or(self.head.width(), Dense::inputs)
    }
}
