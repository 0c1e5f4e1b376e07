// Sums over rows: out[b, i, c] = sum of x[b, i, j] y[b, i, j] over the columns j of chunk c. A workgroup takes one chunk
// of one row. Long rows are summed in two such steps, the second over the chunks. Each thread has four loads under way.

//# include parts/sum_{tree,subgroup,vec4=tree,vec4_subgroup=subgroup}.wgsl
//# include parts/elements_{scalar,scalar,vec4,vec4}.wgsl
//# include parts/within_{scalar,scalar,vec4,vec4}.wgsl
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
@group(0) @binding(1) var<storage, read> x: array<Elements>;
@group(0) @binding(2) var<storage, read> y: array<Elements>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

fn term(x_at: u32, y_at: u32) -> Elements {
    let value = x[x_at];
    if TERMS == SUMS {
        return value;
    }
    return value * y[y_at];
}

@compute @workgroup_size(WORKGROUP)
fn reduce_rows(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let local = thread.local;
    let group = group_id.y * groups.x + group_id.x;
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

    var j = chunk * params.chunk + local;
    if TERMS == SQUARES {
        var sums = NO_SQUARES;
        for (; j + 3u * WORKGROUP < end; j += 4u * WORKGROUP) {
            let at = x_row + j;
            let first = x[at];
            let second = x[at + WORKGROUP];
            let third = x[at + 2u * WORKGROUP];
            let fourth = x[at + 3u * WORKGROUP];
            sums = with_square(with_square(with_square(with_square(sums, first), second), third), fourth);
        }
        for (; j < end; j += WORKGROUP) {
            sums = with_square(sums, x[x_row + j]);
        }
        let own = vec3(sum_within(sums.small), sum_within(sums.middle), sum_within(sums.large));
        let all = workgroup_sum(own, WORKGROUP, thread);
        if is_first(thread) {
            let total = Squares(Elements(all.x), Elements(all.y), Elements(all.z));
            if ROOT {
                out[at] = largest_within(root(total));
            } else {
                out[at] = largest_within(sum_of(total));
            }
        }
    } else {
        var sum = Elements(0.0);
        for (; j + 3u * WORKGROUP < end; j += 4u * WORKGROUP) {
            let first = term(x_row + j, y_row + j);
            let second = term(x_row + j + WORKGROUP, y_row + j + WORKGROUP);
            let third = term(x_row + j + 2u * WORKGROUP, y_row + j + 2u * WORKGROUP);
            let fourth = term(x_row + j + 3u * WORKGROUP, y_row + j + 3u * WORKGROUP);
            sum += (first + second) + (third + fourth);
        }
        for (; j < end; j += WORKGROUP) {
            sum += term(x_row + j, y_row + j);
        }
        let total = workgroup_sum(vec3(sum_within(sum), 0.0, 0.0), WORKGROUP, thread).x;
        if is_first(thread) {
            if ROOT {
                out[at] = sqrt(total);
            } else {
                out[at] = total;
            }
        }
    }
}
