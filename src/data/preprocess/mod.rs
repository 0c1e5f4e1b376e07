//! Images as the model wants them: `preprocessor_config.json`.

mod settings;

use super::Error;
use super::error::read_json;
use crate::host::PathExt;
use crate::model::{self, Config, Grid, Images};
use image::imageops::{self, FilterType};
use image::{RgbImage, imageops::crop_imm};
use std::path::{Path, PathBuf};

/// Resizing, cropping and normalisation of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessor {
    /// What the model takes.
    grid: Grid,
    /// Where the settings are from.
    settings: String,
    resize: Option<Resize>,
    filter: Filter,
    /// Height and width of the centre that is kept.
    crop: Option<[u32; 2]>,
    factor: f32,
    mean: [f32; 3],
    std: [f32; 3],
}

/// The settings at `path` are wrong.
fn bad(path: &Path, error: model::Error) -> Error {
    match error {
        model::Error::Config(reason) => Error::bad(path, reason),
        other => Error::bad(path, other.to_string()),
    }
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

/// How many times as long as wide an image may be: resized by its shorter side, a thread of pixels would become a huge image.
const MAX_RATIO: u64 = 100;

/// Pixels of a resized image, and of the step on the way to it that has the new height and the old width.
const MAX_RESIZED: u64 = 1 << 25;

impl Preprocessor {
    /// From `preprocessor_config.json` in the model's folder; else from the `preprocess_cfg` of an OpenCLIP
    /// configuration; else CLIP's own. `grid` is what the model takes.
    pub fn open(
        folder: Option<&Path>,
        config: &serde_json::Value,
        grid: Grid,
    ) -> Result<Preprocessor, Error> {
        let path = folder.map(|f| f.join("preprocessor_config.json")).filter(|p| p.leads_to_file());
        if let Some(path) = path {
            let json = read_json(&path)?;
            let preprocessor = settings::from_config(Config::new(&json), grid).map_err(|e| bad(&path, e))?;
            return Ok(Preprocessor { settings: path.display().to_string(), ..preprocessor });
        }
        let place = folder.unwrap_or(Path::new("the model"));
        settings::as_clip(Config::new(config), grid).map_err(|e| bad(place, e))
    }

    /// Decodes images and prepares them; all must come out at one size.
    ///
    /// # Errors
    /// A file is no image, or not one that the model takes.
    pub fn read(&self, paths: &[PathBuf]) -> Result<Images, Error> {
        super::images::check_sizes(paths, self)?;
        super::images::prepare(paths, self)
    }

    /// Width and height that every image comes out at, where they do not hang on its own.
    pub(super) fn fixed_size(&self) -> Option<[u32; 2]> {
        match (self.crop, self.resize) {
            (Some([height, width]), _) | (None, Some(Resize::Exactly { height, width })) => {
                Some([width, height])
            }
            _ => None,
        }
    }

    /// Width and height at which an image comes out; refused, with the reason, if the model does not take that, or if the way
    /// there takes too much memory.
    pub(super) fn size_of(&self, [w, h]: [u32; 2]) -> Result<[u32; 2], String> {
        let (long, short) = (u64::from(w.max(h)), u64::from(w.min(h)));
        if long > MAX_RATIO * short {
            return Err(format!(
                "has {w} x {h} pixels (width x height); images up to {MAX_RATIO} times as long as wide are taken, so crop it"
            ));
        }
        let [width, height] = self.resized([w, h]).map(u64::from);
        let pixels = (width * height).max(u64::from(w) * height);
        if [w, h].map(u64::from) != [width, height] && pixels > MAX_RESIZED {
            return Err(format!(
                "has {w} x {h} pixels (width x height) and would be resized to {width} x {height}; scale it down, or crop it"
            ));
        }
        let [width, height] = self.fixed_size().unwrap_or([width as u32, height as u32]);
        match self.grid.fits(3, height as usize, width as usize) {
            Ok(()) => Ok([width, height]),
            Err(reason) => Err(format!(
                "has {w} x {h} pixels (width x height), and after preprocessing (by {}) {reason}",
                self.settings
            )),
        }
    }

    /// A batch without images yet.
    pub(super) fn no_images(&self) -> Images {
        Images { count: 0, channels: 3, height: 0, width: 0, values: Vec::new() }
    }

    /// Prepares an image, of a size that [`size_of`](Preprocessor::size_of) takes and that is the same for all in a batch.
    pub(super) fn add(&self, image: RgbImage, ready: &mut Images) {
        let image = self.crop(self.resize(image));
        ready.count += 1;
        (ready.height, ready.width) = (image.height() as usize, image.width() as usize);
        for c in 0..3 {
            ready.values.extend(image.pixels().map(|pixel| self.value(pixel.0[c], c)));
        }
    }

    /// A byte as the model sees it.
    fn value(&self, byte: u8, channel: usize) -> f32 {
        (f32::from(byte) * self.factor - self.mean[channel]) / self.std[channel]
    }

    /// Width and height after resizing.
    fn resized(&self, [w, h]: [u32; 2]) -> [u32; 2] {
        match self.resize {
            None => [w, h],
            Some(Resize::Exactly { height, width }) => [width, height],
            Some(Resize::ShortestEdge(n)) => {
                let long =
                    |long: u32, short: u32| (u64::from(n) * u64::from(long) / u64::from(short.max(1))) as u32;
                if w <= h { [n, long(h, w)] } else { [long(w, h), n] }
            }
        }
    }

    fn resize(&self, image: RgbImage) -> RgbImage {
        let (w, h) = image.dimensions();
        let [width, height] = self.resized([w, h]);
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

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { channels: 3, image: 4, patch: 2, any_size: false };

    fn preprocessor(json: &str) -> Result<Preprocessor, String> {
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        settings::from_config(Config::new(&json), GRID).map_err(|e| e.to_string())
    }

    fn apply(preprocessor: &Preprocessor, image: RgbImage) -> Images {
        let mut ready = preprocessor.no_images();
        preprocessor.add(image, &mut ready);
        ready
    }

    #[test]
    fn the_shortest_edge_is_resized_and_the_centre_kept() {
        let p = preprocessor(
            r#"{"do_resize": true, "size": {"shortest_edge": 4}, "do_center_crop": true,
                "crop_size": {"height": 4, "width": 4}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}"#,
        );
        let image = RgbImage::from_fn(12, 8, |x, _| image::Rgb([if x < 6 { 0 } else { 255 }, 7, 7]));
        let ready = apply(&p.unwrap(), image);
        assert_eq!((ready.count, ready.height, ready.width, ready.values.len()), (1, 4, 4, 48));
        assert!(ready.values[0] < 0.05 && ready.values[3] > 0.95, "{:?}", &ready.values[..4]);
        assert!((ready.values[16] - 7.0 / 255.0).abs() < 1e-6);
    }

    #[test]
    fn a_small_image_is_centred_on_black() {
        let p = preprocessor(r#"{"do_resize": false, "crop_size": 4, "do_normalize": false}"#).unwrap();
        let ready = apply(&p, RgbImage::from_pixel(2, 2, image::Rgb([255, 255, 255])));
        let sum: f32 = ready.values.iter().sum();
        assert!((sum - 12.0).abs() < 1e-5 && ready.values[0] == 0.0 && ready.values[5] > 0.99);
    }

    #[test]
    fn the_size_of_an_image_is_known_before_it_is_decoded() {
        let p = preprocessor(r#"{"do_resize": false}"#).unwrap();
        assert_eq!((p.fixed_size(), p.size_of([4, 5])), (None, Ok([4, 5])));
        assert!(p.size_of([4, 6]).unwrap_err().contains("6 x 4"), "two rows of patches too many");
        let p = preprocessor(r#"{"size": {"shortest_edge": 5}, "crop_size": 4}"#).unwrap();
        assert_eq!((p.fixed_size(), p.size_of([40, 50])), (Some([4, 4]), Ok([4, 4])));
        assert!(p.size_of([1, 200]).unwrap_err().contains("100 times"));
        assert!(p.size_of([60_000_000, 1_000_000]).unwrap_err().contains("resized to 300 x 5"));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (json, word) in [
            (r#"{"size": {"shortest_edge": 100000}}"#, "`size.shortest_edge`"),
            (r#"{"size": {"longest_edge": 4}}"#, "`size`"),
            (r#"{"size": {"height": 4, "width": 0}}"#, "`size.width`"),
            (r#"{"size": 4, "crop_size": 4294967295}"#, "`crop_size`"),
            (r#"{"size": 4, "crop_size": "all"}"#, "`crop_size`"),
            (r#"{"size": 8, "crop_size": 8}"#, "8 x 8 pixels"),
            (r#"{"do_resize": "no"}"#, "`do_resize`"),
            (r#"{"resample": 5}"#, "`resample`"),
            (r#"{"image_mean": [0, 1]}"#, "`image_mean`"),
            (r#"{"image_std": [1, 0, 1]}"#, "`image_std`"),
            (r#"{"image_mean": 1e308}"#, "`image_mean`"),
            (r#"{"rescale_factor": 1e300}"#, "`rescale_factor`"),
        ] {
            let error = preprocessor(json).unwrap_err();
            assert!(error.contains(word), "{json}: {error}");
        }
    }
}
