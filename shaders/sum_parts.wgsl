// The second half of a product that was cut in depth: the sum of its parts, in their order, stored as a product is. `a` holds
// the parts, params.k of them, one matrix each.

//# include parts/activation.wgsl
//# include parts/product.wgsl
//# include parts/store_scalar.wgsl

const WORKGROUP: u32 = 256;

@group(0) @binding(1) var<storage, read> a: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn sum_parts(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = (group.y * groups.x + group.x) * WORKGROUP + local;
    if at >= params.m * params.n {
        return;
    }
    let i = at / params.n;
    let j = at % params.n;
    let first = params.a_offset + i * params.a_row_stride + j;
    var sum = 0.0;
    for (var part = 0u; part < params.k; part++) {
        sum += a[first + part * params.a_batch_stride];
    }
    store(0u, i, j, sum);
}
