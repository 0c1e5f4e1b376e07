//! `parameters`: what the method does.

use super::cursor::{Cursor, Mapping};
use super::{Alpha, Error, Esm, Experts, Method, Overrides, Rank, Search, Setting, Tabled, settings};
use crate::backend::Polarity;
use crate::method::esm_plus::ResidualBase;
use crate::method::table::{Default, Form, Parameter, Range, Strength};
use crate::method::{
    AlphaScope, Calibrate, Decomposition, Description, Fusion, Preset, Scale, TaskNorm, Value,
};

const DECOMPOSITIONS: [(&str, Decomposition); 2] = [("esd", Decomposition::Esd), ("svd", Decomposition::Svd)];

/// Directions of an expert where a recipe does not say.
const EXPERT_RANK: usize = 8;

/// What the papers found by search; the error about a missing alpha shows it.
const PAPERS_ALPHA: &str = "alpha is the strength of the merge and has no default. The papers found by search: \
    ViT-B/32 0.76, 0.57, 0.61 for 8, 14, 20 tasks; ViT-B/16 0.84, 0.70, 0.65; ViT-L/14 0.82, 0.68, 0.63; RoBERTa 2.8; \
    Llama-3.2-3B 2.0. Give parameters.alpha or --alpha";

/// The method with its parameters; `strength` is its alpha where that has a default and is not given, `missing` makes the error
/// about a key that is not there.
pub(super) fn method(
    description: &'static Description,
    has_base: bool,
    parameters: Option<&Mapping>,
    overrides: &Overrides,
    strength: f64,
    missing: impl Fn(&str, &str) -> Error,
) -> Result<Method, Error> {
    match description.name {
        "esm" => Ok(Method::Esm(Box::new(esm(parameters, "rank", overrides, missing)?))),
        "esm++" => {
            let mut esm = esm(parameters, "esm_rank", overrides, missing)?;
            esm.experts = Some(experts(parameters)?);
            Ok(Method::Esm(Box::new(esm)))
        }
        _ => tabled(description, has_base, parameters, overrides, strength).map(Method::Tabled),
    }
}

fn tabled(
    description: &'static Description,
    has_base: bool,
    parameters: Option<&Mapping>,
    overrides: &Overrides,
    strength: f64,
) -> Result<Tabled, Error> {
    let get = |key: &str| parameters.and_then(|p| p.get(key));
    let mut settings =
        parameters.map(|p| settings::read_all(p, description, false)).transpose()?.unwrap_or_default();
    let (own, lambda) = match description.strength {
        Strength::Required | Strength::Alpha => (get("alpha"), None),
        Strength::Lambda => (get("alpha"), get("lambda")),
        Strength::OnlyLambda => (None, get("lambda")),
    };
    if let (Some(_), Some(lambda)) = (&own, &lambda) {
        return Err(lambda.error("`alpha` and `lambda` are the same thing here; give one of them"));
    }
    let varies = |c: &Cursor| matches!(c.node.value, super::yaml::Value::List(_));
    if let Some(lambda) = lambda.as_ref().filter(|c| varies(c)) {
        settings.insert(LAMBDA.name, Setting::read(lambda, &LAMBDA)?);
    }
    let alpha = match (overrides.alpha, own.or(lambda.filter(|c| !varies(c)))) {
        (Some(number), _) => Alpha::Number(number),
        (None, Some(c)) => alpha(c)?,
        // a `lambda` that varies is among the settings
        (None, None) if settings.contains_key(LAMBDA.name) => Alpha::Number(1.0),
        (None, None) => Alpha::Number(strength),
    };
    let calibrate = get("calibrate").map(|c| calibrate(&c)).transpose()?;
    Ok(Tabled { description, alpha, settings, has_base, calibrate })
}

/// `svc`, `boost`, or `{boost: 0.05}`.
fn calibrate(c: &Cursor) -> Result<Calibrate, Error> {
    const SHARE: f64 = 0.01;
    if c.is_map() {
        let share = c.map(&["boost"])?.require("boost", "the share of singular values, from 0 to 1")?;
        return match share.number()? {
            beta if (0.0..=1.0).contains(&beta) => Ok(Calibrate::Boost(beta)),
            beta => Err(share.error(format!("a number from 0 to 1 is expected, but {beta} is given"))),
        };
    }
    c.choice(&[("svc", Calibrate::Svc), ("boost", Calibrate::Boost(SHARE))])
}

/// The strength where it differs between tensors.
const LAMBDA: Parameter = Parameter {
    name: "lambda",
    form: Form::Number(Range::ANY),
    default: Default::Is(Value::Number(1.0)),
    of_models: false,
    help: "strength of the merge",
};

fn experts(parameters: Option<&Mapping>) -> Result<Experts, Error> {
    let get = |key: &str| parameters.and_then(|p| p.get(key));
    Ok(Experts {
        rank: get("rank").map(expert_rank).transpose()?.unwrap_or(EXPERT_RANK),
        residual_base: get("residual_base")
            .map(|c| c.choice(&ResidualBase::NAMES))
            .transpose()?
            .unwrap_or_default(),
        decomposition: get("expert_decomposition")
            .map(|c| c.choice(&DECOMPOSITIONS))
            .transpose()?
            .unwrap_or_default(),
        routed_layers: get("routed_layers").map(layers).transpose()?,
    })
}

/// A number of directions; the papers use 8, 32 and 64.
fn expert_rank(c: Cursor) -> Result<usize, Error> {
    c.unsigned().ok().and_then(|r| usize::try_from(r).ok()).filter(|&r| r > 0).ok_or_else(|| {
        c.error(
            "a whole number from 1 is expected: the rank of each expert (the papers use 8, 32 and 64). The rank budget \
             of the static merge is `esm_rank`",
        )
    })
}

/// ESM's switches; `rank_key` names the one for its rank budget.
fn esm(
    parameters: Option<&Mapping>,
    rank_key: &str,
    overrides: &Overrides,
    missing: impl Fn(&str, &str) -> Error,
) -> Result<Esm, Error> {
    let get = |key: &str| parameters.and_then(|p| p.get(key));
    let preset = get("preset").map(|c| c.choice(&Preset::NAMES)).transpose()?.unwrap_or_default();
    let mut options = preset.options();
    set(&mut options.decomposition, get("decomposition"), |c| c.choice(&DECOMPOSITIONS))?;
    set(&mut options.fusion, get("fusion"), |c| {
        c.choice(&[("polar", Fusion::Polar), ("qr", Fusion::Qr), ("concat", Fusion::Concat)])
    })?;
    set(&mut options.inter_task_norm, get("inter_task_norm"), |c| {
        c.choice(&[
            ("full", TaskNorm::Full),
            ("truncated", TaskNorm::Truncated),
            ("code_padded", TaskNorm::CodePadded),
        ])
    })?;
    set(&mut options.eigen_weight_power, get("eigen_weight_power"), not_negative)?;
    set(&mut options.gain, get("gain"), |c| c.number())?;
    set(&mut options.mean_sigma, get("mean_sigma"), |c| c.boolean())?;
    set(&mut options.inter_task, get("inter_task"), scale)?;
    set(&mut options.inter_dimension, get("inter_dimension"), scale)?;
    set(&mut options.inter_layer, get("inter_layer"), scale)?;

    let mut alpha_scope = preset.alpha_scope();
    set(&mut alpha_scope, get("alpha_scope"), |c| {
        c.choice(&[("esm", AlphaScope::Esm), ("all", AlphaScope::All)])
    })?;
    let alpha = match (overrides.alpha, get("alpha")) {
        (Some(number), _) => Alpha::Number(number),
        (None, Some(c)) => alpha(c)?,
        (None, None) => return Err(missing("parameters.alpha", PAPERS_ALPHA)),
    };
    Ok(Esm {
        preset,
        options,
        alpha,
        alpha_scope,
        rank: get(rank_key).map(rank).transpose()?.unwrap_or(Rank::Auto),
        fuse_qkv: get("fuse_qkv").map(fuse_qkv).transpose()?.flatten(),
        layers: get("layers").map(layers).transpose()?,
        experts: None,
        calibrate: get("calibrate").map(|c| calibrate(&c)).transpose()?,
    })
}

fn set<T>(
    field: &mut T,
    value: Option<Cursor>,
    read: impl Fn(Cursor) -> Result<T, Error>,
) -> Result<(), Error> {
    if let Some(value) = value {
        *field = read(value)?;
    }
    Ok(())
}

fn not_negative(c: Cursor) -> Result<f64, Error> {
    match c.number()? {
        x if x >= 0.0 => Ok(x),
        x => Err(c.error(format!("0 (off) or more is expected, but {x} is given"))),
    }
}

/// `on`, `off`, or `{exponent: 2, form: full}`.
fn scale(c: Cursor) -> Result<Option<Scale>, Error> {
    if let Some(on) = c.switch() {
        return Ok(on.then(Scale::default));
    }
    if !c.is_map() {
        return Err(c.error("`on`, `off` or a mapping such as {exponent: 2, form: full} is expected"));
    }
    let map = c.map(&["exponent", "form"])?;
    let mut scale = Scale::default();
    set(&mut scale.exponent, map.get("exponent"), not_negative)?;
    set(&mut scale.polarity, map.get("form"), |c| {
        c.choice(&[
            ("full", Polarity::Full),
            ("amplify", Polarity::Amplify),
            ("suppress", Polarity::Suppress),
            ("reversed", Polarity::Reversed),
        ])
    })?;
    // (v / mean)^0 is 1 for every layer and task: the scaling is off.
    Ok((scale.exponent != 0.0).then_some(scale))
}

fn alpha(c: Cursor) -> Result<Alpha, Error> {
    if !c.is_map() {
        return c.number().map(Alpha::Number);
    }
    let map = c.map(&["search", "split"])?;
    let search = map.require("search", "what to search alpha by, accuracy or consistency")?;
    let by = search.choice(&[("accuracy", Search::Accuracy), ("consistency", Search::Consistency)])?;
    let split = match map.get("split") {
        None => None,
        Some(c) if by == Search::Consistency => {
            return Err(c.error("a search by consistency takes unlabelled proxies, not a split"));
        }
        Some(c) => Some(c.text()?.parse().map_err(|e: String| c.error(e))?),
    };
    Ok(Alpha::Search { by, split })
}

/// `auto`, a number of directions, or a fraction of d_out.
fn rank(c: Cursor) -> Result<Rank, Error> {
    let wrong =
        || c.error("`auto`, a whole number from 1, or a fraction of d_out between 0 and 1 is expected");
    if c.choice(&[("auto", ())]).is_ok() {
        return Ok(Rank::Auto);
    }
    if let Ok(directions) = c.unsigned() {
        let directions = usize::try_from(directions).ok().filter(|&r| r > 0);
        return directions.map(Rank::Directions).ok_or_else(wrong);
    }
    match c.number() {
        Ok(f) if f > 0.0 && f <= 1.0 => Ok(Rank::Fraction(f)),
        _ => Err(wrong()),
    }
}

fn fuse_qkv(c: Cursor) -> Result<Option<bool>, Error> {
    if c.choice(&[("auto", ())]).is_ok() {
        return Ok(None);
    }
    c.switch().map(Some).ok_or_else(|| c.error("auto, true or false is expected"))
}

fn layers(c: Cursor) -> Result<Vec<String>, Error> {
    if let Ok(pattern) = c.text() {
        return Ok(vec![pattern.to_owned()]);
    }
    let patterns = c.list()?.iter().map(|p| p.text().map(str::to_owned)).collect::<Result<Vec<_>, _>>()?;
    if patterns.is_empty() {
        return Err(c.error("at least one pattern is expected, such as \"encoder.layer.*.weight\""));
    }
    Ok(patterns)
}
