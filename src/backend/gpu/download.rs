//! From the device to the host. What arrives is compared with what was there, by a checksum that the device makes.

use super::context::Context;
use super::fault::FaultKind;
use super::promise::Promise;
use super::split::Block;
use super::tensor::GpuTensor;
use super::{Error, Gpu, Result};
use crate::backend::Backend;
use crate::kernels::{View, checksum, checksum_of};
use crate::matrix::Shape;

impl Gpu {
    /// Submits everything queued and reads the first bytes of every buffer, as many as stand beside it.
    pub(super) async fn read_all<const N: usize>(
        &self,
        buffers: [(&wgpu::Buffer, usize); N],
    ) -> Result<[Vec<u8>; N]> {
        let mut all = [const { Vec::new() }; N];
        let sizes = buffers.map(|(_, bytes)| bytes.next_multiple_of(4));
        let total: usize = sizes.iter().sum();
        if total == 0 {
            return Ok(all);
        }
        let live = self.live();
        let sums = self.checksums(buffers)?;
        let sources = buffers.iter().map(|&(buffer, _)| buffer).chain([sums.buffer()]);
        let sizes = || sizes.iter().copied().chain([4 * N]);
        let target = live.context.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read-back"),
            size: (total + 4 * N) as u64,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        live.queue.encode(|encoder| {
            let mut to = 0;
            for (buffer, size) in sources.zip(sizes()).filter(|&(_, size)| size > 0) {
                encoder.copy_buffer_to_buffer(buffer, 0, &target, to, size as u64);
                to += size as u64;
            }
        })?;
        live.queue.submit()?;
        live.queue.count_read_back();
        map(&live.context, &target).await?;
        let range = target.get_mapped_range(..).map_err(|e| Error::Internal(e.to_string()))?;
        let mut from = 0;
        for (values, size) in all.iter_mut().zip(sizes()) {
            *values = range[from..from + size].to_vec();
            from += size;
        }
        let expected: Vec<u32> = bytemuck::pod_collect_to_vec(&range[from..]);
        drop(range);
        if live.context.faults.strikes(FaultKind::Wrong) {
            all.iter_mut().filter_map(|values| values.first_mut()).take(1).for_each(|byte| *byte ^= 1);
        }
        for ((values, expected), (_, bytes)) in all.iter_mut().zip(expected).zip(buffers) {
            let words =
                values.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            if checksum_of(words, 0) != expected {
                return Err(Error::Damaged);
            }
            values.truncate(bytes);
        }
        Ok(all)
    }

    /// The sums of the words of every buffer, one after the other.
    fn checksums<const N: usize>(&self, buffers: [(&wgpu::Buffer, usize); N]) -> Result<GpuTensor> {
        let sums = self.zeros(Shape::matrix(1, buffers.len()))?;
        let bindings = self.bindings();
        for (i, (buffer, bytes)) in buffers.into_iter().enumerate() {
            let words = View::packed(buffer, Shape::matrix(1, bytes.div_ceil(4)));
            let sum = sums.view().cols(i..i + 1);
            let fits = |block: &Block| bindings.hold(&block.of(&words));
            if !words.shape.is_empty() {
                self.for_each_part(words.shape, &fits, |recorder, block| {
                    checksum(recorder, &block.of(&words), block.cols.start, &sum)
                })?;
            }
        }
        Ok(sums)
    }
}

/// Maps a buffer for reading.
pub(super) async fn map(context: &Context, buffer: &wgpu::Buffer) -> Result<()> {
    let (mapped, keep) = Promise::new();
    buffer.map_async(wgpu::MapMode::Read, .., keep);
    context.wait(None)?;
    let mapped = mapped.kept().await;
    if mapped.is_err() {
        // a browser says that a buffer cannot be mapped before it says why
        context.settled().await?;
    }
    context.check()?;
    mapped.map_err(|e| Error::Internal(e.to_string()))
}
