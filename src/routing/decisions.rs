//! What a router decided.

use crate::method::esm_plus::route;
use indexmap::IndexMap;

/// The scores of samples, layer by layer, in the order in which the samples came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decisions {
    tasks: Vec<String>,
    /// The weight that a layer's prototypes are stored under -> cosines, `samples x tasks`.
    scores: IndexMap<String, Vec<f32>>,
}

/// The expert that most layers of a sample chose.
#[derive(Clone, Debug, PartialEq)]
pub struct Vote {
    /// The winner: of equals the one with the larger sum of cosines, then the first.
    pub expert: usize,
    /// Layers, by expert.
    pub layers: Vec<usize>,
}

impl Decisions {
    pub(super) fn new(tasks: &[String]) -> Decisions {
        Decisions { tasks: tasks.to_vec(), scores: IndexMap::new() }
    }

    pub(super) fn add(&mut self, layer: &str, scores: Vec<f32>) {
        match self.scores.get_mut(layer) {
            Some(all) => all.extend(scores),
            None => drop(self.scores.insert(layer.to_owned(), scores)),
        }
    }

    /// The experts.
    pub fn tasks(&self) -> &[String] {
        &self.tasks
    }

    /// The routed layers, by the weight that their prototypes are stored under.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &str> {
        self.scores.keys().map(String::as_str)
    }

    /// How many samples.
    pub fn samples(&self) -> usize {
        self.scores.values().next().map_or(0, |scores| scores.len() / self.tasks.len().max(1))
    }

    /// Cosines of a layer, `samples x tasks`; nothing if the layer is not routed.
    pub fn scores(&self, layer: &str) -> &[f32] {
        self.scores.get(layer).map_or(&[], Vec::as_slice)
    }

    /// The expert of every sample in a layer; nothing if the layer is not routed.
    pub fn routes(&self, layer: &str) -> Vec<usize> {
        route(self.scores(layer), self.tasks.len())
    }

    /// The vote over all layers, sample by sample.
    pub fn votes(&self) -> Vec<Vote> {
        let tasks = self.tasks.len();
        let mut votes = vec![Vote { expert: 0, layers: vec![0; tasks] }; self.samples()];
        let mut sums = vec![vec![0f64; tasks]; self.samples()];
        for (layer, scores) in &self.scores {
            for (vote, expert) in votes.iter_mut().zip(self.routes(layer)) {
                vote.layers[expert] += 1;
            }
            for (sums, scores) in sums.iter_mut().zip(scores.chunks(tasks.max(1))) {
                sums.iter_mut().zip(scores).for_each(|(sum, &score)| *sum += f64::from(score));
            }
        }
        for (vote, sums) in votes.iter_mut().zip(&sums) {
            let better = |t: usize, best: usize| (vote.layers[t], sums[t]) > (vote.layers[best], sums[best]);
            vote.expert = (1..tasks).fold(0, |best, t| if better(t, best) { t } else { best });
        }
        votes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tie_of_votes_goes_to_the_larger_cosines() {
        let mut decisions = Decisions::new(&["a".into(), "b".into()]);
        decisions.add("first", vec![0.9, 0.8, 0.1, 0.2]);
        decisions.add("second", vec![0.1, 0.8, 0.1, 0.2]);
        assert_eq!((decisions.samples(), decisions.routes("first")), (2, vec![0, 1]));
        let votes = decisions.votes();
        assert_eq!(votes[0], Vote { expert: 1, layers: vec![1, 1] });
        assert_eq!(votes[1], Vote { expert: 1, layers: vec![0, 2] });
        assert!(decisions.routes("third").is_empty());
    }
}
