//! Which files beside the weights belong to a model.

/// Endings of files that a model is loaded with: settings, vocabularies, templates, custom code.
const ENDINGS: [&str; 9] =
    [".json", ".txt", ".model", ".vocab", ".merges", ".jinja", ".tiktoken", ".py", ".spm"];

/// Tokenizer files whose endings say nothing, as transformers declares them in `VOCAB_FILES_NAMES`, now or in the past.
const NAMES: [&str; 5] =
    ["bpe.codes", "prophetnet.tokenizer", "vocab.bpe", "tokenizer.model.v3", "vocab.tokenizer"];

/// How files begin that say what others may do with the model.
const TERMS: [&str; 7] =
    ["LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY", "USAGE_POLICY", "THIRD_PARTY"];

/// What is not the output's, whatever it ends in: an adapter's settings would make loaders look for its weights, and the
/// report and recipe of a base that was itself merged are replaced.
const NEVER: [&str; 5] =
    ["adapter_config.json", crate::report::FILE, crate::report::SCALES, "recipe.yaml", "README.md"];

/// How files end that hold weights.
const WEIGHTS: [&str; 9] =
    [".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".gguf", ".ckpt"];

/// Whether a file is copied into the output.
pub(crate) fn belongs(name: &str) -> bool {
    let starts = |start: &str| name.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start));
    let ours = NAMES.contains(&name)
        || ENDINGS.iter().any(|end| name.ends_with(end))
        || TERMS.iter().any(|t| starts(t));
    let hidden = name.starts_with('.');
    ours && !hidden && !NEVER.contains(&name) && !name.ends_with(".index.json")
}

/// Whether a file holds weights, by its name.
pub(crate) fn is_weights(name: &str) -> bool {
    WEIGHTS.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the tokenizers of transformers 5.24 declare as their files.
    const DECLARED: [&str; 25] = [
        "bpe.codes",
        "byte_maps.json",
        "dict.txt",
        "emoji.json",
        "entity_vocab.json",
        "merges.txt",
        "normalizer.json",
        "prophetnet.tokenizer",
        "sentencepiece.bpe.model",
        "sentencepiece.model",
        "source.spm",
        "spiece.model",
        "spm.model",
        "spm_char.model",
        "target.spm",
        "target_vocab.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab-src.json",
        "vocab-tgt.json",
        "vocab.json",
        "vocab.txt",
        "word_pronunciation.json",
        "word_shape.json",
    ];

    #[test]
    fn every_file_that_a_tokenizer_declares_belongs_to_the_model() {
        let lost: Vec<_> = DECLARED.iter().filter(|name| !belongs(name)).collect();
        assert_eq!(lost, Vec::<&&str>::new());
    }

    #[test]
    fn settings_templates_code_and_terms_belong_and_weights_and_an_adapters_settings_do_not() {
        for name in [
            "config.json",
            "generation_config.json",
            "chat_template.jinja",
            "video_preprocessor_config.json",
            "tekken.json",
            "qwen.tiktoken",
            "modeling_x.py",
            "LICENSE",
            "LICENSE.md",
            "license.rst",
            "NOTICE",
            "USE_POLICY.md",
            "THIRD_PARTY_NOTICES",
        ] {
            assert!(belongs(name), "{name}");
        }
        for name in [
            "adapter_config.json",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "training_args.bin",
            "README.md",
            "esmerge-report.json",
            ".gitattributes",
            ".hidden.json",
            "photo.png",
        ] {
            assert!(!belongs(name), "{name}");
        }
    }
}
