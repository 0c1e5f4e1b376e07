// How a product reads its operands: one number at a time, wherever they lie. Addresses count numbers.

@group(0) @binding(1) var<storage, read> a: array<u32>;
@group(0) @binding(2) var<storage, read> b: array<u32>;

fn load_a(at: u32) -> f32 {
    if FORMAT_A == F32 {
        return bitcast<f32>(a[at]);
    }
    return widen(a[at / 2u], at, FORMAT_A);
}

fn load_b(at: u32) -> f32 {
    if FORMAT_B == F32 {
        return bitcast<f32>(b[at]);
    }
    return widen(b[at / 2u], at, FORMAT_B);
}
