// Sums over rows: out[b, i, c] = sum of x[b, i, j] y[b, i, j] over the columns j of chunk c. A workgroup takes one chunk
// of one row. Long rows are summed in two such steps, the second over the chunks.

//# include parts/sum_{tree,subgroup}.wgsl

//# include parts/squares.wgsl

struct Params {
    rows: u32,
    cols: u32,
    chunks: u32,
    chunk: u32, // columns of a chunk
    groups: u32, // batch * rows * chunks
    x_offset: u32,
    x_row_stride: u32,
    x_batch_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_batch_stride: u32,
    out_offset: u32,
    out_row_stride: u32,
    out_batch_stride: u32,
}

const PRODUCTS: u32 = 0;
const SQUARES: u32 = 1;
const SUMS: u32 = 2;

override WORKGROUP: u32 = 256; // a power of two, at most 256
override TERMS: u32 = PRODUCTS;
override ROOT: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

fn term(x_at: u32, y_at: u32) -> f32 {
    let value = x[x_at];
    if TERMS == SUMS {
        return value;
    }
    return value * y[y_at];
}

@compute @workgroup_size(WORKGROUP)
fn reduce_rows(thread: Thread) {
    let local = thread.local;
    let group = thread.group.y * thread.groups.x + thread.group.x;
    if group >= params.groups {
        return;
    }
    let chunk = group % params.chunks;
    let row = (group / params.chunks) % params.rows;
    let batch = group / params.chunks / params.rows;
    let x_row = params.x_offset + batch * params.x_batch_stride + row * params.x_row_stride;
    let y_row = params.y_offset + batch * params.y_batch_stride + row * params.y_row_stride;
    let end = min(params.cols, (chunk + 1u) * params.chunk);
    let at = params.out_offset + batch * params.out_batch_stride + row * params.out_row_stride + chunk;

    if TERMS == SQUARES {
        var sums = Squares(0.0, 0.0, 0.0);
        for (var j = chunk * params.chunk + local; j < end; j += WORKGROUP) {
            sums = with_square(sums, x[x_row + j]);
        }
        let small = workgroup_sum(sums.small, WORKGROUP, thread);
        workgroupBarrier();
        let middle = workgroup_sum(sums.middle, WORKGROUP, thread);
        workgroupBarrier();
        let total = Squares(small, middle, workgroup_sum(sums.large, WORKGROUP, thread));
        if is_first(thread) {
            if ROOT {
                out[at] = root(total);
            } else {
                out[at] = sum_of(total);
            }
        }
    } else {
        var sum = 0.0;
        for (var j = chunk * params.chunk + local; j < end; j += WORKGROUP) {
            sum += term(x_row + j, y_row + j);
        }
        let total = workgroup_sum(sum, WORKGROUP, thread);
        if is_first(thread) {
            if ROOT {
                out[at] = sqrt(total);
            } else {
                out[at] = total;
            }
        }
    }
}
