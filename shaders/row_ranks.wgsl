// The rank of every number in its row by magnitude, from 0 for the smallest; of equal ones the first in the row has the highest.
// A workgroup sorts a row by its bits, four at a time from the lowest: every thread counts and then places a part of the row, in
// order, so that the sort is stable.

struct Params {
    rows: u32,
    cols: u32,
    x_offset: u32,
    order_offset: u32, // two rows for each row
    out_offset: u32,
}

const THREADS: u32 = 128;
const DIGITS: u32 = 16;
const PASSES: u32 = 8;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> order: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

var<workgroup> counts: array<u32, 2048>; // of each digit, thread by thread
var<workgroup> sums: array<u32, 128>;

@compute @workgroup_size(THREADS)
fn row_ranks(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let cols = params.cols;
    let values = params.x_offset + row * cols;
    let part = (cols + THREADS - 1u) / THREADS;
    let begin = min(local * part, cols);
    let end = min(begin + part, cols);
    var now = params.order_offset + 2u * row * cols;
    var next = now + cols;
    for (var j = begin; j < end; j++) {
        order[now + j] = cols - 1u - j;
    }
    for (var pass_ = 0u; pass_ < PASSES; pass_++) {
        for (var digit = 0u; digit < DIGITS; digit++) {
            counts[digit * THREADS + local] = 0u;
        }
        storageBarrier();
        workgroupBarrier();
        for (var j = begin; j < end; j++) {
            let bits = x[values + order[now + j]] & 0x7fffffffu;
            counts[((bits >> (4u * pass_)) & 15u) * THREADS + local] += 1u;
        }
        workgroupBarrier();
        var sum = 0u;
        for (var k = 0u; k < DIGITS; k++) {
            let count = counts[local * DIGITS + k];
            counts[local * DIGITS + k] = sum;
            sum += count;
        }
        sums[local] = sum;
        workgroupBarrier();
        if local == 0u {
            var total = 0u;
            for (var k = 0u; k < THREADS; k++) {
                let count = sums[k];
                sums[k] = total;
                total += count;
            }
        }
        workgroupBarrier();
        for (var j = begin; j < end; j++) {
            let element = order[now + j];
            let bits = x[values + element] & 0x7fffffffu;
            let slot = ((bits >> (4u * pass_)) & 15u) * THREADS + local;
            order[next + counts[slot] + sums[slot / DIGITS]] = element;
            counts[slot] += 1u;
        }
        storageBarrier();
        workgroupBarrier();
        let other = now;
        now = next;
        next = other;
    }
    for (var j = begin; j < end; j++) {
        out[params.out_offset + row * cols + order[now + j]] = f32(j);
    }
}
