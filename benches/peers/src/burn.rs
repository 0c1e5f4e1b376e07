//! burn's matmul: cubecl's kernels as WGSL, which it tunes on first use.

use crate::shape::{Inputs, Shape};
use crate::timing::Contender;
use crate::{Result, USAGE};
use burn::tensor::wgpu::WgpuSetup;
use burn::tensor::{Device, Tensor, TensorData};

pub struct Burn {
    device: Device,
    ready: Option<[Tensor<3>; 2]>,
    product: Option<Tensor<3>>,
}

impl Burn {
    /// On the very device that esmerge uses.
    pub fn new(adapter: &wgpu::Adapter, device: &wgpu::Device, queue: &wgpu::Queue) -> Result<Burn> {
        let setup = WgpuSetup {
            instance: wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle()),
            adapter: adapter.clone(),
            device: device.clone(),
            queue: queue.clone(),
            backend: adapter.get_info().backend,
        };
        let device = Device::wgpu_options().setup(setup).init().map_err(|error| format!("{error:?}"))?;
        Ok(Burn { device, ready: None, product: None })
    }
}

impl Contender for Burn {
    fn name(&self) -> String {
        "burn 0.22.1 (cubecl 0.11.3, cubek-matmul 0.3.1, wgpu 30, WGSL, autotune)".to_owned()
    }

    fn prepare(&mut self, inputs: &Inputs) -> Result<()> {
        let Shape { batch, m, n, k } = inputs.shape;
        let tensor = |values: &[f32], shape: [usize; 3]| {
            Tensor::<3>::from_data(TensorData::new(values.to_vec(), shape), &self.device)
        };
        self.ready = Some([tensor(&inputs.a, [batch, m, k]), tensor(&inputs.b, [batch, k, n])]);
        Ok(())
    }

    fn run(&mut self, repetitions: usize) -> Result<()> {
        let [a, b] = self.ready.as_ref().ok_or(USAGE)?;
        for _ in 0..repetitions {
            self.product = Some(a.clone().matmul(b.clone()));
        }
        self.device.sync().map_err(|error| format!("{error:?}").into())
    }

    fn product(&mut self) -> Result<Vec<f32>> {
        let product = self.product.clone().ok_or(USAGE)?;
        product.into_data().try_to_vec::<f32>().map_err(|error| format!("{error:?}").into())
    }
}
