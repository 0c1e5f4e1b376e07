use super::Result;
use super::pool::Memory;
use crate::backend::{Error, Tensor};
use crate::kernels::View;
use crate::matrix::Shape;

/// A batched matrix in device memory, which is reused once the tensor is dropped.
pub struct GpuTensor {
    pub(super) shape: Shape,
    pub(super) memory: Memory,
}

impl GpuTensor {
    pub(super) fn view(&self) -> View<'_> {
        View::packed(&self.memory.buffer, self.shape)
    }

    /// The buffer that holds the elements, row-major from its start; its size is rounded up.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.memory.buffer
    }
}

impl Tensor for GpuTensor {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn reshape(self, shape: Shape) -> Result<Self> {
        if shape.len() == self.shape.len() {
            Ok(GpuTensor { shape, ..self })
        } else {
            Err(Error::Shape { operation: "reshape", shapes: vec![self.shape, shape] })
        }
    }
}
