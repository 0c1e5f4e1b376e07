//! The folder of a head: `NAME/head.safetensors`, a task file without samples, and the expert's `config.json` where the head is that
//! of a model for classification.

use super::refit::Refitted;
use crate::checkpoint::{self, Stored, TensorFile, TensorSpec, TensorWriter, names_adapter};
use crate::data::{Classifier, Error, HEAD_FILE, Head};
use crate::host::fs;
use crate::model::Pooling;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes heads into a folder, one folder each, and flushes them to the disk.
pub fn write(folder: &Path, heads: &[Refitted]) -> Result<(), Error> {
    for head in heads {
        let name = &head.expert.name;
        if !names_adapter(name) {
            let reason =
                format!("`{name}` cannot be the name of a head's folder; give the expert another `name`");
            return Err(Error::bad(head.expert.source.path(), reason));
        }
        let own = folder.join(name);
        fs::create_dir_all(&own).map_err(checkpoint::Error::io("create", &own))?;
        write_file(&own.join(HEAD_FILE), head)?;
        if head.expert.is_classifier() {
            let path = own.join("config.json");
            let text = serde_json::to_vec_pretty(head.expert.source.config());
            let text = text.map_err(|e| checkpoint::Error::io("write", &path)(e.into()))?;
            fs::write(&path, text).map_err(checkpoint::Error::io("write", &path))?;
        }
    }
    Ok(())
}

/// Copies the heads of a folder as they are, and says which of them were refitted to the model that they lie beside.
pub fn carry(from: &Path, to: &Path) -> Result<Vec<String>, Error> {
    let mut folders = fs::read_dir(from)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>())
        .map_err(checkpoint::Error::io("read", from))?;
    folders.sort();
    let mut refitted = Vec::new();
    for folder in folders.iter().filter(|folder| folder.join(HEAD_FILE).is_file()) {
        let name = folder.file_name().unwrap_or_default();
        let own = to.join(name);
        fs::create_dir_all(&own).map_err(checkpoint::Error::io("create", &own))?;
        for file in [HEAD_FILE, "config.json"] {
            let source = folder.join(file);
            if source.is_file() {
                let copied = fs::read(&source).and_then(|bytes| fs::write(own.join(file), bytes));
                copied.map_err(checkpoint::Error::io("copy", &source))?;
            }
        }
        let head = TensorFile::open(&folder.join(HEAD_FILE))?;
        if head.metadata().get("refitted").is_some_and(|value| value == "true") {
            refitted.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(refitted)
}

fn write_file(path: &Path, head: &Refitted) -> Result<(), Error> {
    let mut parts = parts(&head.classifier);
    parts.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let specs: Vec<TensorSpec> = parts.iter().map(|(spec, _)| spec.clone()).collect();
    let mut file = TensorWriter::create(path, &specs, &metadata(head))?;
    for (_, values) in parts {
        file.write(bytemuck::cast_slice(values))?;
    }
    file.finish()?;
    Ok(())
}

fn parts(classifier: &Classifier) -> Vec<(TensorSpec, &[f32])> {
    let spec = |name: &str, shape: &[usize]| TensorSpec {
        name: name.to_owned(),
        dtype: Stored::F32,
        shape: shape.to_vec(),
    };
    let classes = classifier.head.classes();
    let mut parts: Vec<(TensorSpec, &[f32])> = match &classifier.head {
        Head::Cosine { classes: rows, d, .. } | Head::Dot { classes: rows, d, .. } => {
            vec![(spec("class_embeddings", &[classes, *d]), rows)]
        }
        Head::Linear { weight, d, bias } => {
            let bias = classifier.head.has_bias().then(|| (spec("head.bias", &[classes]), &bias[..]));
            [(spec("head.weight", &[classes, *d]), &weight[..])].into_iter().chain(bias).collect()
        }
    };
    if let Some(dense) = &classifier.dense {
        parts.push((spec("dense.weight", &[dense.width(), dense.inputs()]), &dense.weight));
        parts.push((spec("dense.bias", &[dense.width()]), &dense.bias));
    }
    parts
}

fn metadata(head: &Refitted) -> BTreeMap<String, String> {
    let Classifier { pooling, dense, head: of_features } = &head.classifier;
    let pooling = pooling.map(|pooling| match pooling {
        Pooling::Mean => "mean",
        Pooling::First => "cls",
        Pooling::Last => "last",
    });
    let (scores, scale) = match of_features {
        Head::Cosine { scale, .. } => (Some("cosine"), Some(scale.to_string())),
        Head::Dot { scale, .. } => (Some("dot"), Some(scale.to_string())),
        Head::Linear { .. } => (None, None),
    };
    let labels = head.expert.labels.as_ref().and_then(|labels| serde_json::to_string(labels).ok());
    let entries = [
        ("task", Some(head.expert.name.clone())),
        ("pooling", pooling.map(str::to_owned)),
        ("activation", dense.as_ref().map(|dense| dense.activation.name().to_owned())),
        ("class_scores", scores.map(str::to_owned)),
        ("logit_scale", scale),
        ("classes", labels),
        ("refitted", Some(head.report.refitted.to_string())),
    ];
    entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}
