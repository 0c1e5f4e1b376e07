//! Makes compiled WebAssembly a module that a browser loads, with its JavaScript: `esmerge-web-bindgen MODULE.wasm FOLDER`.
//!
//! It is what the program `wasm-bindgen --target web` does, without that program's test runner and all that it needs.

use anyhow::{Result, bail};
use std::env::args_os;
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let [module, folder] = &args_os().skip(1).collect::<Vec<_>>()[..] else {
        bail!("esmerge-web-bindgen MODULE.wasm FOLDER");
    };
    Bindgen::new()
        .input_path(module)
        .web(true)?
        .omit_default_module_path(false)
        .typescript(false)
        .remove_producers_section(true)
        .remove_name_section(true)
        .generate(folder)
}
