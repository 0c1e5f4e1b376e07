// Sums over columns: out[b, c, j] = sum of x[b, i, j] y[b, i, j] over the rows i of chunk c. A thread takes one column
// of one chunk, or four of them. Tall matrices are summed in two such steps, the second over the chunks. Each thread has four
// loads under way.

//# include parts/elements_{scalar,vec4}.wgsl
//# include parts/squares.wgsl

struct Params {
    rows: u32,
    cols: u32,
    chunks: u32,
    chunk: u32, // rows of a chunk
    groups: u32, // batch * chunks * ceil(cols / WORKGROUP)
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

const WORKGROUP: u32 = 64;
override TERMS: u32 = PRODUCTS;
override ROOT: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elements>;
@group(0) @binding(2) var<storage, read> y: array<Elements>;
@group(0) @binding(3) var<storage, read_write> out: array<Elements>;

fn term(x_at: u32, y_at: u32) -> Elements {
    let value = x[x_at];
    if TERMS == SUMS {
        return value;
    }
    return value * y[y_at];
}

@compute @workgroup_size(WORKGROUP)
fn reduce_columns(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = group_id.y * groups.x + group_id.x;
    let across = (params.cols + WORKGROUP - 1u) / WORKGROUP;
    let col = (group % across) * WORKGROUP + local;
    if group >= params.groups || col >= params.cols {
        return;
    }
    let chunk = (group / across) % params.chunks;
    let batch = group / across / params.chunks;
    let x_col = params.x_offset + batch * params.x_batch_stride + col;
    let y_col = params.y_offset + batch * params.y_batch_stride + col;
    let end = min(params.rows, (chunk + 1u) * params.chunk);
    let at = params.out_offset + batch * params.out_batch_stride + chunk * params.out_row_stride + col;

    var i = chunk * params.chunk;
    var from_x = x_col + i * params.x_row_stride;
    var from_y = y_col + i * params.y_row_stride;
    if TERMS == SQUARES {
        var sums = NO_SQUARES;
        for (; i + 3u < end; i += 4u) {
            let first = x[from_x];
            let second = x[from_x + params.x_row_stride];
            let third = x[from_x + 2u * params.x_row_stride];
            let fourth = x[from_x + 3u * params.x_row_stride];
            sums = with_square(with_square(with_square(with_square(sums, first), second), third), fourth);
            from_x += 4u * params.x_row_stride;
        }
        for (; i < end; i++) {
            sums = with_square(sums, x[from_x]);
            from_x += params.x_row_stride;
        }
        if ROOT {
            out[at] = root(sums);
        } else {
            out[at] = sum_of(sums);
        }
    } else {
        var sum = Elements(0.0);
        for (; i + 3u < end; i += 4u) {
            let first = term(from_x, from_y);
            let second = term(from_x + params.x_row_stride, from_y + params.y_row_stride);
            let third = term(from_x + 2u * params.x_row_stride, from_y + 2u * params.y_row_stride);
            let fourth = term(from_x + 3u * params.x_row_stride, from_y + 3u * params.y_row_stride);
            sum += (first + second) + (third + fourth);
            from_x += 4u * params.x_row_stride;
            from_y += 4u * params.y_row_stride;
        }
        for (; i < end; i++) {
            sum += term(from_x, from_y);
            from_x += params.x_row_stride;
            from_y += params.y_row_stride;
        }
        if ROOT {
            out[at] = sqrt(sum);
        } else {
            out[at] = sum;
        }
    }
}
