//! Whose head it is, and on which samples it answers.

use crate::data::{
    Chosen, Classifier, Error, ModelSource, Proxies, Task, kind_of, own_classifier, task_classifier,
};
use crate::method::head_refit::{ADVISED_PROXIES, FEWEST_PROXIES};
use crate::model::InputKind;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// An expert with its head.
pub struct Expert {
    /// Its name, which the head's folder gets.
    pub name: String,
    /// What it is run as.
    pub source: ModelSource,
    /// What answers on its own features.
    pub classifier: Classifier,
    /// What its classes are called, where that is known.
    pub labels: Option<Vec<String>>,
    /// The samples of its task, without labels.
    pub data: Option<PathBuf>,
}

impl Expert {
    /// An expert whose head is that of the task file `data`, or its own where that is no task file or has none.
    ///
    /// # Errors
    /// If there is no head.
    pub fn open(name: &str, source: ModelSource, data: Option<&Path>) -> Result<Expert, Error> {
        let is_tensors = |data: &&Path| data.extension().is_some_and(|e| e == "safetensors");
        let task = data.filter(is_tensors).map(Task::open).transpose()?;
        let classifier = match &task {
            Some(task) if task.has_head() => task_classifier(&source, task)?,
            _ => own_classifier(&source)?.ok_or_else(|| no_head(name, &source))?,
        };
        let named = task.as_ref().and_then(|task| task.metadata("classes"));
        let of_task = named.and_then(|text| serde_json::from_str(text).ok());
        let labels = of_task.or_else(|| labels(source.config(), classifier.head.classes()));
        Ok(Expert { name: name.to_owned(), source, classifier, labels, data: data.map(Path::to_path_buf) })
    }

    /// The samples of its task, as the merged model takes them; too few are refused.
    pub fn proxies(
        &self,
        choice: &Proxies,
        merged: &ModelSource,
        inputs: InputKind,
    ) -> Result<Chosen, Error> {
        let Some(data) = &self.data else {
            let reason = format!(
                "expert `{}` has no samples to refit its head on: give a task file with proxies, a folder of images or a text \
                 file; {ADVISED_PROXIES} are advised",
                self.name
            );
            return Err(Error::bad(self.source.path(), reason));
        };
        let chosen = choice.choose(data, merged, inputs)?;
        if chosen.len() < FEWEST_PROXIES {
            let reason = format!(
                "it has {} samples to refit the head of `{}` on; {FEWEST_PROXIES} are the least, and {ADVISED_PROXIES} are advised: \
                 a head refitted on fewer can be worse than the old one",
                chosen.len(),
                self.name
            );
            return Err(Error::bad(data, reason));
        }
        Ok(chosen)
    }

    /// Whether the head is that of a model for classification.
    pub fn is_classifier(&self) -> bool {
        kind_of(self.source.config()).is_some()
    }
}

fn no_head(name: &str, source: &ModelSource) -> Error {
    let reason = format!(
        "expert `{name}` has no head that is known: a model for classification (BERT, RoBERTa, DistilBERT, ViT, Llama and kin) has \
         one, or a task file with `class_embeddings` or `head.weight`"
    );
    Error::bad(source.path(), reason)
}

/// `id2label`, where it names every class.
fn labels(config: &Value, classes: usize) -> Option<Vec<String>> {
    let map = config.get("id2label")?.as_object()?;
    (0..classes).map(|i| Some(map.get(&i.to_string())?.as_str()?.to_owned())).collect()
}
