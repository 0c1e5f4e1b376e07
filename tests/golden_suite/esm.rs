//! Runs of method `esm`: all layers of the case by their roles, then inter-layer scaling and alpha.

use crate::case::{Case, Run};
use crate::compare::Actual;
use esmerge::backend::{Backend, Dtype, Op, Result, Shape, Tensor};
use esmerge::linalg::{Accuracy, polar, singular_values};
use esmerge::method::esd::{Inputs, essential_subspace, rank_budget};
use esmerge::method::esm::{Concatenation, concatenate, merge_factors, task_factors};
use esmerge::method::{EsmOptions, Fusion, Preset, Scale, Solver, TaskNorm, arithmetic, assembly, tsv};
use serde_json::Value;

const EXACT: Solver = Solver { accuracy: Accuracy::Exact, seed: 0 };

pub async fn compute<B: Backend>(backend: &B, case: &Case, run: &Run) -> Result<Actual> {
    let options = options(run);
    let mut actual = Actual::new();
    let mut merged = Vec::new();
    for (weight, info) in &case.tensors {
        let key = |quantity: &str| format!("run.{}/{weight}/{quantity}", run.id);
        let delta = match info.role.as_str() {
            "esd" => esm_layer(backend, case, weight, &options, &key, &mut actual).await?,
            "svd" => {
                let deltas = case.deltas(backend, weight)?;
                let mean_sigma = run.fallback_polar_scale.as_deref() == Some("mean_sigma");
                tsv::tsv_m(backend, &deltas, case.tasks, mean_sigma, EXACT).await?.deltas
            }
            _ => average(backend, &case.deltas(backend, weight)?)?,
        };
        merged.push(delta);
    }
    let norms = norms(backend, &merged).await?;
    let groups: Vec<_> = case.tensors.values().map(|info| info.group.as_ref()).collect();
    let betas = assembly::inter_layer_scales(&norms, &groups, options.inter_layer);
    for (((weight, info), mut delta), beta) in case.tensors.iter().zip(merged).zip(betas) {
        let key = |quantity: &str| format!("run.{}/{weight}/{quantity}", run.id);
        actual.insert(key("beta"), vec![beta]);
        let values = backend.download(&delta).await?;
        actual
            .insert(key("delta"), values.iter().map(|&v| f64::from((f64::from(v) * beta) as f32)).collect());
        let scaled = info.role == "esd" || run.alpha_scope.as_deref() == Some("all");
        let alpha = if scaled { run.alpha.unwrap_or(1.0) } else { 1.0 };
        let base = case.upload(backend, &format!("base/{weight}"))?;
        let weights = assembly::assemble(backend, &base, &mut delta, (alpha, beta), Dtype::F32).await?;
        actual.insert(key("weight"), wide_bytes(&weights));
    }
    unit_polars(backend, case, run, &mut actual).await?;
    Ok(actual)
}

/// The run's options: those of the default preset, each overridden by name.
fn options(run: &Run) -> EsmOptions {
    let mut options = Preset::Esm.options();
    let number = |v: &Value| v.as_f64().expect("a number");
    let exponent = |name: &str, on: bool| {
        let exponent = run.options.get(name).map_or(2.0, number);
        (on && exponent != 0.0).then_some(Scale { exponent, ..Scale::default() })
    };
    let on = |name: &str| run.options.get(name).is_none_or(|v| v.as_bool().expect("a switch"));
    options.inter_task = exponent("inter_task_exponent", on("inter_task"));
    options.inter_dimension = exponent("inter_dimension_exponent", on("inter_dimension"));
    options.inter_layer = exponent("inter_layer_exponent", true);
    for (name, value) in &run.options {
        match (name.as_str(), value.as_str()) {
            ("eigen_weight_power", _) => options.eigen_weight_power = number(value),
            ("gain", _) => options.gain = number(value),
            ("polar_scale", Some(scale)) => options.mean_sigma = scale == "mean_sigma",
            ("orthogonalize", Some("polar")) => options.fusion = Fusion::Polar,
            ("orthogonalize", Some("qr")) => options.fusion = Fusion::Qr,
            ("orthogonalize", Some("none")) => options.fusion = Fusion::Concat,
            ("inter_task_norm", Some("full")) => options.inter_task_norm = TaskNorm::Full,
            ("inter_task_norm", Some("truncated")) => options.inter_task_norm = TaskNorm::Truncated,
            ("inter_task_norm", Some("code_padded")) => options.inter_task_norm = TaskNorm::CodePadded,
            ("inter_task" | "inter_dimension", _) | ("pad", Some("zero")) => {}
            (name, _) if name.ends_with("_exponent") => {}
            // thresholds of the reference: any value inside the gaps that the cases keep gives the same answer
            ("polar_rcond" | "esd_null_rtol", _) => {}
            ("polar_complete", _) if value == &Value::Bool(false) => {}
            other => panic!("a run asks for {other:?}, which this suite does not know"),
        }
    }
    options
}

async fn esm_layer<B: Backend>(
    backend: &B,
    case: &Case,
    weight: &str,
    options: &EsmOptions,
    key: &impl Fn(&str) -> String,
    actual: &mut Actual,
) -> Result<B::Tensor> {
    let deltas = case.deltas(backend, weight)?;
    let inputs = inputs(backend, case, weight)?;
    let rank = rank_budget(deltas.shape().rows, case.tasks);
    let factors = async || task_factors(backend, &deltas, &inputs, rank, options, EXACT).await;

    let own = essential_subspace(backend, &deltas, &inputs, options.decomposition, rank, EXACT).await?;
    let projectors = backend.matmul(&own.basis, Op::Transpose, &own.basis, Op::None)?;
    let projectors = wide(backend, &projectors).await?;
    for (t, projector) in projectors.chunks(deltas.shape().rows.pow(2)).enumerate() {
        actual.insert(key(&format!("projector.{t}")), projector.to_vec());
        actual.insert(key(&format!("eigenvalues.{t}")), own.eigenvalues[t].clone());
    }

    let cat = concatenate(backend, factors().await?, case.tasks, options)?;
    for (t, weights) in wide(backend, &cat.weights).await?.chunks(rank).enumerate() {
        actual.insert(key(&format!("weights.{t}")), weights.to_vec());
    }
    let column_scale = match &cat.column_scales {
        Some(c) => wide(backend, c).await?,
        None => vec![1.0; deltas.shape().cols],
    };
    actual.insert(key("column_scale"), column_scale);
    concatenations(backend, &cat, key, actual).await?;

    let mut merged = merge_factors(backend, factors().await?, case.tasks, options, EXACT).await?;
    let layer = merged.layers.remove(0);
    actual.insert(key("energy_retention"), layer.energy_retention);
    actual.insert(key("task_norm"), layer.task_norms);
    actual.insert(key("task_scale"), layer.task_scales);
    Ok(merged.deltas)
}

pub fn inputs<B: Backend>(backend: &B, case: &Case, weight: &str) -> Result<Inputs<B::Tensor>> {
    let info = &case.tensors[weight];
    let d_in = info.shape[1];
    let tokens = info.n.clone().unwrap_or_default();
    Ok(match info.activations.as_deref() {
        Some("x") => {
            let longest = tokens.iter().copied().max().unwrap_or(0);
            Inputs::Activations { x: case.stacked(backend, "act", weight, longest, d_in)?, tokens }
        }
        Some("gram") => Inputs::Gram { gram: case.stacked(backend, "gram", weight, d_in, d_in)?, tokens },
        Some(other) => panic!("{weight}: activations {other}"),
        None => Inputs::DataFree,
    })
}

/// Spectra and Grams of `E_cat` and `A_cat` (`c_cat` in the files), in f64 from the downloaded factors.
async fn concatenations<B: Backend>(
    backend: &B,
    cat: &Concatenation<B::Tensor>,
    key: &impl Fn(&str) -> String,
    actual: &mut Actual,
) -> Result<()> {
    for (name, factor) in [("e", &cat.e_cat), ("c", &cat.a_cat)] {
        let columns = factor.shape().cols;
        // the null directions that are left out have singular values too: 0
        let mut sigma = singular_values(backend, factor).await?.remove(0);
        sigma.resize(cat.weights.shape().len().min(columns), 0.0);
        actual.insert(key(&format!("{name}_sigma")), sigma);
        let rows = wide(backend, factor).await?;
        let mut gram = vec![0f64; columns * columns];
        for row in rows.chunks(columns) {
            for (i, &a) in row.iter().enumerate() {
                row.iter().enumerate().for_each(|(j, &b)| gram[i * columns + j] += a * b);
            }
        }
        actual.insert(key(&format!("{name}_cat_gram")), gram);
    }
    Ok(())
}

/// Polar factors of stored concatenations (`input`).
async fn unit_polars<B: Backend>(backend: &B, case: &Case, run: &Run, actual: &mut Actual) -> Result<()> {
    for expected in &run.expected {
        if let Some(input) = &expected.input {
            let factor = polar(backend, &case.upload(backend, input)?, Accuracy::Exact).await?.factor;
            actual.insert(expected.key.clone(), wide(backend, &factor).await?);
        }
    }
    Ok(())
}

fn average<B: Backend>(backend: &B, deltas: &B::Tensor) -> Result<B::Tensor> {
    let Shape { batch, rows, cols } = deltas.shape();
    let mut mean = backend.zeros(Shape::matrix(rows, cols))?;
    for (t, c) in arithmetic::average_coefficients(&vec![1.0; batch]).into_iter().flatten().enumerate() {
        arithmetic::accumulate(backend, &mut mean, c, &backend.slice(deltas, t..t + 1, 0..rows, 0..cols)?)?;
    }
    Ok(mean)
}

async fn norms<B: Backend>(backend: &B, tensors: &[B::Tensor]) -> Result<Vec<f64>> {
    let mut norms = Vec::new();
    for tensor in tensors {
        norms.extend(wide(backend, &backend.frobenius_norms(tensor)?).await?);
    }
    Ok(norms)
}

/// Of float32 as bytes.
pub fn wide_bytes(bytes: &[u8]) -> Vec<f64> {
    bytemuck::pod_collect_to_vec::<u8, f32>(bytes).into_iter().map(f64::from).collect()
}

pub async fn wide<B: Backend>(backend: &B, x: &B::Tensor) -> Result<Vec<f64>> {
    Ok(backend.download(x).await?.into_iter().map(f64::from).collect())
}
