//! Runs of method `esm_pp`: the experts of one layer, and its routed forward pass.

use crate::case::{Case, Run};
use crate::compare::Actual;
use crate::esm::{inputs, wide};
use esmerge::backend::{Backend, Op, Result, Shape, Tensor};
use esmerge::linalg::Accuracy;
use esmerge::method::esm_plus::{add_expert, cosine_scores, low_rank_experts, prototypes, route};
use esmerge::method::{Decomposition, Solver};

pub async fn compute<B: Backend>(backend: &B, case: &Case, run: &Run) -> Result<Actual> {
    let mut actual = Actual::new();
    let rank = run.options["rank"].as_u64().expect("a rank") as usize;
    let exact = Solver { accuracy: Accuracy::Exact, ..Solver::default() };
    for (weight, info) in &case.tensors {
        let key = |quantity: &str| format!("run.{}/{weight}/{quantity}", run.id);
        let (d_out, d_in) = (info.shape[0], info.shape[1]);
        let merged = case.upload(backend, &format!("merged/{weight}"))?;
        let mut residuals = case.stacked(backend, "expert", weight, d_out, d_in)?;
        backend.axpby(-1.0, &merged, 1.0, &mut residuals)?;
        let experts = low_rank_experts(
            backend,
            &residuals,
            &inputs(backend, case, weight)?,
            Decomposition::Esd,
            rank,
            exact,
        )
        .await?;

        let products =
            wide(backend, &backend.matmul(&experts.b, Op::Transpose, &experts.a, Op::None)?).await?;
        let projectors =
            wide(backend, &backend.matmul(&experts.b, Op::Transpose, &experts.b, Op::None)?).await?;
        for t in 0..case.tasks {
            actual.insert(
                key(&format!("expert_product.{t}")),
                products[t * d_out * d_in..(t + 1) * d_out * d_in].to_vec(),
            );
            actual.insert(
                key(&format!("projector.{t}")),
                projectors[t * d_out * d_out..(t + 1) * d_out * d_out].to_vec(),
            );
            actual.insert(key(&format!("eigenvalues.{t}")), experts.eigenvalues[t].clone());
        }

        let tokens = info.n.clone().expect("tokens of each task");
        let longest = tokens.iter().copied().max().unwrap_or(0);
        let x = case.stacked(backend, "act", weight, longest, d_in)?;
        let p = prototypes(backend, &x, &tokens)?.reshape(Shape::matrix(case.tasks, d_in))?;
        actual.insert(key("prototypes"), wide(backend, &p).await?);

        let x = case.upload_batch(backend, &format!("samples/{weight}"))?;
        let Shape { batch: samples, rows: length, .. } = x.shape();
        let means = prototypes(backend, &x, &vec![length; samples])?.reshape(Shape::matrix(samples, d_in))?;
        let scores = backend.download(&cosine_scores(backend, means, p)?).await?;
        let routes = route(&scores, case.tasks);
        actual.insert(key("scores"), scores.iter().map(|&v| f64::from(v)).collect());
        actual.insert(key("routes"), routes.iter().map(|&t| t as f64).collect());

        let bias = case.values(&format!("bias/{weight}"));
        let mut output = Vec::new();
        for (s, &task) in routes.iter().enumerate() {
            let own = backend.slice(&x, s..s + 1, 0..length, 0..d_in)?;
            let mut y = backend.matmul(&own, Op::None, &merged, Op::Transpose)?;
            add_expert(backend, &experts, task, &own, &mut y)?;
            output.extend(wide(backend, &y).await?.iter().enumerate().map(|(i, v)| v + bias[i % d_out]));
        }
        actual.insert(key("output"), output);
    }
    Ok(actual)
}
