//! Throughput of the products on the adapters of this machine: `cargo bench --bench kernels [-- SELECTOR [SIZE]]`.
//! The best of several runs, by the host's clock, with the submission and the wait for it included.

use esmerge::backend::gpu::{Config, Gpu, GpuTensor};
use esmerge::backend::{Backend, Op, Result, Shape};
use esmerge::kernels::Products;
use std::time::Instant;

const RUNS: usize = 5;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let selector = arguments.next().unwrap_or_default().to_lowercase();
    let size: usize = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(512);
    for adapter in pollster::block_on(Gpu::list()) {
        if adapter.to_string().to_lowercase().contains(&selector) {
            println!("{adapter}, n = {size}, GFLOP/s");
            for products in [Products::Tiled, Products::Direct] {
                if let Err(error) = measure(&adapter.name, products, size) {
                    println!("  {products:?}: {error}");
                }
            }
        }
    }
}

fn measure(adapter: &str, products: Products, n: usize) -> Result<()> {
    let config = Config { products: Some(products), ..Config::default() };
    let gpu = pollster::block_on(Gpu::open_with(Some(adapter), &config))?;
    let a = gpu.random_normal(Shape::matrix(n, n), 1, 0)?;
    let b = gpu.random_normal(Shape::matrix(n, n), 1, 1)?;
    let flops = 2.0 * (n as f64).powi(3);
    for (name, op_a, op_b) in [
        ("gemm NN", Op::None, Op::None),
        ("gemm NT", Op::None, Op::Transpose),
        ("gemm TN", Op::Transpose, Op::None),
        ("gemm TT", Op::Transpose, Op::Transpose),
    ] {
        report(products, name, flops, best(&gpu, || gpu.matmul(&a, op_a, &b, op_b))?);
    }
    for (name, op) in [("syrk N", Op::None), ("syrk T", Op::Transpose)] {
        report(products, name, flops / 2.0, best(&gpu, || gpu.gram(&a, op))?);
    }
    Ok(())
}

/// Seconds of the fastest run.
fn best(gpu: &Gpu, run: impl Fn() -> Result<GpuTensor>) -> Result<f64> {
    let mut seconds = f64::INFINITY;
    for _ in 0..=RUNS {
        let start = Instant::now();
        let result = run()?;
        // One element: the copy of a matrix is not what is measured.
        pollster::block_on(gpu.download(&gpu.slice(&result, 0..1, 0..1, 0..1)?))?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

fn report(products: Products, name: &str, flops: f64, seconds: f64) {
    println!("  {:<8} {name:<8} {:8.2}", format!("{products:?}"), flops / seconds / 1e9);
}
