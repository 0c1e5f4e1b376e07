//! Mixtures of experts: every token goes to the few experts that a router prefers for it.

use super::{Gated, Linear, Part, Result, Tap};
use crate::backend::layers::Layers;
use crate::backend::{Backend, Shape, Tensor};
use std::rc::Rc;

/// `sum of w_e down_e(activation(gate_e(x)) * up_e(x))` over the `chosen` experts `e` that the router gives most probability.
pub struct Mixture<B: Backend> {
    /// Rows are experts.
    pub router: Linear<B>,
    /// How many experts a token goes to.
    pub chosen: usize,
    /// Whether the weights of the experts of a token sum to 1, in place of being their probabilities among all.
    pub normalized: bool,
    /// The experts.
    pub experts: Vec<Gated<B>>,
}

/// Where tokens go.
struct Routes {
    /// The tokens of every expert, ascending.
    tokens: Vec<Vec<u32>>,
    /// Of every token and each of its experts, best first: the row of the experts' results one below another.
    rows: Vec<Vec<u32>>,
    /// With which weight.
    weights: Vec<Vec<f32>>,
}

impl<B: Layers> Mixture<B> {
    /// One layer for each input, in the order the tap sees them.
    pub(super) fn layers(&self) -> Vec<&Linear<B>> {
        let experts = self.experts.iter().flat_map(Gated::layers);
        std::iter::once(&self.router).chain(experts).collect()
    }

    pub(super) async fn apply(
        &self,
        backend: &B,
        x: &B::Tensor,
        part: &Part<B>,
        tap: &mut impl Tap<B>,
    ) -> Result<B::Tensor> {
        tap.input(&[&self.router.name], x, part).await?;
        let logits = backend.download(&self.router.apply(backend, x, tap)?).await?;
        let routes = self.routes(&logits);
        let mut results = Vec::new();
        for (expert, tokens) in self.experts.iter().zip(&routes.tokens).filter(|(_, t)| !t.is_empty()) {
            let own = backend.gather_rows(x, tokens)?;
            let part = seen_by(backend, part, tokens)?;
            results.push(expert.apply(backend, &own, &part, tap).await?);
        }
        let all = backend.stack_rows(&results.iter().collect::<Vec<_>>())?;
        drop(results);
        let tokens = x.shape().rows;
        let mut sum = backend.zeros(x.shape())?;
        for (rows, weights) in routes.rows.iter().zip(&routes.weights) {
            let mut results = backend.gather_rows(&all, rows)?;
            backend.scale_rows(&mut results, &backend.upload(Shape::matrix(tokens, 1), weights)?)?;
            backend.add(&results, &mut sum)?;
        }
        Ok(sum)
    }

    /// By the softmax of every row of logits. Of equal ones the first is preferred.
    fn routes(&self, logits: &[f32]) -> Routes {
        let count = self.experts.len();
        let chosen = self.chosen.min(count);
        let mut tokens = vec![Vec::new(); count];
        let mut choices = vec![Vec::new(); chosen];
        let mut weights = vec![Vec::new(); chosen];
        for (token, logits) in logits.chunks(count.max(1)).enumerate() {
            let mut order: Vec<usize> = (0..count).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            let most = logits[order[0]];
            let share = |expert: usize| f64::from(logits[expert] - most).exp();
            let total: f64 = match self.normalized {
                true => order[..chosen].iter().map(|&e| share(e)).sum(),
                false => order.iter().map(|&e| share(e)).sum(),
            };
            for (place, &expert) in order[..chosen].iter().enumerate() {
                choices[place].push((expert, tokens[expert].len()));
                weights[place].push((share(expert) / total) as f32);
                tokens[expert].push(token as u32);
            }
        }
        let mut first = vec![0; count];
        for expert in 1..count {
            first[expert] = first[expert - 1] + tokens[expert - 1].len();
        }
        let row = |(expert, place): (usize, usize)| (first[expert] + place) as u32;
        let rows = choices.into_iter().map(|choices| choices.into_iter().map(row).collect()).collect();
        Routes { tokens, rows, weights }
    }
}

/// A part of which some tokens are left, ascending.
fn seen_by<B: Layers>(backend: &B, part: &Part<B>, tokens: &[u32]) -> Result<Part<B>> {
    let mut end = 0;
    let mut before = 0;
    let each = part.lengths.iter().map(|length| {
        end += length;
        let so_far = tokens.partition_point(|&t| (t as usize) < end);
        so_far - std::mem::replace(&mut before, so_far)
    });
    let lengths: Vec<usize> = each.collect();
    Ok(Part {
        segments: Rc::new(backend.segments(&lengths)?),
        lengths,
        rotary: Vec::new(),
        positions: None,
        hidden: backend.zeros(Shape::matrix(0, 0))?,
    })
}
