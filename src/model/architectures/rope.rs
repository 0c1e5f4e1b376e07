//! Rotary positions: frequencies from the configuration, and tables of cosines and sines.

use super::super::{Config, Error, Result};
use std::f64::consts::PI;

/// The angle a pair of columns turns by from one token to the next, for each pair of a head.
pub fn frequencies(config: Config<'_>, head_dim: usize) -> Result<Vec<f64>> {
    // newer configurations keep theta and scaling together
    let scaling = config.object("rope_scaling").or(config.object("rope_parameters"));
    let theta = match scaling.filter(|s| s.get("rope_theta").is_some()) {
        Some(scaling) => scaling.number_or("rope_theta", 10_000.0)?,
        None => config.number_or("rope_theta", 10_000.0)?,
    };
    if theta <= 0.0 {
        return Err(Error::Config(format!("`rope_theta` should be positive but is {theta}")));
    }
    let plain: Vec<f64> = (0..head_dim / 2).map(|j| theta.powf(-2.0 * j as f64 / head_dim as f64)).collect();
    let Some(scaling) = scaling else { return Ok(plain) };
    match scaling.text("rope_type").or(scaling.text("type")).unwrap_or("default") {
        "default" => Ok(plain),
        "linear" => {
            let factor = scaling.number_or("factor", 1.0)?;
            if factor <= 0.0 {
                return Err(Error::Config(format!(
                    "`rope_scaling.factor` should be positive but is {factor}"
                )));
            }
            Ok(plain.iter().map(|f| f / factor).collect())
        }
        "llama3" => llama3(scaling, &plain),
        other => Err(Error::Unsupported { found: format!("rotary scaling of type `{other}` is not known") }),
    }
}

/// Llama 3.1's scaling: slow frequencies are divided by `factor`, fast ones kept, those between interpolated.
fn llama3(scaling: Config<'_>, plain: &[f64]) -> Result<Vec<f64>> {
    let factor = scaling.number_or("factor", 8.0)?;
    let low = scaling.number_or("low_freq_factor", 1.0)?;
    let high = scaling.number_or("high_freq_factor", 4.0)?;
    let context = scaling.number_or("original_max_position_embeddings", 8192.0)?;
    if high <= low || factor <= 0.0 {
        return Err(Error::Config("`rope_scaling` should have high_freq_factor > low_freq_factor".into()));
    }
    let scaled = |&frequency: &f64| {
        let turns = context * frequency / (2.0 * PI); // over the original context
        let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        frequency * (keep + (1.0 - keep) / factor)
    };
    Ok(plain.iter().map(scaled).collect())
}

/// Cosines and sines, one row of `frequencies.len()` for every token of samples that each count from 0.
pub fn tables(frequencies: &[f64], lengths: &[usize]) -> [Vec<f32>; 2] {
    let angles = || {
        let positions = lengths.iter().flat_map(|&n| 0..n);
        positions.flat_map(|p| frequencies.iter().map(move |f| p as f64 * f))
    };
    [angles().map(|a| a.cos() as f32).collect(), angles().map(|a| a.sin() as f32).collect()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_fast_frequencies_and_divides_slow_ones() {
        let text = r#"{"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#;
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        let scaled = frequencies(Config::new(&json), 64).unwrap();
        assert_eq!(scaled[0], 1.0);
        let slowest = 500_000f64.powf(-62.0 / 64.0);
        assert!((scaled[31] - slowest / 32.0).abs() < 1e-15);
        assert!(scaled.windows(2).all(|w| w[1] < w[0]));
    }
}
