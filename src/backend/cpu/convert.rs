//! `unpack` and `pack`: 16-bit floats to f32 and back, to nearest, ties to even.

use super::parallel::for_each_piece;
use super::{Dtype, memory};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

pub fn unpack(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let mut values = memory::take(bytes.len() / dtype.size());
    unpack_into(dtype, bytes, &mut values);
    values
}

/// As many values as there are bytes of.
pub fn unpack_into(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    match dtype {
        // copied as bytes: the source need not be aligned
        Dtype::F32 => bytemuck::cast_slice_mut::<f32, u8>(values).copy_from_slice(bytes),
        Dtype::F16 => for_each_piece(values, 1, |first, out| {
            f16_bits(&bytes[2 * first..2 * (first + out.len())], |h: &[f16]| h.convert_to_f32_slice(out));
        }),
        Dtype::Bf16 => for_each_piece(values, 1, |first, out| {
            for (x, pair) in out.iter_mut().zip(bytes[2 * first..].chunks_exact(2)) {
                *x = bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
            }
        }),
    }
}

/// Values less others, one for each.
pub fn unpack_less(dtype: Dtype, bytes: &[u8], less: &[f32], values: &mut [f32]) {
    for_each_piece(values, 1, |first, out| {
        let less = &less[first..first + out.len()];
        let bytes = &bytes[first * dtype.size()..(first + out.len()) * dtype.size()];
        match dtype {
            // as `axpby` with factors of 1 and -1
            Dtype::Bf16 => {
                for ((x, pair), less) in out.iter_mut().zip(bytes.as_chunks().0).zip(less) {
                    *x = bf16::from_le_bytes(*pair).to_f32() - less;
                }
            }
            Dtype::F32 => {
                for ((x, value), less) in out.iter_mut().zip(bytes.as_chunks().0).zip(less) {
                    *x = f32::from_le_bytes(*value) - less;
                }
            }
            Dtype::F16 => {
                f16_bits(bytes, |halves: &[f16]| halves.convert_to_f32_slice(out));
                out.iter_mut().zip(less).for_each(|(x, less)| *x -= less);
            }
        }
    });
}

/// `base + factor x`, rounded.
pub fn pack_sum(dtype: Dtype, base: &[f32], factor: f32, x: &[f32]) -> Vec<u8> {
    let sum = |base: f32, x: f32| base + factor * x;
    let mut bytes = vec![0u8; dtype.size() * x.len()];
    for_each_piece(&mut bytes, dtype.size(), |first, out| {
        let range = first / dtype.size()..(first + out.len()) / dtype.size();
        let terms = base[range.clone()].iter().zip(&x[range]).map(|(&base, &x)| sum(base, x));
        match dtype {
            Dtype::F32 => out.as_chunks_mut().0.iter_mut().zip(terms).for_each(|(b, x)| *b = x.to_le_bytes()),
            Dtype::F16 => {
                let sums: Vec<f32> = terms.collect();
                let mut halves = vec![f16::ZERO; sums.len()];
                halves.convert_from_f32_slice(&sums);
                out.copy_from_slice(bytemuck::cast_slice(halves.reinterpret_cast()));
            }
            Dtype::Bf16 => {
                let rounded = terms.map(|x| bf16::from_f32(x).to_le_bytes());
                out.as_chunks_mut().0.iter_mut().zip(rounded).for_each(|(b, x)| *b = x);
            }
        }
    });
    bytes
}

/// Hands over little-endian bytes as f16 values, copied where they are not aligned.
fn f16_bits(bytes: &[u8], use_them: impl FnOnce(&[f16])) {
    match bytemuck::try_cast_slice::<u8, u16>(bytes) {
        Ok(bits) => use_them(half::slice::HalfBitsSliceExt::reinterpret_cast(bits)),
        Err(_) => {
            use_them(&bytes.chunks_exact(2).map(|p| f16::from_le_bytes([p[0], p[1]])).collect::<Vec<_>>())
        }
    }
}

pub fn pack(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    if dtype == Dtype::F32 {
        return bytemuck::cast_slice(values).to_vec();
    }
    let mut bytes = vec![0u8; 2 * values.len()];
    for_each_piece(&mut bytes, 2, |first, out| {
        let from = &values[first / 2..(first + out.len()) / 2];
        match dtype {
            Dtype::F16 => {
                let mut halves = vec![f16::ZERO; from.len()];
                halves.convert_from_f32_slice(from);
                out.copy_from_slice(bytemuck::cast_slice(halves.reinterpret_cast()));
            }
            _ => out.chunks_exact_mut(2).zip(from).for_each(|(b, &x)| {
                b.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
            }),
        }
    });
    bytes
}
