//! `out: lora`: adapters merged into one, layer by layer.

use super::decompose::Outcome;
use super::faults::try_again;
use super::flow::{Flow, Limits};
use super::low_rank::{Factors, merged};
use super::merge::{Options, betas};
use super::outputs::write_reports;
use super::reader::Reader;
use super::stacks::{Stack, requests, stacks};
use super::{Error, Job, Progress, summary};
use crate::backend::{Backend, Dtype};
use crate::checkpoint::{LoraWeight, LoraWriter, ModuleNames, OutputDir, first_not_finite};
use crate::plan::Part;
use crate::recipe::AdapterOut;
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

/// One PEFT adapter, each layer with its alpha and beta.
fn write_adapter<B>(
    job: &Job<'_, B>,
    stacks: &[Stack],
    made: &[Factors],
    betas: &[f64],
    output: &OutputDir,
) -> Result<(), Error> {
    let weight = |stack: &Stack, part: &Part, rank| {
        let (d_out, d_in) = match stack.is_turned() {
            true => (stack.d_in, stack.d_out),
            false => (rows(stack, part), stack.d_in),
        };
        LoraWeight { name: part.name.clone(), rank, d_out, d_in, module: stack.module() }
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
        // the product of the module's factors may be the transpose of what was merged: (B A)^T = A^T B^T
        let (a, columns, height) = match stack.is_turned() {
            true => (&factors.b, &factors.a, stack.d_in),
            false => (&factors.a, &factors.b, stack.d_out),
        };
        let mut row = 0;
        for part in &stack.layer.parts {
            let rows = if stack.is_turned() { height } else { rows(stack, part) };
            if stack.parts().any(|own| own.name == part.name) {
                let at = |i: usize| (0..factors.rank).map(move |j| j * height + i);
                let b: Vec<f32> = (row..row + rows).flat_map(at).map(|k| scale * columns[k]).collect();
                if let Some((index, value)) = first_not_finite(Dtype::F32, bytemuck::cast_slice(&b)) {
                    let tensor = part.name.clone();
                    return Err(Error::Overflow { tensor, index, value, dtype: Dtype::F32 });
                }
                writer.write(a, &b)?;
            }
            row += rows;
        }
    }
    Ok(writer.finish()?)
}

/// Rows of a tensor in the matrix that methods see.
fn rows(stack: &Stack, part: &Part) -> usize {
    if stack.layer.parts.len() == 1 { stack.d_out } else { part.rows }
}
