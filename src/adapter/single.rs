//! Adapters in one file without settings: kohya's (`lora_unet_..._attn1_to_q.lora_down.weight`, an `alpha` a module) and
//! diffusers' (`unet.....attn1.to_q.lora_A.weight`), of Stable Diffusion and Flux.

use super::peft::{REFUSED, unread};
use super::targets::{Factors, Kind, Targets};
use super::{Adapter, bad, original};
use crate::checkpoint::{
    ADAPTER_CONFIG, Checkpoint, Error, TensorFile, module_of, parent, weights_file, widen,
};
use crate::host::PathExt;
use indexmap::IndexMap;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Ends of keys, and the factor they are of: `A` (0) or `B` (1).
const FACTORS: [(&str, usize); 10] = [
    (".lora_down.weight", 0),
    (".lora_up.weight", 1),
    (".lora_A.weight", 0),
    (".lora_B.weight", 1),
    (".lora.down.weight", 0),
    (".lora.up.weight", 1),
    (".lora_linear_layer.down.weight", 0),
    (".lora_linear_layer.up.weight", 1),
    ("_lora.down.weight", 0),
    ("_lora.up.weight", 1),
];
const ALPHA: &str = ".alpha";

/// What stands before the modules of each model of a pipeline, and whether these are written with `_` for `.`.
const COMPONENTS: [(&str, bool); 10] = [
    ("lora_unet_", true),
    ("lora_te1_", true),
    ("lora_te2_", true),
    ("lora_te3_", true),
    ("lora_te_", true),
    ("unet.", false),
    ("transformer.", false),
    ("text_encoder.", false),
    ("text_encoder_2.", false),
    ("diffusion_model.", false),
];

/// The metadata in which diffusers keeps PEFT's settings.
const SETTINGS: &str = "lora_adapter_metadata";

/// A file, or a folder's only one, most of whose tensors are parts of an adapter.
pub(super) fn is_one(path: &Path) -> bool {
    let Some(file) = weights_file(path).filter(|file| !parent(file).join(ADAPTER_CONFIG).leads_to_file())
    else {
        return false;
    };
    let Ok(file) = TensorFile::open(&file) else { return false };
    let is_part = |key: &&String| {
        factor(key).is_some() || key.ends_with(ALPHA) || refused(key).is_some() || key.contains("lora_mid")
    };
    let parts = file.tensors().keys().filter(is_part).count();
    parts > 0 && 2 * parts >= file.tensors().len()
}

fn factor(key: &str) -> Option<(&str, usize)> {
    FACTORS.iter().find_map(|(end, place)| Some((key.strip_suffix(end)?, *place)))
}

fn refused(key: &str) -> Option<&'static str> {
    let of_part = |part: &str| REFUSED.iter().find(|(mark, _)| part.starts_with(mark)).map(|(_, what)| *what);
    key.split('.').find_map(of_part)
}

/// Opens the adapter.
pub(super) fn open(path: &Path, base: &Checkpoint, config: &Value) -> Result<Adapter, Error> {
    let file = Checkpoint::open(path)?;
    check_settings(&file)?;
    let modules = modules(&file)?;
    let names = Underscored::new(base);
    let mut targets = Targets::new(base, config, false);
    let mut components: IndexMap<&str, Vec<Factors>> = IndexMap::new();
    let mut alphas = HashMap::new();
    for (module, parts) in &modules {
        let Parts { factors: [Some(a), Some(b)], alpha } = parts else {
            let key = parts.factors.iter().flatten().chain(&parts.alpha).next().cloned().unwrap_or_default();
            return Err(bad(
                file.path(),
                format!("it has `{key}` without both factors; it is incomplete, so download it again"),
            ));
        };
        let component = COMPONENTS.iter().find(|(prefix, _)| module.starts_with(prefix));
        let (rest, underscored) = component.map_or((module.as_str(), false), |(prefix, underscored)| {
            (&module[prefix.len()..], *underscored)
        });
        let known = names.modules(&rest.replace('.', "_"), underscored);
        let name = match known.as_deref() {
            Some([one]) => one.clone(),
            Some(stack) => {
                targets.stack(rest, stack);
                rest.to_owned()
            }
            None => without_processor(rest),
        };
        if let Some(key) = alpha {
            alphas.insert(name.clone(), number(&file, key)?);
        }
        let factors =
            Factors { module: name, kind: Kind::Linear, a: a.clone(), b: b.clone(), alpha: alpha.clone() };
        components.entry(component.map_or("", |(prefix, _)| prefix)).or_default().push(factors);
    }
    // a file may hold factors of all models of a pipeline, of which the base is one
    let (own, others): (Vec<_>, Vec<_>) = components.into_values().partition(|all| targets.has_any(all));
    let own: Vec<Factors> = own.into_iter().flatten().collect();
    let scale = |module: &str, r: usize| Ok(alphas.get(module).map_or(1.0, |alpha| alpha / r as f64));
    let mut adapter = targets.adapter(path, file, &own, &[], &[], &scale)?;
    let elsewhere = others.into_iter().flatten();
    adapter.elsewhere = elsewhere.flat_map(|f| [Some(f.a), Some(f.b), f.alpha]).flatten().collect();
    Ok(adapter)
}

/// What a file has of one module.
#[derive(Default)]
struct Parts {
    factors: [Option<String>; 2],
    alpha: Option<String>,
}

fn modules(file: &Checkpoint) -> Result<IndexMap<String, Parts>, Error> {
    let mut modules: IndexMap<String, Parts> = IndexMap::new();
    for key in file.names() {
        if let Some(what) = refused(key) {
            return Err(unread(file, key, what));
        }
        if let Some((module, place)) = factor(key) {
            modules.entry(module.to_owned()).or_default().factors[place] = Some(key.to_owned());
        } else if let Some(module) = key.strip_suffix(ALPHA) {
            modules.entry(module.to_owned()).or_default().alpha = Some(key.to_owned());
        } else {
            let what = if key.contains("lora_mid") {
                "Tucker-decomposed LoRA (LoCon)"
            } else {
                "something that is not known"
            };
            return Err(unread(file, key, what));
        }
    }
    Ok(modules)
}

/// Settings by which factors are not applied as they are.
fn check_settings(file: &Checkpoint) -> Result<(), Error> {
    let place = file.names().next().and_then(|name| file.place(name));
    let Some(text) = place.and_then(|(file, _)| file.metadata().get(SETTINGS).cloned()) else {
        return Ok(());
    };
    let settings: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
    let ends = |key: &str, end: &str| key == end || key.ends_with(&format!(".{end}"));
    let number =
        |end: &str| settings.iter().find(|(key, _)| ends(key, end)).and_then(|(_, value)| value.as_f64());
    let is_set =
        |value: &Value| value.as_bool() == Some(true) || value.as_object().is_some_and(|map| !map.is_empty());
    let sets = |end: &str| settings.iter().any(|(key, value)| ends(key, end) && is_set(value));
    let other = ["use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias"]
        .into_iter()
        .find(|key| sets(key));
    let reason = match other {
        Some(key) => format!("its metadata sets `{key}`"),
        None if number("lora_alpha") != number("r") => {
            "its metadata has another `lora_alpha` than `r`".to_owned()
        }
        None => return Ok(()),
    };
    Err(bad(
        file.path(),
        format!("{reason}, which is read of PEFT's folders only; save it with PEFT's `save_pretrained`"),
    ))
}

/// The one number of an `alpha`.
fn number(file: &Checkpoint, key: &str) -> Result<f64, Error> {
    let meta = file.get(key).filter(|meta| meta.elements() == 1 && meta.float().is_some());
    let Some(dtype) = meta.and_then(|meta| meta.float()) else {
        return Err(bad(file.path(), format!("`{key}` is not one floating-point number")));
    };
    let values = widen(dtype, &file.read_values(key, 0..1)?);
    Ok(values.first().map_or(1.0, |&alpha| alpha.into()))
}

/// diffusers once kept factors in processors of attention.
fn without_processor(module: &str) -> String {
    match module.contains(".processor.") {
        true => format!(
            "{}{}",
            module.replace(".processor.", "."),
            if module.ends_with("to_out") { ".0" } else { "" }
        ),
        false => module.to_owned(),
    }
}

/// Modules of a base by their names with `_` for `.`, from any of their parts on.
struct Underscored<'a>(HashMap<String, Option<&'a str>>);

impl<'a> Underscored<'a> {
    fn new(base: &'a Checkpoint) -> Self {
        let mut found: HashMap<String, Option<&str>> = HashMap::new();
        for module in base.names().filter_map(module_of) {
            let starts = std::iter::once(0).chain(module.match_indices('.').map(|(dot, _)| dot + 1));
            for start in starts {
                // what two modules end in names neither
                let entry = found.entry(module[start..].replace('.', "_")).or_insert(Some(module));
                *entry = entry.filter(|known| *known == module);
            }
        }
        Underscored(found)
    }

    /// The base's name of a module, if the base has its own name (which only names with `_` throughout are looked up by), or
    /// diffusers' names for the original code's: several, where that has as one what diffusers keeps apart.
    fn modules(&self, name: &str, underscored: bool) -> Option<Vec<String>> {
        let known = |name: &str| self.0.get(name).copied().flatten().map(str::to_owned);
        let own = known(name).filter(|_| underscored).map(|module| vec![module]);
        own.or_else(|| original::in_diffusers(name)?.iter().map(|name| known(name)).collect())
    }
}
