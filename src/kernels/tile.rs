//! How a product is shared out among threads, and which way suits which shape.

use super::shaders::{Entry, Setting, gemm, gemm_vec2, gemm_vec4};
use crate::matrix::{Dtype, Op};
use std::fmt;
use std::str::FromStr;

/// A way to share out a product: the tile of the result that a workgroup makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tile {
    /// 64 x 64 from registers alone, 16 x 16 a thread where rows are whole vec4s, else 16 x 8: for software adapters.
    Direct,
    /// 32 x 32, 4 x 4 a thread: many workgroups of a small result.
    Small,
    /// 64 x 64, 8 x 4 a thread.
    Medium,
    /// 128 x 128, 8 x 8 a thread: the least traffic, where the result is large enough to keep a GPU busy.
    Large,
    /// 32 x 64, 4 x 4 a thread: few rows.
    Wide,
    /// 64 x 32, 4 x 4 a thread: few columns.
    Tall,
}

impl Tile {
    /// Every tile.
    pub const ALL: [Tile; 6] = [Tile::Direct, Tile::Small, Tile::Medium, Tile::Large, Tile::Wide, Tile::Tall];

    /// Rows and columns.
    pub const fn sides(self) -> (usize, usize) {
        match self {
            Tile::Direct | Tile::Medium => (64, 64),
            Tile::Small => (32, 32),
            Tile::Large => (128, 128),
            Tile::Wide => (32, 64),
            Tile::Tall => (64, 32),
        }
    }

    /// Tiles of an `m x n` matrix, or of the lower triangle of an `m x m` one.
    pub fn count(self, m: usize, n: usize, triangular: bool) -> usize {
        let (rows, cols) = self.sides();
        let (down, across) = (m.div_ceil(rows), n.div_ceil(cols));
        if triangular { down * (down + 1) / 2 } else { down * across }
    }

    /// This tile, or for a triangle one that is square.
    pub(super) fn for_triangle(self) -> Tile {
        if matches!(self, Tile::Wide | Tile::Tall) { Tile::Small } else { self }
    }

    /// Rows and columns of the part that a thread makes, where threads share a tile through workgroup memory.
    const fn part(self) -> (usize, usize) {
        match self {
            Tile::Large => (8, 8),
            Tile::Medium => (8, 4),
            _ => (4, 4),
        }
    }

    /// Of the tiles through workgroup memory: the shader for matrices that lie `in_fours`, or anywhere; for operands of which one is
    /// `narrow`, of 16-bit numbers, or for f32.
    pub(super) fn tiled(self, in_fours: bool, narrow: bool) -> Tiled {
        let of = |anywhere: Tiled, fours: Tiled, narrow_fours: Tiled| match (in_fours, narrow) {
            (false, _) => anywhere,
            (true, false) => fours,
            (true, true) => narrow_fours,
        };
        match self {
            Tile::Large => of(gemm::GEMM_LARGE, gemm_vec4::GEMM_LARGE, gemm_vec2::GEMM_LARGE),
            Tile::Medium => of(gemm::GEMM_MEDIUM, gemm_vec4::GEMM_MEDIUM, gemm_vec2::GEMM_MEDIUM),
            _ => of(gemm::GEMM_SMALL, gemm_vec4::GEMM_SMALL, gemm_vec2::GEMM_SMALL),
        }
    }

    /// What their shader must be told of how threads lie.
    pub(super) fn threads(self) -> [Setting<gemm::Overrides>; 2] {
        let ((rows, cols), (tall, wide)) = (self.sides(), self.part());
        [gemm::DOWN.is((rows / tall) as u32), gemm::ACROSS.is((cols / wide) as u32)]
    }
}

/// An entry point of the products through workgroup memory.
pub(super) type Tiled = Entry<gemm::Params, gemm::Bindings<'static>, (), gemm::Overrides>;

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tile::Direct => "direct",
            Tile::Small => "small",
            Tile::Medium => "medium",
            Tile::Large => "large",
            Tile::Wide => "wide",
            Tile::Tall => "tall",
        })
    }
}

impl FromStr for Tile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Tile::ALL.into_iter().find(|tile| tile.to_string() == text);
        found.ok_or_else(|| format!("unknown tile '{text}'"))
    }
}

/// Products that are alike: their sizes fall between the same powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShapeClass {
    /// `ceil(log2)` of the batch.
    batch: u8,
    /// `ceil(log2)` of rows, columns and depth.
    sizes: [u8; 3],
    /// Whether the operands are transposed.
    transposed: [bool; 2],
    /// Whether it is a symmetric rank-k update.
    triangular: bool,
    /// Whether the operands are numbers of 16 bits.
    narrow: [bool; 2],
}

impl ShapeClass {
    /// The class of a product.
    pub fn new(
        batch: usize,
        [m, n, k]: [usize; 3],
        [op_a, op_b]: [Op; 2],
        [a, b]: [Dtype; 2],
        triangular: bool,
    ) -> Self {
        let log = |v: usize| v.max(1).next_power_of_two().trailing_zeros() as u8;
        ShapeClass {
            batch: log(batch),
            sizes: [log(m), log(n), log(k)],
            transposed: [op_a == Op::Transpose, op_b == Op::Transpose],
            triangular,
            narrow: [a != Dtype::F32, b != Dtype::F32],
        }
    }
}

impl fmt::Display for ShapeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [m, n, k] = self.sizes.map(|v| 1u64 << v);
        let op = |transposed| if transposed { 't' } else { 'n' };
        let [a, b] = self.transposed.map(op);
        let kind = if self.triangular { "syrk" } else { "gemm" };
        let width = |narrow: bool| if narrow { 16 } else { 32 };
        let [wa, wb] = self.narrow.map(width);
        write!(f, "{kind}-{a}{b}-{wa}-{wb}-{}x{m}x{n}x{k}", 1u64 << self.batch)
    }
}

impl FromStr for ShapeClass {
    type Err = String;

    /// Reads what [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a class of products");
        let parts: Vec<&str> = text.split('-').collect();
        let [kind, ops, a, b, sizes] = parts[..] else { return Err(wrong()) };
        let sizes: Option<Vec<u8>> = sizes
            .split('x')
            .map(|v| v.parse::<u64>().ok().filter(|v| v.is_power_of_two()).map(|v| v.trailing_zeros() as u8))
            .collect();
        let [batch, m, n, k] = sizes.ok_or_else(wrong)?[..] else { return Err(wrong()) };
        let class = ShapeClass {
            batch,
            sizes: [m, n, k],
            transposed: [ops.starts_with('t'), ops.ends_with('t')],
            triangular: kind == "syrk",
            narrow: [a == "16", b == "16"],
        };
        if class.to_string() == text { Ok(class) } else { Err(wrong()) }
    }
}

/// How one class of products is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// The tile.
    pub tile: Tile,
    /// Into how many parts the depth is cut, to be summed in a second step; 1 for none.
    pub splits: usize,
}

/// Tiles that keep most GPUs busy: where there would be fewer, smaller ones spread the work over more of it.
pub(super) const ENOUGH_TILES: usize = 128;

/// The shallowest part that a product is cut into.
const SHALLOWEST: usize = 512;

/// The built-in table of hardware adapters.
pub(super) fn built_in(batch: usize, [m, n, k]: [usize; 3], triangular: bool, enough_tiles: usize) -> Choice {
    let enough = |tile: Tile| batch * tile.count(m, n, triangular) >= enough_tiles;
    let tile = match (m, n) {
        _ if !triangular && m <= 32 && n >= 128 => Tile::Wide,
        _ if !triangular && n <= 32 && m >= 128 => Tile::Tall,
        _ if enough(Tile::Large) => Tile::Large,
        _ if enough(Tile::Medium) => Tile::Medium,
        _ => Tile::Small,
    };
    let tiles = batch * tile.count(m, n, triangular);
    let splits = if batch == 1 { (enough_tiles / tiles.max(1)).clamp(1, (k / SHALLOWEST).max(1)) } else { 1 };
    Choice { tile, splits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_read_as_it_is_written() {
        for (op, dtype, triangular) in
            [(Op::None, Dtype::F32, false), (Op::Transpose, Dtype::Bf16, true), (Op::None, Dtype::F16, true)]
        {
            let class =
                ShapeClass::new(3, [1, 700, 64], [op, Op::Transpose], [dtype, Dtype::F32], triangular);
            assert_eq!(class.to_string().parse(), Ok(class));
        }
        for wrong in ["", "gemm-nn-32-32-1x2x3x4", "gemm-nx-32-32-1x2x4x4", "gemm-nn-32-32-1x2x4"] {
            assert!(wrong.parse::<ShapeClass>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn small_results_get_small_tiles_and_deep_ones_are_cut() {
        let built_in = |batch, sizes, triangular| built_in(batch, sizes, triangular, ENOUGH_TILES);
        assert_eq!(built_in(1, [4096, 4096, 4096], false), Choice { tile: Tile::Large, splits: 1 });
        assert_eq!(built_in(1, [1024, 1024, 512], false), Choice { tile: Tile::Medium, splits: 1 });
        assert_eq!(built_in(1, [96, 96, 4096], true), Choice { tile: Tile::Small, splits: 8 });
        assert_eq!(built_in(1, [16, 4096, 64], false).tile, Tile::Wide);
        assert_eq!(built_in(8, [4096, 8, 64], false).tile, Tile::Tall);
    }

    #[test]
    fn a_wide_device_gets_smaller_tiles_of_the_same_product() {
        assert_eq!(built_in(1, [1600, 2048, 768], false, 128).tile, Tile::Large);
        assert_eq!(built_in(1, [1600, 2048, 768], false, 256).tile, Tile::Medium);
    }
}
