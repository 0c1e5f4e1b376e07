//! Images from a folder: found, then decoded, prepared and dropped one by one.

use super::rng::Rng;
use super::{Error, Preprocessor, jpeg};
use crate::files;
use crate::host::PathExt;
use crate::host::fs;
use crate::model::Images;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use std::collections::HashSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Formats that are read.
const ENDINGS: [&str; 6] = ["png", "jpg", "jpeg", "webp", "bmp", "gif"];

/// Bytes that an image may take, as a file and decoded: a photograph of 89 megapixels.
const MAX_BYTES: u64 = 256 << 20;

/// Some of the images under a folder, in the order of their paths.
pub fn choose(folder: &Path, samples: usize, seed: u64) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    walk(folder, &mut HashSet::new(), &mut files)?;
    if files.is_empty() {
        let reason = format!("the folder holds no images; files ending in {} are read", ENDINGS.join(", "));
        return Err(Error::bad(folder, reason));
    }
    files.sort();
    let chosen = Rng::new(seed).choose(files.len(), samples);
    Ok(chosen.into_iter().map(|i| std::mem::take(&mut files[i])).collect())
}

/// Folders are entered once, by whatever links they are reached: links may lead in circles.
fn walk(folder: &Path, seen: &mut HashSet<PathBuf>, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    let cannot = |e: std::io::Error| Error::bad(folder, format!("cannot be listed: {e}"));
    if !seen.insert(fs::canonicalize(folder).map_err(cannot)?) {
        return Ok(());
    }
    let entries: std::io::Result<Vec<_>> =
        crate::host::fs::read_dir(folder).map_err(cannot)?.map(|entry| Ok(entry?.path())).collect();
    let mut entries = entries.map_err(cannot)?;
    entries.sort(); // by which link a folder is entered should not hang on the order of the directory
    for path in entries {
        if path.leads_to_folder() {
            walk(&path, seen, files)?;
        } else if is_image(&path) {
            files.push(path);
        }
    }
    Ok(())
}

/// Whether a file is named like an image of a format that is read.
pub fn is_image(path: &Path) -> bool {
    ending(path).is_some_and(|e| ENDINGS.contains(&e.as_str()))
}

fn ending(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// Decodes some images and prepares them.
pub fn prepare(paths: &[PathBuf], preprocessor: &Preprocessor) -> Result<Images, Error> {
    let mut ready = preprocessor.no_images();
    for path in paths {
        preprocessor.add(open(path, preprocessor)?, &mut ready);
    }
    Ok(ready)
}

/// Refuses images that come out of preprocessing at several sizes, or at one that the model does not take, by their
/// headers. Where the settings alone decide the size, there is nothing to look at.
pub fn check_sizes(paths: &[PathBuf], preprocessor: &Preprocessor) -> Result<(), Error> {
    if preprocessor.fixed_size().is_some() {
        return Ok(());
    }
    let mut first: Option<(&PathBuf, [u32; 2], [u32; 2])> = None;
    for path in paths {
        let size = size(&decoder(path, &read(path)?)?);
        let ready = preprocessor.size_of(size).map_err(|reason| Error::bad(path, reason))?;
        match first {
            None => first = Some((path, size, ready)),
            Some((_, _, other)) if other == ready => {}
            Some((other_path, [w, h], [ready_w, ready_h])) => {
                return Err(Error::bad(
                    path,
                    format!(
                        "has {} x {} pixels (width x height) and comes out of preprocessing at {} x {}, but {} has {w} x {h} \
                         and comes out at {ready_w} x {ready_h}; give images of one size, or \
                         crop them by `do_center_crop` and `crop_size` in the model's preprocessor_config.json",
                        size[0],
                        size[1],
                        ready[0],
                        ready[1],
                        other_path.display()
                    ),
                ));
            }
        }
    }
    Ok(())
}

fn open(path: &Path, preprocessor: &Preprocessor) -> Result<RgbImage, Error> {
    let bytes = read(path)?;
    let decoder = decoder(path, &bytes)?;
    preprocessor.size_of(size(&decoder)).map_err(|reason| Error::bad(path, reason))?;
    let image = DynamicImage::from_decoder(decoder).map_err(undecodable(path))?;
    if image::guess_format(&bytes).ok() == Some(ImageFormat::Jpeg) && !jpeg::is_whole(&bytes) {
        return Err(Error::bad(path, "the JPEG breaks off before its end; copy or download it again"));
    }
    drop(bytes);
    Ok(image.into_rgb8())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    files::read(path, MAX_BYTES).map_err(|e| Error::bad(path, format!("cannot be read: {e}")))
}

/// The header of an image, read, and its pixels known to be of a bearable number.
fn decoder<'b>(path: &Path, bytes: &'b [u8]) -> Result<impl ImageDecoder + 'b, Error> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(2 * MAX_BYTES); // some decoders keep a copy
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| Error::bad(path, format!("cannot be read: {e}")))?;
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(undecodable(path))?;
    if decoder.total_bytes() > MAX_BYTES {
        let [w, h] = size(&decoder);
        let reason = format!(
            "has {w} x {h} pixels, which take {} MiB, more than the {} MiB expected of an image; scale it down",
            decoder.total_bytes() >> 20,
            MAX_BYTES >> 20
        );
        return Err(Error::bad(path, reason));
    }
    Ok(decoder)
}

fn size(decoder: &impl ImageDecoder) -> [u32; 2] {
    let (width, height) = decoder.dimensions();
    [width, height]
}

fn undecodable(path: &Path) -> impl Fn(image::ImageError) -> Error {
    move |e| Error::bad(path, format!("is not an image that can be decoded ({e}); remove or replace it"))
}
