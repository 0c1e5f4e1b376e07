// The sum of magnitudes, exactly: a number is an integer of 24 bits times a power of two, and the integers of each power are
// summed in three pieces of 8 bits. Of 2^24 numbers no piece outgrows 32 bits. A workgroup sums on its own first.

struct Params {
    count: u32,
    x_offset: u32,
    out_offset: u32,
    each: u32, // numbers of a thread
}

const SUMS: u32 = 768; // 256 exponents, three pieces each

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> sums: array<atomic<u32>>;

var<workgroup> own: array<atomic<u32>, 768>;

@compute @workgroup_size(WORKGROUP)
fn magnitude_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    for (var k = local; k < SUMS; k += WORKGROUP) {
        atomicStore(&own[k], 0u);
    }
    workgroupBarrier();
    let first = (group.y * groups.x + group.x) * WORKGROUP * params.each + local;
    for (var k = 0u; k < params.each; k++) {
        let i = first + k * WORKGROUP;
        if i < params.count {
            let bits = x[params.x_offset + i];
            let exponent = (bits >> 23u) & 0xffu;
            let mantissa = (bits & 0x7fffffu) | select(0x800000u, 0u, exponent == 0u);
            if mantissa != 0u {
                atomicAdd(&own[3u * exponent], mantissa & 0xffu);
                atomicAdd(&own[3u * exponent + 1u], (mantissa >> 8u) & 0xffu);
                atomicAdd(&own[3u * exponent + 2u], mantissa >> 16u);
            }
        }
    }
    workgroupBarrier();
    for (var k = local; k < SUMS; k += WORKGROUP) {
        let sum = atomicLoad(&own[k]);
        if sum != 0u {
            atomicAdd(&sums[params.out_offset + k], sum);
        }
    }
}
