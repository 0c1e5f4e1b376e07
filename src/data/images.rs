//! Images from a folder.

use super::Error;
use super::rng::Rng;
use image::RgbImage;
use std::path::{Path, PathBuf};

/// Formats that are read.
const ENDINGS: [&str; 6] = ["png", "jpg", "jpeg", "webp", "bmp", "gif"];

/// Some of the images under a folder, in the order of their paths.
pub fn from_folder(folder: &Path, samples: usize, seed: u64) -> Result<Vec<RgbImage>, Error> {
    let mut files = Vec::new();
    walk(folder, &mut files)?;
    if files.is_empty() {
        let reason = format!("the folder holds no images; files ending in {} are read", ENDINGS.join(", "));
        return Err(Error::bad(folder, reason));
    }
    files.sort();
    let chosen = Rng::new(seed).choose(files.len(), samples);
    chosen.into_iter().map(|i| open(&files[i])).collect()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    let cannot = |e: std::io::Error| Error::bad(folder, format!("cannot be listed: {e}"));
    for entry in std::fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else if ending(&path).is_some_and(|e| ENDINGS.contains(&e.as_str())) {
            files.push(path);
        }
    }
    Ok(())
}

fn ending(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

fn open(path: &Path) -> Result<RgbImage, Error> {
    let image = image::ImageReader::open(path)
        .and_then(image::ImageReader::with_guessed_format)
        .map_err(|e| Error::bad(path, format!("cannot be read: {e}")))?
        .decode()
        .map_err(|e| {
            Error::bad(path, format!("is not an image that can be decoded ({e}); remove or replace it"))
        })?;
    Ok(image.into_rgb8())
}
