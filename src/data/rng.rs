//! Random numbers that stay the same from version to version: which samples are drawn is part of a result.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform below `n`, which is not 0 (the bias is below `n / 2^64`).
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// A standard normal, by the sum of twelve uniforms.
    pub fn normal(&mut self) -> f32 {
        let uniform = |word: u64| (word >> 40) as f32 / (1u64 << 24) as f32;
        (0..12).map(|_| uniform(self.next())).sum::<f32>() - 6.0
    }

    /// `k` of `0..n`, ascending, all choices alike.
    pub fn choose(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        let k = k.min(n);
        for i in 0..k {
            let j = i + self.below(n - i);
            all.swap(i, j);
        }
        all.truncate(k);
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_numbers_differ_and_repeat_with_the_seed() {
        let mut first = Rng::new(7).choose(100, 32);
        assert_eq!(first, Rng::new(7).choose(100, 32));
        assert_ne!(first, Rng::new(8).choose(100, 32));
        first.dedup();
        assert_eq!(first.len(), 32);
        assert_eq!(Rng::new(7).choose(3, 32), [0, 1, 2]);
    }
}
