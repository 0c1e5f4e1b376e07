// Three sums over a workgroup at once, as a tree of fixed shape.

// apart from the workgroup's place: barriers may depend on that, and not on a struct with what differs between threads
struct Thread {
    @builtin(local_invocation_index) local: u32,
}

var<workgroup> sums: array<vec3<f32>, 256>;

// The first thread gets the sums of the values of `threads` threads, a power of two.
fn workgroup_sum(value: vec3<f32>, threads: u32, thread: Thread) -> vec3<f32> {
    let local = thread.local;
    sums[local] = value;
    for (var half = threads / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half {
            sums[local] += sums[local + half];
        }
    }
    return sums[0];
}

fn is_first(thread: Thread) -> bool {
    return thread.local == 0u;
}
