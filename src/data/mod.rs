//! From files to what a forward pass takes: weights as they are stored, samples prepared as the model wants them, tasks
//! with their labels and heads.

mod error;
mod images;
mod integers;
mod preprocess;
mod proxies;
mod rng;
mod source;
mod split;
mod task;
mod text;

pub use error::Error;
pub(crate) use error::read_json;
pub use preprocess::Preprocessor;
pub use proxies::{Proxies, synthetic};
pub use source::ModelSource;
pub use split::Split;
pub use task::{Head, Task};
