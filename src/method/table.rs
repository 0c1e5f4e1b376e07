//! The table of methods. A method is one file that describes itself, and one line here: the recipe's parser, `esmerge methods`,
//! the documentation and error messages read the description.

use super::values::Value;

/// What a method is, takes and needs.
#[derive(Debug)]
pub struct Description {
    /// Its name in a recipe.
    pub name: &'static str,
    /// What it does, in a line.
    pub line: &'static str,
    /// The formula, and what is noteworthy about it.
    pub formula: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// What it works on.
    pub kind: Kind,
    /// How many models besides the base, at least and at most.
    pub models: (usize, usize),
    /// What the base is to it.
    pub base: Base,
    /// Which inputs of layers it looks at.
    pub calibration: Calibration,
    /// What the strength of the merge is called.
    pub strength: Strength,
    /// Its parameters.
    pub parameters: &'static [Parameter],
    /// Lines of `parameters` in an example.
    pub example: &'static str,
}

/// What a method works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every tensor for itself, in slabs: nothing needs a whole tensor in memory.
    Elementwise {
        /// How often the models are read to learn of a tensor what its first value depends on, where it is too large to be kept.
        passes: usize,
    },
    /// Matrices of layers, one layer of all models at a time; other tensors are averaged.
    Spectral,
    /// Essential Subspace Merging: matrices of layers by their roles.
    Esm,
}

/// What the base is to a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// What all models differ from. Listed among the models it is left out, or refused.
    Origin {
        /// Whether it may stand among the models.
        listed: bool,
    },
    /// Differences to it are merged if the recipe names one, else the models themselves.
    Optional,
    /// None: it is a model like the others if it is one of them.
    Member,
}

/// Which inputs of layers a method looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calibration {
    /// None.
    Unused,
    /// Those in every expert.
    OfExperts,
    /// Those in every expert's block behind the blocks that are merged already: everything is merged in the order of blocks, and
    /// the experts' samples pass the merged ones.
    OfMerged,
}

/// How the merged delta is multiplied, and whether that can be searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// `alpha`, which must be given.
    Required,
    /// `alpha`, 1 by default.
    Alpha,
    /// `alpha` or, as mergekit calls it, `lambda`; 1 by default.
    Lambda,
    /// `lambda` alone, because `alpha` is something else here.
    OnlyLambda,
}

/// One parameter.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its key.
    pub name: &'static str,
    /// What it may be.
    pub form: Form,
    /// What it is if the recipe does not say.
    pub default: Default,
    /// Whether each model has its own.
    pub of_models: bool,
    /// What it does.
    pub help: &'static str,
}

/// What a parameter may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// A number in a range; it may vary with the layer (a gradient) and the tensor's name (filters).
    Number(Range),
    /// A whole number from 1.
    Count,
    /// On or off.
    Switch,
    /// One of some words.
    Word(&'static [&'static str]),
    /// Something of its own, which the recipe's parser knows: what may be given.
    Special(&'static str),
}

/// Numbers that make sense.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
    /// Whether neither end belongs to it.
    pub open: bool,
}

impl Range {
    /// Every number.
    pub const ANY: Range = Range { least: f64::NEG_INFINITY, most: f64::INFINITY, open: false };
    /// 0 or more.
    pub const NOT_NEGATIVE: Range = Range { least: 0.0, most: f64::INFINITY, open: false };
    /// More than 0.
    pub const POSITIVE: Range = Range { least: 0.0, most: f64::INFINITY, open: true };
    /// From 0 to 1.
    pub const SHARE: Range = Range { least: 0.0, most: 1.0, open: false };
    /// Between 0 and 1.
    pub const WITHIN: Range = Range { least: 0.0, most: 1.0, open: true };

    /// Whether a number lies in it.
    pub fn contains(self, number: f64) -> bool {
        match self.open {
            true => number > self.least && number < self.most,
            false => number >= self.least && number <= self.most,
        }
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Range { least, most, open } = *self;
        match (least.is_finite(), most.is_finite(), open) {
            (false, false, _) => f.write_str("a number"),
            (true, false, false) => write!(f, "a number from {least}"),
            (true, false, true) => write!(f, "a number above {least}"),
            (true, true, false) => write!(f, "a number from {least} to {most}"),
            (true, true, true) => write!(f, "a number between {least} and {most}"),
            (false, true, _) => write!(f, "a number up to {most}"),
        }
    }
}

/// What a parameter is if it is not given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Default {
    /// It must be given.
    Required,
    /// This.
    Is(Value),
    /// What these words say.
    Said(&'static str),
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Form::Number(range) => range.fmt(f),
            Form::Count => f.write_str("a whole number from 1"),
            Form::Switch => f.write_str("true or false"),
            Form::Word(words) => f.write_str(&words.join(" | ")),
            Form::Special(what) => f.write_str(what),
        }
    }
}

impl std::fmt::Display for Default {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Default::Required => f.write_str("required"),
            Default::Is(value) => value.fmt(f),
            Default::Said(words) => f.write_str(words),
        }
    }
}

/// A number with a default.
pub(super) const fn number(name: &'static str, range: Range, default: f64, help: &'static str) -> Parameter {
    let default = Default::Is(Value::Number(default));
    Parameter { name, form: Form::Number(range), default, of_models: false, help }
}

/// The same, of each model.
pub(super) const fn of_models(
    name: &'static str,
    range: Range,
    default: f64,
    help: &'static str,
) -> Parameter {
    Parameter { of_models: true, ..number(name, range, default, help) }
}

/// A switch with a default.
pub(super) const fn switch(name: &'static str, default: bool, help: &'static str) -> Parameter {
    let default = Default::Is(Value::Switch(default));
    Parameter { name, form: Form::Switch, default, of_models: false, help }
}

/// One of some words, the first by default.
pub(super) const fn word(
    name: &'static str,
    words: &'static [&'static str],
    help: &'static str,
) -> Parameter {
    let default = Default::Is(Value::Word(words[0]));
    Parameter { name, form: Form::Word(words), default, of_models: false, help }
}

/// Something that the recipe's parser knows.
pub(super) const fn special(
    name: &'static str,
    form: &'static str,
    default: &'static str,
    help: &'static str,
) -> Parameter {
    Parameter { name, form: Form::Special(form), default: Default::Said(default), of_models: false, help }
}

pub(super) const WEIGHT: Parameter = of_models("weight", Range::ANY, 1.0, "factor of a model's share");
pub(super) const DENSITY: Parameter =
    of_models("density", Range::SHARE, 1.0, "share of a model's differences that is kept");
pub(super) const NORMALIZE: Parameter = switch("normalize", false, "divide by the sum of the weights");

impl PartialEq for Description {
    fn eq(&self, other: &Description) -> bool {
        self.name == other.name
    }
}

impl Description {
    /// Whether it looks at the inputs of layers.
    pub fn is_calibrated(&self) -> bool {
        self.calibration != Calibration::Unused
    }

    /// The parameter of a name.
    pub fn parameter(&self, name: &str) -> Option<&'static Parameter> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }

    /// Every key that `parameters` may hold, those of all methods first.
    pub fn keys(&self) -> Vec<&'static str> {
        let strength: &[&str] = match self.strength {
            Strength::Required | Strength::Alpha => &["alpha"],
            Strength::Lambda => &["alpha", "lambda"],
            Strength::OnlyLambda => &["lambda"],
        };
        let own = self.parameters.iter().map(|parameter| parameter.name);
        // the experts of esm++ are of what its merge as it is has lost
        let last_step = (self != &super::esm_plus::METHOD).then_some("calibrate");
        strength.iter().copied().chain(["accuracy", "seed"]).chain(last_step).chain(own).collect()
    }
}

/// The method of a name.
pub fn find(name: &str) -> Option<&'static Description> {
    super::methods().find(|method| method.name == name)
}

/// The names of all methods.
pub fn names() -> impl Iterator<Item = &'static str> {
    super::methods().map(|method| method.name)
}
