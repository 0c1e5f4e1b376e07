//! What the processor can do at most: the twins of `peak_fma.wgsl` and `peak_copy.wgsl`, on all threads.

use crate::host::Instant;
use rayon::prelude::*;
use std::hint::black_box;

/// Steps of every chain in one task, and tasks in one sample.
const STEPS: usize = 20_000;
const TASKS: usize = 64;

/// Elements copied in one sample: more than caches hold.
const ELEMENTS: usize = 16 << 20;

/// 1e9 operations a second, of multiply-adds in as many independent chains as the registers hold.
pub(super) fn gflops(seconds: f64) -> f64 {
    let chains = chains(1).1;
    let best = fastest(seconds, || {
        (0..TASKS).into_par_iter().for_each(|_| {
            black_box(self::chains(black_box(STEPS)));
        });
    });
    2.0 * (chains * STEPS * TASKS) as f64 / best / 1e9
}

/// 1e9 bytes a second, read and written, of a copy.
pub(super) fn gbytes(seconds: f64) -> f64 {
    let (src, mut dst) = (vec![1f32; ELEMENTS], vec![0f32; ELEMENTS]);
    let best = fastest(seconds, || {
        let piece = ELEMENTS.div_ceil(4 * rayon::current_num_threads());
        dst.par_chunks_mut(piece).zip(src.par_chunks(piece)).for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&mut dst);
    });
    8.0 * ELEMENTS as f64 / best / 1e9
}

fn fastest(seconds: f64, mut run: impl FnMut()) -> f64 {
    let (started, mut best) = (Instant::now(), f64::INFINITY);
    while best.is_infinite() || started.elapsed().as_secs_f64() < seconds {
        let sample = Instant::now();
        run();
        best = best.min(sample.elapsed().as_secs_f64());
    }
    best
}

/// Steps so many chains as suit the widest registers of this processor; the result, and how many they were.
fn chains(steps: usize) -> (f32, usize) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the feature.
            return (unsafe { with_avx512(steps) }, 10 * 16);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has both features.
            return (unsafe { with_avx2(steps) }, 10 * 8);
        }
        (step_separately::<48>(steps), 48)
    }
    #[cfg(not(target_arch = "x86_64"))]
    (step_fused::<64>(steps), 64)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn with_avx512(steps: usize) -> f32 {
    step_fused::<160>(steps)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2(steps: usize) -> f32 {
    step_fused::<80>(steps)
}

#[inline(always)]
fn step_fused<const N: usize>(steps: usize) -> f32 {
    step::<N>(steps, |x, factor, term| x.mul_add(factor, term))
}

/// Where the processor has no fused multiply-add.
#[cfg(target_arch = "x86_64")]
fn step_separately<const N: usize>(steps: usize) -> f32 {
    step::<N>(steps, |x, factor, term| x * factor + term)
}

#[inline(always)]
fn step<const N: usize>(steps: usize, advance: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let (factor, term) = (black_box(0.999f32), black_box(0.001f32));
    let mut x: [f32; N] = std::array::from_fn(|i| i as f32);
    for _ in 0..steps {
        x = x.map(|x| advance(x, factor, term));
    }
    x.iter().sum()
}
