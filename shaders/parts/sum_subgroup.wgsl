// Three sums over a workgroup at once through its subgroups, of any size: two operations of the hardware for each, and one barrier.

// apart from the workgroup's place: barriers may depend on that, and not on a struct with what differs between threads
struct Thread {
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
}

var<workgroup> sums: array<vec3<f32>, 256>;

// The first lane of the first subgroup gets the sums of the values of all threads.
fn workgroup_sum(value: vec3<f32>, threads: u32, thread: Thread) -> vec3<f32> {
    let sum = subgroupAdd(value);
    if thread.lane == 0u {
        sums[thread.subgroup] = sum;
    }
    workgroupBarrier();
    var total = vec3(0.0);
    if thread.subgroup == 0u {
        for (var i = thread.lane; i < thread.subgroups; i += thread.lanes) {
            total += sums[i];
        }
    }
    return subgroupAdd(total);
}

fn is_first(thread: Thread) -> bool {
    return thread.subgroup == 0u && thread.lane == 0u;
}
