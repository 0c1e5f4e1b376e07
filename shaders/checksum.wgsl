// The sum, modulo 2^32, of a number made of every word and of its place: a word that changes on its way to the host, and most
// words that change places, change it. Integers, so that the order of the additions does not matter.

struct Params {
    count: u32,
    x_offset: u32,
    first: u32, // place of the first word
    out_offset: u32,
}

const WORKGROUP: u32 = 256;
const WORDS: u32 = 16; // of each thread

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> sums: array<atomic<u32>>;

var<workgroup> total: atomic<u32>;

fn mixed(word: u32, place: u32) -> u32 {
    let product = (word ^ (place * 0x9e3779b9u)) * 0x85ebca6bu;
    return product ^ (product >> 16u);
}

@compute @workgroup_size(WORKGROUP)
fn checksum(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    if local == 0u {
        atomicStore(&total, 0u);
    }
    workgroupBarrier();
    let start = (group.y * groups.x + group.x) * WORKGROUP * WORDS + local;
    var sum = 0u;
    for (var k = 0u; k < WORDS; k += 1u) {
        let i = start + k * WORKGROUP;
        if i < params.count {
            sum += mixed(x[params.x_offset + i], params.first + i);
        }
    }
    atomicAdd(&total, sum);
    workgroupBarrier();
    if local == 0u {
        atomicAdd(&sums[params.out_offset], atomicLoad(&total));
    }
}
