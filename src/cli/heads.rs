use super::args;
use super::device::on_device;
use super::failure::Failure;
use super::output;
use super::terminal;
use crate::backend::layers::Layers;
use crate::checkpoint::{self, OutputDir};
use crate::data::{Error, ModelSource, Proxies, Task};
use crate::heads::{Expert, Refitted, Report, refit_all, reports, table, write};
use crate::method::head_refit;
use crate::plan::{expert_source, head_data};
use crate::recipe::{Overrides, Recipe};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// `esmerge heads`
pub(super) fn run(args: &args::Heads) -> Result<(), Failure> {
    let recipe = Recipe::open(&args.experts, &Overrides::default())?;
    let data = data(args, &recipe)?;
    let merged = ModelSource::open(&args.model)?;
    let output = OutputDir::create(&args.out, args.force)?; // a wrong path is told before any work
    let mut experts = Vec::new();
    for (t, model) in recipe.models.iter().enumerate() {
        let given = data.get(model.name.as_str()).cloned().or_else(|| head_data(model));
        experts.push(Expert::open(&model.name, expert_source(&recipe, t)?, given.as_deref())?);
    }
    let heads = head_refit::Heads { mode: args.mode, lam: args.lam, own_only: args.own };
    let choice = Proxies {
        samples: args.samples as usize,
        seed: args.seed,
        max_length: args.max_length.map(|n| n as usize),
    };
    let (device, note) = args.run.device.open()?;
    note.iter().for_each(|note| output::warning(note));
    let (name, refitted) = on_device!(&device, |backend| pollster::block_on(refit_on(
        backend,
        &merged,
        experts,
        &heads,
        &choice,
        args.run.quiet
    )))?;
    write(output.path(), &refitted)?;
    let report = Report::new(merged.path().display().to_string(), name, &heads, reports(&refitted));
    let text = serde_json::to_string_pretty(&report)?;
    let path = output.path().join(crate::report::FILE);
    std::fs::write(&path, format!("{text}\n")).map_err(checkpoint::Error::io("write", &path))?;
    output.finish()?;
    if args.json {
        output::print(&text);
    } else {
        output::print(&table(&report.heads, terminal::width()));
        output::print(&format!("{} written", args.out.display()));
    }
    Ok(())
}

async fn refit_on<B: Layers>(
    backend: &B,
    merged: &ModelSource,
    experts: Vec<Expert>,
    heads: &head_refit::Heads,
    choice: &Proxies,
    quiet: bool,
) -> Result<(String, Vec<Refitted>), Error> {
    let say = |name: &str| {
        if !quiet {
            output::say(name);
        }
    };
    Ok((backend.name(), refit_all(backend, merged, experts, heads, choice, say).await?))
}

/// The data that was given, by the names of experts.
fn data(args: &args::Heads, recipe: &Recipe) -> Result<HashMap<String, PathBuf>, Failure> {
    let names: Vec<&str> = recipe.models.iter().map(|model| model.name.as_str()).collect();
    let mut data = HashMap::new();
    for given in &args.data {
        let (name, path) = match given.split_once('=') {
            Some((name, path)) if !Path::new(given).exists() => (name.to_owned(), PathBuf::from(path)),
            _ => (name_of(Path::new(given))?, PathBuf::from(given)),
        };
        if !names.contains(&name.as_str()) {
            return Err(Failure::usage(&format!(
                "no expert of {} is named `{name}` like {}; it has {}; --data NAME=PATH says whose it is",
                args.experts.display(),
                path.display(),
                names.join(", ")
            )));
        }
        if let Some(other) = data.insert(name.clone(), path.clone()) {
            let both = format!("{} and {}", other.display(), path.display());
            return Err(Failure::usage(&format!("both {both} are data of `{name}`; give one")));
        }
    }
    Ok(data)
}

/// The name of a task file's task, else of the file or folder.
fn name_of(path: &Path) -> Result<String, Failure> {
    if path.extension().is_some_and(|e| e == "safetensors") {
        return Ok(Task::open(path)?.name);
    }
    Ok(path.file_stem().unwrap_or_default().to_string_lossy().into_owned())
}
