//! `examples/embed.rs` for a page: the whole of what an embedder writes to call it from JavaScript.
#![cfg(target_family = "wasm")]

#[path = "../../../examples/embed.rs"]
mod embed;

use wasm_bindgen::prelude::*;

/// The principal components of some samples, as a table.
#[wasm_bindgen]
pub async fn components() -> Result<String, JsError> {
    embed::components().await.map_err(|error| JsError::new(&error.to_string()))
}
