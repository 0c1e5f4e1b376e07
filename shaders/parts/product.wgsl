// What all products share: their parameters, the order of their tiles, and what is done with a sum before it is stored
// (how it is stored: parts/store_*.wgsl).

struct Params {
    m: u32,
    n: u32,
    k: u32,
    tiles: u32, // of a matrix of the batch
    a_offset: u32,
    a_row_stride: u32,
    a_batch_stride: u32,
    b_offset: u32,
    b_row_stride: u32,
    b_batch_stride: u32,
    c_offset: u32,
    c_row_stride: u32,
    c_batch_stride: u32,
    bias_offset: u32,
    bias_batch_stride: u32,
    scale_offset: u32,
    scale_batch_stride: u32,
    alpha: f32,
    beta: f32,
}

const NONE: u32 = 0;
const OF_ROWS: u32 = 1;
const OF_COLUMNS: u32 = 2;

override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;
override TRIANGULAR: bool = false;
override TRAPEZOID: bool = false; // nothing is wanted right of the diagonal that ends in the last corner
override BIAS: bool = false; // a number for each column
override SCALE: u32 = NONE; // a number for each row, or for each column
override ACTIVATION: bool = false;

override TILE_M: u32 = 64; // rows of a tile
override TILE_N: u32 = 64; // columns of a tile

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> scale: array<f32>;

// Row and column of the tile: row-major, or, of the triangle, row by row. Tiles of a triangle are square.
fn tile_at(index: u32) -> vec2<u32> {
    if !TRIANGULAR {
        let across = (params.n + TILE_N - 1u) / TILE_N;
        return vec2(index / across, index % across);
    }
    // The root is rounded; at most one step either way puts it right.
    var row = u32((sqrt(8.0 * f32(index) + 1.0) - 1.0) * 0.5);
    while row * (row + 1u) / 2u > index {
        row--;
    }
    while (row + 1u) * (row + 2u) / 2u <= index {
        row++;
    }
    return vec2(row, index - row * (row + 1u) / 2u);
}

// Whether anything is wanted of rows that end before `end` and columns from `first` on.
fn is_wanted(end: u32, first: u32) -> bool {
    return !TRAPEZOID || first + params.m < end + params.n;
}

fn epilogue(batch: u32, i: u32, j: u32, sum: f32) -> f32 {
    var value = sum;
    if SCALE != NONE {
        value *= scale[params.scale_offset + batch * params.scale_batch_stride + select(j, i, SCALE == OF_ROWS)];
    }
    if BIAS {
        value += bias[params.bias_offset + batch * params.bias_batch_stride + j];
    }
    if ACTIVATION {
        value = f(value);
    }
    return value;
}
