//! What a driver promises is tried before it is relied on.

use super::Result;
use super::context::Context;
use crate::kernels::{Terms, View, reduce_rows};
use crate::matrix::Shape;

/// Rows and columns of the trial: more columns than a workgroup has threads, and not a multiple of any subgroup.
const TRIAL: Shape = Shape { batch: 1, rows: 3, cols: 1499 };

/// Whether sums through subgroups are the sums: of integers, which f32 adds without rounding, whatever the order.
pub(super) fn subgroups_add_up(context: &Context) -> Result<bool> {
    let value = |i: usize| ((i * 7919) % 1009) as f32;
    let values: Vec<f32> = (0..TRIAL.len()).map(value).collect();
    let expected: Vec<f32> = values.chunks(TRIAL.cols).map(|row| row.iter().sum()).collect();

    let buffer = |bytes: u64, usage: wgpu::BufferUsages| {
        let usage = usage | wgpu::BufferUsages::COPY_DST;
        let size = bytes;
        context.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    };
    let bytes = 4 * expected.len() as u64;
    let x = buffer(TRIAL.bytes(), wgpu::BufferUsages::STORAGE);
    let sums = buffer(bytes, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC);
    let read = buffer(bytes, wgpu::BufferUsages::MAP_READ);
    context.queue.write_buffer(&x, 0, bytemuck::cast_slice(&values));
    let mut encoder = context.device.create_command_encoder(&Default::default());
    let out = View::packed(&sums, Shape { cols: 1, ..TRIAL });
    let mut recorder = context.kernels.record(&mut encoder);
    let encoded = reduce_rows(&mut recorder, &View::packed(&x, TRIAL), Terms::Sums, TRIAL.cols, false, &out);
    drop(recorder);
    if encoded.is_err() {
        return Ok(false);
    }
    encoder.copy_buffer_to_buffer(&sums, 0, &read, 0, bytes);
    context.queue.submit([encoder.finish()]);
    read.map_async(wgpu::MapMode::Read, .., |_| {});
    context.wait(None)?;
    let Ok(range) = read.get_mapped_range(..) else { return Ok(false) };
    Ok(bytemuck::pod_collect_to_vec::<u8, f32>(&range) == expected)
}
