// dst[b, j, i] = src[b, i, j], bit by bit. A workgroup takes a tile of 32 x 32 through its memory, so that both sides are read and
// written along rows; 32 threads a row, eight rows at a time.

struct Params {
    rows: u32, // of src
    cols: u32,
    across: u32, // tiles of a row of src
    tiles: u32, // of a matrix
    groups: u32, // batch * tiles
    src_offset: u32,
    src_row_stride: u32,
    src_batch_stride: u32,
    dst_offset: u32,
    dst_row_stride: u32,
    dst_batch_stride: u32,
}

const SIDE: u32 = 32u;
const LINE: u32 = 33u; // a column of the tile then lies in 32 banks

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<u32>;
@group(0) @binding(2) var<storage, read_write> dst: array<u32>;

var<workgroup> tile: array<u32, 1056>; // SIDE * LINE

@compute @workgroup_size(WORKGROUP)
fn transpose(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = group_id.y * groups.x + group_id.x;
    if group >= params.groups {
        return;
    }
    let batch = group / params.tiles;
    let place = group % params.tiles;
    let row = place / params.across * SIDE;
    let col = place % params.across * SIDE;
    let column = local % SIDE;
    for (var line = local / SIDE; line < SIDE; line += WORKGROUP / SIDE) {
        if row + line < params.rows && col + column < params.cols {
            let at = params.src_offset + batch * params.src_batch_stride + (row + line) * params.src_row_stride;
            tile[line * LINE + column] = src[at + col + column];
        }
    }
    workgroupBarrier();
    for (var line = local / SIDE; line < SIDE; line += WORKGROUP / SIDE) {
        if col + line < params.cols && row + column < params.rows {
            let at = params.dst_offset + batch * params.dst_batch_stride + (col + line) * params.dst_row_stride;
            dst[at + row + column] = tile[column * LINE + line];
        }
    }
}
