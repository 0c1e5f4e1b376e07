//! Runs of the elementwise methods, with each tensor whole and in slabs of a few values.

use crate::case::{Case, Run};
use crate::compare::Actual;
use crate::esm::wide;
use crate::others::insert;
use crate::slabs::{All, Held};
use esmerge::backend::{Backend, Result, Shape, Tensor};
use esmerge::method::dare::{self, Dare};
use esmerge::method::ties::OfModel;
use esmerge::method::{Elementwise, Slabs, Streamed, Value, Values, table};
use serde_json::Value as Json;
use std::rc::Rc;

/// The product's name of a method of the goldens, and its parameters.
fn values(case: &Case, run: &Run) -> Values {
    let on = |name: &str| run.options.get(name).is_some_and(|v| v == true);
    let name = match run.method.as_str() {
        "weight_average" => "linear",
        "dare" if on("consensus") => "dare_ties",
        "dare" => "dare_linear",
        name => name,
    };
    let tasks = if name == "slerp" { 1 } else { case.tasks };
    let mut values = Values::defaults(table::find(name).expect("a method"), tasks);
    let number = |v: &Json| Value::Number(v.as_f64().expect("a number"));
    for (key, given) in &run.options {
        match key.as_str() {
            "coeffs" => given
                .as_array()
                .unwrap()
                .iter()
                .enumerate()
                .for_each(|(t, w)| values.set_of(t, "weight", number(w))),
            "thresholds" => {
                given
                    .as_array()
                    .unwrap()
                    .iter()
                    .enumerate()
                    .for_each(|(t, w)| values.set_of(t, "threshold", number(w)));
            }
            "lam" => values.set("lambda", number(given)),
            "density" => values.set("density", number(given)),
            "gamma" => values.set("gamma", number(given)),
            "t" => values.set("t", number(given)),
            "min_tasks" => values.set("min_tasks", number(given)),
            "normalize" => values.set("normalize", Value::Switch(given.as_bool().unwrap())),
            "scope" if given == "global" => values.set("scope", Value::Word("model")),
            "merge" => values.set("normalize", Value::Switch(given == "mean")),
            "rescale" if given == "density" => values.set("rescale", Value::Word("density")),
            "rescale" | "scope" | "consensus" => {}
            other => panic!("{other} is no option of the goldens"),
        }
    }
    values
}

pub async fn compute<B: Backend>(backend: &B, case: &Case, run: &Run) -> Result<Actual> {
    let mut whole = Actual::new();
    for size in [usize::MAX / 2, 53] {
        let mut values = values(case, run);
        if values.word("scope") == "model" {
            let density = values.of_models("density");
            let all = case.tensors.keys().map(|weight| held(backend, case, run, weight, size, false));
            let mut all = All(all.collect::<Result<_>>()?);
            values.of_model = Some(Rc::new(OfModel::learn(backend, &mut all, &density).await?));
        }
        let mut actual = Actual::new();
        for weight in case.tensors.keys() {
            let delta = match run.method.as_str() {
                "dare" => survivors(backend, case, run, weight, &values).await?,
                _ => streamed(backend, case, run, weight, &values, size).await?,
            };
            insert(backend, case, run, weight, delta, &mut actual).await?;
        }
        if !whole.is_empty() {
            for (key, values) in &actual {
                let distance = values.iter().zip(&whole[key]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                let weight = key.split('/').nth(1).expect("the weight of a key");
                let bound = apart(backend, case, run, weight).await?;
                assert!(distance <= bound, "{key} depends on the slabs: {distance:e}, {bound:e} is allowed");
            }
        }
        whole = actual;
    }
    Ok(whole)
}

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// How far a tensor merged whole and in slabs may be apart: nothing, for the arithmetic is the same, but for methods that take
/// coefficients from inner products, which are sums in another order. Each is within `gamma |x| |y|` of the true one, as the backend's
/// claims hold them to: the CPU sums in f64 and rounds once, a GPU rounds every term at most 258 times on its way.
async fn apart<B: Backend>(backend: &B, case: &Case, run: &Run, weight: &str) -> Result<f64> {
    if !matches!(run.method.as_str(), "model_stock" | "slerp") {
        return Ok(0.0);
    }
    let held = held(backend, case, run, weight, usize::MAX / 2, false)?;
    let base = wide(backend, &held.base).await?;
    let deltas = wide(backend, &held.deltas).await?;
    let deltas: Vec<&[f64]> = deltas.chunks(base.len().max(1)).collect();
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let norm = |x: &[f64]| product(x, x).sqrt();
    let largest = |x: &[f64]| x.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let of_deltas = deltas.iter().map(|d| largest(d)).fold(0.0, f64::max);
    let gamma = if backend.name().starts_with("CPU") { U } else { (base.len().min(256) as f64 + 2.0) * U };
    // coefficients are rounded to f32, multiply the differences and the base, and are summed with them
    let roundings = 8.0 * U * (largest(&base) + of_deltas);
    if run.method == "slerp" {
        let weights: Vec<f64> = base.iter().zip(deltas[0]).map(|(b, d)| b + d).collect();
        assert!(product(&base, &weights) >= 0.0, "the bound is for an angle up to 90 degrees");
        // |d cos| <= gamma (q + q^2/2 + 1/2) with q = (|b| + |d|) / |x|; |d coefficient / d cos| <= 1/2
        let q = (norm(&base) + norm(deltas[0])) / norm(&weights);
        let cosines = 2.0 * gamma * (q + q * q / 2.0 + 0.5);
        return Ok(0.5 * cosines * (2.0 * largest(&base) + of_deltas) + roundings);
    }
    // c is the mean of cosines, each within 2 gamma; t = N c / (1 + (N - 1) c), |dt/dc| = N / (1 + (N - 1) c)^2
    let n = deltas.len() as f64;
    let pairs = (0..deltas.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
    let cosines: Vec<f64> =
        pairs.map(|(i, j)| product(deltas[i], deltas[j]) / (norm(deltas[i]) * norm(deltas[j]))).collect();
    let c = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
    Ok(4.0 * gamma * n / (1.0 + (n - 1.0) * c).powi(2) * of_deltas + roundings)
}

fn held<'a, B: Backend>(
    backend: &'a B,
    case: &Case,
    run: &Run,
    weight: &str,
    size: usize,
    by_rows: bool,
) -> Result<Held<'a, B>> {
    let (base, deltas) = match run.method.as_str() {
        // between the first expert and the second
        "slerp" => {
            let base = case.upload(backend, &format!("expert.0/{weight}"))?;
            let mut delta = case.upload(backend, &format!("expert.1/{weight}"))?;
            backend.axpby(-1.0, &base, 1.0, &mut delta)?;
            (base, delta)
        }
        _ => (case.upload(backend, &format!("base/{weight}"))?, case.deltas(backend, weight)?),
    };
    Ok(Held::new(backend, base, deltas, size, by_rows))
}

async fn streamed<B: Backend>(
    backend: &B,
    case: &Case,
    run: &Run,
    weight: &str,
    values: &Values,
    size: usize,
) -> Result<B::Tensor> {
    let method = table::find(values.method().name).and_then(|method| Streamed::new(method, values).unwrap());
    let method = method.expect("an elementwise method");
    let mut held = held(backend, case, run, weight, size, method.by_rows())?;
    let learned = method.learn(backend, &mut held).await?;
    let Shape { rows, cols, .. } = held.base.shape();
    let mut merged = Vec::new();
    for index in 0..held.count() {
        let part = method.apply(backend, &learned, held.cut(index)?).await?;
        merged.extend(backend.download(&part).await?);
    }
    if run.method == "slerp" {
        // as a difference to the case's base
        let mut delta = held.base;
        backend.axpby(1.0, &backend.upload(Shape::matrix(rows, cols), &merged)?, 1.0, &mut delta)?;
        backend.axpby(-1.0, &case.upload(backend, &format!("base/{weight}"))?, 1.0, &mut delta)?;
        return Ok(delta);
    }
    backend.upload(Shape::matrix(rows, cols), &merged)
}

/// The masks are the case's.
async fn survivors<B: Backend>(
    backend: &B,
    case: &Case,
    run: &Run,
    weight: &str,
    values: &Values,
) -> Result<B::Tensor> {
    let deltas = case.deltas(backend, weight)?;
    let mut kept = backend.download(&deltas).await?;
    let masks = (0..case.tasks).flat_map(|t| case.bytes(&format!("mask.{t}/{weight}")));
    kept.iter_mut().zip(masks).for_each(|(x, mask)| *x *= f32::from(mask));
    let kept = backend.upload(deltas.shape(), &kept)?;
    let factors: Vec<f64> = match values.word("rescale") {
        "density" => values.of_models("density").iter().map(|density| density.recip()).collect(),
        _ => {
            let (before, after) =
                (backend.magnitude_sums(&deltas).await?, backend.magnitude_sums(&kept).await?);
            before.iter().zip(&after).map(|(b, a)| dare::l1_factor(b.total(), a.total())).collect()
        }
    };
    match run.options.get("consensus").is_some_and(|v| v == true) {
        true => Dare::<true>::new(values).unwrap().merge(backend, kept, &factors),
        false => Dare::<false>::new(values).unwrap().merge(backend, kept, &factors),
    }
}
