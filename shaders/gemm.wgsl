// c = f(s (alpha op(a) op(b) + beta c) + bias) for a batch of matrices, on hardware GPUs: both operands pass through workgroup
// memory in slabs (parts/slab.wgsl), and a thread makes one block of 4 x 4 of the tile, two or four. How numbers are read and
// stored, and of what type, is in parts/lines_*.wgsl and parts/store_*.wgsl.

//# include parts/formats.wgsl
//# include parts/lines_{scalar,vec4,vec2}.wgsl
//# include parts/activation.wgsl
//# include parts/product.wgsl
//# include parts/outer.wgsl
//# include parts/store_{scalar,vec4,vec4}.wgsl
//# include parts/slab.wgsl

// Of a workgroup, apart from what differs between its threads: barriers may depend on this alone.
struct Workgroup {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
}

fn tile_index(workgroup: Workgroup) -> u32 {
    return workgroup.group.y * workgroup.groups.x + workgroup.group.x;
}

// Where in a tile a thread's first block lies, in fours. 32 neighbours are 4 x 8, in such an order that of two side by side both
// read the same four of op(b), and in every second pair the same of op(a): a load from workgroup memory then takes NVIDIA half
// the time.
fn place(local: u32) -> vec2<u32> {
    let lane = local % 32u;
    let group = local / 32u;
    let groups_across = ACROSS / 8u;
    let down = (lane & 1u) + 2u * (lane >> 4u);
    let across = (lane >> 1u) & 7u;
    return vec2(down + 4u * (group / groups_across), across + 8u * (group % groups_across));
}

// 4 x 4 a thread.
@compute @workgroup_size(WORKGROUP)
fn gemm_small(workgroup: Workgroup, @builtin(local_invocation_index) local: u32) {
    let index = tile_index(workgroup);
    if index >= params.tiles {
        return;
    }
    let batch = workgroup.group.z;
    let corner = vec2(TILE_M, TILE_N) * tile_at(index);
    if !is_wanted(corner.x + TILE_M, corner.y) {
        return;
    }
    let at = place(local);
    var own = own_block(local, batch, corner);
    var lines: Lines;
    fetch(local, own, &lines);
    var sum = mat4x4<f32>();
    for (var k = 0u; k < params.k; k += DEPTH) {
        stage(local, own, k, lines);
        workgroupBarrier();
        own.at += own.slab;
        // Around a branch, because NVIDIA's compiler unrolls the loop below, and puts what no branch keeps at its end.
        if k + DEPTH < params.k {
            fetch(local, own, &lines);
        }
        for (var depth = 0u; depth < DEPTH; depth += 4u) {
            let a = depth * FOURS_M + permuted(at.x, depth);
            let b = FIRST_OF_B + depth * FOURS_N + permuted(at.y, depth);
            sum += outer(slab[a], slab[b]);
            sum += outer(slab[a + FOURS_M], slab[b + FOURS_N]);
            sum += outer(slab[a + 2u * FOURS_M], slab[b + 2u * FOURS_N]);
            sum += outer(slab[a + 3u * FOURS_M], slab[b + 3u * FOURS_N]);
        }
        workgroupBarrier();
    }
    store_block(batch, corner.x + 4u * at.x, corner.y + 4u * at.y, sum);
}

// 8 x 4 a thread, in two blocks half a tile apart, so that threads side by side read side by side.
@compute @workgroup_size(WORKGROUP)
fn gemm_medium(workgroup: Workgroup, @builtin(local_invocation_index) local: u32) {
    let index = tile_index(workgroup);
    if index >= params.tiles {
        return;
    }
    let batch = workgroup.group.z;
    let corner = vec2(TILE_M, TILE_N) * tile_at(index);
    if !is_wanted(corner.x + TILE_M, corner.y) {
        return;
    }
    let at = place(local);
    var own = own_block(local, batch, corner);
    var lines: Lines;
    fetch(local, own, &lines);
    var upper = mat4x4<f32>();
    var lower = mat4x4<f32>();
    for (var k = 0u; k < params.k; k += DEPTH) {
        stage(local, own, k, lines);
        workgroupBarrier();
        own.at += own.slab;
        fetch(local, own, &lines);
        for (var depth = 0u; depth < DEPTH; depth += 4u) {
            let a = depth * FOURS_M + permuted(at.x, depth);
            let b = FIRST_OF_B + depth * FOURS_N + permuted(at.y, depth);
            let y0 = slab[b];
            upper += outer(slab[a], y0);
            lower += outer(slab[a + DOWN], y0);
            let y1 = slab[b + FOURS_N];
            upper += outer(slab[a + FOURS_M], y1);
            lower += outer(slab[a + FOURS_M + DOWN], y1);
            let y2 = slab[b + 2u * FOURS_N];
            upper += outer(slab[a + 2u * FOURS_M], y2);
            lower += outer(slab[a + 2u * FOURS_M + DOWN], y2);
            let y3 = slab[b + 3u * FOURS_N];
            upper += outer(slab[a + 3u * FOURS_M], y3);
            lower += outer(slab[a + 3u * FOURS_M + DOWN], y3);
        }
        workgroupBarrier();
    }
    let i = corner.x + 4u * at.x;
    let j = corner.y + 4u * at.y;
    store_block(batch, i, j, upper);
    store_block(batch, i + 4u * DOWN, j, lower);
}

// 8 x 8 a thread, in four blocks half a tile apart.
@compute @workgroup_size(WORKGROUP)
fn gemm_large(workgroup: Workgroup, @builtin(local_invocation_index) local: u32) {
    let index = tile_index(workgroup);
    if index >= params.tiles {
        return;
    }
    let batch = workgroup.group.z;
    let corner = vec2(TILE_M, TILE_N) * tile_at(index);
    if !is_wanted(corner.x + TILE_M, corner.y) {
        return;
    }
    let at = place(local);
    var own = own_block(local, batch, corner);
    var lines: Lines;
    fetch(local, own, &lines);
    var sum00 = mat4x4<f32>();
    var sum01 = mat4x4<f32>();
    var sum10 = mat4x4<f32>();
    var sum11 = mat4x4<f32>();
    for (var k = 0u; k < params.k; k += DEPTH) {
        stage(local, own, k, lines);
        workgroupBarrier();
        own.at += own.slab;
        fetch(local, own, &lines);
        // Two depths at a time: with one too much else is done between the products, with four Intel runs out of registers.
        for (var depth = 0u; depth < DEPTH; depth += 2u) {
            let a = depth * FOURS_M + permuted(at.x, depth);
            let b = FIRST_OF_B + depth * FOURS_N + permuted(at.y, depth);
            let x0 = slab[a];
            let x1 = slab[a + DOWN];
            let y0 = slab[b];
            let y1 = slab[b + ACROSS];
            sum00 += outer(x0, y0);
            sum01 += outer(x0, y1);
            sum10 += outer(x1, y0);
            sum11 += outer(x1, y1);
            let x2 = slab[a + FOURS_M];
            let x3 = slab[a + FOURS_M + DOWN];
            let y2 = slab[b + FOURS_N];
            let y3 = slab[b + FOURS_N + ACROSS];
            sum00 += outer(x2, y2);
            sum01 += outer(x2, y3);
            sum10 += outer(x3, y2);
            sum11 += outer(x3, y3);
        }
        workgroupBarrier();
    }
    let i = corner.x + 4u * at.x;
    let j = corner.y + 4u * at.y;
    store_block(batch, i, j, sum00);
    store_block(batch, i, j + 4u * ACROSS, sum01);
    store_block(batch, i + 4u * DOWN, j, sum10);
    store_block(batch, i + 4u * DOWN, j + 4u * ACROSS, sum11);
}
