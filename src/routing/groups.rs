//! Tokens by the expert of their sample.

/// The tokens of some samples, grouped by expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// The experts that were chosen, ascending, each with its tokens in order.
    pub members: Vec<(usize, Vec<u32>)>,
    /// Where each token stands when the groups follow one another.
    pub places: Vec<u32>,
}

impl Groups {
    /// `routes` gives each sample's expert, `lengths` its number of tokens.
    pub fn new(routes: &[usize], lengths: &[usize]) -> Groups {
        let mut chosen = routes.to_vec();
        chosen.sort_unstable();
        chosen.dedup();
        let mut members: Vec<(usize, Vec<u32>)> = chosen.into_iter().map(|t| (t, Vec::new())).collect();
        let mut token = 0;
        for (&route, &length) in routes.iter().zip(lengths) {
            if let Some((_, tokens)) = members.iter_mut().find(|(t, _)| *t == route) {
                tokens.extend((token..token + length).map(|i| i as u32));
            }
            token += length;
        }
        let mut places = vec![0; token];
        for (place, &token) in members.iter().flat_map(|(_, tokens)| tokens).enumerate() {
            places[token as usize] = place as u32;
        }
        Groups { members, places }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_grouped_and_find_back() {
        let groups = Groups::new(&[2, 0, 2], &[2, 1, 1]);
        assert_eq!(groups.members, [(0, vec![2]), (2, vec![0, 1, 3])]);
        let packed: Vec<u32> = groups.members.iter().flat_map(|(_, tokens)| tokens.clone()).collect();
        let back: Vec<u32> = groups.places.iter().map(|&place| packed[place as usize]).collect();
        assert_eq!(back, [0, 1, 2, 3]);
    }
}
