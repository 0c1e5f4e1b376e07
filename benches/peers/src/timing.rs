//! Contenders in turn.

use crate::Result;
use crate::shape::Inputs;
use std::fmt;
use std::time::Instant;

/// A library that multiplies.
pub trait Contender {
    /// Name and version.
    fn name(&self) -> String;

    /// Uploads the factors and makes every choice; says which.
    fn prepare(&mut self, inputs: &Inputs) -> Result<()>;

    /// Queues so many products and waits for them.
    fn run(&mut self, repetitions: usize) -> Result<()>;

    /// The product, row-major.
    fn product(&mut self) -> Result<Vec<f32>>;
}

/// A sample lasts so many seconds at least.
const SAMPLE: f64 = 0.05;
const SAMPLES: (usize, usize) = (3, 200);

/// Errors beyond this are no roundings.
const WRONG: f64 = 1e-4;

/// What became of one contender.
pub struct Outcome {
    name: String,
    /// Seconds of a product in the fastest sample.
    seconds: f64,
    flops: f64,
    /// Time over that of the first contender: the median over all rounds.
    ratio: f64,
    error: f64,
}

pub fn measure(contenders: &mut [Box<dyn Contender>], inputs: &Inputs, seconds: f64) -> Result<Vec<Outcome>> {
    let mut repetitions = Vec::new();
    let mut errors = Vec::new();
    for contender in contenders.iter_mut() {
        contender.prepare(inputs)?;
        contender.run(2)?; // compiles and tunes
        errors.push(inputs.error(&contender.product()?));
        let once = time(contender.as_mut(), 1)?;
        repetitions.push((SAMPLE / once).ceil().clamp(1.0, 1000.0) as usize);
    }
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); contenders.len()];
    let started = Instant::now();
    let enough = seconds * contenders.len() as f64;
    for round in 0..SAMPLES.1 {
        if round >= SAMPLES.0 && started.elapsed().as_secs_f64() > enough {
            break;
        }
        for ((contender, &n), samples) in contenders.iter_mut().zip(&repetitions).zip(&mut samples) {
            samples.push(time(contender.as_mut(), n)? / n as f64);
        }
    }
    let outcome = |i: usize| {
        let ratios = samples[i].iter().zip(&samples[0]).map(|(this, first)| this / first);
        Outcome {
            name: contenders[i].name().split(' ').next().unwrap_or_default().to_owned(),
            seconds: samples[i].iter().copied().fold(f64::INFINITY, f64::min),
            flops: inputs.shape.flops(),
            ratio: median(ratios.collect()),
            error: errors[i],
        }
    };
    Ok((0..contenders.len()).map(outcome).collect())
}

pub fn time(contender: &mut dyn Contender, repetitions: usize) -> Result<f64> {
    let started = Instant::now();
    contender.run(repetitions)?;
    Ok(started.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { name, seconds, flops, ratio, error } = self;
        let (ms, gflops) = (1e3 * seconds, flops / seconds / 1e9);
        // Not-a-number is wrong too.
        let wrong = if *error <= WRONG { "" } else { "  wrong" };
        write!(f, "{name:<10} {ms:>9.2} {gflops:>9.2} {ratio:>7.2} {error:>9.1e}{wrong}")
    }
}
