//! The kernels in another program's hands: its device, its buffers, odd offsets and strides, and canaries around every
//! operand, with no shader checking its indices. Canaries are NaN: whoever reads one shows it.

use crate::U;
#[cfg(not(target_family = "wasm"))]
use crate::devices::{Device, for_each_device};
use crate::matrices::Matrix;
use esmerge::backend::{Dtype, Op, Polarity, Shape};
use esmerge::kernels::{
    self, Activation, CholeskyScratch, EigenScratch, Kernels, Mask, Products, Raw, Recorder, Terms, View,
};
#[cfg(not(target_family = "wasm"))]
use libtest_mimic::Trial;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

const CANARY: u32 = 0x7fc0_dead;

const SHAPES: [Shape; 4] =
    [Shape::new(2, 17, 33), Shape::new(1, 1, 1), Shape::new(3, 64, 65), Shape::new(1, 127, 5)];

/// An offset beyond one aligned window.
const ODD: usize = 301;

/// Shapes, with operands that lie anywhere, and in fours.
const PLACED: [(Shape, Place); 6] = [
    (SHAPES[0], Rig::operand),
    (SHAPES[1], Rig::operand),
    (SHAPES[2], Rig::operand),
    (SHAPES[3], Rig::operand),
    (Shape::new(2, 17, 36), Rig::operand_in_fours),
    (Shape::new(1, 65, 260), Rig::operand_in_fours),
];

/// Waits until a buffer is mapped, where there is no waiting but for a callback too.
async fn mapped(device: &wgpu::Device, buffer: &wgpu::Buffer) {
    let shared = Arc::new(Mutex::new((false, None::<Waker>)));
    let told = Arc::clone(&shared);
    buffer.map_async(wgpu::MapMode::Read, .., move |result| {
        result.expect("mapped");
        let mut told = told.lock().expect("no panic");
        told.0 = true;
        told.1.take().into_iter().for_each(Waker::wake);
    });
    device.poll(wgpu::PollType::wait_indefinitely()).expect("polled");
    let is_there = |task: &mut Context<'_>| {
        let mut shared = shared.lock().expect("no panic");
        shared.1 = Some(task.waker().clone());
        if shared.0 { Poll::Ready(()) } else { Poll::Pending }
    };
    poll_fn(is_there).await;
}

/// Makes an operand of a shape, that holds values or canaries.
pub type Place = fn(&Rig, Shape, Option<&[f64]>) -> Operand;

/// A test of the kernels in a program's hands.
pub type Test = for<'a> fn(&'a Rig) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

pub const TESTS: [(&str, Test); 10] = [
    ("elementwise_kernels_stay_inside_their_views", |rig| Box::pin(elementwise(rig))),
    ("reductions_stay_inside_their_views", |rig| Box::pin(reductions(rig))),
    ("products_stay_inside_their_views", |rig| Box::pin(products(rig))),
    ("symmetric_products_stay_inside_their_views", |rig| Box::pin(symmetric_products(rig))),
    ("conversions_stay_inside_their_views", |rig| Box::pin(conversions(rig))),
    ("random_normal_stays_inside_its_view", |rig| Box::pin(random_normal(rig))),
    ("inverse_cholesky_stays_inside_its_views", |rig| Box::pin(inverse_cholesky(rig))),
    ("symmetric_eigen_stays_inside_its_views", |rig| Box::pin(symmetric_eigen(rig))),
    ("the_kernels_of_layers_stay_inside_their_views", |rig| Box::pin(layers(rig))),
    ("views_that_do_not_fit_are_errors", |rig| Box::pin(misfits(rig))),
];

/// Runs a test in a program of its own.
pub async fn on_its_own(selector: &str, products: Products, test: Test) {
    test(&Rig::open(selector, products).await).await
}

/// Every test with both kinds of products on every adapter.
#[cfg(not(target_family = "wasm"))]
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for device in for_each_device() {
        for products in [Products::Direct, Products::Tiled] {
            for (name, test) in TESTS {
                let trial = |selector: Option<String>, ignored| {
                    let kind = format!("{products:?}").to_lowercase();
                    let run = move || {
                        selector.iter().for_each(|s| pollster::block_on(on_its_own(s, products, test)));
                        Ok(())
                    };
                    Trial::test(format!("{device}/kernels+{kind}/{name}"), run).with_ignored_flag(ignored)
                };
                match &device {
                    Device::Cpu => {}
                    Device::Gpu(selector, _) => trials.push(trial(Some(selector.clone()), false)),
                    Device::Absent(_) => trials.push(trial(None, true)),
                }
            }
        }
    }
    trials
}

/// A program that embeds the kernels.
pub struct Rig {
    device: wgpu::Device,
    queue: wgpu::Queue,
    kernels: Kernels,
}

/// A batch of matrices with canaries before, between and after its rows.
pub struct Operand {
    buffer: wgpu::Buffer,
    offset: u64,
    shape: Shape,
    row_stride: usize,
    batch_stride: usize,
    bits: Vec<u32>,
}

impl Operand {
    pub fn view(&self) -> View<'_> {
        View {
            buffer: &self.buffer,
            offset: self.offset,
            shape: self.shape,
            row_stride: self.row_stride,
            batch_stride: self.batch_stride,
        }
    }

    fn index(&self, b: usize, i: usize, j: usize) -> usize {
        self.offset as usize + b * self.batch_stride + i * self.row_stride + j
    }

    fn elements(&self) -> impl Iterator<Item = usize> + '_ {
        let Shape { batch, rows, cols } = self.shape;
        (0..batch * rows * cols).map(move |k| self.index(k / cols / rows, k / cols % rows, k % cols))
    }
}

impl Rig {
    pub async fn open(selector: &str, products: Products) -> Rig {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
        let adapter =
            adapters.into_iter().find(|a| a.get_info().name.contains(selector)).expect("it was listed");
        let descriptor = wgpu::DeviceDescriptor {
            required_features: Kernels::required_features(),
            required_limits: Kernels::required_limits(),
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.expect("WebGPU's defaults");
        let kernels = Kernels::new(&device, kernels::Checks::Off).with_products(products);
        Rig { device, queue, kernels }
    }

    pub fn buffer(&self, bits: &[u32]) -> wgpu::Buffer {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let size = 4 * bits.len() as u64;
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(bits));
        buffer
    }

    /// Memory with nothing but canaries.
    fn scratch(&self, len: usize) -> wgpu::Buffer {
        self.buffer(&vec![CANARY; len])
    }

    /// An operand with gaps that holds `values`, or, without them, canaries only.
    pub fn operand(&self, shape: Shape, values: Option<&[f64]>) -> Operand {
        let row_stride = shape.cols + 5;
        self.placed(ODD, shape, row_stride, shape.rows * row_stride + 11, values)
    }

    /// The same where its columns are whole fours, at an offset and with gaps of whole fours: kernels take four at a time.
    pub fn operand_in_fours(&self, shape: Shape, values: Option<&[f64]>) -> Operand {
        let row_stride = shape.cols + 4;
        self.placed(ODD + 3, shape, row_stride, shape.rows * row_stride + 12, values)
    }

    /// An operand without gaps, but with canaries around it.
    fn packed(&self, shape: Shape, values: Option<&[f64]>) -> Operand {
        self.placed(ODD, shape, shape.cols, shape.matrix_len(), values)
    }

    fn placed(
        &self,
        offset: usize,
        shape: Shape,
        row_stride: usize,
        batch_stride: usize,
        values: Option<&[f64]>,
    ) -> Operand {
        let len = offset + shape.batch * batch_stride + shape.rows * row_stride + 77;
        let mut operand = Operand {
            buffer: self.scratch(1),
            offset: offset as u64,
            shape,
            row_stride,
            batch_stride,
            bits: vec![CANARY; len],
        };
        if let Some(values) = values {
            let places: Vec<_> = operand.elements().collect();
            places.iter().zip(values).for_each(|(&at, &v)| operand.bits[at] = (v as f32).to_bits());
        }
        operand.buffer = self.buffer(&operand.bits);
        operand
    }

    pub fn run(&self, encode: impl FnOnce(&mut Recorder<'_>) -> kernels::Result<()>) {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encode(&mut self.kernels.record(&mut encoder)).expect("operands fit");
        self.queue.submit([encoder.finish()]);
    }

    /// Asserts that encoding is refused.
    pub fn fails(&self, encode: impl FnOnce(&mut Recorder<'_>) -> kernels::Result<()>) {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        assert!(encode(&mut self.kernels.record(&mut encoder)).is_err());
    }

    async fn read(&self, buffer: &wgpu::Buffer) -> Vec<u32> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let size = buffer.size();
        let target = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &target, 0, size);
        self.queue.submit([encoder.finish()]);
        mapped(&self.device, &target).await;
        bytemuck::pod_collect_to_vec(&target.get_mapped_range(..).expect("mapped"))
    }

    /// The elements of an operand, once its canaries are found alive and no element is NaN.
    pub async fn checked(&self, operand: &Operand, what: &str) -> Vec<f64> {
        let bits = self.read(&operand.buffer).await;
        let mut inside = vec![false; bits.len()];
        operand.elements().for_each(|at| inside[at] = true);
        let overwritten = (0..bits.len()).find(|&at| !inside[at] && bits[at] != operand.bits[at]);
        assert_eq!(overwritten, None, "{what} of {}: wrote outside its view", operand.shape);
        let values: Vec<f64> = operand.elements().map(|at| f64::from(f32::from_bits(bits[at]))).collect();
        assert!(values.iter().all(|v| v.is_finite()), "{what} of {}: read outside its views", operand.shape);
        values
    }

    async fn unchanged(&self, operand: &Operand) {
        assert!(self.read(&operand.buffer).await == operand.bits, "an operand that is only read has changed");
    }
}

pub fn random(shape: Shape, seed: u64) -> Vec<f64> {
    Matrix::random(1, shape.len(), seed).values
}

async fn elementwise(rig: &Rig) {
    for (shape, place) in PLACED {
        let (x, y) = (random(shape, 1), random(shape, 2));
        let (from, to) = (place(rig, shape, Some(&x)), place(rig, shape, Some(&y)));
        rig.run(|r| kernels::axpby(r, 2.0, &from.view(), -1.0, &to.view()));
        let got = rig.checked(&to, "axpby").await;
        assert!(got.iter().zip(x.iter().zip(&y)).all(|(g, (x, y))| (g - (2.0 * x - y)).abs() < 4.0 * U));

        let to = place(rig, shape, None);
        rig.run(|r| kernels::copy_block(r, &from.view(), &to.view()));
        assert_eq!(rig.checked(&to, "copy_block").await, x);
        rig.unchanged(&from).await;

        let across = Shape::new(shape.batch, shape.cols, shape.rows);
        let to = place(rig, across, None);
        rig.run(|r| kernels::transpose(r, &from.view(), &to.view()));
        let got = rig.checked(&to, "transpose").await;
        let (rows, cols) = (shape.rows, shape.cols);
        let expected = |b: usize, j: usize, i: usize| x[(b * rows + i) * cols + j];
        let places =
            (0..shape.batch).flat_map(|b| (0..cols).flat_map(move |j| (0..rows).map(move |i| (b, j, i))));
        assert_eq!(got, places.map(|(b, j, i)| expected(b, j, i)).collect::<Vec<_>>());

        let factors = [
            Shape { cols: 1, ..shape },
            Shape { cols: 1, ..shape },
            Shape { rows: 1, ..shape },
            Shape { rows: 1, cols: 1, ..shape },
        ];
        type Scaling = fn(&mut Recorder<'_>, &View<'_>, &View<'_>) -> kernels::Result<()>;
        let scalings: [Scaling; 4] =
            [kernels::scale_rows, kernels::divide_rows, kernels::scale_columns, kernels::scale_batches];
        for (factors, scaling) in factors.into_iter().zip(scalings) {
            let (to, s) = (place(rig, shape, Some(&x)), rig.operand(factors, Some(&random(factors, 3))));
            rig.run(|r| scaling(r, &to.view(), &s.view()));
            rig.checked(&to, "a scaling").await;
            rig.unchanged(&s).await;
        }

        let rows_packed = rig.placed(
            ODD,
            shape,
            shape.cols,
            shape.matrix_len() + 3,
            Some(&x.iter().map(|v| v.abs()).collect::<Vec<_>>()),
        );
        let to = rig.packed(shape, Some(&x));
        rig.run(|r| kernels::power(r, &to.view(), 2.0));
        rig.checked(&to, "power").await;
        let to = rig.packed(shape, Some(&x));
        rig.run(|r| kernels::unit_scale(r, &to.view()));
        rig.checked(&to, "unit_scale").await;
        rig.run(|r| kernels::polarize(r, &rows_packed.view(), 2.0, Polarity::Full));
        rig.checked(&rows_packed, "polarize").await;
        rig.run(|r| kernels::clear_small(r, &rows_packed.view(), 0.1));
        rig.checked(&rows_packed, "clear_small").await;
    }
}

async fn reductions(rig: &Rig) {
    for shape in SHAPES {
        let (x, y) = (random(shape, 1), random(shape, 2));
        let (a, b) = (rig.operand(shape, Some(&x)), rig.operand(shape, Some(&y)));
        for chunk in [1000, 10] {
            for terms in [Terms::Squares, Terms::Sums, Terms::Products(b.view())] {
                let out = rig.operand(Shape { cols: shape.cols.div_ceil(chunk), ..shape }, None);
                rig.run(|r| kernels::reduce_rows(r, &a.view(), terms, chunk, false, &out.view()));
                rig.checked(&out, "reduce_rows").await;
                let out = rig.operand(Shape { rows: shape.rows.div_ceil(chunk), ..shape }, None);
                rig.run(|r| kernels::reduce_columns(r, &a.view(), terms, chunk, false, &out.view()));
                rig.checked(&out, "reduce_columns").await;
            }
        }
        rig.unchanged(&a).await;
        rig.unchanged(&b).await;
    }
}

pub async fn products(rig: &Rig) {
    let anywhere = [(2, 17, 33, 5), (1, 1, 1, 1), (2, 65, 64, 63), (1, 127, 130, 33), (1, 3, 257, 17)];
    // an odd number of rows can be in fours too, if they are not transposed
    let in_fours = [(2, 20, 36, 4), (1, 4, 4, 4), (2, 65, 64, 60), (1, 127, 132, 36), (1, 3, 260, 16)];
    for sizes in anywhere {
        product(rig, Rig::operand, sizes).await;
    }
    for sizes in in_fours {
        product(rig, Rig::operand_in_fours, sizes).await;
    }
}

/// A product with every combination of transposed operands.
async fn product(rig: &Rig, place: Place, (batch, m, n, k): (usize, usize, usize, usize)) {
    for (op_a, op_b) in [
        (Op::None, Op::None),
        (Op::None, Op::Transpose),
        (Op::Transpose, Op::None),
        (Op::Transpose, Op::Transpose),
    ] {
        let stored = |op, rows, cols| if op == Op::None { (rows, cols) } else { (cols, rows) };
        let ((a_rows, a_cols), (b_rows, b_cols)) = (stored(op_a, m, k), stored(op_b, k, n));
        let (a_shape, b_shape) = (Shape::new(batch, a_rows, a_cols), Shape::matrix(b_rows, b_cols));
        let (x, y) = (random(a_shape, 5), random(b_shape, 6));
        let (a, b) = (place(rig, a_shape, Some(&x)), place(rig, b_shape, Some(&y)));
        let c = place(rig, Shape::new(batch, m, n), None);
        let all = b.view().repeated(batch);
        rig.run(|r| kernels::gemm(r, 1.0, &a.view(), op_a, &all, op_b, 0.0, &c.view()));
        let got = rig.checked(&c, "gemm").await;
        let of_a = |b: usize, i: usize, l: usize| {
            x[b * m * k + if op_a == Op::None { i * k + l } else { l * m + i }]
        };
        let of_b = |l: usize, j: usize| y[if op_b == Op::None { l * n + j } else { j * k + l }];
        for (at, got) in got.iter().enumerate() {
            let (b, i, j) = (at / n / m, at / n % m, at % n);
            let expected: f64 = (0..k).map(|l| of_a(b, i, l) * of_b(l, j)).sum();
            assert!(
                (got - expected).abs() <= ((k + 2) * k) as f64 * U,
                "{m} x {n} x {k}: {got}, not {expected}"
            );
        }
        rig.unchanged(&a).await;
        rig.unchanged(&b).await;
    }
}

pub async fn symmetric_products(rig: &Rig) {
    let anywhere =
        [(2, 17, 33), (1, 1, 1), (1, 65, 20), (2, 130, 7)].map(|sizes| (sizes, Rig::operand as Place));
    let in_fours =
        [(2, 20, 36), (1, 64, 20), (2, 132, 8)].map(|sizes| (sizes, Rig::operand_in_fours as Place));
    for ((batch, n, k), place) in anywhere.into_iter().chain(in_fours) {
        for op in [Op::None, Op::Transpose] {
            let shape = if op == Op::None { Shape::new(batch, n, k) } else { Shape::new(batch, k, n) };
            let x = place(rig, shape, Some(&random(shape, 5)));
            let c = place(rig, Shape::new(batch, n, n), Some(&vec![1.0; batch * n * n]));
            rig.run(|r| kernels::syrk(r, 1.0, &x.view(), op, 1.0, &c.view()));
            let got = rig.checked(&c, "syrk").await;
            assert!((0..got.len()).all(|at| got[at] == got[at / (n * n) * n * n + at % n * n + at / n % n]));
            rig.unchanged(&x).await;
        }
    }
}

async fn conversions(rig: &Rig) {
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
        for (offset, len) in [(302u64, 1usize), (301, 2), (303, 257), (300, 1000), (257, 255)] {
            let shape = Shape::matrix(1, len);
            let values: Vec<f64> = (0..len).map(|i| (i % 200) as f64 - 100.0).collect();
            let x = rig.packed(shape, Some(&values));
            let words = rig.scratch(2000);
            let even = offset / 2 * 2;
            let raw = Raw { buffer: &words, offset: even, len, dtype };
            rig.run(|r| kernels::pack(r, &x.view(), &raw));
            let (got, size) = (rig.read(&words).await, dtype.size());
            let bytes: &[u8] = bytemuck::cast_slice(&got);
            let (start, end) = (even as usize * size, (even as usize + len) * size);
            let canaries: Vec<u8> = [CANARY; 2000].iter().flat_map(|c| c.to_le_bytes()).collect();
            assert!(bytes[..start] == canaries[..start] && bytes[end..] == canaries[end..], "pack {dtype}");

            // back from anywhere, odd numbers too
            let mut moved = canaries.clone();
            let start_odd = offset as usize * size;
            moved[start_odd..start_odd + len * size].copy_from_slice(&bytes[start..end]);
            let words = rig.buffer(&bytemuck::pod_collect_to_vec::<u8, u32>(&moved));
            let out = rig.packed(shape, None);
            let raw = Raw { buffer: &words, offset, len, dtype };
            rig.run(|r| kernels::unpack(r, &raw, &out.view()));
            assert_eq!(rig.checked(&out, "unpack").await, values, "{dtype}");
        }
    }
}

async fn random_normal(rig: &Rig) {
    for len in [1, 255, 1000] {
        let out = rig.packed(Shape::matrix(1, len), None);
        rig.run(|r| kernels::random_normal(r, 1, 2, 3, &out.view()));
        assert!(rig.checked(&out, "random_normal").await.iter().all(|v| v.abs() <= 6.0));
    }
}

async fn inverse_cholesky(rig: &Rig) {
    for (batch, n) in [(2, 1), (1, 33), (2, 64), (1, 127)] {
        let y = Matrix::random(n, 2 * n + 5, 3);
        let g = y.times(&y.transposed()).values.repeat(batch);
        let shape = Shape::new(batch, n, n);
        let (from, to) = (rig.operand(shape, Some(&g)), rig.operand(shape, None));
        let [work, column, row, inverse] = CholeskyScratch::lens(batch, n).map(|len| rig.scratch(len));
        let scratch = CholeskyScratch { work: &work, column: &column, row: &row, inverse: &inverse };
        rig.run(|r| kernels::inverse_cholesky(r, &from.view(), &scratch, &to.view(), kernels::gram_pivot(n)));
        rig.checked(&to, "inverse_cholesky").await;
        rig.unchanged(&from).await;
    }
}

async fn symmetric_eigen(rig: &Rig) {
    for (batch, n) in [(3, 1), (2, 17), (2, 49), (1, 64)] {
        let y = Matrix::random(n, n, 3);
        let a = y.times(&y.transposed()).values.repeat(batch);
        let shape = Shape::new(batch, n, n);
        let (from, vectors) = (rig.operand(shape, Some(&a)), rig.operand(shape, None));
        let values = rig.operand(Shape::new(batch, 1, n), None);
        let [work, rotations, polished, unsorted, rotated] =
            EigenScratch::lens(batch, n).map(|len| rig.scratch(len));
        let scratch = EigenScratch {
            work: &work,
            rotations: &rotations,
            polished: &polished,
            values: &unsorted,
            rotated: &rotated,
        };
        rig.run(|r| kernels::symmetric_eigen(r, &from.view(), &scratch, &values.view(), &vectors.view()));
        rig.checked(&values, "symmetric_eigen").await;
        rig.checked(&vectors, "symmetric_eigen").await;
        rig.unchanged(&from).await;
    }
}

async fn layers(rig: &Rig) {
    for (rows, cols) in [(17, 34), (1, 2), (64, 66), (5, 1026)] {
        let shape = Shape::matrix(rows, cols);
        let operand = |seed| rig.operand(shape, Some(&random(shape, seed)));
        let packed = |seed| rig.packed(shape, Some(&random(shape, seed)));
        let row = |seed| rig.operand(Shape::matrix(1, cols), Some(&random(Shape::matrix(1, cols), seed)));
        let (x, out, weight, bias) = (operand(1), rig.operand(shape, None), row(2), row(3));
        rig.run(|r| kernels::layer_norm(r, &x.view(), &weight.view(), Some(&bias.view()), 1e-5, &out.view()));
        rig.checked(&out, "layer_norm").await;
        let out = rig.operand(shape, None);
        rig.run(|r| kernels::layer_norm(r, &x.view(), &weight.view(), None, 1e-5, &out.view()));
        rig.checked(&out, "layer_norm").await;

        let (gate, up) = (packed(4), packed(5));
        rig.run(|r| kernels::activate(r, &gate.view(), Activation::Silu, Some(&up.view())));
        rig.run(|r| kernels::activate(r, &gate.view(), Activation::Gelu, None));
        rig.checked(&gate, "activate").await;
        rig.unchanged(&up).await;

        let (high, low) = (packed(6), packed(7));
        rig.run(|r| kernels::add_exactly(r, &up.view(), &high.view(), &low.view()));
        rig.checked(&high, "add_exactly").await;
        rig.checked(&low, "add_exactly").await;

        let scores = operand(8);
        let mask = Mask { query: 3, causal: true, window: Some(4), ..Mask::default() };
        rig.run(|r| kernels::softmax(r, &scores.view(), mask, Some(0.5), None));
        rig.checked(&scores, "softmax").await;
        let reach = Shape::matrix(1, 2 * (cols + rows) + 1);
        let positions = rig.operand(reach, Some(&random(reach, 13)));
        rig.run(|r| kernels::softmax(r, &scores.view(), Mask::default(), None, Some(&positions.view())));
        rig.checked(&scores, "softmax").await;
        rig.unchanged(&positions).await;

        let table = Shape::matrix(rows, cols / 2);
        let (cos, sin) =
            (rig.operand(table, Some(&random(table, 9))), rig.operand(table, Some(&random(table, 10))));
        let turned = operand(11);
        rig.run(|r| kernels::rotary(r, &turned.view(), &cos.view(), &sin.view(), cols / 2 * 2));
        rig.checked(&turned, "rotary").await;
        rig.unchanged(&cos).await;

        gathering(rig, &x).await;
        rig.unchanged(&x).await;
    }
    let images = Shape::new(2 * 3, 13, 9);
    let from = rig.operand(images, Some(&random(images, 12)));
    let out = rig.operand(Shape::matrix(2 * 3 * 2, 3 * 4 * 4), None);
    rig.run(|r| kernels::patches(r, &from.view(), 3, 4, &out.view()));
    rig.checked(&out, "patches").await;
    rig.unchanged(&from).await;
}

/// Rows by number and by segment; numbers past the end are taken for the last.
async fn gathering(rig: &Rig, x: &Operand) {
    let Shape { rows, cols, .. } = x.shape;
    let list: Vec<u32> = vec![rows as u32 - 1, 0, u32::MAX, 0];
    let numbers = rig.buffer(&list);
    let view = View::packed(&numbers, Shape::matrix(1, list.len()));
    let out = rig.operand(Shape::matrix(list.len(), cols), None);
    rig.run(|r| kernels::gather_rows(r, &x.view(), &view, &out.view()));
    let got = rig.checked(&out, "gather_rows").await;
    assert!(got[..cols] == got[2 * cols..3 * cols]);

    let starts = rig.buffer(&[0, 1, rows as u32, u32::MAX]);
    let view = View::packed(&starts, Shape::matrix(1, 4));
    let out = rig.operand(Shape::matrix(3, cols), None);
    rig.run(|r| kernels::mean_rows(r, &x.view(), &view, &out.view()));
    rig.checked(&out, "mean_rows").await;
}

async fn misfits(rig: &Rig) {
    let shape = Shape::new(2, 5, 7);
    let (a, b) = (rig.packed(shape, Some(&[1.0; 70])), rig.packed(shape, Some(&[1.0; 70])));
    let mut encoder = rig.device.create_command_encoder(&Default::default());
    let mut r = rig.kernels.record(&mut encoder);
    let beyond = View { offset: 1_000_000, ..a.view() };
    let overlapping = View { row_stride: 3, ..a.view() };
    let other = View { shape: Shape::new(2, 7, 5), row_stride: 5, ..a.view() };
    for wrong in [beyond, overlapping, other] {
        let error = kernels::axpby(&mut r, 1.0, &wrong, 1.0, &b.view());
        assert!(matches!(error, Err(kernels::Error::Operands { kernel: "axpby", .. })), "{error:?}");
    }
    assert!(kernels::gemm(&mut r, 1.0, &a.view(), Op::None, &b.view(), Op::None, 0.0, &b.view()).is_err());
    let raw = Raw { buffer: &a.buffer, offset: 1, len: 70, dtype: Dtype::F16 };
    assert!(kernels::pack(&mut r, &b.view(), &raw).is_err(), "a start within a word");
    assert!(View::packed(&a.buffer, shape).span() == 70);
}
