use super::args::{self, Routing};
use super::device::on_device;
use super::failure::Failure;
use super::output;
use super::terminal;
use crate::backend::layers::Layers;
use crate::checkpoint::RouterFile;
use crate::data::{ModelSource, Task};
use crate::eval::{Accuracy, Earlier, Evaluator, Features, Report, TaskReport, linear_cka, table};
use crate::plan::expert_source;
use crate::recipe::{Overrides, Recipe};
use crate::routing::{self, Choice, Experts, Router, tables};
use std::collections::HashMap;

/// `esmerge eval`
pub(super) fn run(args: &args::Eval) -> Result<(), Failure> {
    let mut model = args.run.download().model(&args.model)?;
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
    let experts = experts(args, &model)?;
    let (device, note) = args.run.device.open()?;
    note.iter().for_each(|note| output::warning(note));
    let report = on_device!(&device, |backend| pollster::block_on(evaluate(
        backend,
        &model,
        &tasks,
        &others,
        experts.as_ref(),
        args
    )))?;
    let report = match &earlier {
        Some(earlier) => report.compare(earlier)?,
        None => report,
    };
    if args.json {
        output::print(&serde_json::to_string_pretty(&report)?);
    } else {
        let width = terminal::width();
        output::print(&table(&report, width));
        report.routing.iter().for_each(|routing| output::print(&format!("\n{}", tables(routing, width))));
    }
    Ok(())
}

/// The experts that samples are routed to.
fn experts(args: &args::Eval, model: &ModelSource) -> Result<Option<Experts>, Failure> {
    let folder = model.folder().unwrap_or(model.path());
    match args.routing {
        Routing::None => {
            if RouterFile::is_in(folder) && !args.run.quiet {
                output::say(
                    "the merged weights alone are measured; --routing prototype adds the model's experts",
                );
            }
            Ok(None)
        }
        _ => Ok(Some(Experts::open(folder)?)),
    }
}

/// How the samples of a task are routed.
fn choice(routing: Routing, experts: &Experts, task: &Task) -> Result<Choice, Failure> {
    if routing != Routing::Oracle {
        return Ok(Choice::Prototype);
    }
    experts.tasks().iter().position(|name| *name == task.name).map(Choice::Oracle).ok_or_else(|| {
        Failure::usage(&format!(
            "--routing oracle needs an expert named `{}` like the task {}; the model has {}",
            task.name,
            task.path().display(),
            experts.tasks().join(", ")
        ))
    })
}

/// The models that a task's result is held against.
struct Others {
    /// By the task's name.
    experts: HashMap<String, ModelSource>,
    against: Option<ModelSource>,
}

impl Others {
    fn open(args: &args::Eval, tasks: &[Task]) -> Result<Others, Failure> {
        let against = args.against.as_deref().map(|name| args.run.download().model(name)).transpose()?;
        let mut experts = HashMap::new();
        if let Some(path) = &args.experts {
            let recipe = args.run.download().recipe(|| Recipe::open(path, &Overrides::default()))?;
            for task in tasks {
                let expert = recipe
                    .models
                    .iter()
                    .position(|m| m.name == task.name || m.task.as_deref() == Some(task.path()));
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
                experts.insert(task.name.clone(), expert_source(&recipe, expert)?);
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
    experts: Option<&Experts>,
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
    let name = if args.routing == Routing::Oracle { "oracle" } else { "prototype" };
    report.routing = experts.map(|e| routing::Report::new(name, e.tasks(), e.cost()));
    for task in tasks {
        if !args.run.quiet {
            output::say(&task.name);
        }
        let classifier = evaluator.classifier(task, args.heads.as_deref())?;
        let features = match experts {
            None => evaluator.features(task, split, classifier.pooling).await?,
            Some(experts) => {
                let mut router = Router::new(backend, experts, choice(args.routing, experts, task)?);
                let features =
                    evaluator.features_through(task, split, classifier.pooling, &mut router).await?;
                let decisions = router.finish()?;
                report.routing.iter_mut().for_each(|r| r.add(&task.name, &decisions));
                features
            }
        };
        let mut result = TaskReport::new(&task.name, &evaluator.right(task, split, &classifier, &features)?);
        let other = others.experts.get(&task.name).or(others.against.as_ref());
        if let Some(other) = other {
            let evaluator = Evaluator::new(backend, other)?;
            let own = evaluator.classifier(task, None)?;
            let of_other = evaluator.features(task, split, own.pooling).await?;
            result.cka = cka(&features, &of_other);
            if others.experts.contains_key(&task.name) {
                let right = evaluator.right(task, split, &own, &of_other)?;
                result = result.with_expert(Accuracy::of(&right));
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
