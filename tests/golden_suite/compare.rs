//! Computed against expected values.

use crate::case::{Case, Expected, Run};
use libtest_mimic::Failed;
use std::collections::HashMap;

/// Computed values under the keys of the case file.
pub type Actual = HashMap<String, Vec<f64>>;

/// Fails with a line for every value that is missing or out of its tolerance.
pub fn check(case: &Case, run: &Run, actual: &Actual) -> Result<(), Failed> {
    let mut failures = Vec::new();
    let mut compared = 0;
    for expected in run.expected.iter().filter(|e| e.compare != "input_only") {
        compared += 1;
        let Some(got) = actual.get(&expected.key) else {
            failures.push(format!("{}: not computed", expected.key));
            continue;
        };
        failures.extend(check_value(case, expected, got));
    }
    if compared == 0 {
        failures.push("the run states no value to compare".into());
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
}

fn check_value(case: &Case, expected: &Expected, got: &[f64]) -> Option<String> {
    let want = case.values(&expected.key);
    if got.len() != want.len() {
        return Some(format!("{}: {} values, expected {}", expected.key, got.len(), want.len()));
    }
    let (error, tolerance) = match expected.compare.as_str() {
        "equal" => (if got == want { 0.0 } else { f64::INFINITY }, 0.0),
        "relative_frobenius" => (relative_frobenius(got, &want), tolerance(case, expected)),
        other => return Some(format!("{}: unknown comparison {other}", expected.key)),
    };
    // NaN must not pass
    let fits = error <= tolerance;
    (!fits).then(|| format!("{}: error {error:.2e}, tolerance {tolerance:.1e}", expected.key))
}

/// `tol`; where the case gives a Gram as input, and states one, `tol_gram`.
fn tolerance(case: &Case, expected: &Expected) -> f64 {
    let weight = expected.key.split('/').nth(1).unwrap_or_default();
    let gram_given = case.tensors.get(weight).is_some_and(|t| t.activations.as_deref() == Some("gram"));
    let tol = expected.tol.expect("relative comparisons state a tolerance");
    if gram_given { expected.tol_gram.unwrap_or(tol) } else { tol }
}

/// `||got - want|| / ||want||`; absolute if `want` is zero.
fn relative_frobenius(got: &[f64], want: &[f64]) -> f64 {
    let error = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum::<f64>().sqrt();
    let size = want.iter().map(|w| w * w).sum::<f64>().sqrt();
    if size > 0.0 { error / size } else { error }
}
