//! Runs of the elementwise methods, with each tensor whole and in slabs of a few values.

use crate::case::{Case, Run};
use crate::compare::Actual;
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
                let size = values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                // inner products of slabs are rounded apart, and a ratio of sums of them amplifies that
                assert!(distance <= 1e-5 * size, "{key} depends on the slabs: {distance:e} of {size:e}");
            }
        }
        whole = actual;
    }
    Ok(whole)
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
