//! `preprocessor_config.json`, read key by key: what is there must be right, what is absent has its usual value.

use super::{Filter, Preprocessor, Resize};
use crate::model::{Config, Error, Grid, Result};
use serde_json::Value;

/// What CLIP was trained with.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// The longest side that settings may ask for, in pixels.
const MAX_SIDE: u64 = 4096;

/// From `preprocessor_config.json`.
pub fn from_config(config: Config<'_>, grid: Grid) -> Result<Preprocessor> {
    let size = grid.image as u32;
    let resize = if flag(config, "do_resize")?.unwrap_or(true) { Some(resize(config, size)?) } else { None };
    let cropped = flag(config, "do_center_crop")?.unwrap_or(config.get("crop_size").is_some());
    let crop = if cropped { Some(sides(config, "crop_size")?.unwrap_or([size, size])) } else { None };
    let rescaled = flag(config, "do_rescale")?.unwrap_or(true);
    let factor = if rescaled { config.number_or("rescale_factor", 1.0 / 255.0)? as f32 } else { 1.0 };
    let (mean, std) = if flag(config, "do_normalize")?.unwrap_or(true) {
        (three(config, "image_mean", CLIP_MEAN)?, three(config, "image_std", CLIP_STD)?)
    } else {
        ([0.0; 3], [1.0; 3])
    };
    checked(Preprocessor {
        grid,
        settings: String::new(),
        resize,
        filter: filter(config)?,
        crop,
        factor,
        mean,
        std,
    })
}

/// As CLIP has it, for images of the model's size; mean and deviation from the `preprocess_cfg` of an OpenCLIP configuration
/// where there is one.
pub fn as_clip(open_clip: Config<'_>, grid: Grid) -> Result<Preprocessor> {
    let size = grid.image as u32;
    let three = |key, default| match open_clip.object("preprocess_cfg") {
        Some(config) => three(config, key, default),
        None => Ok(default),
    };
    checked(Preprocessor {
        grid,
        settings: "CLIP's own settings".to_owned(),
        resize: Some(Resize::ShortestEdge(size)),
        filter: Filter::Bicubic,
        crop: Some([size, size]),
        factor: 1.0 / 255.0,
        mean: three("mean", CLIP_MEAN)?,
        std: three("std", CLIP_STD)?,
    })
}

/// The values of black and white must be numbers, and the size, where it is known, the model's.
fn checked(preprocessor: Preprocessor) -> Result<Preprocessor> {
    let finite = |c: usize| [0, u8::MAX].iter().all(|&byte| preprocessor.value(byte, c).is_finite());
    if !(0..3).all(finite) {
        return Err(Error::Config(
            "with its `rescale_factor`, `image_mean` and `image_std` pixels become NaN or infinity".into(),
        ));
    }
    if let Some([width, height]) = preprocessor.fixed_size() {
        let fits = preprocessor.grid.fits(3, height as usize, width as usize);
        fits.map_err(|reason| Error::Config(format!("by its `size` and `crop_size` {reason}")))?;
    }
    Ok(preprocessor)
}

fn flag(config: Config<'_>, key: &str) -> Result<Option<bool>> {
    let Some(value) = config.get(key) else { return Ok(None) };
    let wrong = || Error::Config(format!("`{key}` should be true or false but is {value}"));
    value.as_bool().map(Some).ok_or_else(wrong)
}

fn resize(config: Config<'_>, size: u32) -> Result<Resize> {
    let edge = config.object("size").and_then(|object| object.get("shortest_edge"));
    if let Some(edge) = edge {
        return Ok(Resize::ShortestEdge(side("size.shortest_edge", edge)?));
    }
    Ok(match sides(config, "size")? {
        None => Resize::ShortestEdge(size),
        // one number is an edge to processors that crop, and both sides to the others
        Some([n, _]) if config.object("size").is_none() && config.get("crop_size").is_some() => {
            Resize::ShortestEdge(n)
        }
        Some([height, width]) => Resize::Exactly { height, width },
    })
}

/// Height and width, or one number for both.
fn sides(config: Config<'_>, key: &str) -> Result<Option<[u32; 2]>> {
    let Some(value) = config.get(key) else { return Ok(None) };
    if value.is_number() {
        let n = side(key, value)?;
        return Ok(Some([n, n]));
    }
    let (height, width) = match value.as_array().map(Vec::as_slice) {
        Some([height, width]) => (Some(height), Some(width)),
        _ => (value.get("height"), value.get("width")),
    };
    let (Some(height), Some(width)) = (height, width) else {
        return Err(Error::Config(format!(
            "`{key}` should be a number of pixels, or have `height` and `width` (or, if images are resized, \
             `shortest_edge`), but is {value}"
        )));
    };
    Ok(Some([side(&format!("{key}.height"), height)?, side(&format!("{key}.width"), width)?]))
}

fn side(key: &str, value: &Value) -> Result<u32> {
    let fits = value.as_u64().filter(|n| (1..=MAX_SIDE).contains(n));
    fits.map(|n| n as u32)
        .ok_or_else(|| Error::Config(format!("`{key}` should be 1 to {MAX_SIDE} pixels but is {value}")))
}

/// PIL's numbers.
fn filter(config: Config<'_>) -> Result<Filter> {
    let Some(value) = config.get("resample") else { return Ok(Filter::Bicubic) };
    match value.as_u64() {
        Some(0) => Ok(Filter::Nearest),
        Some(1) => Ok(Filter::Lanczos),
        Some(2) => Ok(Filter::Bilinear),
        Some(3) => Ok(Filter::Bicubic),
        _ => Err(Error::Config(format!(
            "`resample` should be 0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic) but is {value}"
        ))),
    }
}

/// Three numbers, or one for all channels.
fn three(config: Config<'_>, key: &str, default: [f32; 3]) -> Result<[f32; 3]> {
    let Some(value) = config.get(key) else { return Ok(default) };
    let one = std::slice::from_ref(value);
    let list = value.as_array().map_or(one, Vec::as_slice);
    let numbers: Option<Vec<f32>> = list.iter().map(|v| v.as_f64().map(|v| v as f32)).collect();
    match numbers.as_deref() {
        Some(&[one]) => Ok([one; 3]),
        Some(&[r, g, b]) => Ok([r, g, b]),
        _ => Err(Error::Config(format!("`{key}` should be three numbers, or one, but is {value}"))),
    }
}
