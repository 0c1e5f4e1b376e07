//! What a device's clock says between dispatches.

/// Timestamps of one submission: one where a pass begins, and one after every dispatch.
pub(crate) struct Stamps {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readable: wgpu::Buffer,
    /// Nanoseconds of a tick.
    period: f64,
    /// What ended at each timestamp; none where a pass began.
    ended: Vec<Option<Stamped>>,
}

/// A dispatch that was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamped {
    /// The shader.
    pub shader: &'static str,
    /// Its entry point.
    pub entry: &'static str,
    /// Workgroups.
    pub groups: [u32; 3],
}

impl Stamps {
    /// As many as one query set holds (WebGPU's limit).
    pub const MOST: usize = 4096;

    /// The features a device has to be opened with.
    pub const FEATURES: wgpu::Features =
        wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES);

    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let size = 8 * Self::MOST as u64;
        let buffer = |usage| {
            let descriptor =
                wgpu::BufferDescriptor { label: Some("timestamps"), size, usage, mapped_at_creation: false };
            device.create_buffer(&descriptor)
        };
        Stamps {
            set: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: Self::MOST as u32,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            readable: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
            period: f64::from(queue.get_timestamp_period()),
            ended: Vec::new(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ended.len()
    }

    /// One more: a pass begins, or a dispatch of this name ends.
    pub fn push(&mut self, pass: &mut wgpu::ComputePass<'_>, ended: Option<Stamped>) {
        if self.len() < Self::MOST {
            pass.write_timestamp(&self.set, self.len() as u32);
            self.ended.push(ended);
        }
    }

    /// Has them written where the host can read them.
    pub fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        let count = self.len() as u32;
        if count > 0 {
            encoder.resolve_query_set(&self.set, 0..count, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.readable, 0, 8 * u64::from(count));
        }
    }

    /// Asks for what was resolved. The submission must be done before [`take`](Stamps::take).
    pub fn map(&self) {
        self.readable.map_async(wgpu::MapMode::Read, .., |_| ());
    }

    /// Every dispatch and its seconds, and the seconds from the first timestamp to the last. The next submission begins anew.
    pub fn take(&mut self) -> (Vec<(Stamped, f64)>, f64) {
        let ended = std::mem::take(&mut self.ended);
        let ticks: Vec<u64> = match self.readable.get_mapped_range(..8 * ended.len() as u64) {
            Ok(range) => bytemuck::pod_collect_to_vec(&range[..]),
            Err(_) => return (Vec::new(), 0.0),
        };
        self.readable.unmap();
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 * self.period * 1e-9;
        let between = ticks.windows(2).zip(&ended[1..]);
        let each = between.filter_map(|(t, name)| name.map(|name| (name, seconds(t[0], t[1])))).collect();
        (each, seconds(ticks.first().copied().unwrap_or(0), ticks.last().copied().unwrap_or(0)))
    }
}
