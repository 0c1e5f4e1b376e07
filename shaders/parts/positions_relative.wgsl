// What the j-th score of a row gets for how far its key is from the query.
@group(0) @binding(2) var<storage, read> positions: array<f32>;

fn position(place: u32, j: u32) -> f32 {
    return positions[place + j];
}
