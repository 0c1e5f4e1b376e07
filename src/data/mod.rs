//! From files to what a forward pass takes: weights as they are stored, samples prepared as the model wants them, tasks
//! with their labels and heads.

mod chosen;
mod classification;
mod error;
mod guard;
mod head;
mod images;
mod integers;
mod jpeg;
mod preprocess;
mod proxies;
mod rng;
mod source;
mod split;
mod synthetic;
mod task;
mod text;
mod tokenizer;
mod vocabulary;

pub use chosen::Chosen;
pub use classification::{
    HEAD_FILE, HEADS, Kind, classifier_of, kept_head, kind_of, own_classifier, task_classifier,
};
pub use error::Error;
pub(crate) use error::read_json;
pub use head::{Classifier, Dense, Head, Squash};
pub use images::is_image;
pub use preprocess::Preprocessor;
pub use proxies::Proxies;
pub use source::ModelSource;
pub use split::Split;
pub use synthetic::synthetic;
pub use task::Task;
pub use vocabulary::Vocabulary;
