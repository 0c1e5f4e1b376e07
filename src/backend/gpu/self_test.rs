//! What a driver promises is tried before it is relied on.

use super::Result;
use super::context::Context;
use super::download;
use crate::kernels::{self, Raw, Recorder, Terms, View, reduce_rows, unpack};
use crate::matrix::{Dtype, Shape};

/// Rows and columns of the trial: more columns than a workgroup has threads, and not a multiple of any subgroup.
const TRIAL: Shape = Shape { batch: 1, rows: 3, cols: 1499 };

/// Whether sums through subgroups are the sums: of integers, which f32 adds without rounding, whatever the order.
pub(super) async fn subgroups_add_up(context: &Context) -> Result<bool> {
    let value = |i: usize| ((i * 7919) % 1009) as f32;
    let values: Vec<f32> = (0..TRIAL.len()).map(value).collect();
    let expected: Vec<f32> = values.chunks(TRIAL.cols).map(|row| row.iter().sum()).collect();
    let sums = tried(context, bytemuck::cast_slice(&values), expected.len(), |recorder, x, sums| {
        let (x, sums) = (View::packed(x, TRIAL), View::packed(sums, Shape { cols: 1, ..TRIAL }));
        reduce_rows(recorder, &x, Terms::Sums, TRIAL.cols, false, &sums)
    });
    Ok(sums.await? == Some(expected))
}

/// Whether the device widens every float16 to its f32, subnormals too; of a NaN it must only make a NaN.
pub(super) async fn half_floats_are_exact(context: &Context) -> Result<bool> {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let widened = tried(context, bytemuck::cast_slice(&all), all.len(), |recorder, halves, out| {
        let halves = Raw { buffer: halves, offset: 0, len: all.len(), dtype: Dtype::F16 };
        unpack(recorder, &halves, &View::packed(out, Shape::matrix(1, all.len())))
    });
    let same = |(&half, got): (&u16, f32)| {
        let expected = widen(half);
        got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan()
    };
    Ok(widened.await?.is_some_and(|widened| all.iter().zip(widened).all(same)))
}

/// The f32 of a float16, by its definition.
fn widen(half: u16) -> f32 {
    let (exponent, mantissa) = (i32::from(half >> 10 & 0x1f), f32::from(half & 0x3ff));
    let magnitude = match exponent {
        0 => mantissa * 2f32.powi(-24),
        31 if mantissa == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + mantissa) * 2f32.powi(exponent - 25),
    };
    if half >> 15 == 1 { -magnitude } else { magnitude }
}

/// The `len` numbers that `encode` makes of an input; none if the device refuses it.
async fn tried(
    context: &Context,
    input: &[u8],
    len: usize,
    encode: impl FnOnce(&mut Recorder<'_>, &wgpu::Buffer, &wgpu::Buffer) -> kernels::Result<()>,
) -> Result<Option<Vec<f32>>> {
    let buffer = |bytes: usize, usage: wgpu::BufferUsages| {
        context.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes as u64,
            usage: usage | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    };
    let scopes = [wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::Internal]
        .map(|filter| context.device.push_error_scope(filter));
    let x = buffer(input.len(), wgpu::BufferUsages::STORAGE);
    let out = buffer(4 * len, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC);
    let read = buffer(4 * len, wgpu::BufferUsages::MAP_READ);
    context.queue.write_buffer(&x, 0, input);
    let mut encoder = context.device.create_command_encoder(&Default::default());
    let mut recorder = context.kernels.record(&mut encoder);
    let encoded = encode(&mut recorder, &x, &out);
    drop(recorder);
    encoder.copy_buffer_to_buffer(&out, 0, &read, 0, out.size());
    context.queue.submit([encoder.finish()]);
    let mut refused = encoded.is_err();
    for scope in scopes.into_iter().rev() {
        refused |= scope.pop().await.is_some();
    }
    if refused {
        return Ok(None);
    }
    download::map(context, &read).await?;
    let range = read.get_mapped_range(..).ok();
    Ok(range.map(|range| bytemuck::pod_collect_to_vec(&range)))
}
