//! From files to what a forward pass takes: weights as they are stored, samples prepared as the model wants them, tasks
//! with their labels and heads.

mod chosen;
mod error;
mod guard;
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
pub use error::Error;
pub(crate) use error::read_json;
pub use preprocess::Preprocessor;
pub use proxies::Proxies;
pub use source::ModelSource;
pub use split::Split;
pub use synthetic::synthetic;
pub use task::{Head, Task};
pub use vocabulary::Vocabulary;
