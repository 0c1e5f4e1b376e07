//! From features to predictions to accuracy.

use crate::backend::cpu::dense::product;
use crate::data::{Classifier, Dense, Head};
use crate::host::all_threads;
use faer::MatRef;
use serde::Serialize;

/// Correct predictions among samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Accuracy {
    /// Right answers.
    pub correct: usize,
    /// Questions.
    pub samples: usize,
}

impl Accuracy {
    /// The share of right answers.
    pub fn value(self) -> f64 {
        self.correct as f64 / self.samples.max(1) as f64
    }

    /// The 95% interval of Wilson's score.
    pub fn interval(self) -> (f64, f64) {
        wilson_interval(self.correct, self.samples)
    }

    /// Of answers that are right or not.
    pub fn of(right: &[bool]) -> Accuracy {
        Accuracy { correct: right.iter().filter(|&&r| r).count(), samples: right.len() }
    }
}

/// The normal distribution is this many standard deviations wide at 95%, either way.
pub(super) const Z95: f64 = 1.959_963_984_540_054;

/// Wilson's score interval of a proportion at 95% (E. B. Wilson, JASA 22, 1927).
pub fn wilson_interval(correct: usize, samples: usize) -> (f64, f64) {
    if samples == 0 {
        return (0.0, 1.0);
    }
    let (z, n) = (Z95, samples as f64);
    let p = correct as f64 / n;
    let centre = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

/// What a model gains over another on the same samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Its share of right answers less the other's.
    pub value: f64,
    /// Half of the 95% interval.
    pub margin: f64,
}

impl Difference {
    /// Of two models' answers to the same questions, sample by sample: the mean of `d_i = a_i - b_i`, which is -1, 0 or 1,
    /// with the normal interval `1.96 sqrt(var(d) / n)`. Samples that both get right, or both wrong, count for nothing in
    /// the variance, so that it is much smaller than that of two independent tests.
    pub fn paired(a: &[bool], b: &[bool]) -> Difference {
        let n = a.len().min(b.len()).max(1) as f64;
        let (won, lost) = a.iter().zip(b).fold((0.0, 0.0), |(won, lost), (&a, &b)| match (a, b) {
            (true, false) => (won + 1.0, lost),
            (false, true) => (won, lost + 1.0),
            _ => (won, lost),
        });
        let value = (won - lost) / n;
        let variance = ((won + lost) / n - value * value).max(0.0);
        Difference { value, margin: Z95 * (variance / n).sqrt() }
    }

    /// The mean over tasks, their errors independent.
    pub fn mean(tasks: &[Difference]) -> Difference {
        let n = tasks.len().max(1) as f64;
        let square = tasks.iter().map(|t| t.margin * t.margin).sum::<f64>();
        Difference { value: tasks.iter().map(|t| t.value).sum::<f64>() / n, margin: square.sqrt() / n }
    }
}

/// The class of the largest logit for each row of `features`; the first of equals. In f64.
///
/// # Errors
/// The sample whose logits are not all finite: it has no largest one.
pub fn predict(classifier: &Classifier, features: &[f32]) -> Result<Vec<u32>, NotFinite> {
    let features = before_head(classifier, features);
    let class = |(sample, feature)| {
        let logits = logits(&classifier.head, feature);
        if logits.iter().all(|v| v.is_finite()) { Ok(argmax(&logits)) } else { Err(NotFinite { sample }) }
    };
    features.chunks(classifier.head.width().max(1)).enumerate().map(class).collect()
}

/// What the head sees of features, `samples x d`: they themselves, or what a dense layer makes of them.
pub(crate) fn before_head(classifier: &Classifier, features: &[f32]) -> Vec<f64> {
    let wide = |x: &[f32]| x.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let Some(Dense { weight, bias, activation }) = &classifier.dense else { return wide(features) };
    let (d_in, d_out) = (weight.len() / bias.len().max(1), bias.len());
    let (x, w) = (wide(features), wide(weight));
    let samples = x.len() / d_in.max(1);
    let x = MatRef::from_row_major_slice(&x, samples, d_in);
    let y = product(x, MatRef::from_row_major_slice(&w, d_out, d_in).transpose(), all_threads());
    let at = |i: usize, j: usize| activation.of(y[(i, j)] + f64::from(bias[j]));
    (0..samples).flat_map(|i| (0..d_out).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect()
}

/// A sample has logits that are NaN or infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the logits of sample {sample} are not all finite, so that nothing is predicted")]
pub struct NotFinite {
    /// Counted from 0.
    pub sample: usize,
}

fn logits(head: &Head, feature: &[f64]) -> Vec<f64> {
    let unit = |scale: f32| {
        let norm = feature.iter().map(|v| v * v).sum::<f64>().sqrt();
        f64::from(scale) / if norm > 0.0 { norm } else { 1.0 }
    };
    match head {
        Head::Cosine { classes, d, scale } => {
            let length = |class: &[f32]| {
                class.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE)
            };
            let scale = unit(*scale);
            classes.chunks(*d).map(|class| scale * dot(feature, class) / length(class)).collect()
        }
        Head::Dot { classes, d, scale } => {
            let scale = unit(*scale);
            classes.chunks(*d).map(|class| scale * dot(feature, class)).collect()
        }
        Head::Linear { weight, d, bias } => {
            weight.chunks(*d).zip(bias).map(|(w, &b)| dot(feature, w) + f64::from(b)).collect()
        }
    }
}

fn dot(x: &[f64], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&a, &b)| a * f64::from(b)).sum()
}

/// The first of the largest.
pub(crate) fn argmax(logits: &[f64]) -> u32 {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_gives_the_textbook_interval() {
        let (low, high) = wilson_interval(81, 263);
        assert!((low - 0.2553).abs() < 5e-5 && (high - 0.3662).abs() < 5e-5, "{low} {high}");
        // none and all right: the ends, up to rounding
        assert!(wilson_interval(0, 10).0 < 1e-12 && wilson_interval(10, 10).1 > 1.0 - 1e-12);
    }

    #[test]
    fn a_paired_difference_counts_the_samples_that_disagree() {
        // 3 won, 1 lost of 10: mean 0.2, variance 0.4 - 0.04
        let a = [true, true, true, false, true, true, true, false, false, false];
        let b = [false, false, false, true, true, true, true, false, false, false];
        let d = Difference::paired(&a, &b);
        assert!((d.value - 0.2).abs() < 1e-12 && (d.margin - Z95 * 0.036f64.sqrt()).abs() < 1e-12, "{d:?}");
        assert_eq!(Difference::paired(&a, &a), Difference { value: 0.0, margin: 0.0 });
        let mean = Difference::mean(&[d, Difference { value: 0.0, margin: 0.0 }]);
        assert!((mean.value - 0.1).abs() < 1e-12 && (mean.margin - d.margin / 2.0).abs() < 1e-12);
    }

    fn alone(head: Head) -> Classifier {
        Classifier { pooling: None, dense: None, head }
    }

    #[test]
    fn a_cosine_head_ignores_lengths_and_a_linear_one_does_not() {
        let cosine = alone(Head::Cosine { classes: vec![1.0, 0.0, 0.0, 9.0], d: 2, scale: 20.0 });
        assert_eq!(predict(&cosine, &[2.0, 1.0, 1.0, 2.0]).unwrap(), [0, 1]);
        let linear = alone(Head::Linear { weight: vec![1.0, 0.0, 0.0, 9.0], d: 2, bias: vec![0.0, -1.0] });
        assert_eq!(predict(&linear, &[2.0, 1.0, 2.0, 0.0]).unwrap(), [1, 0]);
    }

    #[test]
    fn the_lengths_of_a_refitted_heads_rows_count() {
        let classes = || vec![1.0, 0.0, 0.0, 9.0];
        let features = [2.0, 1.0, 1000.0, 1.0];
        let cosine = alone(Head::Cosine { classes: classes(), d: 2, scale: 20.0 });
        assert_eq!(predict(&cosine, &features).unwrap(), [0, 0]);
        let dot = alone(Head::Dot { classes: classes(), d: 2, scale: 20.0 });
        assert_eq!(predict(&dot, &features).unwrap(), [1, 0]);
    }

    #[test]
    fn a_dense_layer_comes_before_the_head() {
        // tanh(x - y), tanh(y): the second is larger only while x < 2 y
        let dense = Dense {
            weight: vec![1.0, -1.0, 0.0, 1.0],
            bias: vec![0.0; 2],
            activation: crate::data::Squash::Tanh,
        };
        let head = Head::Linear { weight: vec![1.0, 0.0, 0.0, 1.0], d: 2, bias: vec![0.0; 2] };
        let classifier = Classifier { pooling: None, dense: Some(dense), head };
        assert_eq!(predict(&classifier, &[3.0, 1.0, 1.5, 1.0]).unwrap(), [0, 1]);
    }

    #[test]
    fn nothing_is_predicted_of_features_that_are_not_numbers() {
        let linear = Head::Linear { weight: vec![1.0, 0.0, 0.0, 1.0], d: 2, bias: vec![0.0; 2] };
        let cosine = Head::Cosine { classes: vec![1.0, 0.0, 0.0, 1.0], d: 2, scale: 20.0 };
        for head in [linear, cosine].map(alone) {
            assert_eq!(predict(&head, &[1.0, 2.0, f32::NAN, 1.0]), Err(NotFinite { sample: 1 }));
            assert_eq!(predict(&head, &[f32::INFINITY, 2.0]), Err(NotFinite { sample: 0 }));
        }
    }
}
