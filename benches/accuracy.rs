//! Errors of the kernels against f64 on the devices of this machine: `cargo bench --bench accuracy [-- SELECTOR]`.
//! docs/kernels.md has the table. Bounds are tested in tests/backend.rs; this prints what is measured.

#[path = "../tests/common/matrices.rs"]
mod matrices;

use esmerge::backend::cpu::Cpu;
use esmerge::backend::gpu::Gpu;
use esmerge::backend::layers::{Activation, Attention, Layers};
use esmerge::backend::{Backend, Op, Result, Shape, Tensor};
use esmerge::linalg::{
    Accuracy, SymmetricProduct, append_block, leading_eigenpairs, orthonormalize_rows, polar,
};
use matrices::{Matrix, download, upload_one};

fn main() {
    let selector = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default().to_lowercase();
    if "cpu".contains(&selector) {
        print("CPU", pollster::block_on(errors(&Cpu)));
    }
    for adapter in pollster::block_on(Gpu::list()) {
        if adapter.to_string().to_lowercase().contains(&selector) {
            match pollster::block_on(Gpu::open(Some(&adapter.name))) {
                Ok(gpu) => print(&adapter.to_string(), pollster::block_on(errors(&gpu))),
                Err(error) => println!("{adapter}: {error}"),
            }
        }
    }
}

fn print(device: &str, errors: Result<Vec<(&'static str, f64)>>) {
    println!("{device}");
    match errors {
        Ok(errors) => errors.iter().for_each(|(what, error)| println!("  {what:<78} {error:8.1e}")),
        Err(error) => println!("  {error}"),
    }
}

async fn errors<B: Layers>(device: &B) -> Result<Vec<(&'static str, f64)>> {
    let mut found = Vec::new();
    products(device, &mut found).await?;
    reductions(device, &mut found).await?;
    layers(device, &mut found).await?;
    factorizations(device, &mut found).await?;
    algorithms(device, &mut found).await?;
    Ok(found)
}

type Found = Vec<(&'static str, f64)>;

async fn products<B: Backend>(device: &B, found: &mut Found) -> Result<()> {
    let (m, n, k) = (129, 120, 1600);
    let (a, b) =
        (device.random_normal(Shape::matrix(m, k), 1, 0)?, device.random_normal(Shape::matrix(k, n), 1, 1)?);
    let product = Host::of(device, &device.matmul(&a, Op::None, &b, Op::None)?).await?;
    let (a_host, b_host) = (Host::of(device, &a).await?, Host::of(device, &b).await?);
    let size = a_host.absolute().times(&b_host.absolute());
    found.push((
        "gemm, k = 1600: max |error| / (|a| |b|)",
        product.minus(&a_host.times(&b_host)).largest_share(&size),
    ));
    let gram = Host::of(device, &device.gram(&a, Op::None)?).await?;
    let size = a_host.absolute().times(&a_host.transposed().absolute());
    let right = a_host.times(&a_host.transposed());
    found.push(("syrk, k = 1600: max |error| / (|x| |x|^T)", gram.minus(&right).largest_share(&size)));
    Ok(())
}

async fn reductions<B: Backend>(device: &B, found: &mut Found) -> Result<()> {
    let x = device.random_normal(Shape::matrix(40, 30_000), 1, 0)?;
    let host = Host::of(device, &x).await?;
    let norm = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>().sqrt();
    let right: Vec<f64> = host.values.chunks(host.cols).map(norm).collect();
    let norms = device.download(&device.row_norms(&x)?).await?;
    found.push(("reduce_rows, norms of 30,000: max relative error", relative(&norms, &right)));
    let tall = x.reshape(Shape::matrix(30_000, 40))?;
    let host = Host::of(device, &tall).await?.transposed();
    let right: Vec<f64> = host.values.chunks(host.cols).map(norm).collect();
    let norms = device.download(&device.column_norms(&tall)?).await?;
    found.push(("reduce_columns, norms of 30,000: max relative error", relative(&norms, &right)));
    Ok(())
}

async fn layers<B: Layers>(device: &B, found: &mut Found) -> Result<()> {
    let (n, d) = (50, 768);
    let x = device.random_normal(Shape::matrix(n, d), 1, 0)?;
    let host = Host::of(device, &x).await?;
    let (ones, zeros) =
        (device.upload(Shape::matrix(1, d), &vec![1.0; d])?, device.zeros(Shape::matrix(1, d))?);
    let normed = Host::of(device, &device.layer_norm(&x, &ones, &zeros, 1e-5)?).await?;
    let right = host.rows(|row| {
        let mean = row.iter().sum::<f64>() / d as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
        row.iter().map(|v| (v - mean) / (variance + f64::from(1e-5f32)).sqrt()).collect()
    });
    found.push(("layer_norm of 768: max |error|", normed.minus(&right).largest()));
    let mut activated = device.duplicate(&x)?;
    device.activate(&mut activated, Activation::Gelu)?;
    let activated = Host::of(device, &activated).await?;
    let right =
        host.rows(|row| row.iter().map(|v| 0.5 * v * libm::erfc(-v / std::f64::consts::SQRT_2)).collect());
    found.push(("activate, GELU of standard normals: max |error|", activated.minus(&right).largest()));
    let attention =
        Attention { heads: 1, key_heads: 1, causal: false, window: None, scale: 0.003, cap: None };
    let attended = device.attention(&x, &x, &x, &device.segments(&[n])?, attention, None)?;
    let attended = Host::of(device, &attended).await?;
    let weights = host.times(&host.transposed()).rows(|row| {
        let scores: Vec<f64> = row.iter().map(|s| f64::from(0.003f32) * s).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|p| p / sum).collect()
    });
    found.push((
        "attention (softmax), 50 tokens: max |error|",
        attended.minus(&weights.times(&host)).largest(),
    ));
    Ok(())
}

async fn factorizations<B: Backend>(device: &B, found: &mut Found) -> Result<()> {
    for (what, n, cols) in [
        ("inverse_cholesky, n = 100, condition 30: |W G W^T - I|_max", 100, 210),
        ("inverse_cholesky, n = 250, condition 1e4: |W G W^T - I|_max", 250, 260),
    ] {
        let g = device.gram(&device.random_normal(Shape::matrix(n, cols), 1, 0)?, Op::None)?;
        let (w, g) = (Host::of(device, &device.inverse_cholesky(&g)?).await?, Host::of(device, &g).await?);
        found.push((what, w.times(&g).times(&w.transposed()).minus(&Host::identity(n)).largest()));
    }
    for (residual, orthogonality, n) in [
        ("symmetric_eigen, n = 96: |A V - V L|_max / |A|_2", "symmetric_eigen, n = 96: |V V^T - I|_max", 96),
        (
            "symmetric_eigen, n = 256: |A V - V L|_max / |A|_2",
            "symmetric_eigen, n = 256: |V V^T - I|_max",
            256,
        ),
    ] {
        let a = device.gram(&device.random_normal(Shape::matrix(n, n + n / 2), 1, 0)?, Op::None)?;
        let (values, vectors) = device.symmetric_eigen(&a)?;
        let (a, v) = (Host::of(device, &a).await?, Host::of(device, &vectors).await?);
        let values = device.download(&values).await?;
        let mut scaled = v.clone();
        for (row, &value) in scaled.values.chunks_mut(n).zip(&values) {
            row.iter_mut().for_each(|x| *x *= f64::from(value));
        }
        found.push((residual, v.times(&a).minus(&scaled).largest() / f64::from(values[0])));
        found.push((orthogonality, v.gram_defect()));
    }
    Ok(())
}

async fn algorithms<B: Backend>(device: &B, found: &mut Found) -> Result<()> {
    let x = device.random_normal(Shape::matrix(96, 400), 1, 0)?;
    let basis = orthonormalize_rows(device, device.duplicate(&x)?, 2)?;
    found.push((
        "orthonormalize_rows, 96 x 400, two passes: |Q Q^T - I|_max",
        Host::of(device, &basis).await?.gram_defect(),
    ));
    let more = append_block(device, &basis, device.random_normal(Shape::matrix(64, 400), 1, 1)?)?;
    let (q, p) = (Host::of(device, &basis).await?, Host::of(device, &more).await?);
    found.push((
        "append_block, 64 to 96 x 400: max overlap with the basis",
        p.times(&q.transposed()).largest(),
    ));
    let p = polar(device, &x, Accuracy::Balanced).await?;
    let (p, x) = (Host::of(device, &p.factor).await?, Host::of(device, &x).await?);
    found.push(("polar, 96 x 400, balanced: |P P^T - I|_max", p.gram_defect()));
    // P A^T is symmetric for the polar factor and for no other orthonormal P near it.
    let h = p.times(&x.transposed());
    found.push((
        "polar, 96 x 400, balanced: asymmetry of P A^T / |P A^T|_F",
        h.minus(&h.transposed()).norm() / h.norm(),
    ));
    for (what, condition) in [
        ("polar, 256 x 256, condition 1e3, balanced: |P - U V^T|_F / |P|_F", 1e3f64),
        ("polar, 256 x 256, condition 1e4, balanced: |P - U V^T|_F / |P|_F", 1e4),
        ("polar, 256 x 256, condition 1e5, balanced: |P - U V^T|_F / |P|_F", 1e5),
    ] {
        let n = 256;
        let a = Matrix::with_spectrum(n, n, |i| condition.powf(-(i as f64) / (n - 1) as f64), 1);
        let factor = polar(device, &upload_one(device, &a)?, Accuracy::Balanced).await?.factor;
        let right = Matrix::with_spectrum(n, n, |_| 1.0, 1);
        found.push((what, download(device, &factor).await?[0].distance(&right)));
    }
    let mut x = device.random_normal(Shape::matrix(300, 200), 1, 0)?;
    let scale: Vec<f32> = (1..=200).map(|j| 1.0 / j as f32).collect();
    device.scale_columns(&mut x, &device.upload(Shape::matrix(1, 200), &scale)?)?;
    let c = SymmetricProduct::Factor { x: &x, op: Op::Transpose };
    let pairs = leading_eigenpairs(device, c, 25, &[200], Accuracy::Balanced, 1).await?;
    let (v, x) = (Host::of(device, &pairs.basis).await?, Host::of(device, &x).await?);
    let c = x.transposed().times(&x);
    let mut scaled = v.clone();
    for (row, value) in scaled.values.chunks_mut(200).zip(&pairs.values[0]) {
        row.iter_mut().for_each(|x| *x *= value);
    }
    found.push(("leading_eigenpairs, 25 of 200, 1/i, balanced: |V V^T - I|_max", v.gram_defect()));
    let residual = v.times(&c).minus(&scaled);
    found.push((
        "leading_eigenpairs, 25 of 200, 1/i, balanced: |C V - V L|_F / |C|_F",
        residual.norm() / c.norm(),
    ));
    Ok(())
}

/// A matrix in f64.
#[derive(Clone)]
struct Host {
    cols: usize,
    values: Vec<f64>,
}

impl Host {
    async fn of<B: Backend>(device: &B, x: &B::Tensor) -> Result<Host> {
        let values = device.download(x).await?;
        Ok(Host { cols: x.shape().cols, values: values.iter().map(|&v| f64::from(v)).collect() })
    }

    fn identity(n: usize) -> Host {
        let values = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
        Host { cols: n, values }
    }

    fn rows(&self, f: impl Fn(&[f64]) -> Vec<f64>) -> Host {
        let values: Vec<f64> = self.values.chunks(self.cols).flat_map(f).collect();
        let rows = self.values.len() / self.cols;
        Host { cols: values.len() / rows, values }
    }

    fn absolute(&self) -> Host {
        self.rows(|row| row.iter().map(|v| v.abs()).collect())
    }

    fn transposed(&self) -> Host {
        let rows = self.values.len() / self.cols;
        let at = |i: usize| self.values[i % rows * self.cols + i / rows];
        Host { cols: rows, values: (0..self.values.len()).map(at).collect() }
    }

    fn times(&self, other: &Host) -> Host {
        self.rows(|row| {
            let mut sums = vec![0.0; other.cols];
            for (x, line) in row.iter().zip(other.values.chunks(other.cols)) {
                sums.iter_mut().zip(line).for_each(|(sum, y)| *sum += x * y);
            }
            sums
        })
    }

    fn minus(&self, other: &Host) -> Host {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| a - b).collect();
        Host { cols: self.cols, values }
    }

    fn largest(&self) -> f64 {
        self.values.iter().fold(0.0, |max, v| if v.is_nan() { *v } else { v.abs().max(max) })
    }

    fn largest_share(&self, of: &Host) -> f64 {
        self.values.iter().zip(&of.values).map(|(a, b)| a.abs() / b).fold(0.0, f64::max)
    }

    fn norm(&self) -> f64 {
        self.values.iter().map(|v| v * v).sum::<f64>().sqrt()
    }

    /// How far the rows are from orthonormal.
    fn gram_defect(&self) -> f64 {
        let gram = self.times(&self.transposed());
        gram.minus(&Host::identity(gram.cols)).largest()
    }
}

fn relative(values: &[f32], right: &[f64]) -> f64 {
    values.iter().zip(right).map(|(&x, y)| (f64::from(x) - y).abs() / y.abs()).fold(0.0, f64::max)
}
