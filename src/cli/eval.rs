use super::args;
use super::device::on_device;
use super::failure::Failure;
use super::output;
use crate::backend::layers::Layers;
use crate::data::{ModelSource, Task};
use crate::eval::{Earlier, Evaluator, Features, Report, TaskReport, linear_cka, table};
use crate::recipe::{Overrides, Recipe, Source};
use std::collections::HashMap;

/// `esmerge eval`
pub(super) fn run(args: &args::Eval) -> Result<(), Failure> {
    let mut model = ModelSource::open(&args.model)?;
    if let Some(alpha) = args.alpha {
        if !args.model.contains("+delta:") {
            return Err(Failure::usage(
                "--alpha scales the deltas of a BASE+delta:FILE; this model has none",
            ));
        }
        model.set_alpha(alpha);
    }
    let tasks = args.task.iter().map(|path| Task::open(path)).collect::<Result<Vec<_>, _>>()?;
    let others = Others::open(args, &tasks)?;
    let earlier = args.compare.as_deref().map(Earlier::open).transpose()?;
    let (device, note) = args.run.device.open()?;
    note.iter().for_each(|note| output::warning(note));
    let report =
        on_device!(&device, |backend| pollster::block_on(evaluate(backend, &model, &tasks, &others, args)))?;
    let report = match &earlier {
        Some(earlier) => report.compare(earlier)?,
        None => report,
    };
    if args.json {
        output::print(&serde_json::to_string_pretty(&report)?);
    } else {
        output::print(&table(&report));
    }
    Ok(())
}

/// The models that a task's result is held against.
struct Others {
    /// By the task's name.
    experts: HashMap<String, ModelSource>,
    against: Option<ModelSource>,
}

impl Others {
    fn open(args: &args::Eval, tasks: &[Task]) -> Result<Others, Failure> {
        let against = args.against.as_deref().map(ModelSource::open).transpose()?;
        let mut experts = HashMap::new();
        if let Some(path) = &args.experts {
            let recipe = Recipe::open(path, &Overrides::default())?;
            for task in tasks {
                let expert = recipe
                    .models
                    .iter()
                    .find(|m| m.name == task.name || m.task.as_deref() == Some(task.path()));
                let Some(expert) = expert else {
                    let names: Vec<&str> = recipe.models.iter().map(|m| m.name.as_str()).collect();
                    return Err(Failure::usage(&format!(
                        "no expert of {} is named `{}` like the task {}; it has {}",
                        path.display(),
                        task.name,
                        task.path().display(),
                        names.join(", ")
                    )));
                };
                let source = match &expert.source {
                    Source::Checkpoint(path) => ModelSource::checkpoint(path)?,
                    Source::Delta(path) => ModelSource::with_delta(&recipe.base_model, path)?,
                };
                experts.insert(task.name.clone(), source);
            }
        }
        Ok(Others { experts, against })
    }
}

async fn evaluate<B: Layers>(
    backend: &B,
    model: &ModelSource,
    tasks: &[Task],
    others: &Others,
    args: &args::Eval,
) -> Result<Report, Failure> {
    let split = &args.split;
    let evaluator = Evaluator::new(backend, model)?;
    let mut report = Report {
        model: model.path().display().to_string(),
        device: backend.name(),
        split: split.to_string(),
        ..Report::default()
    };
    for task in tasks {
        if !args.run.quiet {
            output::say(&task.name);
        }
        let features = evaluator.features(task, split).await?;
        let mut result = TaskReport::new(&task.name, &evaluator.right(task, split, &features)?);
        let other = others.experts.get(&task.name).or(others.against.as_ref());
        if let Some(other) = other {
            let evaluator = Evaluator::new(backend, other)?;
            let of_other = evaluator.features(task, split).await?;
            result.cka = cka(&features, &of_other);
            if others.experts.contains_key(&task.name) {
                result = result.with_expert(evaluator.accuracy(task, split, &of_other)?);
            }
        }
        report.tasks.push(result);
    }
    Ok(report.with_averages())
}

fn cka(x: &Features, y: &Features) -> Option<f64> {
    let wide = |f: &Features| f.values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    linear_cka(&wide(x), &wide(y), x.samples)
}
