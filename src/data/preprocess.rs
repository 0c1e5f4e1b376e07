//! Images as the model wants them: `preprocessor_config.json`.

use super::Error;
use super::error::read_json;
use crate::model::{Config, Images};
use image::imageops::{self, FilterType};
use image::{RgbImage, imageops::crop_imm};
use std::path::Path;

/// Resizing, cropping and normalisation of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessor {
    resize: Option<Resize>,
    filter: Filter,
    /// Height and width of the centre that is kept.
    crop: Option<[u32; 2]>,
    factor: f32,
    mean: [f32; 3],
    std: [f32; 3],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Resize {
    ShortestEdge(u32),
    Exactly { height: u32, width: u32 },
}

/// PIL's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
}

/// What CLIP was trained with.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

impl Preprocessor {
    /// From `preprocessor_config.json` in the model's folder; else from the `preprocess_cfg` of an OpenCLIP
    /// configuration; else CLIP's own for images of `size` pixels.
    pub fn open(
        folder: Option<&Path>,
        config: &serde_json::Value,
        size: usize,
    ) -> Result<Preprocessor, Error> {
        let path = folder.map(|f| f.join("preprocessor_config.json")).filter(|p| p.is_file());
        if let Some(path) = path {
            let json = read_json(&path)?;
            return Preprocessor::from_config(Config::new(&json), size)
                .map_err(|e| Error::bad(&path, e.to_string()));
        }
        let size = size as u32;
        let config = Config::new(config).object("preprocess_cfg");
        let three = |key, default| config.and_then(|c| three(c, key)).unwrap_or(default);
        Ok(Preprocessor {
            resize: Some(Resize::ShortestEdge(size)),
            filter: Filter::Bicubic,
            crop: Some([size, size]),
            factor: 1.0 / 255.0,
            mean: three("mean", CLIP_MEAN),
            std: three("std", CLIP_STD),
        })
    }

    fn from_config(config: Config<'_>, size: usize) -> Result<Preprocessor, crate::model::Error> {
        let on = |key: &str| config.get(key).and_then(serde_json::Value::as_bool).unwrap_or(true);
        let number = |key: &str| config.optional_size(key).ok().flatten().map(|n| n as u32);
        let sides = |key: &str| -> Result<Option<[u32; 2]>, crate::model::Error> {
            let Some(object) = config.object(key) else { return Ok(number(key).map(|n| [n, n])) };
            match (object.optional_size("height")?, object.optional_size("width")?) {
                (Some(h), Some(w)) => Ok(Some([h as u32, w as u32])),
                _ => Ok(None),
            }
        };
        let edge = config.object("size").and_then(|s| s.optional_size("shortest_edge").ok().flatten());
        let resize = match (edge, sides("size")?) {
            _ if !on("do_resize") => None,
            (Some(edge), _) => Some(Resize::ShortestEdge(edge as u32)),
            (None, Some([height, width])) if config.object("size").is_some() => {
                Some(Resize::Exactly { height, width })
            }
            (None, Some([n, _])) if config.get("crop_size").is_some() => Some(Resize::ShortestEdge(n)),
            (None, Some([height, width])) => Some(Resize::Exactly { height, width }),
            (None, None) => Some(Resize::ShortestEdge(size as u32)),
        };
        let crops = config.get("do_center_crop").and_then(serde_json::Value::as_bool);
        let crop =
            if crops.unwrap_or(config.get("crop_size").is_some()) { sides("crop_size")? } else { None };
        let normalize = on("do_normalize");
        Ok(Preprocessor {
            resize,
            filter: match config.get("resample").and_then(serde_json::Value::as_u64) {
                Some(0) => Filter::Nearest,
                Some(1) => Filter::Lanczos,
                Some(2) => Filter::Bilinear,
                _ => Filter::Bicubic,
            },
            crop,
            factor: if on("do_rescale") {
                config.number_or("rescale_factor", 1.0 / 255.0)? as f32
            } else {
                1.0
            },
            mean: if normalize { three(config, "image_mean").unwrap_or(CLIP_MEAN) } else { [0.0; 3] },
            std: if normalize { three(config, "image_std").unwrap_or(CLIP_STD) } else { [1.0; 3] },
        })
    }

    /// Images of one size, ready for the model.
    pub fn apply(&self, images: impl IntoIterator<Item = RgbImage>) -> Images {
        let mut ready = Images { count: 0, channels: 3, height: 0, width: 0, values: Vec::new() };
        for image in images {
            let image = self.crop(self.resize(image));
            ready.count += 1;
            (ready.height, ready.width) = (image.height() as usize, image.width() as usize);
            for c in 0..3 {
                let normal =
                    |p: &image::Rgb<u8>| (f32::from(p.0[c]) * self.factor - self.mean[c]) / self.std[c];
                ready.values.extend(image.pixels().map(normal));
            }
        }
        ready
    }

    fn resize(&self, image: RgbImage) -> RgbImage {
        let (w, h) = image.dimensions();
        let (width, height) = match self.resize {
            None => (w, h),
            Some(Resize::Exactly { height, width }) => (width, height),
            Some(Resize::ShortestEdge(n)) => {
                let long =
                    |long: u32, short: u32| (u64::from(n) * u64::from(long) / u64::from(short.max(1))) as u32;
                if w <= h { (n, long(h, w)) } else { (long(w, h), n) }
            }
        };
        if (width, height) == (w, h) {
            return image;
        }
        let filter = match self.filter {
            Filter::Nearest => FilterType::Nearest,
            Filter::Lanczos => FilterType::Lanczos3,
            Filter::Bilinear => FilterType::Triangle,
            Filter::Bicubic => FilterType::CatmullRom,
        };
        imageops::resize(&image, width, height, filter)
    }

    /// The centre, on black where the image is smaller.
    fn crop(&self, image: RgbImage) -> RgbImage {
        let (w, h) = image.dimensions();
        match self.crop {
            Some([height, width]) if (width, height) != (w, h) => {
                let (x, y) = (
                    (i64::from(w) - i64::from(width)).div_euclid(2),
                    (i64::from(h) - i64::from(height)).div_euclid(2),
                );
                let inside = |v: i64| v.max(0) as u32;
                let part = crop_imm(&image, inside(x), inside(y), width.min(w), height.min(h)).to_image();
                let mut out = RgbImage::new(width, height);
                imageops::replace(&mut out, &part, (-x).max(0), (-y).max(0));
                out
            }
            _ => image,
        }
    }
}

/// Three numbers, or one for all channels.
fn three(config: Config<'_>, key: &str) -> Option<[f32; 3]> {
    let value = config.get(key)?;
    if let Some(one) = value.as_f64() {
        return Some([one as f32; 3]);
    }
    let list: Vec<f32> = value.as_array()?.iter().filter_map(|v| v.as_f64()).map(|v| v as f32).collect();
    match list[..] {
        [one] => Some([one; 3]),
        [r, g, b] => Some([r, g, b]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preprocessor(json: &str) -> Preprocessor {
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        Preprocessor::from_config(Config::new(&json), 4).unwrap()
    }

    #[test]
    fn the_shortest_edge_is_resized_and_the_centre_kept() {
        let p = preprocessor(
            r#"{"do_resize": true, "size": {"shortest_edge": 4}, "do_center_crop": true,
                "crop_size": {"height": 4, "width": 4}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}"#,
        );
        let image = RgbImage::from_fn(12, 8, |x, _| image::Rgb([if x < 6 { 0 } else { 255 }, 7, 7]));
        let ready = p.apply([image]);
        assert_eq!((ready.count, ready.height, ready.width, ready.values.len()), (1, 4, 4, 48));
        assert!(ready.values[0] < 0.05 && ready.values[3] > 0.95, "{:?}", &ready.values[..4]);
        assert!((ready.values[16] - 7.0 / 255.0).abs() < 1e-6);
    }

    #[test]
    fn a_small_image_is_centred_on_black() {
        let p = preprocessor(r#"{"do_resize": false, "crop_size": 4, "do_normalize": false}"#);
        let ready = p.apply([RgbImage::from_pixel(2, 2, image::Rgb([255, 255, 255]))]);
        let sum: f32 = ready.values.iter().sum();
        assert!((sum - 12.0).abs() < 1e-5 && ready.values[0] == 0.0 && ready.values[5] > 0.99);
    }
}
