//! Keys of mergekit's recipes that are not this program's: those that change nothing here, and those not supported yet.

/// What is to be said of a key that is not known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It changes nothing; why.
    Harmless(&'static str),
    /// It would change the result; what to do.
    Unsupported(&'static str),
}

/// The keys, wherever they stand in a recipe.
const KEYS: [(&str, Foreign); 17] = [
    ("int8_mask", Foreign::Harmless("masks take no memory worth saving here")),
    ("rescale", Foreign::Harmless("only methods that drop differences rescale")),
    ("consensus_threshold", Foreign::Harmless("only consensus methods use it")),
    (
        "slices",
        Foreign::Unsupported(
            "layer ranges are not supported in this version; whole models are, under `models`",
        ),
    ),
    (
        "modules",
        Foreign::Unsupported("merging module by module is not supported in this version; give whole models"),
    ),
    (
        "merges",
        Foreign::Unsupported(
            "several merges in one recipe are not supported in this version; write one recipe each",
        ),
    ),
    (
        "tokenizer_source",
        Foreign::Unsupported("the output has the base's tokenizer in this version; `base` may be left out"),
    ),
    (
        "tokenizer",
        Foreign::Unsupported("the output has the base's tokenizer in this version; leave the key out"),
    ),
    (
        "chat_template",
        Foreign::Unsupported("the output has the base's chat template in this version; leave the key out"),
    ),
    ("embed_slerp", Foreign::Unsupported("embeddings are averaged in this version")),
    (
        "lambda",
        Foreign::Unsupported("it is a parameter of task_arithmetic; for this method the same is `alpha`"),
    ),
    ("swapping", Foreign::Unsupported("it is not in this version")),
    ("layer_range", Foreign::Unsupported("layer ranges are not supported in this version")),
    (
        "lora",
        Foreign::Unsupported(
            "adapters are not supported in this version; merge the adapter into its model first",
        ),
    ),
    (
        "adapter",
        Foreign::Unsupported(
            "adapters are not supported in this version; merge the adapter into its model first",
        ),
    ),
    (
        "revision",
        Foreign::Unsupported("models are read from local files; download the revision and give its path"),
    ),
    ("override_base", Foreign::Unsupported("it is not in this version; give the model's own path")),
];

/// What is to be said of a key; `None` if mergekit has no such key.
pub(super) fn foreign(key: &str) -> Option<Foreign> {
    KEYS.iter().find(|(name, _)| *name == key).map(|(_, foreign)| *foreign)
}
