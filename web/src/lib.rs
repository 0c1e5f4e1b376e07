//! What the page's worker calls: the library, with a disk made of what somebody chose and of the browser's own storage.
//!
//! Values go over as JSON, errors as the library's own words. Nothing here waits but by `async`. A defect panics, which ends the
//! module; the page then starts another worker.
#![cfg(target_family = "wasm")]

mod bench;
mod device;
mod disk;
mod evaluate;
mod merge;
mod survey;

use serde::Serialize;
use std::fmt::Display;
use wasm_bindgen::prelude::*;

/// A result for JavaScript: an error is thrown as an `Error`.
type Result<T> = std::result::Result<T, JsError>;

#[wasm_bindgen(start)]
fn start() {
    console_error_panic_hook::set_once();
}

/// The version of the library.
#[wasm_bindgen]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// The library's words, with those of what caused it where they add something.
fn words(error: impl Display) -> JsError {
    JsError::new(&error.to_string())
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(words)
}
