// A round-robin tournament of Jacobi rotations: every round has disjoint pairs, every sweep each pair once. The rotations
// are in Rutishauser's form (Handbook for Automatic Computation II/1, 1971), which adds a small correction to each
// element instead of forming it anew.

// An element needs no rotation below a quarter of the rounding of its pair's diagonal: among equal eigenvalues that is
// noise, and turning it by large angles sweep after sweep would only wear the vectors down.
const NEGLIGIBLE: f32 = 0x1p-26;
// Nor below this; the largest element of the working copy is in [1, 2).
const TINY: f32 = 0x1p-30;

// Index of the workgroup's matrix.
fn matrix(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}

// The k-th pair of a round, smaller index first: the circle method, where the last player stays and the others move on.
// With an odd number of rows one of the players, n, is a bye.
fn pair(k: u32, round: u32, players: u32) -> vec2<u32> {
    let others = players - 1u;
    var p = others;
    if k > 0u {
        p = (round + k) % others;
    }
    let q = (round + others - k) % others;
    return vec2(min(p, q), max(p, q));
}

// Pairs (row, col) with col < row < `pairs`, without gaps: row r of the folded triangle holds rows r and pairs - 1 - r.
fn below_diagonal(index: u32, pairs: u32) -> vec2<u32> {
    let r = index / (pairs - 1u);
    let c = index % (pairs - 1u);
    let long = pairs - 1u - r;
    if c < long {
        return vec2(long, c);
    }
    if r == long {
        return vec2(0u, 0u); // the middle row of an odd triangle has no partner
    }
    return vec2(r, c - long);
}

fn is_negligible(off: f32, pp: f32, qq: f32) -> bool {
    return !(abs(off) > max(TINY, NEGLIGIBLE * sqrt(abs(pp * qq))));
}

struct Rotation {
    sine: f32,
    tau: f32, // tan(angle / 2)
    shift: f32, // what moves from the first diagonal element to the second
}

// The rotation that makes `off`, between the diagonal elements `pp` and `qq`, zero.
fn rotation(off: f32, pp: f32, qq: f32) -> Rotation {
    let theta = 0.5 * (qq - pp) / off;
    var t = 1.0 / (abs(theta) + sqrt(theta * theta + 1.0));
    t = select(t, -t, theta < 0.0);
    let c = 1.0 / sqrt(t * t + 1.0);
    let s = t * c;
    return Rotation(s, s / (1.0 + c), t * off);
}

// A rotation of the pair (x, y).
fn rotate(xy: vec2<f32>, s: f32, tau: f32) -> vec2<f32> {
    return vec2(xy.x - s * (xy.y + tau * xy.x), xy.y + s * (xy.x - tau * xy.y));
}
