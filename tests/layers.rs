//! The layers of a forward pass against plain f64 loops, at odd sizes, on every device.

#[path = "common/claims.rs"]
mod claims;
#[path = "common/devices.rs"]
mod devices;

use claims::Stated;
use devices::{Device, Variant, for_each_device};
use libtest_mimic::Trial;

use esmerge::backend::layers::{Activation, Attention, Layers};
use esmerge::backend::{Backend, Shape, Tensor};

use pollster::block_on;

/// Odd, unsymmetric values of about unit size.
fn values(shape: Shape, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..shape.len()).map(|_| next() + 0.25 * next()).collect()
}

fn close(actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    let size = expected.iter().fold(1e-30, |m: f64, v| m.max(v.abs()));
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        assert!((f64::from(a) - e).abs() <= tolerance * size, "element {i}: {a} for {e}");
    }
}

fn upload<B: Backend>(backend: &B, shape: Shape, seed: u64) -> (B::Tensor, Vec<f64>) {
    let x = values(shape, seed);
    (backend.upload(shape, &x).unwrap(), x.iter().map(|&v| f64::from(v)).collect())
}

fn read<B: Backend>(backend: &B, x: &B::Tensor) -> Vec<f32> {
    block_on(backend.download(x)).unwrap()
}

/// Runs every check on one backend.
fn all<B: Layers>(backend: &B) {
    norms_standardise_rows(backend);
    biases_and_activations_match_their_formulas(backend);
    gated_activation_multiplies(backend);
    gather_copies_rows(backend);
    patches_are_the_im2col_of_a_convolution(backend);
    rotary_turns_pairs(backend);
    for (causal, window) in [(false, None), (true, None), (true, Some(5)), (false, Some(9))] {
        for (heads, key_heads, head_dim) in [(3, 3, 7), (6, 2, 16), (4, 1, 5), (2, 2, 64), (2, 1, 128)] {
            for (cap, reach) in [(None, None), (Some(0.8), None), (None, Some(130)), (None, Some(141))] {
                let kind = Attention { heads, key_heads, causal, window, scale: 0.37, cap };
                attention_is_softmax_attention(backend, &[1, 67, 13, 130], head_dim, kind, reach);
            }
        }
    }
    pooling_averages_segments(backend);
    rows_are_normalized(backend);
    grams_accumulate_beyond_f32(backend);
    stacked_rows_keep_their_order(backend);
}

fn norms_standardise_rows<B: Layers>(backend: &B) {
    for (rows, cols) in [(1, 1), (5, 3), (67, 129), (3, 1000)] {
        let (x, x64) = upload(backend, Shape::matrix(rows, cols), 1);
        let (w, w64) = upload(backend, Shape::matrix(1, cols), 2);
        let (b, b64) = upload(backend, Shape::matrix(1, cols), 3);
        let n = cols as f64;
        let layer = x64.chunks(cols).flat_map(|row| {
            let mean = row.iter().sum::<f64>() / n;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            let scale = (variance + f64::from(1e-5f32)).sqrt();
            (0..cols).map(|j| (row[j] - mean) / scale * w64[j] + b64[j]).collect::<Vec<_>>()
        });
        let rms = x64.chunks(cols).flat_map(|row| {
            let scale = (row.iter().map(|v| v * v).sum::<f64>() / n + f64::from(1e-6f32)).sqrt();
            (0..cols).map(|j| row[j] / scale * w64[j]).collect::<Vec<_>>()
        });
        close(
            &read(backend, &backend.layer_norm(&x, &w, &b, 1e-5).unwrap()),
            &layer.collect::<Vec<_>>(),
            2e-6,
        );
        close(&read(backend, &backend.rms_norm(&x, &w, 1e-6).unwrap()), &rms.collect::<Vec<_>>(), 2e-6);
        if cols > 1 {
            assert!(backend.layer_norm(&x, &b, &x, 1e-5).is_err() || rows == 1);
        }
    }
}

fn activation(kind: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match kind {
        Activation::Gelu => 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Silu => x * sigmoid(x),
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
    }
}

const ACTIVATIONS: [Activation; 6] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Silu,
    Activation::Relu,
    Activation::Tanh,
];

fn biases_and_activations_match_their_formulas<B: Layers>(backend: &B) {
    let shape = Shape::new(2, 33, 129);
    // a wide range: tails where sigmoids saturate and naive tanh overflows
    let wide: Vec<f32> =
        values(shape, 4).iter().enumerate().map(|(i, v)| v * [1.0, 8.0, 90.0][i % 3]).collect();
    let (b, b64) = upload(backend, Shape::matrix(1, 129), 5);
    for kind in ACTIVATIONS {
        let mut x = backend.upload(shape, &wide).unwrap();
        backend.add_bias(&mut x, &b).unwrap();
        backend.activate(&mut x, kind).unwrap();
        let actual = read(backend, &x);
        for (i, (&a, &x)) in actual.iter().zip(&wide).enumerate() {
            let e = activation(kind, f64::from(x + b64[i % 129] as f32));
            assert!((f64::from(a) - e).abs() <= 1e-6 * e.abs().max(1.0), "{kind:?} of {x}: {a} for {e}");
        }
    }
}

fn gated_activation_multiplies<B: Layers>(backend: &B) {
    let shape = Shape::matrix(31, 65);
    let (up, up64) = upload(backend, shape, 7);
    for kind in ACTIVATIONS {
        let (mut gate, gate64) = upload(backend, shape, 6);
        backend.activate_gated(&mut gate, &up, kind).unwrap();
        let expected: Vec<f64> = gate64.iter().zip(&up64).map(|(&g, u)| activation(kind, g) * u).collect();
        close(&read(backend, &gate), &expected, 1e-6);
    }
}

fn gather_copies_rows<B: Layers>(backend: &B) {
    let (x, x64) = upload(backend, Shape::matrix(17, 5), 8);
    let rows: Vec<u32> = (0..400).map(|i| i * 7 % 17).collect();
    let expected: Vec<f64> = rows.iter().flat_map(|&r| x64[r as usize * 5..][..5].to_vec()).collect();
    let out = backend.gather_rows(&x, &rows).unwrap();
    assert_eq!(out.shape(), Shape::matrix(400, 5));
    close(&read(backend, &out), &expected, 0.0);
    assert!(backend.gather_rows(&x, &[17]).is_err());
}

fn patches_are_the_im2col_of_a_convolution<B: Layers>(backend: &B) {
    // 7 x 10 pixels in patches of 3: the last row and column of pixels belong to none
    let (samples, channels, height, width, size) = (3, 2, 7, 10, 3);
    let (x, x64) = upload(backend, Shape::new(samples * channels, height, width), 9);
    let mut expected = Vec::new();
    for s in 0..samples {
        for (top, left) in (0..2).flat_map(|i| (0..3).map(move |j| (i * size, j * size))) {
            for c in 0..channels {
                for y in 0..size {
                    for z in 0..size {
                        expected.push(x64[((s * channels + c) * height + top + y) * width + left + z]);
                    }
                }
            }
        }
    }
    let out = backend.patches(&x, channels, size).unwrap();
    assert_eq!(out.shape(), Shape::matrix(samples * 6, channels * size * size));
    close(&read(backend, &out), &expected, 0.0);
    assert!(backend.patches(&x, 4, size).is_err());
}

fn rotary_turns_pairs<B: Layers>(backend: &B) {
    for (n, heads, half, head_dim) in [(19, 3, 5, 10), (19, 3, 5, 17), (4, 1, 1, 2)] {
        let (mut x, x64) = upload(backend, Shape::matrix(n, heads * head_dim), 10);
        let (cos, cos64) = upload(backend, Shape::matrix(n, half), 11);
        let (sin, sin64) = upload(backend, Shape::matrix(n, half), 12);
        let mut expected = x64.clone();
        for i in 0..n {
            for h in 0..heads {
                for j in 0..half {
                    let (a, b) = ((i * heads + h) * head_dim + j, i * half + j);
                    expected[a] = x64[a] * cos64[b] - x64[a + half] * sin64[b];
                    expected[a + half] = x64[a + half] * cos64[b] + x64[a] * sin64[b];
                }
            }
        }
        backend.rotary(&mut x, &cos, &sin, head_dim).unwrap();
        close(&read(backend, &x), &expected, 1e-6);
        assert!(backend.rotary(&mut x, &cos, &sin, 2 * half - 1).is_err());
    }
}

/// With `reach`, a number is added to each score for how far its key is from the query: of a table for samples of up to so many tokens.
fn attention_is_softmax_attention<B: Layers>(
    backend: &B,
    lengths: &[usize],
    head_dim: usize,
    a: Attention,
    reach: Option<usize>,
) {
    let table = reach.map(|reach| (reach, upload(backend, Shape::new(a.heads, 1, 2 * reach - 1), 16)));
    let added = |h: usize, i: usize, j: usize| {
        table.as_ref().map_or(0.0, |(reach, (_, p))| p[h * (2 * reach - 1) + reach - 1 + j - i])
    };
    let n = lengths.iter().sum();
    let (q, q64) = upload(backend, Shape::matrix(n, a.heads * head_dim), 13);
    let (k, k64) = upload(backend, Shape::matrix(n, a.key_heads * head_dim), 14);
    let (v, v64) = upload(backend, Shape::matrix(n, a.key_heads * head_dim), 15);
    let mut expected = vec![0f64; n * a.heads * head_dim];
    let mut start = 0;
    for length in lengths {
        for (i, h) in (start..start + length).flat_map(|i| (0..a.heads).map(move |h| (i, h))) {
            let key_head = h / (a.heads / a.key_heads);
            let seen = |j: usize| (!a.causal || j <= i) && a.window.is_none_or(|w| i.abs_diff(j) < w);
            let keys: Vec<usize> = (start..start + length).filter(|&j| seen(j)).collect();
            let at = |x: &[f64], row: usize, heads: usize, head: usize, c: usize| {
                x[(row * heads + head) * head_dim + c]
            };
            let score = |j: usize| {
                let dot: f64 = (0..head_dim)
                    .map(|c| at(&q64, i, a.heads, h, c) * at(&k64, j, a.key_heads, key_head, c))
                    .sum();
                let scaled = dot * f64::from(a.scale);
                let capped = a.cap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh());
                (capped + added(h, i, j)).exp()
            };
            let weights: Vec<f64> = keys.iter().map(|&j| score(j)).collect();
            let total: f64 = weights.iter().sum();
            for c in 0..head_dim {
                let sum: f64 =
                    keys.iter().zip(&weights).map(|(&j, w)| w * at(&v64, j, a.key_heads, key_head, c)).sum();
                expected[(i * a.heads + h) * head_dim + c] = sum / total;
            }
        }
        start += length;
    }
    let segments = backend.segments(lengths).unwrap();
    let positions = table.as_ref().map(|(_, (positions, _))| positions);
    let out = backend.attention(&q, &k, &v, &segments, a, positions).unwrap();
    close(&read(backend, &out), &expected, 5e-6);
    assert!(backend.attention(&q, &q, &v, &segments, Attention { key_heads: 0, ..a }, positions).is_err());
    assert!(backend.attention(&q, &k, &v, &backend.segments(&[n + 1]).unwrap(), a, positions).is_err());
    let (short, _) = upload(backend, Shape::new(a.heads, 1, 2 * 129 - 1), 17);
    assert!(backend.attention(&q, &k, &v, &segments, a, Some(&short)).is_err());
}

fn pooling_averages_segments<B: Layers>(backend: &B) {
    let lengths = [3, 1, 130];
    let (x, x64) = upload(backend, Shape::matrix(134, 37), 16);
    let mut expected = Vec::new();
    let mut start = 0;
    for length in lengths {
        for c in 0..37 {
            expected.push((start..start + length).map(|i| x64[i * 37 + c]).sum::<f64>() / length as f64);
        }
        start += length;
    }
    let out = backend.mean_rows(&x, &backend.segments(&lengths).unwrap()).unwrap();
    assert_eq!(out.shape(), Shape::matrix(3, 37));
    close(&read(backend, &out), &expected, 1e-6);
}

fn rows_are_normalized<B: Layers>(backend: &B) {
    let (mut x, _) = upload(backend, Shape::matrix(9, 77), 17);
    backend.normalize_rows(&mut x).unwrap();
    for row in read(backend, &x).chunks(77) {
        let norm: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        assert!((norm - 1.0).abs() < 1e-6);
    }
}

fn grams_accumulate_beyond_f32<B: Layers>(backend: &B) {
    let d = 33;
    let shape = Shape::matrix(d, d);
    let (mut high, mut low) = (backend.zeros(shape).unwrap(), backend.zeros(shape).unwrap());
    let mut expected = vec![0f64; d * d];
    for slab in 0..40 {
        let (x, x64) = upload(backend, Shape::matrix(97, d), 100 + slab);
        backend.accumulate_gram(&x, &mut high, &mut low).unwrap();
        for row in x64.chunks(d) {
            for i in 0..d {
                for j in 0..d {
                    expected[i * d + j] += row[i] * row[j];
                }
            }
        }
    }
    close(&read(backend, &high), &expected, 2e-7);
}

fn stacked_rows_keep_their_order<B: Layers>(backend: &B) {
    let (a, a64) = upload(backend, Shape::matrix(2, 3), 18);
    let (b, b64) = upload(backend, Shape::matrix(5, 3), 19);
    let out = backend.stack_rows(&[&a, &b]).unwrap();
    close(&read(backend, &out), &[a64, b64].concat(), 0.0);
}

struct All;

impl devices::Work for All {
    type Output = ();

    fn run<B: Layers>(self, backend: &B) {
        all(backend);
    }
}

/// On every device as it is, and on every adapter with bindings so small that operations are cut into parts.
fn main() {
    let mut trials = Vec::new();
    for device in for_each_device() {
        let small = matches!(device, Device::Gpu(..)).then(|| device.opened(Variant::Small));
        for device in std::iter::once(device).chain(small) {
            let name = format!("{device}/layers_agree_with_f64_loops");
            let absent = !device.present();
            let claim = move || {
                device.with(All);
                Ok(())
            };
            trials.push(Trial::test(name, claim).with_ignored_flag(absent));
        }
    }
    claims::run(trials, Stated { cpu: 1, adapter: 2, besides: 0 });
}
