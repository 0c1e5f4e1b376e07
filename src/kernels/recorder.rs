//! Encoding of one dispatch: what is the same for all kernels.

use super::library::Pipeline;
use super::shaders::{Bound, Setting};
use super::{Error, Kernels, Parameters, Raw, Result, Stamped, Stamps, View};
use crate::matrix::Dtype;

/// A compute pass that kernels encode into.
pub struct Recorder<'a> {
    kernels: &'a Kernels,
    target: Target<'a>,
}

/// Where dispatches and their parameters go.
enum Target<'a> {
    /// A pass that goes on after the recorder, and the clock if dispatches are timed.
    Caller(&'a mut wgpu::ComputePass<'static>, &'a mut Parameters, Option<&'a mut Stamps>),
    /// A pass that ends with it.
    Own(Box<wgpu::ComputePass<'a>>, Parameters),
}

/// Part of a buffer as a shader binds it, to read.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    pub buffer: &'a wgpu::Buffer,
    /// In bytes, aligned as the device demands.
    pub start: u64,
    /// In bytes.
    pub size: u64,
    /// Where the view begins within the window, in elements.
    pub first: u32,
}

impl Window<'_> {
    /// Where a view begins within its window, from one row to the next and from one matrix to the next, counted in pieces of
    /// `step` elements, which is what a shader loads at once.
    pub fn places(&self, view: &View<'_>, step: usize) -> [u32; 3] {
        [self.first as usize, view.row_stride, view.batch_stride].map(|elements| (elements / step) as u32)
    }
}

/// Part of a buffer as a shader binds it, to write.
#[derive(Clone, Copy)]
pub(super) struct WindowMut<'a>(pub Window<'a>);

impl<'a> std::ops::Deref for WindowMut<'a> {
    type Target = Window<'a>;

    fn deref(&self) -> &Window<'a> {
        &self.0
    }
}

/// One dispatch.
pub(super) struct Dispatch<'a, P, O> {
    pub entry: Bound<'a, P, O>,
    pub constants: &'a [Setting<O>],
    pub params: P,
    pub groups: [u32; 3],
}

impl<'a> Recorder<'a> {
    pub(super) fn new(
        kernels: &'a Kernels,
        pass: &'a mut wgpu::ComputePass<'static>,
        params: &'a mut Parameters,
        stamps: Option<&'a mut Stamps>,
    ) -> Self {
        Recorder { kernels, target: Target::Caller(pass, params, stamps) }
    }

    pub(super) fn with_own_params(
        kernels: &'a Kernels,
        encoder: &'a mut wgpu::CommandEncoder,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) -> Self {
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
        let pass = encoder.begin_compute_pass(&descriptor);
        Recorder { kernels, target: Target::Own(Box::new(pass), Parameters::new(kernels.device())) }
    }

    pub(super) fn kernels(&self) -> &'a Kernels {
        self.kernels
    }

    pub(super) fn dispatch<P: bytemuck::Pod, O>(&mut self, dispatch: Dispatch<'_, P, O>) {
        let Dispatch { entry, constants, params, groups } = dispatch;
        let pipeline = self.kernels.pipeline(&entry, constants);
        let bytes = bytemuck::bytes_of(&params);
        match &mut self.target {
            Target::Caller(pass, params, stamps) => {
                encode(pass, &pipeline, params.bind(bytes, &pipeline, &entry), groups);
                if let Some(stamps) = stamps {
                    let stamped = Stamped { shader: entry.shader.name, entry: entry.entry, groups };
                    stamps.push(pass, Some(stamped));
                }
            }
            Target::Own(pass, params) => {
                encode(pass, &pipeline, params.bind(bytes, &pipeline, &entry), groups);
            }
        }
    }

    /// `count` threads of an entry point without constants, in workgroups of so many.
    pub(super) fn dispatch_threads<P: bytemuck::Pod, O>(
        &mut self,
        kernel: &'static str,
        entry: Bound<'_, P, O>,
        params: P,
        count: u64,
        workgroup: u32,
    ) -> Result<()> {
        let groups = self.grid(kernel, count, workgroup)?;
        self.dispatch(Dispatch { entry, constants: &[], params, groups });
        Ok(())
    }

    /// What a kernel binds for a view that it reads.
    pub(super) fn window<'v>(&self, kernel: &'static str, view: &View<'v>) -> Result<Window<'v>> {
        if view.row_stride >= view.shape.cols || view.shape.rows <= 1 {
            self.bytes(kernel, view.buffer, 4 * view.offset, 4 * view.span().max(1), 4)
        } else {
            let reason = format!("rows of {} elements are {} apart", view.shape.cols, view.row_stride);
            Err(Error::Operands { kernel, reason })
        }
    }

    /// What a kernel binds for a view that it writes.
    pub(super) fn window_mut<'v>(&self, kernel: &'static str, view: &View<'v>) -> Result<WindowMut<'v>> {
        self.window(kernel, view).map(WindowMut)
    }

    /// What a kernel binds for raw numbers.
    pub(super) fn raw_window<'v>(&self, kernel: &'static str, raw: &Raw<'v>) -> Result<Window<'v>> {
        self.numbers(kernel, raw.buffer, raw.offset, raw.len as u64, raw.dtype, 4)
    }

    /// What a kernel binds for `len` numbers of a type from `offset` on, in whole units of so many bytes: a number that
    /// shares its word is bound with its neighbour. `first` counts numbers.
    pub(super) fn numbers<'v>(
        &self,
        kernel: &'static str,
        buffer: &'v wgpu::Buffer,
        offset: u64,
        len: u64,
        dtype: Dtype,
        unit: u64,
    ) -> Result<Window<'v>> {
        let size = dtype.size() as u64;
        let start = offset * size / 4 * 4;
        let end = ((offset + len) * size).next_multiple_of(unit);
        let mut window = self.bytes(kernel, buffer, start, end - start, 4)?;
        window.first = window.first * 4 / size as u32 + (offset % (4 / size)) as u32;
        Ok(window)
    }

    fn bytes<'v>(
        &self,
        kernel: &'static str,
        buffer: &'v wgpu::Buffer,
        from: u64,
        len: u64,
        unit: u64,
    ) -> Result<Window<'v>> {
        let limits = self.kernels.limits();
        if from + len > buffer.size() {
            let reason = format!("bytes {from} to {} of a buffer of {}", from + len, buffer.size());
            return Err(Error::Operands { kernel, reason });
        }
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
        let start = from / alignment * alignment;
        let size = from - start + len;
        let limit = limits.max_storage_buffer_binding_size;
        if size > limit {
            return Err(Error::Binding { kernel, bytes: size, limit });
        }
        Ok(Window { buffer, start, size, first: ((from - start) / unit) as u32 })
    }

    /// Workgroups for `count` threads, folded into two dimensions.
    pub(super) fn grid(&self, kernel: &'static str, count: u64, workgroup: u32) -> Result<[u32; 3]> {
        let groups = count.div_ceil(u64::from(workgroup));
        let limit = u64::from(self.kernels.limits().max_compute_workgroups_per_dimension);
        let x = groups.clamp(1, limit);
        let y = groups.div_ceil(x);
        if y > limit {
            return Err(Error::Workgroups { kernel, count: groups });
        }
        Ok([x as u32, y as u32, 1])
    }
}

fn encode(
    pass: &mut wgpu::ComputePass<'_>,
    pipeline: &Pipeline,
    (group, offset): (wgpu::BindGroup, u32),
    [x, y, z]: [u32; 3],
) {
    pass.set_pipeline(&pipeline.pipeline);
    pass.set_bind_group(0, &group, &[offset]);
    pass.dispatch_workgroups(x, y, z);
}

/// [`Error::Operands`] unless `condition` holds.
pub(super) fn require(condition: bool, kernel: &'static str, reason: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(Error::Operands { kernel, reason: reason() }) }
}
