//! Variances of a merged model that are none.

use super::Error;
use crate::backend::Dtype;
use crate::checkpoint::{Checkpoint, widen};

/// What is said of running variances of batch norms that a merge made negative, which no square root can be taken of; none if
/// all are well.
pub(super) fn negative_variances(merged: &Checkpoint) -> Result<Option<String>, Error> {
    let mut negative = Vec::new();
    for name in merged.names().filter(|name| name.ends_with("running_var")) {
        let Some(meta) = merged.get(name) else { continue };
        let bytes = merged.read_values(name, 0..meta.elements())?;
        if widen(meta.float().unwrap_or(Dtype::F32), &bytes).iter().any(|v| *v < 0.0) {
            negative.push(name);
        }
    }
    let warning = |first: &&str| {
        format!(
            "{} running variances of batch norms are negative in the merged model, such as in `{first}`: its outputs will be \
             NaN. Differences of variances do not add; merge by `linear`, use a smaller alpha, or let the merged model see some \
             data in training mode",
            negative.len()
        )
    };
    Ok(negative.first().map(warning))
}
