//! From the device to the host.

use super::context::Context;
use super::promise::Promise;
use super::queue::Queue;
use super::{Error, Result};

/// Submits everything queued and reads the first bytes of every buffer, as many as stand beside it.
pub(super) async fn read<const N: usize>(
    context: &Context,
    queue: &Queue,
    buffers: [(&wgpu::Buffer, usize); N],
) -> Result<[Vec<u8>; N]> {
    let mut all = [const { Vec::new() }; N];
    let size = |bytes: usize| (bytes as u64).next_multiple_of(4);
    let total = buffers.iter().map(|&(_, bytes)| size(bytes)).sum();
    if total == 0 {
        return Ok(all);
    }
    let target = context.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("read-back"),
        size: total,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    queue.encode(|encoder| {
        let mut to = 0;
        for (buffer, bytes) in buffers.into_iter().filter(|&(_, bytes)| bytes > 0) {
            encoder.copy_buffer_to_buffer(buffer, 0, &target, to, size(bytes));
            to += size(bytes);
        }
    })?;
    queue.submit()?;
    queue.count_read_back();
    map(context, &target).await?;
    let range = target.get_mapped_range(..).map_err(|e| Error::Internal(e.to_string()))?;
    let mut from = 0;
    for (values, (_, bytes)) in all.iter_mut().zip(buffers) {
        *values = range[from..from + bytes].to_vec();
        from += size(bytes) as usize;
    }
    Ok(all)
}

/// Maps a buffer for reading.
pub(super) async fn map(context: &Context, buffer: &wgpu::Buffer) -> Result<()> {
    let (mapped, keep) = Promise::new();
    buffer.map_async(wgpu::MapMode::Read, .., keep);
    context.wait(None)?;
    let mapped = mapped.kept().await;
    context.check()?;
    mapped.map_err(|e| Error::Internal(e.to_string()))
}
