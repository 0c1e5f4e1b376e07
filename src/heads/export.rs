//! An ordinary model for classification of a merged encoder and one of its heads.

use crate::checkpoint::{
    self, Checkpoint, OutputDir, Sidecars, Stored, TensorSpec, TensorWriter, index, shards, stem,
};
use crate::data::{Classifier, Error, HEADS, Head, Kind, ModelSource, kept_head, kind_of, read_json};
use crate::host::PathExt;
use crate::host::fs;
use crate::plan::is_task_part;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Bytes copied at a time.
const CHUNK: u64 = 16 << 20;

/// Where a tensor of the output comes from.
enum Origin<'a> {
    /// A tensor of the merged model, byte for byte.
    Encoder(&'a str),
    /// Values of the head.
    Head(&'a [f32]),
}

/// Writes the merged model `folder` with the head `name` that it keeps, under the names of the expert's architecture.
///
/// # Errors
/// If there is no such head, or it is not that of a model for classification.
pub fn export(folder: &Path, name: &str, output: OutputDir, shard_size: u64) -> Result<(), Error> {
    let merged = ModelSource::checkpoint(folder)?;
    let heads = folder.join(HEADS);
    let Some(kept) = kept_head(&heads, name)? else {
        return Err(Error::bad(&heads, format!("it has no head `{name}`{}", there_are(&heads))));
    };
    let config_path = heads.join(name).join("config.json");
    let classifier = kept.classifier()?;
    let kind = match (&classifier.head, config_path.leads_to_file()) {
        (Head::Linear { .. }, true) => read_json(&config_path).map(|config| kind_of(&config))?,
        _ => None,
    };
    let Some(kind) = kind else {
        let reason = "it is no head of a model for classification, so that there is no such model to write; `esmerge eval` and a \
                      program of yours can use it as it is";
        return Err(Error::bad(kept.path(), reason));
    };
    let encoder = Checkpoint::open(folder)?;
    let tensors = tensors(&encoder, kind, &classifier);
    write(&encoder, &tensors, &output, shard_size)?;
    if let Some(folder) = encoder.folder() {
        Sidecars::find(folder)?.copy(output.path(), None)?;
    }
    let to = output.path().join("config.json");
    let config = fs::read(&config_path).map_err(checkpoint::Error::io("read", &config_path))?;
    fs::write(&to, config).map_err(checkpoint::Error::io("write", &to))?;
    let report = serde_json::json!({
        "esmerge": env!("CARGO_PKG_VERSION"), "model": merged.path().display().to_string(), "head": name,
    });
    let to = output.path().join(crate::report::FILE);
    fs::write(&to, format!("{report:#}\n")).map_err(checkpoint::Error::io("write", &to))?;
    Ok(output.finish()?)
}

/// The names of the heads that there are, for a message.
fn there_are(heads: &Path) -> String {
    let entries = fs::read_dir(heads).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join(crate::data::HEAD_FILE).leads_to_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    match names.is_empty() {
        true => {
            "; `heads: keep` in a recipe, or `esmerge heads MERGED ... -o MERGED/heads`, puts heads there"
                .to_owned()
        }
        false => format!("; it has {}", names.join(", ")),
    }
}

/// The encoder under the architecture's names, without parts of other tasks, and the head.
fn tensors<'a>(
    encoder: &'a Checkpoint,
    kind: &Kind,
    classifier: &'a Classifier,
) -> Vec<(TensorSpec, Origin<'a>)> {
    let mut tensors = Vec::new();
    for own in encoder.names() {
        let bare = own.strip_prefix(kind.encoder).unwrap_or(own);
        let Some(meta) = encoder.get(own).filter(|_| !is_task_part(bare)) else { continue };
        let name = format!("{}{bare}", kind.encoder);
        tensors
            .push((TensorSpec { name, dtype: meta.dtype, shape: meta.shape.clone() }, Origin::Encoder(own)));
    }
    let mut of_head = |name: String, shape: Vec<usize>, values: &'a [f32]| {
        tensors.push((TensorSpec { name, dtype: Stored::F32, shape }, Origin::Head(values)));
    };
    if let (Some((name, _)), Some(dense)) = (kind.dense, &classifier.dense) {
        of_head(format!("{name}.weight"), vec![dense.width(), dense.inputs()], &dense.weight);
        of_head(format!("{name}.bias"), vec![dense.width()], &dense.bias);
    }
    if let Head::Linear { weight, d, bias } = &classifier.head {
        of_head(format!("{}.weight", kind.head), vec![bias.len(), *d], weight);
        if kind.has_bias {
            of_head(format!("{}.bias", kind.head), vec![bias.len()], bias);
        }
    }
    tensors
}

fn write(
    encoder: &Checkpoint,
    tensors: &[(TensorSpec, Origin<'_>)],
    output: &OutputDir,
    shard_size: u64,
) -> Result<(), Error> {
    let origins: HashMap<&str, &Origin> =
        tensors.iter().map(|(spec, origin)| (spec.name.as_str(), origin)).collect();
    let specs = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let files = shards(specs, shard_size, stem(encoder));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    for shard in &files {
        let mut file = TensorWriter::create(&output.path().join(&shard.file), &shard.tensors, &metadata)?;
        for spec in &shard.tensors {
            match origins.get(spec.name.as_str()) {
                Some(Origin::Head(values)) => file.write(bytemuck::cast_slice(values))?,
                Some(Origin::Encoder(own)) => {
                    for start in (0..spec.bytes()).step_by(CHUNK as usize) {
                        file.write(&encoder.read_bytes(own, start..spec.bytes().min(start + CHUNK))?)?;
                    }
                }
                None => {}
            }
        }
        file.finish()?;
    }
    if files.len() > 1 {
        let path = output.path().join(format!("{}.safetensors.index.json", stem(encoder)));
        fs::write(&path, format!("{:#}\n", index(&files))).map_err(checkpoint::Error::io("write", &path))?;
    }
    Ok(())
}
