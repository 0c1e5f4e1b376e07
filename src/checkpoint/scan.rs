//! What the bit patterns of stored values say: whether they are finite, and how coarsely they are rounded.

use crate::backend::Dtype;

/// Values looked through before a search may stop. One thread is enough: the work is done where a file is read or written,
/// beside what is computed.
const BLOCK: usize = 1 << 15;

/// Position and kind of the first NaN or infinity among little-endian values.
pub fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, &'static str)> {
    match dtype {
        Dtype::F32 => find(bytes, |v: [u8; 4]| u32::from_le_bytes(v), 0x7f80_0000),
        Dtype::F16 => find(bytes, |v: [u8; 2]| u16::from_le_bytes(v).into(), 0x7c00),
        Dtype::Bf16 => find(bytes, |v: [u8; 2]| u16::from_le_bytes(v).into(), 0x7f80),
    }
}

/// A value is not finite when all bits of its exponent, `mask`, are set.
fn find<const N: usize>(
    bytes: &[u8],
    bits: impl Fn([u8; N]) -> u32,
    mask: u32,
) -> Option<(usize, &'static str)> {
    let (values, _) = bytes.as_chunks::<N>();
    let bad = |v: &[u8; N]| bits(*v) & mask == mask;
    // Whole blocks first: a loop without an exit is vectorized, and nearly every block is clean.
    let holds_bad = |block: &[[u8; N]]| block.iter().fold(false, |any, v| any | bad(v));
    let block = values.chunks(BLOCK).position(holds_bad)?;
    let within = values[block * BLOCK..].iter().position(bad)?;
    let index = block * BLOCK + within;
    let fraction = bits(values[index]) & ((1 << mask.trailing_zeros()) - 1);
    Some((index, if fraction == 0 { "an infinity" } else { "NaN" }))
}

/// Little-endian values as f32.
pub fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::Bf16 => bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
    }
}

/// `sum ulp(w)^2` over 16-bit values: twelve times the expected squared error that rounding to this type left in them.
/// Zero for float32, whose rounding is no concern here. Where `unchanged` has values of the same type, those that are equal to
/// them do not count.
pub fn sum_of_squared_ulps(dtype: Dtype, bytes: &[u8], unchanged: Option<&[u8]>) -> f64 {
    // Exponent bits, and the power of two of one unit in the last place at exponent field 1 (and 0, the subnormals).
    let (shift, mask, unit) = match dtype {
        Dtype::F32 => return 0.0,
        Dtype::F16 => (10, 0x1f, -24),
        Dtype::Bf16 => (7, 0xff, -133),
    };
    // How often each exponent occurs.
    let field = |value: &[u8; 2]| usize::from((u16::from_le_bytes(*value) >> shift) & mask);
    let values = bytes.as_chunks().0;
    let count = match unchanged {
        None => histogram(values, |_, value| field(value)),
        // what is not counted goes where nobody looks: a branch would be foreseen by chance
        Some(other) if other.len() < bytes.len() => return sum_of_squared_ulps(dtype, bytes, None),
        Some(other) => {
            let other = other.as_chunks().0;
            histogram(values, |i, value| if *value == other[i] { NOT_COUNTED } else { field(value) })
        }
    };
    let squared_ulp = |field: usize| 4f64.powi(unit + field.max(1) as i32 - 1);
    count[..NOT_COUNTED].iter().enumerate().map(|(field, &n)| n as f64 * squared_ulp(field)).sum()
}

/// Behind all exponents.
const NOT_COUNTED: usize = 256;

/// Equal exponents follow each other: several sets of counts, so that one does not wait for the other.
fn histogram(values: &[[u8; 2]], field: impl Fn(usize, &[u8; 2]) -> usize) -> [u64; NOT_COUNTED + 1] {
    const SETS: usize = 4;
    let mut counts = [[0u64; NOT_COUNTED + 1]; SETS];
    let (blocks, rest) = values.as_chunks::<SETS>();
    for (block, values) in blocks.iter().enumerate() {
        for (set, (count, value)) in counts.iter_mut().zip(values).enumerate() {
            count[field(SETS * block + set, value)] += 1;
        }
    }
    let first = values.len() - rest.len();
    rest.iter().enumerate().for_each(|(i, value)| counts[0][field(first + i, value)] += 1);
    std::array::from_fn(|at| counts.iter().map(|count| count[at]).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn f16s(values: &[f16]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found_and_named() {
        let mut values = vec![f16::MAX; 100_000];
        assert_eq!(first_not_finite(Dtype::F16, &f16s(&values)), None);
        values[90_000] = f16::NEG_INFINITY;
        values[90_001] = f16::NAN;
        assert_eq!(first_not_finite(Dtype::F16, &f16s(&values)), Some((90_000, "an infinity")));

        let floats = [1.0f32, f32::MAX, f32::NAN].map(f32::to_le_bytes).concat();
        assert_eq!(first_not_finite(Dtype::F32, &floats), Some((2, "NaN")));
        let floats = [bf16::MIN, bf16::INFINITY].map(bf16::to_le_bytes).concat();
        assert_eq!(first_not_finite(Dtype::Bf16, &floats), Some((1, "an infinity")));
    }

    #[test]
    fn an_ulp_is_the_gap_to_the_next_value() {
        for value in [0.0, 1e-7, 0.02, 1.0, 1.5, 1000.0] {
            let half = f16::from_f64(value);
            let gap = f16::from_bits(half.to_bits() + 1).to_f64() - half.to_f64();
            assert_eq!(sum_of_squared_ulps(Dtype::F16, &half.to_le_bytes(), None), gap * gap, "{value}");
            let brain = bf16::from_f64(value);
            let gap = bf16::from_bits(brain.to_bits() + 1).to_f64() - brain.to_f64();
            assert_eq!(sum_of_squared_ulps(Dtype::Bf16, &brain.to_le_bytes(), None), gap * gap, "{value}");
        }
    }

    #[test]
    fn values_that_did_not_change_have_no_rounding_of_their_own() {
        let values = f16s(&[f16::from_f32(1.0), f16::from_f32(3.0)]);
        let other = f16s(&[f16::from_f32(1.0), f16::from_f32(2.5)]);
        let last = f16s(&[f16::from_f32(3.0)]);
        let changed = sum_of_squared_ulps(Dtype::F16, &values, Some(&other));
        assert_eq!(
            sum_of_squared_ulps(Dtype::F16, &values, Some(&other[..2])),
            sum_of_squared_ulps(Dtype::F16, &values, None),
            "others of another tensor tell nothing"
        );
        assert_eq!(changed, sum_of_squared_ulps(Dtype::F16, &last, None));
    }
}
