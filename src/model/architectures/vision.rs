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
    /// Whether images of other sizes are taken too, with positions between those of the table.
    pub any_size: bool,
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
        Ok(Grid { channels, image, patch, any_size: false })
    }

    /// Patches of an image of the model's size.
    pub fn patches(self) -> usize {
        (self.image / self.patch).pow(2)
    }

    /// Rows and columns of patches of an image.
    pub(in crate::model) fn sides(self, images: &Images) -> [usize; 2] {
        [images.height / self.patch, images.width / self.patch]
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
        let sides = [height / self.patch, width / self.patch];
        let other =
            self.any_size && sides.iter().all(|side| (1..=Grid::MAX_IMAGE / self.patch).contains(side));
        if channels == self.channels && (other || sides == [side; 2]) {
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
    let (count, sides) = (images.count, grid.sides(images));
    let patches = sides[0] * sides[1];
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
    let side = grid.image / grid.patch;
    if sides == [side; 2] {
        backend.axpby(1.0, &embedding.positions, 1.0, &mut hidden)?;
    } else {
        let weights = between(side, sides, tokens - patches);
        let weights = backend.upload(Shape::matrix(tokens, tokens - patches + side * side), &weights)?;
        let positions = backend.matmul(&weights, Op::None, &embedding.positions, Op::None)?;
        backend.axpby(1.0, &positions, 1.0, &mut hidden)?;
    }

    let lengths = vec![tokens; count];
    Ok(Part {
        segments: Rc::new(backend.segments(&lengths)?),
        hidden: hidden.reshape(Shape::matrix(count * tokens, d))?,
        rotary: Vec::new(),
        positions: None,
        lengths,
    })
}

/// The weights by which a table of positions, `first` of no patch and then those of `side x side` patches, makes one of `sides`
/// patches: bicubic interpolation as PyTorch has it (`align_corners=False`), `rows x columns` of the two tables.
fn between(side: usize, sides: [usize; 2], first: usize) -> Vec<f32> {
    let [rows, columns] = sides.map(|to| (0..to).map(|at| cubic(side, to, at)).collect::<Vec<_>>());
    let width = first + side * side;
    let mut weights = vec![0.0; (first + sides[0] * sides[1]) * width];
    (0..first).for_each(|at| weights[at * width + at] = 1.0);
    for (at, own) in weights[first * width..].chunks_mut(width).enumerate() {
        for &(row, of_row) in &rows[at / sides[1]] {
            for &(column, of_column) in &columns[at % sides[1]] {
                own[first + row * side + column] += (of_row * of_column) as f32;
            }
        }
    }
    weights
}

/// The four places of a line of `from` that the place `at` of a line of `to` lies between, with their weights. Past the ends there is
/// the last.
fn cubic(from: usize, to: usize, at: usize) -> [(usize, f64); 4] {
    const A: f64 = -0.75;
    let place = (at as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let t = place - place.floor();
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    let index = |k: usize| (place.floor() + k as f64 - 1.0).clamp(0.0, from as f64 - 1.0) as usize;
    [0, 1, 2, 3].map(|k| (index(k), weights[k]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_its_own_size_is_itself_and_weights_sum_to_one() {
        let itself = between(3, [3, 3], 1);
        assert!((0..100).all(|at| itself[at] == f32::from(at / 10 == at % 10)));
        for sides in [[5, 2], [1, 7]] {
            for row in between(3, sides, 1).chunks(10) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
    }
}
