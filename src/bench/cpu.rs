//! The CPU backend under measurement.

use super::check::Ran;
use super::operands::{EPSILON, Operands, operands};
use super::{Case, Kernel, Peak, Result, Subject, algorithm, cpu_peak};
use crate::backend::cpu::{Cpu, CpuTensor};
use crate::backend::layers::Layers;
use crate::backend::{self, Backend};
use crate::host::Instant;

/// A sample on the host's clock is this long at least.
const RESOLUTION: f64 = 5e-3;

pub(super) struct OnCpu<'a> {
    cpu: &'a Cpu,
    ready: Option<(Case, Operands<CpuTensor>)>,
}

impl<'a> OnCpu<'a> {
    pub fn new(cpu: &'a Cpu) -> Self {
        OnCpu { cpu, ready: None }
    }
}

impl Subject for OnCpu<'_> {
    fn name(&self) -> String {
        self.cpu.name()
    }

    fn clock(&self) -> &'static str {
        "host"
    }

    fn resolution(&self, _: &Case) -> f64 {
        RESOLUTION
    }

    async fn peak(&mut self, seconds: f64) -> Result<Peak> {
        Ok(Peak { gflops: cpu_peak::gflops(seconds), gbytes: cpu_peak::gbytes(seconds) })
    }

    async fn prepare(&mut self, case: &Case) -> Result<()> {
        self.ready = None; // gives its memory back first
        self.ready = Some((*case, operands(self.cpu, case).await?));
        Ok(())
    }

    async fn time(&mut self, repetitions: usize) -> Result<f64> {
        let Some((case, operands)) = &mut self.ready else { return Ok(0.0) };
        let started = Instant::now();
        for _ in 0..repetitions {
            run(self.cpu, case, operands).await?;
        }
        Ok(started.elapsed().as_secs_f64())
    }

    async fn once(&mut self) -> Result<Option<Ran>> {
        let Some((case, operands)) = &mut self.ready else { return Ok(None) };
        let before = self.cpu.download(&operands.out).await?;
        run(self.cpu, case, operands).await?;
        let Operands { x, y, out, stored } = operands;
        let (x, y, out) =
            (self.cpu.download(x).await?, self.cpu.download(y).await?, self.cpu.download(out).await?);
        Ok(Some(Ran { x, y, before, out, stored: stored.clone() }))
    }
}

/// Runs a case, whose result then lies where its operands are.
async fn run(cpu: &Cpu, case: &Case, operands: &mut Operands<CpuTensor>) -> backend::Result<()> {
    let Operands { x, y, out, stored } = operands;
    let shape = case.shape();
    match case.kernel {
        Kernel::Gemm(op_a, op_b) => cpu.gemm(1.0, x, op_a, y, op_b, 0.0, out),
        Kernel::Syrk(op) => cpu.syrk(1.0, x, op, 0.0, out),
        Kernel::Unpack => cpu.unpack(shape, case.dtype, stored).map(|x| *out = x),
        Kernel::Pack => cpu.pack(x, case.dtype).await.map(|bytes| *stored = bytes),
        Kernel::Axpby => cpu.axpby(0.5, x, 0.5, out),
        Kernel::CopyBlock => cpu.copy_block(x, [0; 3], out, [0; 3], [shape.batch, shape.rows, shape.cols]),
        Kernel::ScaleRows => cpu.scale_rows(out, y),
        Kernel::ScaleColumns => cpu.scale_columns(out, y),
        Kernel::ReduceRows => cpu.row_norms(x).map(|norms| *out = norms),
        Kernel::ReduceColumns => cpu.column_norms(x).map(|norms| *out = norms),
        Kernel::RandomNormal => cpu.random_normal(shape, 1, 1).map(|x| *out = x),
        Kernel::InverseCholesky => cpu.inverse_cholesky(x).map(|w| *out = w),
        Kernel::SymmetricEigen => {
            cpu.symmetric_eigen(x).map(|(values, vectors)| (*y, *out) = (values, vectors))
        }
        Kernel::LayerNorm => cpu.layer_norm(x, y, y, EPSILON).map(|x| *out = x),
        Kernel::Attention | Kernel::OrthonormalizeRows | Kernel::LeadingEigenpairs | Kernel::Polar => {
            algorithm::run(cpu, case, x).await.map(|result| *out = result)
        }
    }
}
