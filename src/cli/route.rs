use super::args;
use super::device::on_device;
use super::failure::Failure;
use super::output;
use super::terminal;
use crate::backend::layers::Layers;
use crate::data::{Error, ModelSource, Proxies, Split, Task};
use crate::eval::Evaluator;
use crate::report::{Column, Grid, wrapped};
use crate::routing::{Choice, Decisions, Experts, Router, Vote, short_layers};
use serde_json::{Value, json};
use std::path::Path;

/// `esmerge route`
pub(super) fn run(args: &args::Route) -> Result<(), Failure> {
    let model = args.run.download().model(&args.model)?;
    let experts = Experts::open(model.folder().unwrap_or(Path::new(&args.model)))?;
    let (device, note) = args.run.device.open()?;
    note.iter().for_each(|note| output::warning(note));
    let decisions =
        on_device!(&device, |backend| pollster::block_on(decide(backend, &model, &experts, args)))?;
    if args.json {
        lines(&decisions).iter().for_each(|line| output::print(line));
    } else {
        output::print(&table(&decisions, terminal::width()));
    }
    Ok(())
}

/// Samples on their way at a time.
const WAVE: usize = 256;

async fn decide<B: Layers>(
    backend: &B,
    source: &ModelSource,
    experts: &Experts,
    args: &args::Route,
) -> Result<Decisions, Failure> {
    let mut router = Router::new(backend, experts, Choice::Prototype);
    if let Some(split) = &args.split {
        pass_split(backend, source, &args.data, split, &mut router).await?;
        return Ok(router.finish()?);
    }
    let model = source.model(backend)?;
    let samples = args.samples.map_or(usize::MAX, |n| n as usize);
    let chosen = Proxies { samples, seed: 0, max_length: args.max_length.map(|n| n as usize) };
    let chosen = chosen.choose(&args.data, source, model.inputs())?;
    for start in (0..chosen.len()).step_by(WAVE) {
        let wave = chosen.read(start..chosen.len().min(start + WAVE))?;
        model.run(&wave, None, &mut router).await.map_err(Error::model(source.path()))?;
    }
    Ok(router.finish()?)
}

/// A split of a task file.
async fn pass_split<B: Layers>(
    backend: &B,
    source: &ModelSource,
    data: &Path,
    split: &Split,
    router: &mut Router<'_, B>,
) -> Result<(), Failure> {
    let task = Task::open(data)?;
    let pooling = task.pooling()?;
    Evaluator::new(backend, source)?.features_through(&task, split, pooling, router).await?;
    Ok(())
}

/// One JSON object a sample.
fn lines(decisions: &Decisions) -> Vec<String> {
    let name = |expert: usize| decisions.tasks()[expert].as_str();
    let routes: Vec<(&str, Vec<usize>)> =
        decisions.layers().map(|layer| (layer, decisions.routes(layer))).collect();
    let line = |(i, vote): (usize, Vote)| {
        let counted = vote.layers.iter().enumerate().filter(|(_, n)| **n > 0);
        let votes: serde_json::Map<String, Value> =
            counted.map(|(t, &n)| (name(t).to_owned(), n.into())).collect();
        let layers: serde_json::Map<String, Value> =
            routes.iter().map(|(layer, taken)| ((*layer).to_owned(), name(taken[i]).into())).collect();
        json!({ "sample": i, "expert": name(vote.expert), "votes": votes, "layers": layers }).to_string()
    };
    decisions.votes().into_iter().enumerate().map(line).collect()
}

/// One row a sample, with what the numbers in it mean.
fn table(decisions: &Decisions, width: usize) -> String {
    let layers = short_layers(decisions.layers());
    let routes: Vec<Vec<usize>> = decisions.layers().map(|layer| decisions.routes(layer)).collect();
    let mut grid = Grid::new([
        Column::text("sample"),
        Column::text("expert").meaning("the one that most layers take"),
        Column::text("votes"),
        Column::text("expert in each layer").meaning("by the numbers and in the order below"),
    ]);
    for (i, vote) in decisions.votes().into_iter().enumerate() {
        let taken: Vec<String> = routes.iter().map(|taken| taken[i].to_string()).collect();
        grid.row(vec![
            i.to_string(),
            decisions.tasks()[vote.expert].clone(),
            format!("{} of {}", vote.layers[vote.expert], layers.len()),
            taken.join(" "),
        ]);
    }
    let experts: Vec<String> =
        decisions.tasks().iter().enumerate().map(|(t, task)| format!("{t} {task}")).collect();
    let legend = [format!("experts: {}", experts.join(", ")), format!("layers: {}", layers.join(", "))];
    format!("{}\n\n{}", grid.render(width), legend.map(|line| wrapped(&line, width)).join("\n"))
}
