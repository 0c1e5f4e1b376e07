//! What models answer.

use crate::device::{device, on_device};
use crate::{Result, json, words};
use esmerge::backend::layers::Layers;
use esmerge::checkpoint::TensorFile;
use esmerge::data::{ModelSource, Split, Task};
use esmerge::eval::{Accuracy, Evaluator, predict};
use serde_json::json;
use std::path::Path;
use wasm_bindgen::prelude::*;

/// The accuracy of a model on a split of a task, and its answer to every sample, as JSON.
#[wasm_bindgen]
pub async fn evaluate(model: &str, task: &str, split: &str, on: &str) -> Result<String> {
    let source = ModelSource::open(model).map_err(words)?;
    let task = Task::open(Path::new(task)).map_err(words)?;
    let split: Split = split.parse().map_err(words)?;
    let device = device(on).await?;
    on_device!(&device, |backend| of_task(backend, &source, &task, &split).await)
}

async fn of_task<B: Layers>(backend: &B, source: &ModelSource, task: &Task, split: &Split) -> Result<String> {
    let evaluator = Evaluator::new(backend, source).map_err(words)?;
    let classifier = evaluator.classifier(task, None).map_err(words)?;
    let features = evaluator.features(task, split, classifier.pooling).await.map_err(words)?;
    let right = evaluator.right(task, split, &classifier, &features).map_err(words)?;
    let answers = predict(&classifier, &features.values).map_err(words)?;
    let accuracy = Accuracy::of(&right);
    json(&json!({
        "task": task.name, "accuracy": accuracy.value(), "interval": accuracy.interval(),
        "samples": right.len(), "answers": answers, "right": right,
    }))
}

/// The raw images of a task's split: what there is of them, as JSON, and the names of its classes where the file has them.
#[wasm_bindgen]
pub fn images_of(task: &str, split: &str) -> Result<String> {
    let file = TensorFile::open(Path::new(task)).map_err(words)?;
    let classes =
        file.metadata().get("classes").and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
    let pixels = file.meta(&format!("{split}.pixels")).map_err(words)?;
    json(&json!({ "shape": pixels.shape, "classes": classes, "name": file.metadata().get("task") }))
}

/// The pixels of one image.
#[wasm_bindgen]
pub fn pixels(task: &str, split: &str, image: usize) -> Result<Vec<u8>> {
    let file = TensorFile::open(Path::new(task)).map_err(words)?;
    let name = format!("{split}.pixels");
    let shape = &file.meta(&name).map_err(words)?.shape;
    let size = shape.iter().skip(1).product::<usize>() as u64;
    let first = image as u64 * size;
    file.read_bytes(&name, first..first + size).map_err(words)
}
