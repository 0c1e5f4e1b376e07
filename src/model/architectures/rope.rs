//! Rotary positions: frequencies from the configuration, and tables of cosines and sines.

use super::super::{Config, Error, Result};
use std::f64::consts::PI;

/// How pairs of columns of a head turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The angle a pair turns by from one token to the next, for each pair that turns.
    pub frequencies: Vec<f64>,
    /// Factor of cosines and sines.
    factor: f64,
}

/// Models of which a part of every head may turn.
const IN_PART: [&str; 2] = ["gpt_neox", "phi3"];

impl Rope {
    /// Of a model whose blocks all have the same.
    pub fn of(config: Config<'_>, head_dim: usize) -> Result<Rope> {
        // newer configurations keep theta and scaling together
        let scaling = config.object("rope_scaling").or(config.object("rope_parameters"));
        let theta = config.number_or("rope_theta", config.number_or("rotary_emb_base", 10_000.0)?)?;
        Rope::scaled(config, scaling, head_dim, theta)
    }

    /// Of one kind of blocks (`full_attention` or `sliding_attention`), where each has its own: under that name in
    /// `rope_parameters`, or a frequency base under a key of its own.
    pub fn of_kind(config: Config<'_>, kind: &str, head_dim: usize, theta: f64) -> Result<Rope> {
        let scaling = match config.object("rope_parameters") {
            Some(parameters) => parameters.object(kind),
            None => config.object("rope_scaling").filter(|_| kind == "full_attention"),
        };
        Rope::scaled(config, scaling, head_dim, theta)
    }

    fn scaled(config: Config<'_>, scaling: Option<Config<'_>>, head_dim: usize, theta: f64) -> Result<Rope> {
        let inner = |key: &str, default: f64| scaling.map_or(Ok(default), |s| s.number_or(key, default));
        let theta = inner("rope_theta", theta)?;
        if theta <= 1.0 {
            return Err(Error::Config(format!("`rope_theta` should be above 1 but is {theta}")));
        }
        let kind = scaling.and_then(|s| s.text("rope_type").or(s.text("type"))).unwrap_or("default");
        // without scaling, transformers' other decoders turn whole heads whatever their configuration says
        let in_part =
            kind != "default" || config.text("model_type").is_some_and(|own| IN_PART.contains(&own));
        let outer = config.number_or("partial_rotary_factor", config.number_or("rotary_pct", 1.0)?)?;
        let part = if in_part { inner("partial_rotary_factor", outer)? } else { 1.0 };
        let turning = (head_dim as f64 * part) as usize;
        if !(part > 0.0 && part <= 1.0) || turning == 0 || !turning.is_multiple_of(2) {
            return Err(Error::Config(format!(
                "of {head_dim} columns of a head a part of {part} (`partial_rotary_factor`) cannot turn in pairs"
            )));
        }
        let plain: Vec<f64> =
            (0..turning / 2).map(|j| theta.powf(-2.0 * j as f64 / turning as f64)).collect();
        let Some(scaling) = scaling else { return Ok(Rope { frequencies: plain, factor: 1.0 }) };
        let same = |frequencies| Ok(Rope { frequencies, factor: 1.0 });
        match kind {
            // dynamic scaling begins where texts are longer than the model's position table
            "default" | "dynamic" => same(plain),
            "linear" => {
                let factor = positive(scaling, "factor", 1.0)?;
                same(plain.iter().map(|f| f / factor).collect())
            }
            "llama3" => same(llama3(scaling, &plain)?),
            "longrope" | "su" => longrope(config, scaling, &plain),
            "yarn" => yarn(config, scaling, &plain, theta),
            other => {
                Err(Error::Unsupported { found: format!("rotary scaling of type `{other}` is not known") })
            }
        }
    }

    /// Cosines and sines, one row of `frequencies.len()` for every token of samples that each count from 0.
    pub fn tables(&self, lengths: &[usize]) -> [Vec<f32>; 2] {
        let angles = || {
            let positions = lengths.iter().flat_map(|&n| 0..n);
            positions.flat_map(|p| self.frequencies.iter().map(move |f| p as f64 * f))
        };
        let scaled = |x: f64| (x * self.factor) as f32;
        [angles().map(|a| scaled(a.cos())).collect(), angles().map(|a| scaled(a.sin())).collect()]
    }
}

fn positive(scaling: Config<'_>, key: &str, default: f64) -> Result<f64> {
    let found = scaling.number_or(key, default)?;
    if found > 0.0 {
        return Ok(found);
    }
    Err(Error::Config(format!("`rope_scaling.{key}` should be positive but is {found}")))
}

/// Llama 3.1's scaling: slow frequencies are divided by `factor`, fast ones kept, those between interpolated.
fn llama3(scaling: Config<'_>, plain: &[f64]) -> Result<Vec<f64>> {
    let factor = positive(scaling, "factor", 8.0)?;
    let low = scaling.number_or("low_freq_factor", 1.0)?;
    let high = scaling.number_or("high_freq_factor", 4.0)?;
    let context = scaling.number_or("original_max_position_embeddings", 8192.0)?;
    if high <= low {
        return Err(Error::Config("`rope_scaling` should have high_freq_factor > low_freq_factor".into()));
    }
    let scaled = |&frequency: &f64| {
        let turns = context * frequency / (2.0 * PI); // over the original context
        let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        frequency * (keep + (1.0 - keep) / factor)
    };
    Ok(plain.iter().map(scaled).collect())
}

/// The context a model was first trained for, and by how much it was stretched.
fn stretch(config: Config<'_>, scaling: Config<'_>) -> Result<(f64, f64)> {
    const KEY: &str = "original_max_position_embeddings";
    let given = scaling.number_or(KEY, config.number_or(KEY, 0.0)?)?;
    let longest = config.number_or("max_position_embeddings", given)?;
    let context = if given > 1.0 { given } else { longest };
    if context <= 1.0 {
        return Err(Error::Config(format!("`rope_scaling.{KEY}` should be above 1 but is {context}")));
    }
    Ok((context, positive(scaling, "factor", longest / context)?))
}

/// LongRoPE (Phi-3): every frequency is divided by a factor of its own, those for texts within the first context. Longer ones
/// would need the others.
fn longrope(config: Config<'_>, scaling: Config<'_>, plain: &[f64]) -> Result<Rope> {
    let (context, stretch) = stretch(config, scaling)?;
    let found = scaling.get("short_factor").and_then(|f| f.as_array()).cloned().unwrap_or_default();
    let factors: Vec<f64> = found.iter().filter_map(|f| f.as_f64()).filter(|f| *f > 0.0).collect();
    if factors.len() != plain.len() {
        return Err(Error::Config(format!(
            "`rope_scaling.short_factor` should be {} positive numbers but has {}",
            plain.len(),
            factors.len()
        )));
    }
    let usual = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / context.ln()).sqrt() };
    let frequencies = plain.iter().zip(&factors).map(|(f, by)| f / by).collect();
    Ok(Rope { frequencies, factor: scaling.number_or("attention_factor", usual)? })
}

/// YaRN (arXiv 2309.00071): frequencies that turn less than `beta_slow` times over the first context are divided by the
/// factor, those that turn more than `beta_fast` times kept, with a ramp between.
fn yarn(config: Config<'_>, scaling: Config<'_>, plain: &[f64], theta: f64) -> Result<Rope> {
    let (context, factor) = stretch(config, scaling)?;
    let dim = 2.0 * plain.len() as f64;
    let place = |turns: f64| dim * (context / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let mut low = place(scaling.number_or("beta_fast", 32.0)?);
    let mut high = place(scaling.number_or("beta_slow", 1.0)?);
    if scaling.get("truncate").and_then(|t| t.as_bool()).unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let scaled = |(j, f): (usize, &f64)| {
        let slow = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
        f * (1.0 - slow) + f / factor * slow
    };
    let grown = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
    let (mscale, all) = (scaling.number_or("mscale", 0.0)?, scaling.number_or("mscale_all_dim", 0.0)?);
    let usual = if mscale != 0.0 && all != 0.0 { grown(mscale) / grown(all) } else { grown(1.0) };
    let factor = scaling.number_or("attention_factor", usual)?;
    Ok(Rope { frequencies: plain.iter().enumerate().map(scaled).collect(), factor })
}

/// The longest text that a model's frequencies are right for: with LongRoPE those of the first context.
pub fn longest(config: Config<'_>) -> Result<Option<usize>> {
    let longest = config.optional_size("max_position_embeddings")?;
    let scaling = config.object("rope_scaling").or(config.object("rope_parameters"));
    let kind = scaling.and_then(|s| s.text("rope_type").or(s.text("type")));
    let first = match (kind, scaling) {
        (Some("longrope" | "su"), Some(s)) => {
            let key = "original_max_position_embeddings";
            s.optional_size(key)?.or(config.optional_size(key)?)
        }
        _ => None,
    };
    Ok(first.or(longest))
}

/// For each block whether it sees all tokens: by `layer_types`, else by a rule.
pub fn full_attention(config: Config<'_>, blocks: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(types) = config.get("layer_types").and_then(|t| t.as_array()) else {
        return Ok((0..blocks).map(rule).collect());
    };
    if types.len() != blocks {
        return Err(Error::Config(format!("`layer_types` has {} entries for {blocks} blocks", types.len())));
    }
    let full = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(true),
        Some("sliding_attention") => Ok(false),
        _ => Err(Error::Unsupported {
            found: format!("a block of the type {kind} (`layer_types`) cannot be run"),
        }),
    };
    types.iter().map(full).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(text: &str, head_dim: usize) -> Result<Rope> {
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        Rope::of(Config::new(&json), head_dim)
    }

    #[test]
    fn llama3_keeps_fast_frequencies_and_divides_slow_ones() {
        let text = r#"{"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#;
        let scaled = rope(text, 64).unwrap().frequencies;
        assert_eq!(scaled[0], 1.0);
        let slowest = 500_000f64.powf(-62.0 / 64.0);
        assert!((scaled[31] - slowest / 32.0).abs() < 1e-15);
        assert!(scaled.windows(2).all(|w| w[1] < w[0]));
    }

    #[test]
    fn a_part_of_a_head_turns() {
        let text = r#"{"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 100.0}"#;
        let scaled = rope(text, 64).unwrap();
        assert_eq!(scaled.frequencies.len(), 8);
        assert!((scaled.frequencies[4] - 0.1).abs() < 1e-15);
        assert!(rope(r#"{"model_type": "phi3", "partial_rotary_factor": 0.01}"#, 64).is_err());
        let whole = rope(r#"{"model_type": "llama", "partial_rotary_factor": 0.5}"#, 64).unwrap();
        assert_eq!(whole.frequencies.len(), 32);
    }
}
