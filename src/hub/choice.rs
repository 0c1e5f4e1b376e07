//! Which files of a model in the hub are fetched: one form of its weights, and what it is loaded with.

use super::name::is_plain;
use crate::checkpoint::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, belongs, is_weights};

/// The files of a model that are of use here, sidecars first; of sharded weights the index, which names the rest.
///
/// # Errors
/// Says why none of its weights can be taken.
pub(super) fn choose(files: &[String]) -> Result<Vec<&str>, String> {
    let plain = files.iter().map(String::as_str).filter(|file| file.split('/').all(is_plain));
    let (inside, top): (Vec<&str>, Vec<&str>) = plain.partition(|file| file.contains('/'));
    let is_used = |file: &str| {
        let name = file.rsplit('/').next().unwrap_or(file);
        belongs(name) || name == ADAPTER_CONFIG
    };
    let mut chosen: Vec<&str> = top.iter().copied().filter(|file| is_used(file)).collect();
    chosen.extend(inside.iter().filter(|file| is_module(file) && (is_used(file) || is_safetensors(file))));
    chosen.extend(weights(&top)?);
    Ok(chosen)
}

/// Whether a file is a module's of a sentence-transformers model, as `1_Pooling/config.json`.
fn is_module(file: &str) -> bool {
    file.split_once('_').is_some_and(|(number, _)| number.bytes().all(|b| b.is_ascii_digit()))
}

fn is_safetensors(file: &str) -> bool {
    file.ends_with(".safetensors")
}

/// The weights, as opening a folder looks for them.
fn weights<'f>(top: &[&'f str]) -> Result<Vec<&'f str>, String> {
    let ending = |end: &str| top.iter().copied().filter(|file| file.ends_with(end)).collect::<Vec<_>>();
    let named = |name: &str| top.iter().copied().find(|file| *file == name);
    let adapter = named(ADAPTER_WEIGHTS).filter(|_| named(ADAPTER_CONFIG).is_some());
    let whole = named("model.safetensors").or_else(|| named("model.safetensors.index.json"));
    let files = ending(".safetensors");
    let other: Vec<&str> = files.into_iter().filter(|file| *file != ADAPTER_WEIGHTS).collect();
    let one = match (&ending(".safetensors.index.json")[..], &other[..], &ending(".gguf")[..]) {
        _ if whole.is_some() => whole,
        ([file], ..) | ([], [file], _) | ([], [], [file]) => Some(*file),
        _ => None,
    };
    let found: Vec<&str> = adapter.into_iter().chain(one).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let there: Vec<&str> = top.iter().copied().filter(|file| is_weights(file)).take(4).collect();
    Err(match &there[..] {
        [] => "it holds no weights".to_owned(),
        there => format!(
            "of its weights none can be chosen ({}): one safetensors file, one index of shards, or one GGUF file is expected; \
             download the file that is meant, and name its path",
            there.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str]) -> Result<Vec<String>, String> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        choose(&files).map(|chosen| chosen.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn one_form_of_the_weights_and_what_they_are_loaded_with() {
        let files = [
            "../up.json",
            ".gitattributes",
            "1_Pooling/config.json",
            "config.json",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
            "model.fp16.safetensors",
            "original/params.json",
        ];
        let expected = ["config.json", "tokenizer.json", "1_Pooling/config.json", "model.safetensors"];
        assert_eq!(chosen(&files).unwrap(), expected);
        let sharded = [
            "config.json",
            "consolidated.safetensors",
            "model-1.safetensors",
            "model.safetensors.index.json",
        ];
        assert_eq!(chosen(&sharded).unwrap(), ["config.json", "model.safetensors.index.json"]);
        let adapter = ["adapter_config.json", "adapter_model.safetensors"];
        assert_eq!(chosen(&adapter).unwrap(), adapter);
    }

    #[test]
    fn weights_that_cannot_be_read_are_named() {
        assert!(chosen(&["config.json"]).unwrap_err().contains("no weights"));
        assert!(chosen(&["pytorch_model.bin"]).unwrap_err().contains("pytorch_model.bin"));
        assert!(chosen(&["a.Q4_0.gguf", "a.Q8_0.gguf"]).unwrap_err().contains("a.Q8_0.gguf"));
    }
}
