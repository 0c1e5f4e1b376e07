//! Every way to share out a product: tiles, 16-bit operands, epilogues, products cut in depth, and their tuning.

#[cfg(not(target_family = "wasm"))]
use crate::devices::{Device, for_each_device};
#[cfg(not(target_family = "wasm"))]
use crate::embedding::on_its_own;
use crate::embedding::{Place, Rig, Test, products, random, symmetric_products};
use crate::matrices::Matrix;
#[cfg(not(target_family = "wasm"))]
use crate::matrices::{download, upload};
use crate::{U, assert_near};
#[cfg(not(target_family = "wasm"))]
use esmerge::backend::Backend;
#[cfg(not(target_family = "wasm"))]
use esmerge::backend::gpu::{Autotune, Config, Gpu};
use esmerge::backend::{Dtype, Op, Shape};
use esmerge::kernels::{
    Activation, Epilogue, Gemm, Operand, Scaling, View, gemm_fused, gemm_split, syrk_split,
};
#[cfg(not(target_family = "wasm"))]
use esmerge::kernels::{Products, Tile};
#[cfg(not(target_family = "wasm"))]
use libtest_mimic::Trial;

/// Tests of every tile.
pub const TESTS: [(&str, Test); 5] = [
    ("products_stay_inside_their_views", |rig| Box::pin(products(rig))),
    ("symmetric_products_stay_inside_their_views", |rig| Box::pin(symmetric_products(rig))),
    ("operands_of_16_bits_are_multiplied_as_the_f32_they_stand_for", |rig| Box::pin(narrow_operands(rig))),
    ("epilogues_scale_then_add_then_activate", |rig| Box::pin(epilogues(rig))),
    ("products_cut_in_depth_are_the_whole_ones", |rig| Box::pin(cut_in_depth(rig))),
];

/// Every test with every tile, and the tuning, on every adapter.
#[cfg(not(target_family = "wasm"))]
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for device in for_each_device() {
        let (selector, ignored) = match &device {
            Device::Gpu(selector, _) => (Some(selector.clone()), false),
            Device::Absent(_) => (None, true),
            Device::Cpu => continue,
        };
        for tile in Tile::ALL {
            for (name, test) in TESTS {
                let selector = selector.clone();
                let run = move || {
                    let products = Products::Only(tile);
                    selector.iter().for_each(|s| pollster::block_on(on_its_own(s, products, test)));
                    Ok(())
                };
                trials.push(Trial::test(format!("{device}/{tile}/{name}"), run).with_ignored_flag(ignored));
            }
        }
        let run = move || {
            selector.iter().for_each(|s| tuning(s));
            Ok(())
        };
        let name = "choices_that_were_timed_are_kept_and_found_again";
        trials.push(Trial::test(format!("{device}/{name}"), run).with_ignored_flag(ignored));
    }
    trials
}

/// Numbers that both 16-bit formats hold exactly.
fn coarse(len: usize, seed: u64) -> Vec<f64> {
    random(Shape::matrix(1, len), seed).iter().map(|v| (v * 16.0).round() / 16.0).collect()
}

/// A packed matrix of some type, at an offset of so many numbers.
fn stored(rig: &Rig, values: &[f64], offset: usize, dtype: Dtype) -> wgpu::Buffer {
    let padded: Vec<f32> =
        std::iter::repeat_n(7.0, offset).chain(values.iter().map(|&v| v as f32)).chain([7.0; 16]).collect();
    let halves = |bits: fn(f32) -> u16| {
        let mut words: Vec<u16> = padded.iter().map(|&v| bits(v)).collect();
        words.resize(words.len().next_multiple_of(8), 0);
        words.chunks(2).map(|w| u32::from(w[0]) | u32::from(w[1]) << 16).collect::<Vec<_>>()
    };
    rig.buffer(&match dtype {
        Dtype::F32 => padded.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
        Dtype::F16 => halves(|v| half::f16::from_f32(v).to_bits()),
        Dtype::Bf16 => halves(|v| half::bf16::from_f32(v).to_bits()),
    })
}

const OPS: [[Op; 2]; 4] = [
    [Op::None, Op::None],
    [Op::None, Op::Transpose],
    [Op::Transpose, Op::None],
    [Op::Transpose, Op::Transpose],
];

/// In fours, if these numbers are.
fn place_of(numbers: [usize; 3]) -> Place {
    let in_fours = numbers.iter().all(|v| v.is_multiple_of(4));
    if in_fours { Rig::operand_in_fours } else { Rig::operand }
}

async fn narrow_operands(rig: &Rig) {
    use Dtype::{Bf16, F16, F32};
    let types = [(F16, Bf16), (Bf16, F32), (F32, F16)];
    // lengths in fours are read in fours; of those every pair of types meets every combination of transposed operands
    let sizes = [([17, 33, 5], 3), ([68, 36, 20], 8), ([132, 64, 40], 4), ([4, 4, 4], 0)];
    for (s, ([m, n, k], offset)) in sizes.into_iter().enumerate() {
        for (o, [op_a, op_b]) in OPS.into_iter().enumerate() {
            let (a_type, b_type) = types[(s + o) % types.len()];
            let shape = |op, rows, cols| {
                if op == Op::None { Shape::matrix(rows, cols) } else { Shape::matrix(cols, rows) }
            };
            let (a_shape, b_shape) = (shape(op_a, m, k), shape(op_b, k, n));
            let (x, y) = (coarse(m * k, 1), coarse(k * n, 2));
            let (a, b) = (stored(rig, &x, offset, a_type), stored(rig, &y, offset, b_type));
            let c = place_of([m, n, offset])(rig, Shape::matrix(m, n), None);
            let view = |buffer, shape| View { offset: offset as u64, ..View::packed(buffer, shape) };
            let a = Operand { view: view(&a, a_shape), dtype: a_type };
            let b = Operand { view: view(&b, b_shape), dtype: b_type };
            rig.run(|r| gemm_fused(r, &Gemm::new(a, op_a, b, op_b, c.view())));
            let matrix = |values: &[f64], op, rows, cols| {
                let Shape { rows, cols, .. } = shape(op, rows, cols);
                let m = Matrix { rows, cols, values: values.to_vec() };
                if op == Op::None { m } else { m.transposed() }
            };
            let expected = matrix(&x, op_a, m, k).times(&matrix(&y, op_b, k, n));
            let bound = |_| (k * (k + 2)) as f64 * 16.0 * U;
            let what = format!("{m} x {n} x {k} {a_type} {op_a:?} {b_type} {op_b:?}");
            assert_near(&rig.checked(&c, &what).await, &expected.values, bound, &what);
        }
    }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

async fn epilogues(rig: &Rig) {
    epilogues_of(rig, 70).await;
    epilogues_of(rig, 72).await;
}

async fn epilogues_of(rig: &Rig, n: usize) {
    let (batch, m, k) = (2, 35, 12);
    let place = place_of([n, k, 0]);
    let (x, y, z) = (coarse(batch * m * k, 1), coarse(batch * k * n, 2), coarse(batch * m * n, 3));
    let a = place(rig, Shape::new(batch, m, k), Some(&x));
    let b = place(rig, Shape::new(batch, k, n), Some(&y));
    let (rows, columns) = (coarse(batch * m, 4), coarse(batch * n, 5));
    let bias = rig.operand(Shape::new(batch, 1, n), Some(&columns));
    let by_row = rig.operand(Shape::new(batch, 1, m), Some(&rows));
    for of_rows in [true, false] {
        for activation in [None, Some(Activation::Silu)] {
            let c = place(rig, Shape::new(batch, m, n), Some(&z));
            let scale = if of_rows { Scaling::Rows(by_row.view()) } else { Scaling::Columns(bias.view()) };
            let epilogue = Epilogue { scale: Some(scale), bias: Some(bias.view()), activation };
            let gemm = Gemm::new(a.view(), Op::None, b.view(), Op::None, c.view());
            rig.run(|r| gemm_fused(r, &Gemm { alpha: 0.5, beta: -2.0, epilogue, ..gemm }));
            let got = rig.checked(&c, "an epilogue").await;
            for (at, got) in got.iter().enumerate() {
                let (b, i, j) = (at / n / m, at / n % m, at % n);
                let product: f64 = (0..k).map(|l| x[(b * m + i) * k + l] * y[(b * k + l) * n + j]).sum();
                let s = if of_rows { rows[b * m + i] } else { columns[b * n + j] };
                let sum = s * (0.5 * product - 2.0 * z[at]) + columns[b * n + j];
                let expected = if activation.is_some() { silu(sum) } else { sum };
                // sums of at most 16 terms below 16, and an exponential that is right to a few units in the last place
                assert!((got - expected).abs() < 4000.0 * U, "{b} {i} {j}: {got}, not {expected}");
            }
        }
    }
}

async fn cut_in_depth(rig: &Rig) {
    for (m, n, k, splits) in [(5, 70, 100, 3), (33, 33, 257, 4), (1, 1, 7, 5), (40, 36, 64, 4), (8, 8, 0, 2)]
    {
        for [op_a, op_b] in OPS {
            let shape = |op, rows, cols| {
                if op == Op::None { Shape::matrix(rows, cols) } else { Shape::matrix(cols, rows) }
            };
            let (a_shape, b_shape) = (shape(op_a, m, k), shape(op_b, k, n));
            let place = place_of([m, n, k]);
            let a = place(rig, a_shape, Some(&random(a_shape, 1)));
            let b = place(rig, b_shape, Some(&random(b_shape, 2)));
            let start = random(Shape::matrix(m, n), 3);
            let whole = place(rig, Shape::matrix(m, n), Some(&start));
            let parts = place(rig, Shape::matrix(m, n), Some(&start));
            let scratch = place(rig, Shape::new(splits, m, n), None);
            let gemm = |c| Gemm { alpha: 2.0, beta: 0.5, ..Gemm::new(a.view(), op_a, b.view(), op_b, c) };
            rig.run(|r| gemm_fused(r, &gemm(whole.view())));
            rig.run(|r| gemm_split(r, &gemm(parts.view()), splits, &scratch.view()));
            let (whole, parts) =
                (rig.checked(&whole, "a product").await, rig.checked(&parts, "a cut product").await);
            // both are within this of the exact result
            let bound = |_| 2.0 * ((k + 4) * (2 * k + 1)) as f64 * U;
            assert_near(&parts, &whole, bound, &format!("{m} x {n} x {k} in {splits}"));
        }
    }
    let (n, k, splits) = (37, 130, 3);
    let x = rig.operand(Shape::matrix(n, k), Some(&random(Shape::matrix(n, k), 1)));
    let c = rig.operand(Shape::matrix(n, n), Some(&vec![1.0; n * n]));
    let scratch = rig.operand(Shape::new(splits, n, n), None);
    rig.run(|r| syrk_split(r, 1.0, &x.view(), Op::None, 1.0, &c.view(), splits, &scratch.view()));
    let got = rig.checked(&c, "a cut syrk").await;
    assert!((0..n * n).all(|at| got[at] == got[at % n * n + at / n]), "symmetric to the last bit");
    // a batch is not cut
    let batch = rig.operand(Shape::new(2, 4, 4), Some(&[0.0; 32]));
    let other = rig.operand(Shape::new(2, 4, 4), None);
    let gemm = Gemm::new(batch.view(), Op::None, batch.view(), Op::None, other.view());
    rig.fails(|r| gemm_split(r, &gemm, 2, &scratch.view()));
}

#[cfg(not(target_family = "wasm"))]
fn tuning(selector: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let open = || {
        let autotune = Some(Autotune { folder: Some(folder.path().to_owned()) });
        let config = Config { autotune, ..Config::default() };
        pollster::block_on(Gpu::open_with(Some(selector), &config)).expect("it was listed")
    };
    let (a, b) = (Matrix::random(40, 300, 1), Matrix::random(300, 33, 2));
    let multiply = |gpu: &Gpu| -> esmerge::backend::Result<Matrix> {
        let c = gpu.matmul(
            &upload(gpu, std::slice::from_ref(&a))?,
            Op::None,
            &upload(gpu, std::slice::from_ref(&b))?,
            Op::None,
        )?;
        Ok(pollster::block_on(download(gpu, &c))?.remove(0))
    };
    let gpu = open();
    assert!(gpu.tuned().is_empty());
    let first = multiply(&gpu).expect("a product");
    let bound = |_| (300 * 302) as f64 * U;
    assert_near(&first.values, &a.times(&b).values, bound, "while it was timed");
    let timed = gpu.tuned();
    assert_eq!((timed.len(), timed[0].cached), (1, false));

    let again = open();
    let known = again.tuned();
    assert_eq!((known.len(), known[0].cached), (1, true));
    assert_eq!((known[0].class, known[0].choice), (timed[0].class, timed[0].choice));
    assert_eq!(multiply(&again).expect("a product").values, first.values);
    assert_eq!(again.tuned().len(), 1, "nothing was timed again");

    // a cache that is not whole is not believed
    let file =
        std::fs::read_dir(folder.path()).expect("the folder").next().expect("a cache").expect("a file");
    std::fs::write(file.path(), "esmerge tiles 1\nbroken").expect("written");
    assert!(open().tuned().is_empty());
}
