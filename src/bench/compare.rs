//! Whether anything became slower.

use super::{Error, Measurement, Report, Result};

/// One case in two reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// As it is now.
    pub now: Measurement,
    /// Seconds of a run before.
    pub before: f64,
    /// Time now over time before: above 1 is slower.
    pub ratio: f64,
}

/// The cases of both reports, by their fastest samples: noise only ever adds time.
///
/// # Errors
/// If the reports are of different devices or have no case in common.
pub fn compare(before: &Report, now: &Report) -> Result<Vec<Comparison>> {
    if before.device != now.device {
        let (old, new) = (&before.device, &now.device);
        let text = format!("times of {old} say nothing about {new}; measure on the same device");
        return Err(Error::Incomparable(text));
    }
    let pairs = now.results.iter().filter_map(|new| {
        let old = before.results.iter().find(|old| old.is_of(new))?.seconds.min;
        Some(Comparison { now: new.clone(), before: old, ratio: new.seconds.min / old })
    });
    let comparisons: Vec<Comparison> = pairs.collect();
    if comparisons.is_empty() {
        return Err(Error::Incomparable("the two reports have no case in common".into()));
    }
    Ok(comparisons)
}

#[cfg(test)]
mod tests {
    use super::super::{Peak, Times};
    use super::*;

    fn report(device: &str, cases: &[(&str, f64)]) -> Report {
        let result = |&(size, min): &(&str, f64)| Measurement {
            kernel: "gemm".into(),
            size: size.into(),
            dtype: "float32".into(),
            flops: 1.0,
            bytes: 1.0,
            seconds: Times { min, median: 2.0 * min, max: 3.0 * min, samples: 3, repetitions: 1 },
            error: None,
        };
        let peak = Peak { gflops: 1.0, gbytes: 1.0 };
        Report::new(device.into(), "host", peak, cases.iter().map(result).collect())
    }

    #[test]
    fn cases_are_matched_by_name_and_compared_by_their_fastest_sample() {
        let before = report("A", &[("4x4x4", 2.0), ("8x8x8", 1.0)]);
        let now = report("A", &[("8x8x8", 1.5), ("16x16x16", 9.0)]);
        let found = compare(&before, &now).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].now.size.as_str(), found[0].before, found[0].ratio), ("8x8x8", 1.0, 1.5));
    }

    #[test]
    fn other_devices_and_other_cases_say_nothing() {
        assert!(compare(&report("A", &[("4x4x4", 1.0)]), &report("B", &[("4x4x4", 1.0)])).is_err());
        assert!(compare(&report("A", &[("4x4x4", 1.0)]), &report("A", &[("8x8x8", 1.0)])).is_err());
    }
}
