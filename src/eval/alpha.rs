//! The search for alpha: golden section on a function that has one peak.

/// One value that was tried.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Probe {
    /// The alpha.
    pub alpha: f64,
    /// What was measured there.
    pub value: f64,
}

/// Probes of a search, about: alpha 0, the coarse series, and what golden section takes between two of its neighbours.
pub const PROBES: usize = 1 + COARSE.len() + 7;

/// The nearest number of four significant digits: no search tells alphas apart that differ by less, and a recipe is to hold it.
fn four_digits(alpha: f64) -> f64 {
    // through text, so that 1.414 is the number that is written so
    format!("{alpha:.3e}").parse().unwrap_or(alpha)
}

/// Maximises `f` on `[low, high]` until the bracket is at most `width` wide; gives the best probe and all of them in
/// order. Equal values (accuracies often are) pull towards the smaller alpha.
pub async fn golden_section<E>(
    (mut low, mut high): (f64, f64),
    width: f64,
    mut f: impl AsyncFnMut(f64) -> Result<f64, E>,
) -> Result<(Probe, Vec<Probe>), E> {
    let inverse_phi = (5f64.sqrt() - 1.0) / 2.0;
    let mut probes = Vec::new();
    let mut probe = async |alpha: f64, probes: &mut Vec<Probe>| {
        let alpha = four_digits(alpha);
        let probe = Probe { alpha, value: f(alpha).await? };
        probes.push(probe);
        Ok(probe)
    };
    let mut left = probe(high - inverse_phi * (high - low), &mut probes).await?;
    let mut right = probe(low + inverse_phi * (high - low), &mut probes).await?;
    while high - low > width {
        if left.value >= right.value {
            high = right.alpha;
            right = left;
            left = probe(high - inverse_phi * (high - low), &mut probes).await?;
        } else {
            low = left.alpha;
            left = right;
            right = probe(low + inverse_phi * (high - low), &mut probes).await?;
        }
    }
    let best = probes.iter().copied().reduce(|a, b| if b.value > a.value { b } else { a });
    Ok((best.unwrap_or(left), probes))
}

/// Alphas tried first, each about [`STEP`] times the one before: a measure may be flat far from its peak, where golden section
/// would be led astray.
const COARSE: [f64; 9] = [0.2, 0.3, 0.45, 0.65, 0.95, 1.4, 2.0, 2.8, 4.0];

/// From one alpha of the series to the next.
const STEP: f64 = 1.45;

/// How wide the bracket may be in the end, relative to the alpha.
const WIDTH: f64 = 0.08;

/// How far the series goes on while its end is its best.
const LOWEST: f64 = 0.01;
const HIGHEST: f64 = 20.0;

/// The alpha at which a measure is largest: a coarse series, longer where its best is at an end, or is worse than alpha 0 so that
/// all of the series lies beyond the peak; then golden section between the neighbours of its best. Gives the best probe and all
/// of them in order.
pub async fn peak<E>(mut f: impl AsyncFnMut(f64) -> Result<f64, E>) -> Result<(Probe, Vec<Probe>), E> {
    let base = Probe { alpha: 0.0, value: f(0.0).await? };
    let mut coarse = Vec::new();
    for alpha in COARSE {
        coarse.push(Probe { alpha, value: f(alpha).await? });
    }
    let mut tried = [&[base], &coarse[..]].concat();
    let best = loop {
        let best = first_best(&coarse);
        let (place, alpha) = match best {
            best if best == 0 || coarse[best].value < base.value => (0, coarse[0].alpha / STEP),
            last if last + 1 == coarse.len() => (last + 1, coarse[last].alpha * STEP),
            _ => break best,
        };
        if !(LOWEST..=HIGHEST).contains(&alpha) {
            break best;
        }
        let alpha = four_digits(alpha);
        let probe = Probe { alpha, value: f(alpha).await? };
        tried.push(probe);
        coarse.insert(place, probe);
    };
    let low = best.checked_sub(1).map_or(0.0, |i| coarse[i].alpha);
    let high = coarse[(best + 1).min(coarse.len() - 1)].alpha;
    let (finer, probes) = golden_section((low, high), WIDTH * coarse[best].alpha, f).await?;
    tried.extend(probes);
    Ok((if finer.value > coarse[best].value { finer } else { coarse[best] }, tried))
}

/// The first of the largest.
fn first_best(probes: &[Probe]) -> usize {
    let mut best = 0;
    for (i, probe) in probes.iter().enumerate() {
        if probe.value > probes[best].value {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_found_between_flat_tails() {
        for at in [0.03, 0.5, 1.3, 3.4, 7.0] {
            let f = async |x: f64| {
                Ok::<f64, ()>(if x > 0.0 { (1.0 - (x / at).ln().powi(2)).max(0.3) } else { 0.3 })
            };
            let (best, probes) = pollster::block_on(peak(f)).unwrap();
            assert!((best.alpha / at - 1.0).abs() < 0.08, "{at}: {best:?}");
            assert!(probes.len() < 24);
        }
    }

    #[test]
    fn a_bump_below_the_value_at_zero_is_not_taken_for_the_peak() {
        // falls from 1 at 0.02 to 0.3, and has a bump of 0.35 at 0.9
        let f = async |x: f64| {
            let peak = 1.0 - (x / 0.02 - 1.0).abs() * if x < 0.02 { 0.4 } else { 0.1 };
            Ok::<f64, ()>(peak.max(0.3) + if (0.7..1.1).contains(&x) { 0.05 } else { 0.0 })
        };
        let (best, _) = pollster::block_on(peak(f)).unwrap();
        assert!((best.alpha / 0.02 - 1.0).abs() < 0.1, "{best:?}");
    }

    #[test]
    fn alphas_have_four_digits_and_their_number_is_about_what_is_expected() {
        for at in [0.37, 1.1, 2.3] {
            let f = async |x: f64| Ok::<f64, ()>(-(x / at).max(1e-3).ln().powi(2));
            let (best, probes) = pollster::block_on(peak(f)).unwrap();
            assert!(probes.iter().all(|probe| probe.alpha.to_string().trim_start_matches("0.").len() <= 6));
            assert!(best.alpha.to_string().len() <= 6, "{best:?}");
            assert!(probes.len().abs_diff(PROBES) <= 2, "{} probes", probes.len());
        }
    }

    #[test]
    fn the_peak_of_a_parabola_is_found() {
        let f = async |x: f64| Ok::<f64, ()>(-(x - 1.3).powi(2));
        let (best, probes) = pollster::block_on(golden_section((0.0, 3.0), 0.02, f)).unwrap();
        assert!((best.alpha - 1.3).abs() < 0.02, "{best:?}");
        assert!(probes.len() < 15);
    }
}
