//! What reads files from strangers. Each reader is given bytes as such a file, with all that belongs beside it whole, and must come
//! back, with a model or with an error.

use esmerge::adapter::Adapter;
use esmerge::calibration::{Calibration, Statistic};
use esmerge::checkpoint::journal::{Earlier, Journal, Writer};
use esmerge::checkpoint::{Checkpoint, DeltaFile, RouterFile, Stored, TensorFile, TensorSpec, TensorWriter};
use esmerge::data::{Preprocessor, Vocabulary};
use esmerge::model::Grid;
use esmerge::recipe::{Overrides, Recipe};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Reads bytes as a file in a folder that is its own.
pub type Reader = fn(&Path, &[u8]);

/// All of them, by name.
pub const READERS: [(&str, Reader); 11] = [
    ("safetensors", safetensors),
    ("shard_index", shard_index),
    ("adapter_config", adapter_config),
    ("calibration", calibration),
    ("recipe", recipe),
    ("delta", delta),
    ("router", router),
    ("tokenizer", tokenizer),
    ("image", image),
    ("gguf", gguf),
    ("journal", journal),
];

/// Gives bytes to the reader of this name, in a folder that lasts as long as the thread.
#[allow(dead_code)] // the suite has folders of its own
pub fn run(name: &str, bytes: &[u8]) {
    thread_local! {
        static PLACE: tempfile::TempDir = tempfile::tempdir().expect("a temporary folder");
    }
    let reader = READERS.iter().find(|(known, _)| *known == name).map(|(_, reader)| reader);
    PLACE.with(|place| reader.expect("it is one of them")(place.path(), bytes));
}

/// Values read of a tensor.
const VALUES: usize = 1 << 12;
/// Tensors read of a file.
const TENSORS: usize = 50;

fn safetensors(place: &Path, bytes: &[u8]) {
    read_model(&put(place, "model.safetensors", bytes));
}

fn gguf(place: &Path, bytes: &[u8]) {
    read_model(&put(place, "model.gguf", bytes));
}

fn shard_index(place: &Path, bytes: &[u8]) {
    fixture(&place.join("model-00001-of-00002.safetensors"), &[("a", &[2, 3])]);
    fixture(&place.join("model-00002-of-00002.safetensors"), &[("b", &[4])]);
    put(place, "model.safetensors.index.json", bytes);
    read_model(place);
}

fn read_model(path: &Path) {
    let Ok(model) = Checkpoint::open(path) else { return };
    for name in model.names().take(TENSORS) {
        let Some(meta) = model.get(name) else { continue };
        let _ = model.read_values(name, 0..meta.elements().min(VALUES));
        let _ = model.read_bytes(name, 0..meta.bytes.min(VALUES as u64));
    }
}

fn adapter_config(place: &Path, bytes: &[u8]) {
    const MODULE: &str = "model.layers.0.mlp.up_proj";
    let base = place.join("base.safetensors");
    fixture(&base, &[(&format!("{MODULE}.weight"), &[6, 4])]);
    let key = |factor: &str| format!("base_model.model.{MODULE}.{factor}.weight");
    let factors: [(&str, &[usize]); 2] = [(&key("lora_A"), &[2, 4]), (&key("lora_B"), &[6, 2])];
    fixture(&place.join("adapter_model.safetensors"), &factors);
    put(place, "adapter_config.json", bytes);
    if let Ok(base) = Checkpoint::open(&base) {
        let _ = Adapter::open(place, &base, &serde_json::Value::Null);
    }
}

fn calibration(place: &Path, bytes: &[u8]) {
    let path = put(place, "calibration.safetensors", bytes);
    let (Ok(calibration), Ok(file)) = (Calibration::open(&path), TensorFile::open(&path)) else { return };
    for key in file.tensors().keys().take(TENSORS) {
        let Some((weight, _)) = key.rsplit_once('.') else { continue };
        if let Some((source, statistic)) = calibration.source_of(weight) {
            let _ =
                (calibration.read(source, statistic), calibration.mean(source), calibration.tokens(source));
        }
        let _ = calibration.place(weight, Statistic::Gram);
    }
}

fn recipe(place: &Path, bytes: &[u8]) {
    let path = put(place, "recipe.yaml", bytes);
    for document in Recipe::documents(&path).unwrap_or_default() {
        let _ = Recipe::parse(&document.text, &path, &Overrides::default());
    }
}

fn delta(place: &Path, bytes: &[u8]) {
    let path = put(place, "delta.safetensors", bytes);
    let Ok(delta) = DeltaFile::open(&path) else { return };
    for (name, meta) in delta.file().tensors().iter().take(TENSORS) {
        let _ = delta.file().read_values(name, 0..meta.elements().min(VALUES));
    }
}

fn router(place: &Path, bytes: &[u8]) {
    put(place, "router.safetensors", bytes);
    let Ok(router) = RouterFile::open(place) else { return };
    for weight in router.weights().take(TENSORS) {
        let _ = router.read(weight);
    }
}

fn tokenizer(place: &Path, bytes: &[u8]) {
    put(place, "tokenizer.json", bytes);
    if let Ok(Some(mut vocabulary)) = Vocabulary::open(place) {
        let (other, rows) = (vocabulary.clone(), vocabulary.rows());
        let _ = vocabulary.add(&other, rows);
    }
}

fn image(place: &Path, bytes: &[u8]) {
    let path = put(place, "image.png", bytes); // by its contents it may be of another format
    let grid = Grid { channels: 3, image: 8, patch: 4, any_size: false };
    if let Ok(preprocessor) = Preprocessor::open(None, &serde_json::Value::Null, grid) {
        let _ = preprocessor.read(&[path]);
    }
}

/// The first byte says which of the journal's files the others are.
fn journal(place: &Path, bytes: &[u8]) {
    const FILES: [(&str, &[u8]); 3] = [
        ("plan.json", include_bytes!("corpus/journal/plan")),
        ("1-of-1.list", include_bytes!("corpus/journal/list")),
        ("1-of-1.values", include_bytes!("corpus/journal/values")),
    ];
    let Some((which, bytes)) = bytes.split_first() else { return };
    let folder = place.join("out.esmerge");
    fs::create_dir_all(&folder).expect("a folder");
    for (i, (name, whole)) in FILES.iter().enumerate() {
        let whole = &whole[1..];
        put(&folder, name, if i == usize::from(*which) % FILES.len() { bytes } else { whole });
    }
    let opened = Journal::open(&place.join("out"), false, Writer::only(), Earlier::Use, &mut |_| {});
    let Ok(journal) = opened else { return };
    let Some(identity) = journal.before().cloned() else { return };
    if let Ok((ledger, identity)) = journal.begin(identity) {
        for unit in 0..identity.units.len().min(TENSORS) {
            let done: Option<(serde_json::Value, _)> = ledger.done(&format!("layers/{unit}"));
            let _ = done.and_then(|(_, values)| values).map(|values| values.read());
        }
    }
}

fn put(place: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = place.join(name);
    fs::write(&path, bytes).expect("a file");
    path
}

/// A file of float32 tensors, written once.
fn fixture(path: &Path, tensors: &[(&str, &[usize])]) {
    if path.exists() {
        return;
    }
    let spec = |(name, shape): &(&str, &[usize])| TensorSpec {
        name: (*name).to_owned(),
        dtype: Stored::F32,
        shape: shape.to_vec(),
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let mut file = TensorWriter::create(path, &specs, &BTreeMap::new()).expect("a new file");
    for spec in &specs {
        file.write(&vec![0; 4 * spec.shape.iter().product::<usize>()]).expect("room");
    }
    file.finish().expect("room");
}
