// Products of 32 x 32 by the 64 threads of a workgroup, each of which makes a block of 4 x 4. A block is kept as a mat4x4 whose
// columns are the block's rows: (a b) is then the WGSL product b * a.

const SIDE: u32 = 32;
const FOURS: u32 = 8; // of a row
const THREADS: u32 = 64;

// Both operands by depth, in fours: the left one transposed.
var<workgroup> left: array<vec4<f32>, SIDE * FOURS>;
var<workgroup> right: array<vec4<f32>, SIDE * FOURS>;

// Where a thread's block lies, in fours.
fn place(local: u32) -> vec2<u32> {
    return vec2(local / FOURS, local % FOURS);
}

// A thread's block of the product.
fn product(at: vec2<u32>) -> mat4x4<f32> {
    var sum = mat4x4<f32>();
    for (var depth = 0u; depth < SIDE; depth += 4u) {
        let a = depth * FOURS + at.x;
        let b = depth * FOURS + at.y;
        sum += outer(left[a], right[b]);
        sum += outer(left[a + FOURS], right[b + FOURS]);
        sum += outer(left[a + 2u * FOURS], right[b + 2u * FOURS]);
        sum += outer(left[a + 3u * FOURS], right[b + 3u * FOURS]);
    }
    return sum;
}

// Puts a thread's block of the left operand where all find it.
fn share_left(at: vec2<u32>, block: mat4x4<f32>) {
    let across = transpose(block);
    let first = 4u * at.y * FOURS + at.x;
    left[first] = across[0];
    left[first + FOURS] = across[1];
    left[first + 2u * FOURS] = across[2];
    left[first + 3u * FOURS] = across[3];
}

// Puts a thread's block of the right operand where all find it.
fn share_right(at: vec2<u32>, block: mat4x4<f32>) {
    let first = 4u * at.x * FOURS + at.y;
    right[first] = block[0];
    right[first + FOURS] = block[1];
    right[first + 2u * FOURS] = block[2];
    right[first + 3u * FOURS] = block[3];
}
