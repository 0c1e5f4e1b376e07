//! How work is shared out among runs: by its cost, the same on every machine.

use crate::plan::{Layer, Plan};
use std::ops::Range;

/// What units of work cost, in multiplications or so.
pub(super) fn costs(plan: &Plan, units: &[Vec<usize>]) -> Vec<f64> {
    let cost = |layer: &Layer| layer.cost.flops + layer.elements() as f64;
    units.iter().map(|unit| unit.iter().map(|&i| cost(&plan.layers[i])).sum()).collect()
}

/// The part `index`, from 1 on, of `count` of a list of costs: those whose middle lies in that part of the sum.
pub(super) fn of(costs: &[f64], index: usize, count: usize) -> Range<usize> {
    let total: f64 = costs.iter().sum();
    let mut before = 0.0;
    let shares = costs.iter().map(|&cost| {
        let middle = before + cost / 2.0;
        before += cost;
        ((middle / total * count as f64) as usize).min(count.saturating_sub(1))
    });
    let own = index.saturating_sub(1);
    let mut range = 0..0;
    for share in shares {
        range.start += usize::from(share < own);
        range.end += usize::from(share <= own);
    }
    range
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_once_and_are_alike() {
        for costs in [vec![1.0; 10], vec![5.0, 1.0, 1.0, 1.0, 1.0, 1.0], vec![2.0], vec![], vec![0.0; 3]] {
            for count in 1..12 {
                let ranges: Vec<_> = (1..=count).map(|index| of(&costs, index, count)).collect();
                assert_eq!(ranges[0].start, 0, "{costs:?} in {count}");
                assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
                assert_eq!(ranges[count - 1].end, costs.len());
                let (total, largest) = (costs.iter().sum::<f64>(), costs.iter().cloned().fold(0.0, f64::max));
                let most =
                    ranges.iter().map(|range| costs[range.clone()].iter().sum::<f64>()).fold(0.0, f64::max);
                assert!(most <= total / count as f64 + largest, "{costs:?} in {count}: {most}");
            }
        }
    }
}
