//! Parameters of dispatches, many to a uniform buffer, and what dispatches bind beside them.

use super::library::Pipeline;
use super::recorder::Window;
use super::shaders::Bound;

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
    /// Over the current buffer: steps of a chain that differ in their parameters alone share one.
    groups: Vec<Group>,
}

/// What one dispatch or several bind.
struct Group {
    layout: wgpu::BindGroupLayout,
    windows: Vec<(wgpu::Buffer, [u64; 2])>,
    group: wgpu::BindGroup,
}

impl Group {
    /// A layout has as many windows as another that equals it.
    fn is_of(&self, layout: &wgpu::BindGroupLayout, windows: &[Window<'_>]) -> bool {
        let same = |((buffer, range), window): (&(wgpu::Buffer, [u64; 2]), &Window<'_>)| {
            buffer == window.buffer && *range == [window.start, window.size]
        };
        self.layout == *layout && self.windows.iter().zip(windows).all(same)
    }
}

impl Parameters {
    pub fn new(device: &wgpu::Device) -> Self {
        let slot = u64::from(device.limits().min_uniform_buffer_offset_alignment).max(256);
        Parameters { device: device.clone(), slot, current: None, used: 0, pushed: 0, groups: Vec::new() }
    }

    /// Stores one dispatch's parameters, and gives what it binds and the offset of the parameters in that.
    pub(super) fn bind<P, O>(
        &mut self,
        bytes: &[u8],
        pipeline: &Pipeline,
        entry: &Bound<'_, P, O>,
    ) -> (wgpu::BindGroup, u32) {
        let (buffer, offset) = self.push(bytes);
        if let Some(known) =
            self.groups.iter().rev().find(|group| group.is_of(&pipeline.layout, &entry.windows))
        {
            return (known.group.clone(), offset);
        }
        let storage = entry.storage.iter().zip(&entry.windows);
        let mut entries = vec![binding(0, &buffer, [0, bytes.len() as u64])];
        entries.extend(storage.map(|(&(number, _), w)| binding(number, w.buffer, [w.start, w.size])));
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.layout,
            entries: &entries,
        });
        let windows = entry.windows.iter().map(|w| (w.buffer.clone(), [w.start, w.size])).collect();
        self.groups.push(Group { layout: pipeline.layout.clone(), windows, group: group.clone() });
        (group, offset)
    }

    fn push(&mut self, bytes: &[u8]) -> (wgpu::Buffer, u32) {
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
        (buffer.clone(), offset as u32)
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
        self.groups.clear();
        self.used = 0;
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        self.seal();
    }
}

fn binding(binding: u32, buffer: &wgpu::Buffer, [offset, size]: [u64; 2]) -> wgpu::BindGroupEntry<'_> {
    let size = wgpu::BufferSize::new(size);
    wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size }),
    }
}
