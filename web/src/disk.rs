//! The disk: files that somebody chose, read where they lie, and the browser's storage for outputs.

use crate::{Result, json, words};
use esmerge::host::disk::{self, Place, ReadAt, Scratch};
use js_sys::Uint8Array;
use serde::Serialize;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use wasm_bindgen::prelude::*;

#[wasm_bindgen]
extern "C" {
    /// A file that was chosen: `{length, read(bytes, offset)}`.
    pub type Chosen;

    #[wasm_bindgen(method, getter)]
    fn length(this: &Chosen) -> f64;

    #[wasm_bindgen(method, catch)]
    fn read(this: &Chosen, bytes: &mut [u8], offset: f64) -> std::result::Result<(), JsValue>;

    /// Storage: `{read(bytes, offset), write(bytes, offset)}`.
    pub type Storage;

    #[wasm_bindgen(method, catch, js_name = read)]
    fn read_stored(this: &Storage, bytes: &mut [u8], offset: f64) -> std::result::Result<(), JsValue>;

    #[wasm_bindgen(method, catch, js_name = write)]
    fn write_stored(this: &Storage, bytes: &[u8], offset: f64) -> std::result::Result<(), JsValue>;
}

/// What a browser says of a read or a write that failed.
fn io_error(error: JsValue) -> Error {
    let text = |key: &str| js_sys::Reflect::get(&error, &key.into()).ok().and_then(|v| v.as_string());
    let name = text("name").unwrap_or_default();
    let message = text("message").unwrap_or_else(|| format!("{error:?}"));
    match name.as_str() {
        "QuotaExceededError" => Error::new(
            ErrorKind::StorageFull,
            format!(
                "the browser's storage for this page is full ({message}); free some, or use a model of fewer bytes"
            ),
        ),
        "NotFoundError" | "NotReadableError" => Error::new(
            ErrorKind::NotFound,
            format!("the file was moved or changed since it was chosen ({message}); choose it again"),
        ),
        _ => Error::other(format!("{name} {message}").trim().to_owned()),
    }
}

impl ReadAt for Chosen {
    fn length(&self) -> u64 {
        Chosen::length(self) as u64
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.read(bytes, offset as f64).map_err(io_error)
    }
}

impl Scratch for Storage {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.read_stored(bytes, offset as f64).map_err(io_error)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.write_stored(bytes, offset as f64).map_err(io_error)
    }
}

/// Puts a chosen file under a path.
#[wasm_bindgen]
pub fn mount(path: &str, file: Chosen) -> Result<()> {
    disk::mount(Path::new(path), Rc::new(file)).map_err(|e| words(format!("{path}: {e}")))
}

/// Gives outputs their room; without it they are kept in memory.
#[wasm_bindgen]
pub fn set_storage(storage: Storage) {
    disk::set_scratch(Rc::new(storage));
}

/// Writes a small file; folders on the way are made.
#[wasm_bindgen]
pub fn write_file(path: &str, text: &str) -> Result<()> {
    let path = Path::new(path);
    let folder = path.parent().unwrap_or(Path::new("/"));
    let written = disk::create_dir_all(folder).and_then(|()| disk::write(path, text));
    written.map_err(|e| words(format!("{}: {e}", path.display())))
}

/// Removes a file or a folder, if it is there.
#[wasm_bindgen]
pub fn remove(path: &str) -> Result<()> {
    match disk::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(words(format!("{path}: {e}"))),
        _ => Ok(()),
    }
}

#[derive(Serialize)]
struct Entry {
    path: PathBuf,
    bytes: u64,
}

/// All files below a folder with their sizes, as JSON.
#[wasm_bindgen]
pub fn list(folder: &str) -> Result<String> {
    let mut found = Vec::new();
    walk(Path::new(folder), &mut found).map_err(|e| words(format!("{folder}: {e}")))?;
    json(&found)
}

fn walk(folder: &Path, found: &mut Vec<Entry>) -> std::io::Result<()> {
    for entry in disk::read_dir(folder)? {
        let (path, meta) = entry.map(|e| (e.path(), e.metadata()))?;
        let meta = meta?;
        match meta.is_dir() {
            true => walk(&path, found)?,
            false => found.push(Entry { path, bytes: meta.len() }),
        }
    }
    Ok(())
}

/// Where the bytes of a written file are: a `Uint8Array` of them, or pieces of the storage, `[offset, length]` each.
#[wasm_bindgen]
pub fn contents(path: &str) -> Result<JsValue> {
    match disk::place(Path::new(path)).map_err(|e| words(format!("{path}: {e}")))? {
        Place::Memory(bytes) => Ok(Uint8Array::from(bytes.as_slice()).into()),
        Place::Scratch(pieces) => {
            let piece = |(offset, length): (u64, u64)| {
                js_sys::Array::of2(&(offset as f64).into(), &(length as f64).into())
            };
            Ok(pieces.into_iter().map(piece).collect::<js_sys::Array>().into())
        }
    }
}

/// The text of a file.
#[wasm_bindgen]
pub fn read_text(path: &str) -> Result<String> {
    disk::read_to_string(path).map_err(|e| words(format!("{path}: {e}")))
}
