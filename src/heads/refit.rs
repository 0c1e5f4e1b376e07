//! Features of all models on all proxies, and the heads that follow from them.

use super::{Expert, HeadReport};
use crate::backend::layers::Layers;
use crate::data::{Classifier, Error, Head, ModelSource, Proxies};
use crate::eval::{Evaluator, argmax, before_head};
use crate::method::head_refit::{Heads, Mode, Problem, refit, row_weights};
use crate::model::{Pooling, Samples};

/// An expert's head on the merged model.
pub struct Refitted {
    /// Whose it is.
    pub expert: Expert,
    /// What answers on the merged model's features.
    pub classifier: Classifier,
    /// What became of it.
    pub report: HeadReport,
}

/// The heads of all experts on a merged model.
///
/// # Errors
/// Samples that are too few or that the model does not take, and features that are not finite.
pub async fn refit_all<B: Layers>(
    backend: &B,
    merged: &ModelSource,
    experts: Vec<Expert>,
    heads: &Heads,
    choice: &Proxies,
    mut say: impl FnMut(&str),
) -> Result<Vec<Refitted>, Error> {
    if heads.mode == Mode::Keep {
        return Ok(experts.into_iter().map(Refitted::kept).collect());
    }
    let evaluator = Evaluator::new(backend, merged)?;
    let read = |expert: &Expert| {
        let chosen = expert.proxies(choice, merged, evaluator.inputs())?;
        chosen.read(0..chosen.len())
    };
    let proxies = experts.iter().map(read).collect::<Result<Vec<Samples>, Error>>()?;
    let mut refitted = Vec::new();
    for (t, expert) in experts.into_iter().enumerate() {
        say(&expert.name);
        let (seen, own) = if heads.own_only { (&proxies[t..=t], 0) } else { (&proxies[..], t) };
        let of_expert = Evaluator::new(backend, &expert.source)?;
        let pooling = expert.classifier.pooling;
        let features = Pair {
            merged: features(&evaluator, seen, pooling).await?,
            expert: features(&of_expert, seen, pooling).await?,
        };
        let counts: Vec<usize> = seen.iter().map(Samples::len).collect();
        refitted.push(refit_one(expert, &features, &counts, own, heads, merged)?);
    }
    Ok(refitted)
}

/// Of both models on the same samples.
struct Pair {
    merged: Vec<f32>,
    expert: Vec<f32>,
}

async fn features<B: Layers>(
    evaluator: &Evaluator<'_, B>,
    samples: &[Samples],
    pooling: Option<Pooling>,
) -> Result<Vec<f32>, Error> {
    let mut features = Vec::new();
    for samples in samples {
        features.extend(evaluator.run(samples, pooling).await?);
    }
    Ok(features)
}

fn refit_one(
    expert: Expert,
    features: &Pair,
    counts: &[usize],
    own: usize,
    heads: &Heads,
    merged: &ModelSource,
) -> Result<Refitted, Error> {
    let samples = counts.iter().sum::<usize>().max(1);
    for (source, values) in [(merged, &features.merged), (&expert.source, &features.expert)] {
        if values.len() / samples != expert.classifier.width() {
            let reason = format!(
                "it gives features of {} values, but the head of `{}` takes {}",
                values.len() / samples,
                expert.name,
                expert.classifier.width()
            );
            return Err(Error::bad(source.path(), reason));
        }
    }
    let (head, width) = rows(&expert.classifier.head);
    let [of_merged, of_expert] =
        [&features.merged, &features.expert].map(|values| as_seen(&expert.classifier, values));
    let weights = row_weights(counts, own);
    let problem = Problem {
        merged: &of_merged,
        expert: &of_expert,
        weights: &weights,
        head: &head,
        width,
        lam: heads.lam,
    };
    let found = refit(&problem).map_err(|e| {
        Error::bad(merged.path(), format!("the head of `{}` cannot be refitted: {e}", expert.name))
    })?;

    let first: usize = counts[..own].iter().sum();
    let of_own = first..first + counts[own];
    let classes = expert.classifier.head.classes();
    let answer = |features: &[f64], i: usize| {
        let feature = &features[i * width..(i + 1) * width];
        let scores = head.chunks(width).map(|row| row.iter().zip(feature).map(|(h, f)| h * f).sum());
        argmax(&scores.collect::<Vec<f64>>())
    };
    let agreeing = |with: &dyn Fn(usize) -> u32| {
        let same = of_own.clone().filter(|&i| with(i) == answer(&of_expert, i)).count();
        same as f64 / of_own.len().max(1) as f64
    };
    let before = agreeing(&|i| answer(&of_merged, i));
    let after = agreeing(&|i| argmax(&found.left_out[i * classes..(i + 1) * classes]));

    let refitted = heads.mode == Mode::Refit || after > before;
    let new = if refitted {
        with_rows(&expert.classifier.head, &found.head)
    } else {
        expert.classifier.head.clone()
    };
    let report = HeadReport {
        name: expert.name.clone(),
        classes,
        proxies: Some(counts[own]),
        before: Some(before),
        after: Some(after),
        refitted,
    };
    Ok(Refitted { classifier: Classifier { head: new, ..expert.classifier.clone() }, expert, report })
}

impl Refitted {
    /// The head as it is.
    fn kept(expert: Expert) -> Refitted {
        let report = HeadReport {
            name: expert.name.clone(),
            classes: expert.classifier.head.classes(),
            proxies: None,
            before: None,
            after: None,
            refitted: false,
        };
        Refitted { classifier: expert.classifier.clone(), expert, report }
    }
}

/// Features as the head multiplies them: of unit length for class embeddings, followed by the constant 1 for a bias.
fn as_seen(classifier: &Classifier, features: &[f32]) -> Vec<f64> {
    let values = before_head(classifier, features);
    let width = classifier.head.width().max(1);
    match &classifier.head {
        Head::Cosine { .. } | Head::Dot { .. } => values.chunks(width).flat_map(unit).collect(),
        Head::Linear { .. } if classifier.head.has_bias() => {
            values.chunks(width).flat_map(|row| row.iter().copied().chain([1.0])).collect()
        }
        Head::Linear { .. } => values,
    }
}

/// The row at unit length; zeros stay zeros.
fn unit(row: &[f64]) -> Vec<f64> {
    let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
    let scale = if norm > 0.0 { norm.recip() } else { 0.0 };
    row.iter().map(|v| scale * v).collect()
}

/// What multiplies such features, `classes x width`, and the width.
fn rows(head: &Head) -> (Vec<f64>, usize) {
    let wide = |row: &[f32]| row.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    match head {
        Head::Cosine { classes, d, .. } => {
            (classes.chunks(*d).flat_map(|row| unit(&wide(row))).collect(), *d)
        }
        Head::Dot { classes, d, .. } => (wide(classes), *d),
        Head::Linear { weight, d, bias } if head.has_bias() => {
            let row = |(row, &b): (&[f32], &f32)| wide(row).into_iter().chain([f64::from(b)]);
            (weight.chunks(*d).zip(bias).flat_map(row).collect(), d + 1)
        }
        Head::Linear { weight, d, .. } => (wide(weight), *d),
    }
}

/// The head with other rows.
fn with_rows(head: &Head, rows: &[f64]) -> Head {
    let narrow = |row: &[f64]| row.iter().map(|&v| v as f32).collect::<Vec<_>>();
    match head {
        Head::Cosine { d, scale, .. } | Head::Dot { d, scale, .. } => {
            Head::Dot { classes: narrow(rows), d: *d, scale: *scale }
        }
        Head::Linear { d, .. } if head.has_bias() => Head::Linear {
            weight: rows.chunks(d + 1).flat_map(|row| narrow(&row[..*d])).collect(),
            bias: rows.chunks(d + 1).map(|row| row[*d] as f32).collect(),
            d: *d,
        },
        Head::Linear { d, bias, .. } => Head::Linear { weight: narrow(rows), d: *d, bias: bias.clone() },
    }
}
