//! The kernel library inside another wgpu program: a principal component analysis that never leaves the GPU.
//!
//! ```sh
//! cargo run --release --no-default-features --example embed
//! ```
//!
//! The program owns its `Device`, its buffers and its `CommandEncoder`; `esmerge::kernels` only encodes. Samples are
//! centred, their covariance is formed, its leading eigenvectors are found by subspace iteration, and the samples are
//! projected on them: one encoder, one submission, nothing read in between. The same is then computed on the CPU in
//! f64, in the plainest way there is, and compared.

use esmerge::backend::{Op, Shape};
use esmerge::kernels::{
    self, CholeskyScratch, EigenScratch, Kernels, Recorder, Terms, View, axpby, gemm, inverse_cholesky,
    random_normal, reduce_columns, symmetric_eigen, syrk,
};
use std::error::Error;

/// Samples.
const N: usize = 500;
/// Measurements of a sample.
const D: usize = 96;
/// Principal components wanted.
const K: usize = 5;
/// Vectors iterated: more than are wanted, so that those converge fast.
const BLOCK: usize = 16;
/// Products with the covariance.
const ITERATIONS: usize = 12;

fn main() -> Result<(), Box<dyn Error>> {
    let samples = samples();
    let (device, queue) = pollster::block_on(open())?;
    let gpu = pca_on_gpu(&device, &queue, &samples)?;
    let cpu = pca_on_cpu(&samples);

    println!("component   variance (GPU)   variance (CPU)   angle between the axes");
    let mut worst: f64 = 0.0;
    for j in 0..K {
        let angle = angle(&gpu.axes[j], &cpu.axes[j]);
        let variance = (gpu.variances[j], cpu.variances[j]);
        println!("{:>9}   {:>14.6}   {:>14.6}   {angle:>22.1e}", j + 1, variance.0, variance.1);
        worst = worst.max(angle).max((variance.0 / variance.1 - 1.0).abs());
    }
    let moved = scores_differ_by(&gpu, &cpu);
    println!("the {N} projected samples differ by {moved:.1e} of their length");

    // f32 rounds to 6e-8; sums of 500 terms and eigenvectors that lie close magnify that.
    if worst.max(moved) < 1e-3 { Ok(()) } else { Err("the GPU and the CPU disagree".into()) }
}

/// Any adapter, and a device with nothing but WebGPU's defaults.
async fn open() -> Result<(wgpu::Device, wgpu::Queue), Box<dyn Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    println!("on {}", adapter.get_info().name);
    let descriptor = wgpu::DeviceDescriptor {
        required_features: Kernels::required_features(),
        required_limits: Kernels::required_limits(),
        ..Default::default()
    };
    Ok(adapter.request_device(&descriptor).await?)
}

/// What a principal component analysis finds, largest variance first.
struct Components {
    variances: Vec<f64>,
    /// Unit vectors.
    axes: Vec<Vec<f64>>,
    /// Coordinates of the samples on the axes.
    scores: Vec<Vec<f64>>,
}

// ---- on the GPU ----

/// A matrix in a buffer of its own.
struct Matrix {
    buffer: wgpu::Buffer,
    shape: Shape,
}

impl Matrix {
    fn new(device: &wgpu::Device, rows: usize, cols: usize) -> Matrix {
        let shape = Shape::matrix(rows, cols);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let descriptor =
            wgpu::BufferDescriptor { label: None, size: shape.bytes(), usage, mapped_at_creation: false };
        Matrix { buffer: device.create_buffer(&descriptor), shape }
    }

    fn view(&self) -> View<'_> {
        View::packed(&self.buffer, self.shape)
    }
}

fn pca_on_gpu(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    samples: &[f32],
) -> Result<Components, Box<dyn Error>> {
    let x = Matrix::new(device, N, D);
    queue.write_buffer(&x.buffer, 0, bytemuck::cast_slice(samples));
    let (covariance, values) = (Matrix::new(device, D, D), Matrix::new(device, 1, BLOCK));
    let (axes, scores) = (Matrix::new(device, BLOCK, D), Matrix::new(device, N, K));

    let kernels = Kernels::new(device, kernels::Checks::default());
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut recorder = kernels.record(&mut encoder);
    centre(&mut recorder, device, &x)?;
    syrk(&mut recorder, 1.0 / (N as f32 - 1.0), &x.view(), Op::Transpose, 0.0, &covariance.view())?;
    leading_eigenvectors(&mut recorder, device, &covariance, &values, &axes)?;
    let leading = axes.view().rows(0..K);
    gemm(&mut recorder, 1.0, &x.view(), Op::None, &leading, Op::Transpose, 0.0, &scores.view())?;
    drop(recorder);

    let [values, axes, scores] = read(device, queue, encoder, [&values, &axes, &scores])?;
    Ok(Components {
        variances: values[..K].to_vec(),
        axes: axes.chunks(D).take(K).map(<[f64]>::to_vec).collect(),
        scores: scores.chunks(K).map(<[f64]>::to_vec).collect(),
    })
}

/// Takes the mean of every column away.
fn centre(recorder: &mut Recorder<'_>, device: &wgpu::Device, x: &Matrix) -> kernels::Result<()> {
    let sums = Matrix::new(device, 1, D);
    reduce_columns(recorder, &x.view(), Terms::Sums, N, false, &sums.view())?;
    // Every sample is a matrix of one row, and the sums stand for all of them.
    let rows = View::packed(&x.buffer, Shape::new(N, 1, D));
    axpby(recorder, -1.0 / N as f32, &sums.view().repeated(N), 1.0, &rows)
}

/// The leading eigenvectors of a symmetric matrix as rows, best first, by subspace iteration and Rayleigh-Ritz.
fn leading_eigenvectors(
    recorder: &mut Recorder<'_>,
    device: &wgpu::Device,
    a: &Matrix,
    values: &Matrix,
    vectors: &Matrix,
) -> kernels::Result<()> {
    let (q, aq) = (Matrix::new(device, BLOCK, D), Matrix::new(device, BLOCK, D));
    random_normal(recorder, 0, 0, 0, &q.view())?;
    for _ in 0..ITERATIONS {
        gemm(recorder, 1.0, &q.view(), Op::None, &a.view(), Op::None, 0.0, &aq.view())?;
        orthonormalize(recorder, device, &aq, &q)?;
    }
    // Eigenvectors of the matrix within the block, and with them those of the matrix itself.
    let (projected, turned) = (Matrix::new(device, BLOCK, BLOCK), Matrix::new(device, BLOCK, BLOCK));
    gemm(recorder, 1.0, &q.view(), Op::None, &a.view(), Op::None, 0.0, &aq.view())?;
    gemm(recorder, 1.0, &aq.view(), Op::None, &q.view(), Op::Transpose, 0.0, &projected.view())?;
    let [work, rotations, polished, unsorted, rotated] =
        EigenScratch::lens(1, BLOCK).map(|len| Matrix::new(device, 1, len).buffer);
    let scratch = EigenScratch {
        work: &work,
        rotations: &rotations,
        polished: &polished,
        values: &unsorted,
        rotated: &rotated,
    };
    symmetric_eigen(recorder, &projected.view(), &scratch, &values.view(), &turned.view())?;
    gemm(recorder, 1.0, &turned.view(), Op::None, &q.view(), Op::None, 0.0, &vectors.view())
}

/// Makes the rows of `y` orthonormal and leaves them in `q`: CholeskyQR, twice. `y` is overwritten.
fn orthonormalize(
    recorder: &mut Recorder<'_>,
    device: &wgpu::Device,
    y: &Matrix,
    q: &Matrix,
) -> kernels::Result<()> {
    let (gram, factor) = (Matrix::new(device, BLOCK, BLOCK), Matrix::new(device, BLOCK, BLOCK));
    let [work, column, row, inverse] =
        CholeskyScratch::lens(1, BLOCK).map(|len| Matrix::new(device, 1, len).buffer);
    let scratch = CholeskyScratch { work: &work, column: &column, row: &row, inverse: &inverse };
    for (from, to) in [(y, q), (q, y)] {
        syrk(recorder, 1.0, &from.view(), Op::None, 0.0, &gram.view())?;
        inverse_cholesky(recorder, &gram.view(), &scratch, &factor.view())?;
        gemm(recorder, 1.0, &factor.view(), Op::None, &from.view(), Op::None, 0.0, &to.view())?;
    }
    kernels::copy_block(recorder, &y.view(), &q.view())
}

/// Submits, waits, and reads matrices back.
fn read<const M: usize>(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    mut encoder: wgpu::CommandEncoder,
    matrices: [&Matrix; M],
) -> Result<[Vec<f64>; M], Box<dyn Error>> {
    let copies = matrices.map(|matrix| {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let size = matrix.shape.bytes();
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let copy = device.create_buffer(&descriptor);
        encoder.copy_buffer_to_buffer(&matrix.buffer, 0, &copy, 0, size);
        copy
    });
    queue.submit([encoder.finish()]);
    for copy in &copies {
        copy.map_async(wgpu::MapMode::Read, .., |_| ());
    }
    device.poll(wgpu::PollType::wait_indefinitely())?;
    let mut values = [const { Vec::new() }; M];
    for (copy, values) in copies.iter().zip(&mut values) {
        let bytes = copy.get_mapped_range(..)?;
        *values = bytemuck::pod_collect_to_vec::<u8, f32>(&bytes).into_iter().map(f64::from).collect();
    }
    Ok(values)
}

// ---- on the CPU, for comparison ----

fn pca_on_cpu(samples: &[f32]) -> Components {
    let mut x: Vec<Vec<f64>> =
        samples.chunks(D).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect();
    for j in 0..D {
        let mean = x.iter().map(|row| row[j]).sum::<f64>() / N as f64;
        x.iter_mut().for_each(|row| row[j] -= mean);
    }
    let covariance = |i: usize, j: usize| x.iter().map(|row| row[i] * row[j]).sum::<f64>() / (N as f64 - 1.0);
    let mut a: Vec<Vec<f64>> = (0..D).map(|i| (0..D).map(|j| covariance(i, j)).collect()).collect();
    let mut axes = jacobi(&mut a);
    let mut order: Vec<usize> = (0..D).collect();
    order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
    let axes: Vec<Vec<f64>> = order[..K].iter().map(|&i| std::mem::take(&mut axes[i])).collect();
    let scores = x.iter().map(|row| axes.iter().map(|axis| dot(row, axis)).collect()).collect();
    Components { variances: order[..K].iter().map(|&i| a[i][i]).collect(), axes, scores }
}

/// The eigenvectors of a symmetric matrix as rows, by cyclic Jacobi; the eigenvalues are left on its diagonal.
fn jacobi(a: &mut [Vec<f64>]) -> Vec<Vec<f64>> {
    let n = a.len();
    let mut v: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| f64::from(i == j)).collect()).collect();
    for _ in 0..12 {
        for (p, q) in (0..n).flat_map(|p| (p + 1..n).map(move |q| (p, q))) {
            let angle = 0.5 * (2.0 * a[p][q]).atan2(a[q][q] - a[p][p]);
            let (s, c) = angle.sin_cos();
            let turn = |x: f64, y: f64| (c * x - s * y, s * x + c * y);
            for row in a.iter_mut() {
                (row[p], row[q]) = turn(row[p], row[q]);
            }
            for j in 0..n {
                (a[p][j], a[q][j]) = turn(a[p][j], a[q][j]);
                (v[p][j], v[q][j]) = turn(v[p][j], v[q][j]);
            }
        }
    }
    v
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(a, b)| a * b).sum()
}

/// Between two unit vectors, if it is small, whichever way they point.
fn angle(x: &[f64], y: &[f64]) -> f64 {
    let sign = dot(x, y).signum();
    x.iter().zip(y).map(|(a, b)| (sign * a - b).powi(2)).sum::<f64>().sqrt()
}

/// An axis may point either way; the scores must agree but for that.
fn scores_differ_by(gpu: &Components, cpu: &Components) -> f64 {
    let (mut difference, mut length) = (0.0, 0.0);
    for j in 0..K {
        let sign = dot(&gpu.axes[j], &cpu.axes[j]).signum();
        for (g, c) in gpu.scores.iter().zip(&cpu.scores) {
            difference += (sign * g[j] - c[j]).powi(2);
            length += c[j] * c[j];
        }
    }
    (difference / length).sqrt()
}

/// Samples that vary along a few random directions, a little less along each, around a mean that is not zero.
fn samples() -> Vec<f32> {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    let directions: Vec<Vec<f64>> = (0..2 * BLOCK).map(|_| (0..D).map(|_| random()).collect()).collect();
    let sample = |_| {
        let mut row: Vec<f64> = (0..D).map(|j| 3.0 + (j as f64).cos() + 0.05 * random()).collect();
        for (i, direction) in directions.iter().enumerate() {
            let amount = random() * 0.8f64.powi(i as i32);
            row.iter_mut().zip(direction).for_each(|(value, d)| *value += amount * d);
        }
        row.into_iter().map(|value| value as f32).collect::<Vec<f32>>()
    };
    (0..N).flat_map(sample).collect()
}
