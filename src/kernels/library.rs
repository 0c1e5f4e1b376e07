//! The shaders of a device, compiled as they are first needed.

use super::shaders::{self, Bound, Setting, Shader};
use super::tile::{ENOUGH_TILES, built_in};
use super::{Choice, Parameters, Recorder, ShapeClass, Stamps, Tile};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whether shaders check their own indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Checks {
    /// Every access to a buffer is clamped to it, and every loop bounded, as WebGPU demands.
    On,
    /// Every kernel guards its own edges and nothing else is checked: faster, and what every build does unless asked.
    #[default]
    Off,
}

/// How products are computed where nothing else was chosen for their class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Products {
    /// Through tiles in workgroup memory, of a size that suits the product: for hardware.
    Tiled,
    /// From registers alone ([`Tile::Direct`]): for software adapters.
    Direct,
    /// Always by this tile.
    Only(Tile),
}

impl Products {
    /// The one place where this is decided.
    fn of(info: &wgpu::AdapterInfo) -> Self {
        match info.device_type {
            wgpu::DeviceType::Cpu => Products::Direct,
            _ => Products::Tiled,
        }
    }
}

/// What tells one pipeline from another.
#[derive(PartialEq, Eq, Hash)]
struct PipelineKey {
    entry: &'static str,
    shader: &'static str,
    /// Overrides, as bits.
    constants: Vec<(&'static str, u64)>,
}

/// A compiled entry point.
#[derive(Clone)]
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    /// Of its one group: parameters, at an offset that each dispatch says, and storage.
    pub layout: wgpu::BindGroupLayout,
}

/// The kernels of one device. Cheap to make: a pipeline is compiled when it is first used, and kept.
pub struct Kernels {
    device: wgpu::Device,
    limits: wgpu::Limits,
    checks: Checks,
    products: Products,
    subgroups: bool,
    half_floats: bool,
    enough_tiles: usize,
    choices: Mutex<HashMap<ShapeClass, Choice>>,
    modules: Mutex<HashMap<&'static str, wgpu::ShaderModule>>,
    pipelines: Mutex<HashMap<PipelineKey, Pipeline>>,
}

impl Kernels {
    /// The kernels for a device.
    pub fn new(device: &wgpu::Device, checks: Checks) -> Self {
        let mut limits = device.limits();
        // Indices are 32 bits wide, and no driver binds more.
        limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min((1 << 31) - 4);
        Kernels {
            limits,
            checks,
            products: Products::of(&device.adapter_info()),
            subgroups: device.features().contains(wgpu::Features::SUBGROUP),
            half_floats: false,
            enough_tiles: ENOUGH_TILES,
            choices: Mutex::default(),
            device: device.clone(),
            modules: Mutex::default(),
            pipelines: Mutex::default(),
        }
    }

    /// The same kernels with another way to compute products than the adapter's type suggests.
    pub fn with_products(self, products: Products) -> Self {
        Kernels { products, ..self }
    }

    /// The same kernels with or without subgroup operations. [`Kernels::new`] uses them where the device was opened with
    /// [`wgpu::Features::SUBGROUP`].
    pub fn with_subgroups(self, subgroups: bool) -> Self {
        let subgroups = subgroups && self.device.features().contains(wgpu::Features::SUBGROUP);
        Kernels { subgroups, ..self }
    }

    /// Whether sums go through subgroup operations.
    pub fn subgroups(&self) -> bool {
        self.subgroups
    }

    /// The same kernels with float16 widened by the device itself, if it was opened with [`wgpu::Features::SHADER_F16`], or
    /// as integers. [`Kernels::new`] does the second: devices may flush subnormals, so try yours first, as
    /// [`Gpu`](crate::backend::gpu::Gpu) does.
    pub fn with_half_floats(self, half_floats: bool) -> Self {
        let half_floats = half_floats && self.device.features().contains(wgpu::Features::SHADER_F16);
        Kernels { half_floats, ..self }
    }

    /// Whether the device itself widens float16.
    pub fn half_floats(&self) -> bool {
        self.half_floats
    }

    /// The same kernels for a device that so many tiles of a product keep busy: where there would be fewer, smaller ones are taken.
    /// [`Kernels::new`] takes 128; fewer are taken for as many.
    pub fn with_enough_tiles(self, tiles: usize) -> Self {
        Kernels { enough_tiles: tiles.max(ENOUGH_TILES), ..self }
    }

    /// Features that the kernels make use of if the device was opened with them.
    pub fn optional_features() -> wgpu::Features {
        wgpu::Features::SUBGROUP | wgpu::Features::SHADER_F16
    }

    /// The least a device must offer; WebGPU's defaults do.
    pub fn required_limits() -> wgpu::Limits {
        wgpu::Limits::defaults()
    }

    /// The features a device must offer: none.
    pub fn required_features() -> wgpu::Features {
        wgpu::Features::empty()
    }

    /// Starts a compute pass that kernels encode into. Drop the recorder before the encoder is submitted.
    pub fn record<'a>(&'a self, encoder: &'a mut wgpu::CommandEncoder) -> Recorder<'a> {
        Recorder::with_own_params(self, encoder, None)
    }

    /// Like [`record`](Kernels::record), with the device writing down when the pass begins and ends.
    pub fn record_timed<'a>(
        &'a self,
        encoder: &'a mut wgpu::CommandEncoder,
        timestamps: wgpu::ComputePassTimestampWrites<'_>,
    ) -> Recorder<'a> {
        Recorder::with_own_params(self, encoder, Some(timestamps))
    }

    /// Like [`record`](Kernels::record), in a pass that goes on, with parameters that outlive it.
    pub(crate) fn record_with<'a>(
        &'a self,
        pass: &'a mut wgpu::ComputePass<'static>,
        params: &'a mut Parameters,
        stamps: Option<&'a mut Stamps>,
    ) -> Recorder<'a> {
        Recorder::new(self, pass, params, stamps)
    }

    /// How products are computed here.
    pub fn products(&self) -> Products {
        self.products
    }

    /// Computes the products of a class in this way from now on.
    pub fn choose(&self, class: ShapeClass, choice: Choice) {
        lock(&self.choices).insert(class, choice);
    }

    /// What was chosen for a class with [`choose`](Kernels::choose).
    pub fn chosen(&self, class: ShapeClass) -> Option<Choice> {
        lock(&self.choices).get(&class).copied()
    }

    /// How a product of a class is computed.
    pub(crate) fn choice(
        &self,
        class: ShapeClass,
        batch: usize,
        sizes: [usize; 3],
        triangular: bool,
    ) -> Choice {
        match self.products {
            Products::Only(tile) => Choice { tile, splits: 1 },
            _ => self.chosen(class).unwrap_or_else(|| match self.products {
                Products::Tiled => built_in(batch, sizes, triangular, self.enough_tiles),
                _ => Choice { tile: Tile::Direct, splits: 1 },
            }),
        }
    }

    /// A number that changes with the shaders of the products, so that what was measured of others is not taken for these.
    pub fn products_version() -> u64 {
        use shaders::{gemm, gemm_blocks, gemm_direct, gemm_vec2, gemm_vec4, sum_parts};
        let tiled = [gemm::SHADER, gemm_vec4::SHADER, gemm_vec2::SHADER];
        let sources = tiled.iter().chain(&[gemm_direct::SHADER, gemm_blocks::SHADER, sum_parts::SHADER]);
        let bytes = sources.flat_map(|shader| shader.source.bytes());
        // FNV-1a
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }

    /// The limits the kernels keep to.
    pub fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The pipeline of an entry point with these overrides.
    pub(super) fn pipeline<P, O>(&self, entry: &Bound<'_, P, O>, constants: &[Setting<O>]) -> Pipeline {
        let bits = constants.iter().map(|it| (it.name, it.value.to_bits())).collect();
        let key = PipelineKey { entry: entry.entry, shader: entry.shader.name, constants: bits };
        lock(&self.pipelines).entry(key).or_insert_with(|| self.compile(entry, constants)).clone()
    }

    fn compile<P, O>(&self, entry: &Bound<'_, P, O>, constants: &[Setting<O>]) -> Pipeline {
        let constants: Vec<_> = constants.iter().map(|it| (it.name, it.value)).collect();
        let shader = entry.shader;
        let module = lock(&self.modules).entry(shader.name).or_insert_with(|| self.module(shader)).clone();
        let layout = self.layout(entry);
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(entry.entry),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry.entry),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(entry.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Every kernel writes workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        Pipeline { pipeline, layout }
    }

    fn layout<P, O>(&self, entry: &Bound<'_, P, O>) -> wgpu::BindGroupLayout {
        let binding = |binding: u32, ty, size, has_dynamic_offset| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: size },
            count: None,
        };
        let size = wgpu::BufferSize::new(size_of::<P>() as u64);
        let params = binding(0, wgpu::BufferBindingType::Uniform, size, true);
        let storage = entry.storage.iter().map(|&(number, written)| {
            binding(number, wgpu::BufferBindingType::Storage { read_only: !written }, None, false)
        });
        let entries: Vec<_> = std::iter::once(params).chain(storage).collect();
        let label = Some(entry.shader.name);
        self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries })
    }

    fn module(&self, shader: Shader) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(shader.name),
            source: wgpu::ShaderSource::Wgsl(enabled(shader.source)),
        };
        match self.checks {
            Checks::On => self.device.create_shader_module(descriptor),
            // SAFETY: each kernel guards its own edges, which the tests check with canaries around every output, and
            // the views it is given are checked against their buffers. Loops end: their bounds are parameters.
            Checks::Off => unsafe {
                self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
            },
        }
    }
}

/// A source for the compiler that gets it: a browser's wants subgroups to be asked for, as the standard says, and naga, which
/// knows them without, refuses that.
fn enabled(source: &'static str) -> Cow<'static, str> {
    if cfg!(target_family = "wasm") && source.contains("@builtin(subgroup_id)") {
        return format!("enable subgroups;\n{source}").into();
    }
    source.into()
}

/// A poisoned cache is still a cache.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
