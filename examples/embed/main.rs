//! The kernels inside another wgpu program: its device, its buffers, its command encoder, its submission.
//!
//!     cargo run --release --no-default-features --example embed

use esmerge::kernels::{Checks, Kernels, Op, Shape, Terms, View, gemm, reduce_rows};

fn main() {
    if let Err(error) = pollster::block_on(run()) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    // This program's own device; WebGPU's default limits are enough.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    let descriptor = wgpu::DeviceDescriptor {
        required_features: Kernels::required_features(),
        required_limits: Kernels::required_limits(),
        ..Default::default()
    };
    let (device, queue) = adapter.request_device(&descriptor).await?;

    // Its own buffers: two matrices side by side in one of them.
    let (rows, inner, cols) = (200, 300, 100);
    let width = inner + cols;
    let values: Vec<f32> = (0..rows.max(inner) * width).map(|i| (i % 7) as f32 - 3.0).collect();
    let inputs = storage(&device, values.len());
    queue.write_buffer(&inputs, 0, bytemuck::cast_slice(&values));
    let (product, norms) = (storage(&device, rows * cols), storage(&device, rows));

    // The kernels see parts of buffers; nothing is copied.
    let both = View::packed(&inputs, Shape::matrix(rows.max(inner), width));
    let (a, b) = (both.rows(0..rows).cols(0..inner), both.rows(0..inner).cols(inner..width));
    let c = View::packed(&product, Shape::matrix(rows, cols));
    let out = View::packed(&norms, Shape::matrix(rows, 1));

    // They encode into its encoder, between whatever else it has to do.
    let kernels = Kernels::new(&device, Checks::default());
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut recorder = kernels.record(&mut encoder);
    gemm(&mut recorder, 1.0, &a, Op::None, &b, Op::None, 0.0, &c)?;
    reduce_rows(&mut recorder, &c, Terms::Squares, cols, true, &out)?;
    drop(recorder);
    queue.submit([encoder.finish()]);

    println!(
        "{}: norms of the first rows of a product: {:?}",
        adapter.get_info().name,
        &read(&device, &queue, &norms)?[..4]
    );
    Ok(())
}

fn storage(device: &wgpu::Device, len: usize) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 4 * len as u64,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

fn read(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    buffer: &wgpu::Buffer,
) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let target = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: buffer.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &target, 0, buffer.size());
    queue.submit([encoder.finish()]);
    target.map_async(wgpu::MapMode::Read, .., |_| ());
    device.poll(wgpu::PollType::wait_indefinitely())?;
    Ok(bytemuck::pod_collect_to_vec(&target.get_mapped_range(..)?))
}
