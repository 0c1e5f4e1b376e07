//! Parameters of dispatches, many to a uniform buffer.

/// Dispatches whose parameters share one buffer.
const SLOTS: u64 = 64;

/// The parameters of the dispatches of one submission. They are written into mapped memory, so [`seal`](Parameters::seal)
/// must come before the submission.
pub(crate) struct Parameters {
    device: wgpu::Device,
    slot: u64,
    current: Option<wgpu::Buffer>,
    used: u64,
    pushed: u64,
}

impl Parameters {
    pub fn new(device: &wgpu::Device) -> Self {
        let slot = u64::from(device.limits().min_uniform_buffer_offset_alignment).max(256);
        Parameters { device: device.clone(), slot, current: None, used: 0, pushed: 0 }
    }

    /// Stores one dispatch's parameters and says where.
    pub fn push(&mut self, bytes: &[u8]) -> (wgpu::Buffer, u64) {
        if self.used == SLOTS {
            self.seal();
        }
        let buffer = self.current.get_or_insert_with(|| {
            self.used = 0;
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("parameters"),
                size: SLOTS * self.slot,
                usage: wgpu::BufferUsages::UNIFORM,
                mapped_at_creation: true,
            })
        });
        let offset = self.used * self.slot;
        // A buffer that could not be made is not mapped either; the device has reported that already.
        if let Ok(mut range) = buffer.get_mapped_range_mut(offset..offset + bytes.len() as u64) {
            range.copy_from_slice(bytes);
        }
        self.used += 1;
        self.pushed += 1;
        (buffer.clone(), offset)
    }

    /// Dispatches so far.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Unmaps what was written.
    pub fn seal(&mut self) {
        if let Some(buffer) = self.current.take() {
            buffer.unmap();
        }
        self.used = 0;
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        self.seal();
    }
}
