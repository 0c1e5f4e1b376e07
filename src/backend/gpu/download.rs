//! From the device to the host.

use super::context::Context;
use super::queue::Queue;
use super::{Error, Result};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

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

/// A mapping that was asked for.
#[derive(Default)]
struct Mapping {
    result: Option<std::result::Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

async fn map(context: &Context, buffer: &wgpu::Buffer) -> Result<()> {
    let mapping = Arc::new(Mutex::new(Mapping::default()));
    let promised = Arc::clone(&mapping);
    buffer.map_async(wgpu::MapMode::Read, .., move |result| {
        let mut mapping = lock(&promised);
        mapping.result = Some(result);
        if let Some(waker) = mapping.waker.take() {
            waker.wake();
        }
    });
    context.wait(None)?;
    let mapped = poll_fn(|task| {
        let mut mapping = lock(&mapping);
        match mapping.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                mapping.waker = Some(task.waker().clone());
                Poll::Pending
            }
        }
    })
    .await;
    context.check()?;
    mapped.map_err(|e| Error::Internal(e.to_string()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
