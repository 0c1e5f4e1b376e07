//! From single runs to times that can be told from noise.

use super::{Case, Result, Subject};
use crate::host::Instant;
use serde::{Deserialize, Serialize};

/// Samples of a case: at least, and at most.
const SAMPLES: (usize, usize) = (3, 200);

/// Runs in one sample, at most.
const REPETITIONS: f64 = 1000.0;

/// Seconds of one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Of the fastest sample: what noise disturbed least.
    pub min: f64,
    /// Half the samples were faster.
    pub median: f64,
    /// Of the slowest.
    pub max: f64,
    /// How many samples.
    pub samples: usize,
    /// Runs in each of them.
    pub repetitions: usize,
}

/// Times the case that a subject has ready, for so many seconds.
pub(super) async fn sample(subject: &mut impl Subject, case: &Case, seconds: f64) -> Result<Times> {
    subject.time(1).await?; // compiles, and faults memory in
    let once = subject.time(1).await?;
    let repetitions = (subject.resolution(case) / once.max(1e-9)).ceil().clamp(1.0, REPETITIONS) as usize;
    let started = Instant::now();
    let mut samples = Vec::new();
    while samples.len() < SAMPLES.0
        || (samples.len() < SAMPLES.1 && started.elapsed().as_secs_f64() < seconds)
    {
        samples.push(subject.time(repetitions).await? / repetitions as f64);
    }
    Ok(Times::of(samples, repetitions))
}

impl Times {
    fn of(mut samples: Vec<f64>, repetitions: usize) -> Times {
        samples.sort_by(f64::total_cmp);
        let at = |i: usize| samples.get(i).copied().unwrap_or(f64::NAN);
        let last = samples.len().saturating_sub(1);
        Times { min: at(0), median: at(last / 2), max: at(last), samples: samples.len(), repetitions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_ends_and_the_middle() {
        let times = Times::of(vec![3.0, 1.0, 9.0, 2.0, 4.0], 7);
        assert_eq!(times, Times { min: 1.0, median: 3.0, max: 9.0, samples: 5, repetitions: 7 });
    }
}
