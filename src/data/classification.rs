//! Heads where they lie: in a model for classification, beside a merged one, in a task file.

use super::head::{Classifier, Dense, Head, Squash};
use super::{Error, ModelSource, Task};
use crate::checkpoint::names_adapter;
use crate::host::PathExt;
use crate::model::{Pooling, Weights, WeightsError};
use serde_json::Value;
use std::path::Path;

/// The folder of a merged model in which every expert's head has a folder of its name.
pub const HEADS: &str = "heads";
/// The file of a head in its folder.
pub const HEAD_FILE: &str = "head.safetensors";

/// Where a model for classification has what.
#[derive(Debug)]
pub struct Kind {
    /// Its classes in transformers (`architectures` of `config.json`).
    pub architectures: &'static [&'static str],
    /// What stands before the names of its encoder's tensors.
    pub encoder: &'static str,
    /// Which token the head looks at, where the encoder leaves it open.
    pub pooling: Option<Pooling>,
    /// The layer before the head.
    pub dense: Option<(&'static str, Squash)>,
    /// The head.
    pub head: &'static str,
    /// Whether the head has a bias.
    pub has_bias: bool,
}

const KINDS: [Kind; 7] = [
    Kind {
        architectures: &["BertForSequenceClassification"],
        encoder: "bert.",
        pooling: Some(Pooling::First),
        dense: Some(("bert.pooler.dense", Squash::Tanh)),
        head: "classifier",
        has_bias: true,
    },
    Kind {
        architectures: &["RobertaForSequenceClassification", "XLMRobertaForSequenceClassification"],
        encoder: "roberta.",
        pooling: Some(Pooling::First),
        dense: Some(("classifier.dense", Squash::Tanh)),
        head: "classifier.out_proj",
        has_bias: true,
    },
    Kind {
        architectures: &["DistilBertForSequenceClassification"],
        encoder: "distilbert.",
        pooling: Some(Pooling::First),
        dense: Some(("pre_classifier", Squash::Relu)),
        head: "classifier",
        has_bias: true,
    },
    Kind {
        architectures: &["ViTForImageClassification"],
        encoder: "vit.",
        pooling: None,
        dense: None,
        head: "classifier",
        has_bias: true,
    },
    Kind {
        architectures: &[
            "LlamaForSequenceClassification",
            "MistralForSequenceClassification",
            "MixtralForSequenceClassification",
            "Qwen2ForSequenceClassification",
            "Qwen3ForSequenceClassification",
            "GemmaForSequenceClassification",
            "Gemma2ForSequenceClassification",
            "Phi3ForSequenceClassification",
        ],
        encoder: "model.",
        pooling: Some(Pooling::Last),
        dense: None,
        head: "score",
        has_bias: false,
    },
    Kind {
        architectures: &["GPT2ForSequenceClassification"],
        encoder: "transformer.",
        pooling: Some(Pooling::Last),
        dense: None,
        head: "score",
        has_bias: false,
    },
    Kind {
        architectures: &["GPTNeoXForSequenceClassification"],
        encoder: "gpt_neox.",
        pooling: Some(Pooling::Last),
        dense: None,
        head: "score",
        has_bias: false,
    },
];

/// The kind of classifier that a configuration describes, if it is one whose head is known.
pub fn kind_of(config: &Value) -> Option<&'static Kind> {
    let named = config.get("architectures")?.as_array()?.first()?.as_str()?;
    KINDS.iter().find(|kind| kind.architectures.contains(&named))
}

/// The head of a model for classification with what lies before it; none if the model is no such, or has no head.
pub fn own_classifier(source: &ModelSource) -> Result<Option<Classifier>, Error> {
    let Some(kind) = kind_of(source.config()) else { return Ok(None) };
    let weight = format!("{}.weight", kind.head);
    if source.shape(&weight).is_none() {
        return Ok(None);
    }
    let (values, [classes, d]) = matrix(source, &weight)?;
    let bias = vector(source, &format!("{}.bias", kind.head), classes)?.unwrap_or_else(|| vec![0.0; classes]);
    let head = Head::Linear { weight: values, d, bias };
    let dense = dense_of(source, kind)?;
    match &dense {
        Some(dense) if dense.width() != d => {
            let given = dense.width();
            Err(Error::bad(source.path(), format!("`{weight}` takes {d} values, but {given} come before it")))
        }
        _ => Ok(Some(Classifier { pooling: kind.pooling, dense, head })),
    }
}

/// The layer that a model for classification has before its head.
fn dense_of(source: &ModelSource, kind: &Kind) -> Result<Option<Dense>, Error> {
    let Some((name, activation)) = kind.dense else { return Ok(None) };
    let (weight, [width, _]) = matrix(source, &format!("{name}.weight"))?;
    let bias = vector(source, &format!("{name}.bias"), width)?.unwrap_or_else(|| vec![0.0; width]);
    Ok(Some(Dense { weight, bias, activation }))
}

/// What answers a task on a model. The head that the model keeps under the task's name, or that is in `heads` if it is given; else
/// the task's own, behind the layer that the model's architecture has before a head; else the model's own.
pub fn classifier_of(source: &ModelSource, task: &Task, heads: Option<&Path>) -> Result<Classifier, Error> {
    let beside = source.folder().map(|folder| folder.join(HEADS));
    let folder = heads.or(beside.as_deref());
    if let Some(kept) = folder.map(|folder| kept_head(folder, &task.name)).transpose()?.flatten() {
        return kept.classifier();
    }
    task_classifier(source, task)
}

/// The same without heads that are kept beside a model.
pub fn task_classifier(source: &ModelSource, task: &Task) -> Result<Classifier, Error> {
    if !task.has_head()
        && let Some(own) = own_classifier(source)?
    {
        return Ok(own);
    }
    let classifier = task.classifier()?;
    let Some(kind) = kind_of(source.config()) else { return Ok(classifier) };
    let of_kind = classifier.pooling.is_none() || classifier.pooling == kind.pooling;
    match (&classifier, of_kind) {
        (Classifier { dense: None, head: Head::Linear { .. }, .. }, true) => {
            let dense = dense_of(source, kind)?.filter(|dense| dense.width() == classifier.head.width());
            Ok(Classifier { pooling: kind.pooling, dense, ..classifier })
        }
        _ => Ok(classifier),
    }
}

/// The head of a name in a folder of heads, as a file that [`Task`] reads; none if there is none.
pub fn kept_head(heads: &Path, name: &str) -> Result<Option<Task>, Error> {
    let file = heads.join(name).join(HEAD_FILE);
    if !names_adapter(name) || !file.leads_to_file() {
        return Ok(None);
    }
    Task::open(&file).map(Some)
}

fn matrix(source: &ModelSource, name: &str) -> Result<(Vec<f32>, [usize; 2]), Error> {
    match source.shape(name) {
        Some(shape) if shape.len() == 2 && !shape.contains(&0) => {
            Ok((values(source, name, shape[0] * shape[1])?, [shape[0], shape[1]]))
        }
        Some(shape) => {
            Err(Error::bad(source.path(), format!("`{name}` has shape {shape:?}; a matrix is expected")))
        }
        None => Err(Error::bad(source.path(), format!("it has no `{name}`, which its architecture has"))),
    }
}

fn vector(source: &ModelSource, name: &str, n: usize) -> Result<Option<Vec<f32>>, Error> {
    match source.shape(name) {
        None => Ok(None),
        Some(shape) if shape == [n] => values(source, name, n).map(Some),
        Some(shape) => {
            Err(Error::bad(source.path(), format!("`{name}` has shape {shape:?}; [{n}] is expected")))
        }
    }
}

fn values(source: &ModelSource, name: &str, n: usize) -> Result<Vec<f32>, Error> {
    let failed = |e: WeightsError| Error::bad(source.path(), format!("`{name}` cannot be read: {e}"));
    Ok(source.read(name, 0..n).map_err(failed)?.to_f32())
}
