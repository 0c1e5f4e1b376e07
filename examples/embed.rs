//! The kernels inside another wgpu program: principal component analysis in its device, its buffers, its command encoder and
//! one submission. `web/embed` is the same in a page.
//!
//!     cargo run --release --no-default-features --example embed

use esmerge::kernels::{
    Checks, EigenScratch, Kernels, Op, Shape, Terms, View, gemm, reduce_columns, symmetric_eigen, syrk,
};
use esmerge::wgpu;
use std::error::Error;
use std::fmt::Write;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

/// Samples, dimensions, and how many components are wanted.
const N: usize = 2000;
const D: usize = 60;
const K: usize = 4;

#[cfg(not(target_family = "wasm"))]
fn main() {
    match pollster::block_on(components()) {
        Ok(table) => print!("{table}"),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}

/// The principal components, as a table.
pub async fn components() -> Result<String, Box<dyn Error>> {
    // This program's own device; WebGPU's default limits are enough, and no feature is needed.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    let descriptor = wgpu::DeviceDescriptor {
        required_features: Kernels::required_features(),
        required_limits: Kernels::required_limits(),
        ..Default::default()
    };
    let (device, queue) = adapter.request_device(&descriptor).await?;

    // Its own buffers, and what the kernels see of them: views with a shape. Nothing is copied.
    let buffer = |elements: usize| storage(&device, elements);
    let (samples, ones, sums) = (buffer(N * D), buffer(N), buffer(D));
    let (covariance, values, vectors) = (buffer(D * D), buffer(D), buffer(D * D));
    let (projections, deviations) = (buffer(N * K), buffer(K));
    queue.write_buffer(&samples, 0, bytemuck::cast_slice(&points()));
    queue.write_buffer(&ones, 0, bytemuck::cast_slice(&[1f32; N]));
    let x = View::packed(&samples, Shape::matrix(N, D));
    let ones = View::packed(&ones, Shape::matrix(N, 1));
    let sum = View::packed(&sums, Shape::matrix(1, D));
    let c = View::packed(&covariance, Shape::matrix(D, D));
    let lambda = View::packed(&values, Shape::matrix(1, D));
    let v = View::packed(&vectors, Shape::matrix(D, D));
    let y = View::packed(&projections, Shape::matrix(N, K));
    let deviation = View::packed(&deviations, Shape::matrix(1, K));
    let scratch = EigenScratch::allocate(&device, 1, D);
    let scratch = EigenScratch::of(&scratch);

    // They encode into its encoder, between whatever else it has to do.
    let kernels = Kernels::new(&device, Checks::default());
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut recorder = kernels.record(&mut encoder);
    // X <- X - 1 mean^T
    reduce_columns(&mut recorder, &x, Terms::Sums, N, false, &sum)?;
    gemm(&mut recorder, -1.0 / N as f32, &ones, Op::None, &sum, Op::None, 1.0, &x)?;
    // C = X^T X / (n - 1)
    syrk(&mut recorder, 1.0 / (N - 1) as f32, &x, Op::Transpose, 0.0, &c)?;
    // C V = V L, eigenvectors as rows, the largest eigenvalue first
    symmetric_eigen(&mut recorder, &c, &scratch, &lambda, &v)?;
    // Y = X V_k^T
    gemm(&mut recorder, 1.0, &x, Op::None, &v.rows(0..K), Op::Transpose, 0.0, &y)?;
    reduce_columns(&mut recorder, &y, Terms::Squares, N, true, &deviation)?;
    drop(recorder);
    queue.submit([encoder.finish()]);

    let lambda = read(&device, &queue, &values).await?;
    let deviations = read(&device, &queue, &deviations).await?;
    let total: f32 = lambda.iter().sum();
    let mut table = String::new();
    writeln!(table, "{}: {N} samples of {D} dimensions", adapter.get_info().name)?;
    writeln!(table, "component  variance  of all  variance of the projections")?;
    for (i, (variance, norm)) in lambda.iter().zip(&deviations).enumerate() {
        let projected = norm * norm / (N - 1) as f32;
        writeln!(table, "{:9} {variance:9.3} {:6.1}% {projected:12.3}", i + 1, 100.0 * variance / total)?;
        if (projected - variance).abs() > 1e-3 * variance {
            return Err(format!("component {} does not have the variance of its eigenvalue", i + 1).into());
        }
    }
    Ok(table)
}

/// Samples along a few hidden directions, with noise, away from the origin.
fn points() -> Vec<f32> {
    let mut state = 1u32;
    let mut noise = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut points = Vec::with_capacity(N * D);
    for _ in 0..N {
        let hidden: [f32; K] = std::array::from_fn(|k| noise() * (K - k) as f32);
        for d in 0..D {
            let signal = hidden.iter().enumerate().map(|(k, h)| h * ((d * (k + 1)) as f32 * 0.21).cos());
            points.push(3.0 + signal.sum::<f32>() + 0.3 * noise());
        }
    }
    points
}

fn storage(device: &wgpu::Device, elements: usize) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 4 * elements as u64,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

async fn read(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    buffer: &wgpu::Buffer,
) -> Result<Vec<f32>, Box<dyn Error>> {
    let target = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: buffer.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &target, 0, buffer.size());
    queue.submit([encoder.finish()]);
    mapped(device, &target).await?;
    Ok(bytemuck::pod_collect_to_vec(&target.get_mapped_range(..)?))
}

/// Waits until a buffer can be read. In a browser `poll` returns at once, and the callback comes later.
async fn mapped(device: &wgpu::Device, buffer: &wgpu::Buffer) -> Result<(), Box<dyn Error>> {
    let state = Arc::new(Mutex::new((None, None::<Waker>)));
    let told = Arc::clone(&state);
    buffer.map_async(wgpu::MapMode::Read, .., move |result| {
        let mut state = told.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = Some(result);
        state.1.take().into_iter().for_each(Waker::wake);
    });
    device.poll(wgpu::PollType::wait_indefinitely())?;
    let result = poll_fn(|task| {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 = Some(task.waker().clone());
        state.0.take().map_or(Poll::Pending, Poll::Ready)
    });
    Ok(result.await?)
}
