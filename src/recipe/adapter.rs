//! `out: lora`: adapters merged into one.

use super::cursor::Mapping;
use super::{AdapterOut, Alpha, Calibration, Compress, Error, Method, Model, Setting, Source};
use crate::method::{Fusion, TaskNorm, Value, table};

/// The methods that merge adapters that were compressed, beside ESM: sums, what decomposes differences task by task, what drops
/// entries of the cores before it sums them, and what elects the signs of those it keeps.
const OF_COMPRESSED: [&str; 6] =
    ["linear", "task_arithmetic", "tsv_m", "dare_linear", "della_linear", "breadcrumbs"];
const ELECTS_IN_CORES: [&str; 4] = ["ties", "dare_ties", "della", "breadcrumbs_ties"];

/// What Compress-then-Merge (arXiv 2606.03723) multiplies cores by whose signs were elected, unless a recipe says otherwise.
const STRENGTH_IN_CORES: f64 = 0.75;

/// The methods that make weights of weights, in which the base has another share than 1: no difference of few directions.
const OF_WEIGHTS: [&str; 3] = ["karcher", "passthrough", "slerp"];

/// The strength of a merge whose recipe gives none.
pub(super) fn strength(top: &Mapping, method: &str) -> Result<f64, Error> {
    let compress = top.get("compress").map(|c| c.choice(&Compress::NAMES)).transpose()?;
    let elects_in_cores = compress == Some(Compress::Ctm) && ELECTS_IN_CORES.contains(&method);
    Ok(if elects_in_cores { STRENGTH_IN_CORES } else { 1.0 })
}

/// Reads `out`, `rank` and `compress`; none where the output is a model.
pub(super) fn out(top: &Mapping, method: &Method, models: &[Model]) -> Result<Option<AdapterOut>, Error> {
    let is_adapter = top.get("out").map(|c| c.choice(&[("lora", true), ("model", false)])).transpose()?;
    if is_adapter != Some(true) {
        return match ["rank", "compress"].into_iter().find_map(|key| top.get(key)) {
            Some(c) => Err(c.error(
                "this is said of an adapter: write `out: lora` too (ESM's rank is `parameters.rank`)",
            )),
            None => Ok(None),
        };
    }
    let out = top.require("out", "what to write")?;
    let rank = top.require("rank", "the rank of the adapter, such as 16")?;
    let directions = rank.unsigned()?;
    let Some(directions) = usize::try_from(directions).ok().filter(|&r| r > 0) else {
        return Err(rank.error("a whole number from 1 is expected: the rank of the adapter"));
    };
    if let Some(model) = models.iter().find(|m| !matches!(m.source, Source::Adapter { model: None, .. })) {
        return Err(out.error(format!(
            "`out: lora` merges adapters of the base_model, and `{}` is none; make one of it with `esmerge extract`",
            model.name
        )));
    }
    let refuse = |what: &str| Err(out.error(format!("`out: lora` does not go with {what}")));
    if method.description().calibration == table::Calibration::OfMerged {
        return refuse(&format!(
            "merge_method {}, which runs the experts behind the model merged so far",
            method.name()
        ));
    }
    if let Some(model) = models.iter().find(|m| matches!(m.calibration, Calibration::Data(_))) {
        return Err(out.error(format!(
            "`out: lora` takes calibration from files; write one for `{}` with `esmerge capture MODEL+{} --data ... -o FILE`",
            model.name,
            model.source.path().display()
        )));
    }
    let compress = top.get("compress").map(|c| c.choice(&Compress::NAMES)).transpose()?.unwrap_or_default();
    let compressed = compress == Compress::Ctm;
    match method {
        _ if method.experts().is_some() => return refuse("esm++, which writes adapters beside a model"),
        _ if compressed && method.calibrate().is_some() => {
            return refuse("`calibrate` after `compress: ctm`; use `compress: truncate`");
        }
        _ if matches!(method.alpha(), Alpha::Search { .. }) => {
            return refuse("a search of alpha; give a number");
        }
        Method::Esm(esm) if esm.options.fusion == Fusion::Qr => {
            return refuse("`fusion: qr`, which changes outputs that no adapter changes");
        }
        Method::Esm(esm) if esm.options.inter_task_norm == TaskNorm::CodePadded => {
            return refuse("`inter_task_norm: code_padded`, which goes by the size of the layer");
        }
        Method::Tabled(tabled) if OF_WEIGHTS.contains(&tabled.description.name) => {
            return refuse(&format!(
                "merge_method {}, which makes weights of weights: what it gives differs from the base by the base's own weights, which no \
                 adapter holds",
                tabled.description.name
            ));
        }
        Method::Tabled(tabled)
            if tabled.settings.get("scope") == Some(&Setting::Value(Value::Word("model"))) =>
        {
            return refuse(
                "`scope: model`, which looks at all tensors of a model before the first is merged",
            );
        }
        Method::Tabled(tabled)
            if compressed
                && ![&OF_COMPRESSED[..], &ELECTS_IN_CORES].concat().contains(&tabled.description.name) =>
        {
            return refuse(&format!(
                "merge_method {} after `compress: ctm`; {}, {} and esm merge compressed adapters, and `compress: truncate` goes with \
                 every method",
                tabled.description.name,
                OF_COMPRESSED.join(", "),
                ELECTS_IN_CORES.join(", ")
            ));
        }
        Method::Tabled(tabled) if tabled.description.name == "linear" => {
            // its default is to divide by the sum
            let normalize = tabled.settings.get("normalize");
            if normalize.is_some_and(|setting| *setting != Setting::Value(Value::Switch(true))) {
                return refuse(
                    "a `linear` without `normalize`, which scales the base too; use task_arithmetic",
                );
            }
        }
        _ => {}
    }
    Ok(Some(AdapterOut { rank: directions, compress }))
}
