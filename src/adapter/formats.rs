//! The formats of adapters, a line each: how one is told, and how it is opened.

use super::{Adapter, peft, single};
use crate::checkpoint::{ADAPTER_CONFIG, Checkpoint, Error};
use serde_json::Value;
use std::path::Path;

/// How adapters are stored.
#[derive(Clone, Copy)]
pub(super) struct Format {
    is_one: fn(&Path) -> bool,
    open: fn(&Path, &Checkpoint, &Value) -> Result<Adapter, Error>,
}

/// The first that fits counts.
const FORMATS: [Format; 2] = [
    Format { is_one: peft::is_one, open: peft::open },
    Format { is_one: single::is_one, open: single::open },
];

/// The format of what lies at a path; none if that is no adapter.
pub(super) fn format(path: &Path) -> Option<&'static Format> {
    FORMATS.iter().find(|format| (format.is_one)(path))
}

/// Opens what lies at a path.
pub(super) fn open(path: &Path, base: &Checkpoint, config: &Value) -> Result<Adapter, Error> {
    match format(path) {
        Some(format) => (format.open)(path, base, config),
        None => Err(Error::NotFound {
            path: path.join(ADAPTER_CONFIG),
            hint: "an adapter is a folder with adapter_config.json and adapter_model.safetensors",
        }),
    }
}
