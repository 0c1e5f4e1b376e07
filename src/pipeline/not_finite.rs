//! Why the merge of a layer ended in infinities or NaN: which file or which key to look at.

use super::members::Member;
use super::reader::Reader;
use super::weights::member_deltas;
use super::{Error, Job};
use crate::backend::{self, Backend};
use crate::plan::Layer;

/// Norms of deltas past which products with inputs of ordinary size leave float32.
const LARGE: f64 = 1e25;

/// Exponents past which powers of ordinary ratios leave float32.
const STEEP: f64 = 30.0;

/// The error for a layer whose merged values, or those of an expert, are not finite: `value` is what was found at `index`.
pub(super) async fn at<B: Backend>(
    job: &Job<'_, B>,
    layer: &Layer,
    (index, value): (usize, &'static str),
) -> Error {
    let what = format!("gave {value} at element {index}");
    let cause = cause(job, layer).await.unwrap_or_else(|| UNKNOWN.to_owned());
    Error::NotFinite { layer: layer.name.clone(), what, cause }
}

/// The same where all that is known is that one of some layers met such numbers on the way; other errors as they are.
pub(super) async fn explained<B: Backend>(job: &Job<'_, B>, layers: &[&Layer], error: Error) -> Error {
    let Error::Device { source: backend::Error::NotFinite(_), .. } = error else { return error };
    let what = "left float32 on the way".to_owned();
    for layer in layers {
        if let Some(cause) = cause(job, layer).await {
            return Error::NotFinite { layer: layer.name.clone(), what, cause };
        }
    }
    let layer = layers.first().map_or_else(String::new, |layer| layer.name.clone());
    Error::NotFinite { layer, what, cause: UNKNOWN.to_owned() }
}

const UNKNOWN: &str = "the deltas or inputs of this layer are too large for float32; look at the experts' weights and \
                       calibration, or try another `gain`, `alpha` or scaling exponent";

async fn cause<B: Backend>(job: &Job<'_, B>, layer: &Layer) -> Option<String> {
    if let Some((key, value)) = steep_exponent(job) {
        return Some(format!("`{key}` is {value:e}, too large for float32; give a smaller one"));
    }
    for (task, expert) in job.family.experts.iter().enumerate() {
        let mut reader = Reader::at_once(job.family.experts.len());
        let delta = member_deltas(job.backend, &mut reader, job.family, &[Member { layer, task }]).ok()?;
        let norm = job.backend.download(&job.backend.frobenius_norms(&delta).ok()?).await.ok()?;
        let norm = norm.first().map_or(0.0, |&norm| f64::from(norm));
        if norm > LARGE || norm.is_nan() {
            let path = expert.weights.path().display();
            let distance = if norm.is_finite() { format!("{norm:.1e}") } else { "over 3.4e38".to_owned() };
            return Some(format!(
                "the weights of expert `{}` ({path}) are {distance} away from the base's there (norm of the difference), too \
                 far for float32; look at that file",
                expert.name
            ));
        }
    }
    None
}

/// The key of an exponent that no ratio survives, and its value.
fn steep_exponent<B>(job: &Job<'_, B>) -> Option<(&'static str, f64)> {
    let options = job.esm_options()?;
    let exponent = |scale: Option<crate::method::Scale>| scale.map_or(0.0, |scale| scale.exponent);
    let exponents = [
        ("eigen_weight_power", options.eigen_weight_power),
        ("inter_task", exponent(options.inter_task)),
        ("inter_dimension", exponent(options.inter_dimension)),
    ];
    exponents.into_iter().find(|&(_, exponent)| exponent.abs() > STEEP)
}
