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
const KEYS: [(&str, Foreign); 12] = [
    ("int8_mask", Foreign::Harmless("masks take no memory worth saving here")),
    ("rescale", Foreign::Harmless("only methods that drop differences rescale")),
    ("consensus_threshold", Foreign::Harmless("only consensus methods use it")),
    ("random_seed", Foreign::Harmless("mergekit takes it from its command line alone; here it is `seed`")),
    ("merges", Foreign::Unsupported("write several documents, separated by ---, with `name`s")),
    ("embed_slerp", Foreign::Unsupported("embeddings are averaged in this version")),
    (
        "lambda",
        Foreign::Unsupported("it is a parameter of task_arithmetic; for this method the same is `alpha`"),
    ),
    ("swapping", Foreign::Unsupported("it is not in this version")),
    ("layer_range", Foreign::Unsupported("a source of `slices` has it")),
    ("adapter", Foreign::Unsupported("an adapter is given by `lora`, beside `model`")),
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
