//! The kernel library: each kernel is `shaders/<name>.wgsl`, its dispatch in `src/kernels/<name>.rs`, and its twin on the CPU backend.
