//! `out: lora`: adapters merged into one, in their core space. Neither the base's weights nor a difference of a layer's size is formed.

use super::decompose::{Outcome, saw_too_few};
use super::faults::try_again;
use super::flow::{Flow, Limits};
use super::inputs::{input_requests, member_inputs};
use super::members::members;
use super::merge::{Options, betas};
use super::outputs::write_reports;
use super::reader::{Reader, Request};
use super::{Error, Job, Progress, summary};
use crate::adapter::Linear;
use crate::backend::{Backend, Dtype, Shape};
use crate::calibration::Captured;
use crate::checkpoint::{self, LoraWeight, LoraWriter, ModuleNames, OutputDir, first_not_finite, widen};
use crate::method::low_rank::{Cores, truncated};
use crate::method::{MergedFactors, Preset, Solver, arithmetic, tsv};
use crate::plan::{Layer, Part, Role};
use crate::recipe::{AdapterOut, Compress, Method};
use crate::report::{AdapterReport, Report};

/// Writes the adapter, and the report beside it.
pub(super) async fn write<B: Backend>(
    job: Job<'_, B>,
    out: AdapterOut,
    output: &OutputDir,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<(Report, Flow), Error> {
    let Job { backend, recipe, family, plan, .. } = job;
    let stacks = stacks(&job)?;
    let adapters = family.experts.iter().filter_map(|e| e.adapter.as_ref());
    progress
        .start(adapters.flat_map(|a| a.file().names().filter_map(|n| Some(a.file().get(n)?.bytes))).sum());
    let mut flow = Flow::new(Limits::new(options.max_memory, backend.batch_bytes(), 0), family.experts.len());
    let mut outcomes = vec![Outcome::default(); plan.layers.len()];
    let mut made = Vec::with_capacity(stacks.len());
    let mut reader = Reader::ahead(&flow, requests(&job, &stacks));
    for (done, stack) in stacks.iter().enumerate() {
        progress.layer(&stack.layer.name);
        let (factors, outcome) = loop {
            match merged(&job, out, &mut reader, stack).await {
                Ok(merged) => break merged,
                Err(error) => try_again(&job, error, progress).await?,
            }
            reader.restart(requests(&job, &stacks[done..]));
        };
        outcomes[stack.index] = outcome;
        made.push(factors);
        progress.advance(stack.bytes());
    }
    reader.finish(&mut flow);
    let betas = betas(&job, &outcomes);
    write_adapter(&job, &stacks, &made, &betas, output)?;
    let mut report = summary::report(&job, &outcomes, &betas, options)?;
    let mut energy = crate::report::Range::default();
    energy.extend(made.iter().map(|factors| factors.energy));
    report.adapter =
        Some(AdapterReport { rank: out.rank, compress: out.compress.name(), energy_retention: energy });
    report.products = backend.tuning();
    report.pace = backend.pace();
    write_reports(output.path(), &recipe.text, &report)?;
    Ok((report, flow))
}

/// A layer that adapters change, with the factors of its tensors.
struct Stack<'a> {
    /// Its place in the plan.
    index: usize,
    layer: &'a Layer,
    d_out: usize,
    d_in: usize,
    /// By expert: the part, its first row, and its factors.
    factors: Vec<Vec<(usize, usize, Linear)>>,
}

impl Stack<'_> {
    /// Rows of the factors of the expert that has most.
    fn rank(&self) -> usize {
        let of_expert = |own: &Vec<(usize, usize, Linear)>| own.iter().map(|(.., one)| one.rank).sum();
        self.factors.iter().map(of_expert).max().unwrap_or(0)
    }

    fn all(&self) -> impl Iterator<Item = &Linear> {
        self.factors.iter().flatten().map(|(.., one)| one)
    }

    fn bytes(&self) -> u64 {
        self.all().map(|one| (one.a.bytes() + one.b.bytes()) as u64).sum()
    }

    /// The tensors that any expert has factors of.
    fn parts(&self) -> impl Iterator<Item = &Part> {
        let has = |place: usize| self.factors.iter().flatten().any(|(part, ..)| *part == place);
        self.layer.parts.iter().enumerate().filter(move |(place, _)| has(*place)).map(|(_, part)| part)
    }
}

/// The layers that adapters change; an error where one does what factors of linear layers cannot say.
fn stacks<'a, B>(job: &Job<'a, B>) -> Result<Vec<Stack<'a>>, Error> {
    let mut stacks = Vec::new();
    for (index, layer) in job.plan.layers.iter().enumerate() {
        if matches!(layer.role, Role::Base | Role::Pretrained | Role::Experts) {
            continue;
        }
        let mut factors = Vec::with_capacity(job.family.experts.len());
        for adapter in job.family.experts.iter().filter_map(|expert| expert.adapter.as_ref()) {
            let (mut own, mut row) = (Vec::new(), 0);
            for (place, part) in layer.parts.iter().enumerate() {
                if let Some(linear) = adapter.linear(&part.name)? {
                    if part.shape.len() != 2 {
                        let reason = format!(
                            "it adds to `{}`, which is no matrix; `out: lora` merges linear layers",
                            part.name
                        );
                        return Err(checkpoint::Error::BadAdapter {
                            path: adapter.path().to_path_buf(),
                            reason,
                        }
                        .into());
                    }
                    own.push((place, row, linear));
                }
                row += part.rows;
            }
            factors.push(own);
        }
        let d_out: usize = layer.parts.iter().map(|part| part.rows).sum();
        let d_in = layer.elements().checked_div(d_out).unwrap_or(0);
        let stack = Stack { index, layer, d_out, d_in, factors };
        if stack.rank() > 0 {
            stacks.push(stack);
        }
    }
    Ok(stacks)
}

/// What is read for some layers.
fn requests<'a, B: Backend>(
    job: &'a Job<'_, B>,
    stacks: &'a [Stack<'a>],
) -> impl Iterator<Item = Request> + 'a {
    stacks.iter().flat_map(move |stack| {
        let factors = stack.all().flat_map(|one| [one.a.clone(), one.b.clone()]).map(Request::other);
        let inputs = match stack.layer.role {
            Role::Esm => input_requests(job.family, &members(&[stack.layer], job.family.experts.len())),
            _ => Vec::new(),
        };
        factors.collect::<Vec<_>>().into_iter().chain(inputs)
    })
}

/// The factors of one layer of the output, on the host.
struct Factors {
    /// `r x d_in`
    a: Vec<f32>,
    /// `B^T`, `r x d_out`.
    b: Vec<f32>,
    rank: usize,
    /// The share of the merged difference that they hold.
    energy: f64,
}

/// `B_t^T` (`T x r x d_out`, with the adapter's scale) and `A_t` (`T x r x d_in`) of all experts, zeros where one has fewer rows.
fn read<B: Backend>(backend: &B, reader: &mut Reader<'_>, stack: &Stack) -> Result<[B::Tensor; 2], Error> {
    let (r, d_out, d_in) = (stack.rank(), stack.d_out, stack.d_in);
    let tasks = stack.factors.len();
    let (mut b, mut a) = (vec![0f32; tasks * r * d_out], vec![0f32; tasks * r * d_in]);
    for (t, own) in stack.factors.iter().enumerate() {
        let mut k = t * r;
        for (_, row, one) in own {
            let stored = reader.other(one.a.clone())?;
            a[k * d_in..(k + one.rank) * d_in].copy_from_slice(&widen(stored.dtype(), &stored));
            let stored = reader.other(one.b.clone())?;
            for (i, values) in widen(stored.dtype(), &stored).chunks(one.rank).enumerate() {
                for (j, value) in values.iter().enumerate() {
                    b[(k + j) * d_out + row + i] = (f64::from(*value) * one.scale) as f32;
                }
            }
            k += one.rank;
        }
    }
    let upload = |values: &[f32], cols| backend.upload(Shape::new(tasks, r, cols), values);
    let pair = upload(&b, d_out).and_then(|b| Ok([b, upload(&a, d_in)?]));
    pair.map_err(Error::device(&stack.layer.name))
}

/// One layer, merged and brought to the rank of the output.
async fn merged<B: Backend>(
    job: &Job<'_, B>,
    out: AdapterOut,
    reader: &mut Reader<'_>,
    stack: &Stack<'_>,
) -> Result<(Factors, Outcome), Error> {
    let (backend, layer) = (job.backend, stack.layer);
    let device = || Error::device(&layer.name);
    let solver = Solver { accuracy: job.recipe.accuracy, seed: job.recipe.seed };
    let [b, a] = read(backend, reader, stack)?;
    let mut cores = Cores::new(backend, &b, &a, solver.accuracy).await.map_err(device())?;
    drop((a, b));
    if out.compress == Compress::Ctm {
        cores = cores.compressed(backend, out.rank, solver).await.map_err(device())?;
    }
    let norms = backend.frobenius_norms(&cores.k).map_err(device())?;
    let merged = merged_cores(job, out, reader, stack, &cores).await?;
    let r = out.rank.min(stack.d_out).min(stack.d_in);
    let cut = truncated(backend, &merged, r, solver).await.map_err(device())?;
    let all = backend.download_all([&cut.a, &cut.b, &cut.norm, &norms]).await;
    let [a, b, norm, norms] = all.map_err(device())?;
    for values in [&a, &b, &norm] {
        if let Some((index, value)) = first_not_finite(Dtype::F32, bytemuck::cast_slice(values)) {
            let what = format!("gave {value} at element {index} of the merged factors");
            let cause = "the factors or inputs of this layer are too large for float32; look at the adapters and their calibration";
            return Err(Error::NotFinite { layer: layer.name.clone(), what, cause: cause.to_owned() });
        }
    }
    let described = merged.layers.into_iter().next().unwrap_or_default();
    let outcome = Outcome {
        norm: norm.first().map_or(0.0, |&norm| norm.into()),
        changed: norms.iter().any(|&norm| norm > 0.0),
        task_scales: described.task_scales,
        energy_retention: described.energy_retention,
        rank_deficient: described.rank_deficient,
        too_few_tokens: saw_too_few(job, layer, &nothing_captured(job)),
    };
    Ok((Factors { a, b, rank: r, energy: cut.energy_retention }, outcome))
}

/// One layer by the method that the plan has for it. Compressed differences are matrices of the output's rank, of which every task
/// gets its share.
async fn merged_cores<B: Backend>(
    job: &Job<'_, B>,
    out: AdapterOut,
    reader: &mut Reader<'_>,
    stack: &Stack<'_>,
    cores: &Cores<B::Tensor>,
) -> Result<MergedFactors<B::Tensor>, Error> {
    let Job { backend, recipe, family, .. } = *job;
    let layer = stack.layer;
    let solver = Solver { accuracy: recipe.accuracy, seed: recipe.seed };
    let tasks = family.experts.len();
    let compressed = (out.compress == Compress::Ctm).then_some(out.rank);
    let captured = nothing_captured(job);
    let few = saw_too_few(job, layer, &captured);
    let merged = match (layer.role, &recipe.method) {
        (Role::Esm, Method::Esm(esm)) if !few => {
            let inputs = member_inputs(backend, reader, family, &captured, &members(&[layer], tasks))?;
            let budget = compressed.map_or(layer.rank, |r| esm.rank.of(r, tasks));
            cores.esm(backend, &inputs, budget, &esm.options, solver).await
        }
        (Role::TsvM | Role::Esm, _) => {
            let (rows, columns) = compressed.map_or((stack.d_out, stack.d_in), |r| (r, r));
            let mean_sigma =
                if few { job.esm_preset().is_some_and(Preset::tsv_mean_sigma) } else { layer.mean_sigma };
            cores.tsv_m(backend, tsv::rank_budget(rows, columns, tasks), mean_sigma, solver).await
        }
        _ => cores.sum(backend, &coefficients(job, layer)),
    };
    merged.map_err(Error::device(&layer.name))
}

/// `c_t` of `dW = sum_t c_t dW_t`: of the method where it is a weighted sum, of the average for any other.
fn coefficients<B>(job: &Job<'_, B>, layer: &Layer) -> Vec<f64> {
    let tasks = job.family.experts.len();
    let average = || vec![1.0 / tasks.max(1) as f64; tasks];
    let Some(tabled) = job.recipe.method.elementwise() else { return average() };
    let values = job.recipe.values(tabled, &layer.name, job.plan.place(&layer.name));
    let weights = values.of_models("weight");
    let lambda = values.number("lambda");
    let normalized = values.is_on("normalize").then(|| arithmetic::average_coefficients(&weights)).flatten();
    normalized.unwrap_or(weights).into_iter().map(|weight| lambda * weight).collect()
}

/// Calibration comes from files here.
fn nothing_captured<B>(job: &Job<'_, B>) -> Vec<Vec<Captured>> {
    vec![Vec::new(); job.family.experts.len()]
}

/// One PEFT adapter, each layer with its alpha and beta.
fn write_adapter<B>(
    job: &Job<'_, B>,
    stacks: &[Stack],
    made: &[Factors],
    betas: &[f64],
    output: &OutputDir,
) -> Result<(), Error> {
    let weight = |stack: &Stack, part: &Part, rank| LoraWeight {
        name: part.name.clone(),
        rank,
        d_out: part.rows,
        d_in: stack.d_in,
    };
    let pairs = || stacks.iter().zip(made);
    let weights: Vec<LoraWeight> = pairs()
        .flat_map(|(stack, factors)| stack.parts().map(move |part| weight(stack, part, factors.rank)))
        .collect();
    let r = made.iter().map(|factors| factors.rank).max().unwrap_or(1);
    let base = &job.family.base;
    let names = ModuleNames::new(&job.family.settings.config, base.names());
    let matrices = base.names().filter(|name| base.get(name).is_some_and(|m| m.matrix().is_some()));
    let path = std::path::absolute(base.path()).unwrap_or_else(|_| base.path().to_path_buf());
    let mut writer =
        LoraWriter::create(output.path(), &weights, r, &path.to_string_lossy(), matrices, &names)?;
    for (stack, factors) in pairs() {
        let alpha = if stack.layer.scaled { job.plan.alpha } else { 1.0 };
        let scale = (alpha * betas.get(stack.index).copied().unwrap_or(1.0)) as f32;
        let mut row = 0;
        for part in &stack.layer.parts {
            if stack.parts().any(|own| own.name == part.name) {
                let at = |i: usize| (0..factors.rank).map(move |j| j * stack.d_out + i);
                let b: Vec<f32> = (row..row + part.rows).flat_map(at).map(|k| scale * factors.b[k]).collect();
                if let Some((index, value)) = first_not_finite(Dtype::F32, bytemuck::cast_slice(&b)) {
                    let tensor = part.name.clone();
                    return Err(Error::Overflow { tensor, index, value, dtype: Dtype::F32 });
                }
                writer.write(&factors.a, &b)?;
            }
            row += part.rows;
        }
    }
    Ok(writer.finish()?)
}
