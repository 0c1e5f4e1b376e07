//! Consensus task arithmetic: what matters to several tasks.

use super::elementwise::{Elementwise, Slab, Slabs, narrow, scaled};
use super::table::{
    Base, Calibration, Default, Description, Form, Kind, Parameter, Range, Strength, of_models,
};
use super::values::{Value, Values};
use crate::backend::{Across, Backend, Result};

/// `consensus_ta`
pub const METHOD: Description = Description {
    name: "consensus_ta",
    line: "sums differences where they matter to several models",
    formula: "an element matters to model i where |d_i| > threshold_i |sum d - d_i|; W = b + lambda sum d_i where it matters to\n\
              min_tasks or more, the base elsewhere",
    source: "TALL-masks and consensus merging (Wang et al., ICML 2024, arXiv 2405.07813)",
    kind: Kind::Elementwise { passes: 0 },
    models: (2, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Lambda,
    parameters: &[
        of_models(
            "threshold",
            Range::NOT_NEGATIVE,
            0.4,
            "how large a difference is beside those of all other models",
        ),
        Parameter {
            name: "min_tasks",
            form: Form::Count,
            default: Default::Is(Value::Number(2.0)),
            of_models: false,
            help: "to how many models an element must matter",
        },
    ],
    example: "threshold: 0.4\nlambda: 0.5",
};

/// Consensus task arithmetic of a tensor.
pub struct ConsensusTa {
    thresholds: Vec<f64>,
    least: usize,
    lambda: f64,
}

impl Elementwise for ConsensusTa {
    type Learned = ();

    fn new(values: &Values) -> std::result::Result<Self, String> {
        let (thresholds, least) = (values.of_models("threshold"), values.number("min_tasks") as usize);
        Ok(ConsensusTa { thresholds, least, lambda: values.number("lambda") })
    }

    async fn learn<B: Backend, S: Slabs<B>>(&self, _: &B, _: &mut S) -> std::result::Result<(), S::Error> {
        Ok(())
    }

    async fn apply<B: Backend>(&self, backend: &B, (): &(), slab: Slab<B::Tensor>) -> Result<B::Tensor> {
        let rule = Across::Agree { factors: &narrow(&self.thresholds), least: self.least };
        scaled(backend, backend.across(&slab.deltas, rule)?, self.lambda)
    }
}
