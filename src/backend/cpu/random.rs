//! `random_normal`: counter-based normals from integers alone, so that a GPU gives the same bits.

use super::parallel::for_each_piece;

/// Mean of a sum of twelve 16-bit uniforms; its standard deviation is `2^16` up to one part in `2^33`.
const MEAN_OF_TWELVE: i32 = 12 * 65535 / 2;

/// `len` values of stream `stream`; value `i` depends on `(seed, stream, i)` alone.
pub fn normal(len: usize, seed: u64, stream: u32) -> Vec<f32> {
    let mut out = vec![0f32; len];
    let key = [seed as u32, (seed >> 32) as u32];
    for_each_piece(&mut out, 1, |first, piece| {
        for (i, x) in piece.iter_mut().enumerate() {
            *x = normal_at((first + i) as u32, key, stream);
        }
    });
    out
}

/// The centred sum of twelve 16-bit uniforms times `2^-16` (Irwin-Hall): mean 0, variance 1, exact in f32.
fn normal_at(index: u32, key: [u32; 2], stream: u32) -> f32 {
    let mut sum = -MEAN_OF_TWELVE;
    for j in 0..3 {
        for word in threefry2x32(key, [index, stream.wrapping_mul(4).wrapping_add(j)]) {
            sum += (word & 0xffff) as i32 + (word >> 16) as i32;
        }
    }
    sum as f32 * (1.0 / 65536.0)
}

/// Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
pub fn threefry2x32(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];
    const PARITY: u32 = 0x1BD1_1BDA;
    let schedule = [key[0], key[1], PARITY ^ key[0] ^ key[1]];
    let mut x = [counter[0].wrapping_add(key[0]), counter[1].wrapping_add(key[1])];
    for round in 0..20 {
        x[0] = x[0].wrapping_add(x[1]);
        x[1] = x[1].rotate_left(ROTATIONS[round % 8]) ^ x[0];
        if round % 4 == 3 {
            let injection = round / 4 + 1;
            x[0] = x[0].wrapping_add(schedule[injection % 3]);
            x[1] = x[1].wrapping_add(schedule[(injection + 1) % 3]).wrapping_add(injection as u32);
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threefry_gives_the_known_answers_of_its_authors() {
        assert_eq!(threefry2x32([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry2x32([u32::MAX; 2], [u32::MAX; 2]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(
            threefry2x32([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]),
            [0xc492_3a9c, 0x483d_f7a0]
        );
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let n = 1 << 16;
        let x = normal(n, 7, 3);
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
        let variance = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n as f64;
        // five standard errors: 1/sqrt(n) of the mean, sqrt(2/n) of the variance
        assert!(mean.abs() < 5.0 / (n as f64).sqrt(), "mean {mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / n as f64).sqrt(), "variance {variance}");
    }
}
