//! The GPU backend: wgpu and the WGSL kernels of [`crate::kernels`].
