//! Runs of the other methods, and the polar factor's unit cases.

use crate::case::{Case, Run};
use crate::compare::Actual;
use crate::esm::{wide, wide_bytes};
use esmerge::backend::{Backend, Dtype, Result, Tensor};
use esmerge::linalg::{Accuracy, NULL_SINGULAR_VALUE, polar, singular_values};
use esmerge::method::esd::Inputs;
use esmerge::method::head_refit::{Problem, refit, row_weights};
use esmerge::method::{Decomposed, Matrices, Solver, Value, Values, assembly, table, tsv};

pub async fn polar_units<B: Backend>(backend: &B, case: &Case, run: &Run) -> Result<Actual> {
    let mut actual = Actual::new();
    for name in case.keys_under("matrix/") {
        let matrix = case.upload(backend, &format!("matrix/{name}"))?;
        let shape = matrix.shape();
        let result = polar(backend, &matrix, Accuracy::Exact).await?;
        let sigma = singular_values(backend, &matrix).await?.remove(0);
        let rank = sigma.iter().filter(|&&s| s > NULL_SINGULAR_VALUE * sigma[0]).count();
        let key = |quantity: &str| format!("run.{}/{name}/{quantity}", run.id);
        actual.insert(key("factor"), wide(backend, &result.factor).await?);
        actual.insert(key("mean_sigma"), vec![result.nuclear_norms[0] / shape.rows.min(shape.cols) as f64]);
        actual.insert(key("sigma"), sigma);
        actual.insert(key("rank"), vec![rank as f64]);
    }
    Ok(actual)
}

pub async fn tsv_m<B: Backend>(backend: &B, case: &Case, run: &Run) -> Result<Actual> {
    let mean_sigma = run.options.get("polar_scale").is_some_and(|v| v == "mean_sigma");
    let solver = Solver { accuracy: Accuracy::Exact, ..Solver::default() };
    let mut actual = Actual::new();
    for weight in case.tensors.keys() {
        let delta =
            tsv::tsv_m(backend, &case.deltas(backend, weight)?, case.tasks, mean_sigma, solver).await?.deltas;
        insert(backend, case, run, weight, delta, &mut actual).await?;
    }
    Ok(actual)
}

/// Methods for the matrices of layers, at `exact`.
pub async fn spectral<B: Backend>(backend: &B, case: &Case, run: &Run) -> Result<Actual> {
    let method = table::find(&run.method).expect("a method");
    let mut values = Values::defaults(method, case.tasks);
    for (key, given) in &run.options {
        let name =
            method.parameter(key).unwrap_or_else(|| panic!("{key} is no parameter of {}", method.name)).name;
        values.set(
            name,
            match given.as_str() {
                Some("zero") => Value::Word("zero"),
                Some("mean") => Value::Word("mean"),
                Some(other) => panic!("{other}"),
                None => Value::Number(given.as_f64().expect("a number")),
            },
        );
    }
    let method = Decomposed::new(method, &values).unwrap().expect("a method for matrices");
    let solver = Solver { accuracy: Accuracy::Exact, ..Solver::default() };
    let mut actual = Actual::new();
    for (weight, info) in &case.tensors {
        let (all, shape) = (case.deltas(backend, weight)?, case.matrix_shape(&format!("base/{weight}")));
        let own = |t: usize| backend.slice(&all, t..t + 1, 0..shape.0, 0..shape.1);
        let deltas = (0..case.tasks).map(own).collect::<Result<Vec<_>>>()?;
        let mut inputs = Vec::new();
        if let (Some("gram"), Some(tokens)) = (info.activations.as_deref(), &info.n) {
            for (t, &tokens) in tokens.iter().enumerate() {
                let gram = case.upload(backend, &format!("gram.{t}/{weight}"))?;
                inputs.push(Inputs::Gram { gram, tokens: vec![tokens] });
            }
        }
        let base = case.upload(backend, &format!("base/{weight}"))?;
        let layer = Matrices { deltas: &deltas, inputs: &inputs, base: Some(&base) };
        insert(backend, case, run, weight, method.merge(backend, &layer, solver).await?, &mut actual).await?;
    }
    Ok(actual)
}

/// A head refitted to features that have been on the device.
pub async fn head_refit<B: Backend>(backend: &B, case: &Case, run: &Run) -> Result<Actual> {
    let key = |part: &str| format!("heads.{}/{part}", run.id);
    let on_device = async |part: &str| wide(backend, &case.upload(backend, &key(part))?).await;
    let (merged, expert, head) =
        (on_device("merged").await?, on_device("expert").await?, on_device("head").await?);
    let option = |name: &str| &run.options[name];
    let proxies = option("proxies").as_array().expect("a list").iter();
    let proxies: Vec<usize> = proxies.map(|n| n.as_u64().expect("a count") as usize).collect();
    let weights = row_weights(&proxies, option("own").as_u64().expect("an index") as usize);
    let (_, width) = case.matrix_shape(&key("head"));
    let lam = option("lam").as_f64().expect("a number");
    let problem = Problem { merged: &merged, expert: &expert, weights: &weights, head: &head, width, lam };
    Ok(Actual::from([(format!("run.{}/head", run.id), refit(&problem)?.head)]))
}

/// The delta and the weight it makes.
pub async fn insert<B: Backend>(
    backend: &B,
    case: &Case,
    run: &Run,
    weight: &str,
    mut delta: B::Tensor,
    actual: &mut Actual,
) -> Result<()> {
    let key = |quantity: &str| format!("run.{}/{weight}/{quantity}", run.id);
    actual.insert(key("delta"), wide(backend, &delta).await?);
    let base = case.upload(backend, &format!("base/{weight}"))?;
    let weights = assembly::assemble(backend, &base, &mut delta, (1.0, 1.0), Dtype::F32).await?;
    actual.insert(key("weight"), wide_bytes(&weights));
    Ok(())
}
