//! What vision transformers share: images to tokens.

use super::super::{Config, Error, Images, Part, Result, Samples};
use crate::backend::layers::Layers;
use crate::backend::{Op, Shape, Tensor};
use std::rc::Rc;

/// The grid of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Colours.
    pub channels: usize,
    /// Rows and columns of pixels.
    pub image: usize,
    /// Rows and columns of a patch.
    pub patch: usize,
}

impl Grid {
    /// The most rows of pixels, and the most colours.
    const MAX_IMAGE: usize = 1 << 14;
    const MAX_CHANNELS: usize = 1 << 10;

    /// From a configuration.
    pub(super) fn new(config: Config<'_>) -> Result<Grid> {
        let channels = config.size_or("num_channels", 3)?;
        Grid::checked(channels, config.size("image_size")?, config.size("patch_size")?)
    }

    /// The same where a configuration leaves out what its library takes for granted.
    pub(super) fn with_defaults(config: Config<'_>, image: usize, patch: usize) -> Result<Grid> {
        let channels = config.size_or("num_channels", 3)?;
        Grid::checked(channels, config.size_or("image_size", image)?, config.size_or("patch_size", patch)?)
    }

    /// Sizes that a model may have.
    pub(super) fn checked(channels: usize, image: usize, patch: usize) -> Result<Grid> {
        let unfit = |reason: String| Err(Error::Config(reason));
        if patch == 0 || patch > image {
            return unfit(format!(
                "patches of {patch} pixels (`patch_size`) do not cut up images of {image} (`image_size`)"
            ));
        }
        if image > Grid::MAX_IMAGE {
            return unfit(format!("`image_size` is {image} pixels; up to {} are taken", Grid::MAX_IMAGE));
        }
        if !(1..=Grid::MAX_CHANNELS).contains(&channels) {
            return unfit(format!("`num_channels` is {channels}; 1 to {} are taken", Grid::MAX_CHANNELS));
        }
        Ok(Grid { channels, image, patch })
    }

    /// Patches of an image.
    pub fn patches(self) -> usize {
        (self.image / self.patch).pow(2)
    }

    /// Images must give the model's grid of patches; pixels past the last whole patch are not looked at.
    pub(in crate::model) fn check(self, images: &Images) -> Result<()> {
        self.fits(images.channels, images.height, images.width).map_err(Error::Samples)
    }

    /// The same for images of a size; refused with the reason.
    pub(crate) fn fits(
        self,
        channels: usize,
        height: usize,
        width: usize,
    ) -> std::result::Result<(), String> {
        let side = self.image / self.patch;
        if (channels, height / self.patch, width / self.patch) == (self.channels, side, side) {
            return Ok(());
        }
        Err(format!(
            "the images are {height} x {width} pixels with {channels} channels, but the model takes {} x {} with {}",
            self.image, self.image, self.channels
        ))
    }
}

/// The weights of an image embedding.
pub struct ImageEmbedding<T> {
    /// `1 x d x (channels patch patch)`.
    pub patches: T,
    /// Of the patches, `1 x 1 x d`.
    pub bias: Option<T>,
    /// The class token, `1 x 1 x d`, where there is one.
    pub class: Option<T>,
    /// `1 x tokens x d`.
    pub positions: T,
}

/// Class token, where there is one, and patches of every image, each with its position.
pub fn embed<B: Layers>(
    backend: &B,
    grid: Grid,
    embedding: &ImageEmbedding<B::Tensor>,
    samples: &Samples,
) -> Result<Part<B>> {
    let images = samples.images()?;
    grid.check(images)?;
    let (count, patches) = (images.count, grid.patches());
    let pixels = Shape::new(count * images.channels, images.height, images.width);
    let pixels = backend.upload(pixels, &images.values)?;
    let columns = backend.patches(&pixels, grid.channels, grid.patch)?;
    let mut embedded = backend.linear(&columns, &embedding.patches, Op::Transpose)?;
    if let Some(bias) = &embedding.bias {
        backend.add_bias(&mut embedded, bias)?;
    }

    let d = embedded.shape().cols;
    let tokens = patches + usize::from(embedding.class.is_some());
    let hidden = match &embedding.class {
        None => embedded,
        Some(class) => {
            // row 0 of the table is the class token, the patches of all images follow
            let table = backend.stack_rows(&[class, &embedded])?;
            let of_image = |i: usize| (0..patches).map(move |p| (1 + i * patches + p) as u32);
            let rows: Vec<u32> = (0..count).flat_map(|i| std::iter::once(0).chain(of_image(i))).collect();
            backend.gather_rows(&table, &rows)?
        }
    };
    let mut hidden = hidden.reshape(Shape::new(count, tokens, d))?;
    backend.axpby(1.0, &embedding.positions, 1.0, &mut hidden)?;

    let lengths = vec![tokens; count];
    Ok(Part {
        segments: Rc::new(backend.segments(&lengths)?),
        hidden: hidden.reshape(Shape::matrix(count * tokens, d))?,
        rotary: Vec::new(),
        positions: None,
        lengths,
    })
}
