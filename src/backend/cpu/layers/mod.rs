//! The layers of a forward pass on the CPU, one file a kernel.

mod activation;
mod attention;
mod exp;
mod gather;
mod gram_sum;
mod norm;
mod pool;
mod rotary;

use super::super::layers::{Activation, Attention, Layers};
use super::{Cpu, CpuTensor, Result, Shape, require};

/// The first row of every segment, and the end of the last.
#[derive(Clone, Debug)]
pub struct CpuSegments {
    starts: Vec<usize>,
}

impl CpuSegments {
    fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    fn samples(&self) -> usize {
        self.starts.len() - 1
    }

    fn longest(&self) -> usize {
        self.starts.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0)
    }
}

impl Layers for Cpu {
    type Segments = CpuSegments;

    fn segments(&self, lengths: &[usize]) -> Result<CpuSegments> {
        let mut end = 0;
        let ends = lengths.iter().map(|length| {
            end += length;
            end
        });
        Ok(CpuSegments { starts: std::iter::once(0).chain(ends).collect() })
    }

    fn gather_rows(&self, x: &CpuTensor, rows: &[u32]) -> Result<CpuTensor> {
        let inside = rows.iter().all(|&row| (row as usize) < x.shape.rows);
        require(inside && x.shape.batch == 1, "gather_rows", &[x.shape, Shape::matrix(rows.len(), 1)])?;
        Ok(gather::gather_rows(x, rows))
    }

    fn patches(&self, images: &CpuTensor, channels: usize, size: usize) -> Result<CpuTensor> {
        let fits = channels > 0 && images.shape.batch.is_multiple_of(channels) && size > 0;
        require(fits, "patches", &[images.shape, Shape::new(channels, size, size)])?;
        Ok(gather::patches(images, channels, size))
    }

    fn layer_norm(
        &self,
        x: &CpuTensor,
        weight: &CpuTensor,
        bias: &CpuTensor,
        epsilon: f32,
    ) -> Result<CpuTensor> {
        let row = Shape::matrix(1, x.shape.cols);
        require(
            weight.shape == row && bias.shape == row,
            "layer_norm",
            &[x.shape, weight.shape, bias.shape],
        )?;
        Ok(norm::layer_norm(x, weight, bias, epsilon))
    }

    fn rms_norm(&self, x: &CpuTensor, weight: &CpuTensor, epsilon: f32) -> Result<CpuTensor> {
        require(weight.shape == Shape::matrix(1, x.shape.cols), "rms_norm", &[x.shape, weight.shape])?;
        Ok(norm::rms_norm(x, weight, epsilon))
    }

    fn add_bias(&self, x: &mut CpuTensor, bias: &CpuTensor) -> Result<()> {
        require(bias.shape == Shape::matrix(1, x.shape.cols), "add_bias", &[x.shape, bias.shape])?;
        activation::add_bias(x, bias);
        Ok(())
    }

    fn activate(&self, x: &mut CpuTensor, activation: Activation) -> Result<()> {
        activation::activate(x, activation);
        Ok(())
    }

    fn activate_gated(&self, gate: &mut CpuTensor, up: &CpuTensor, activation: Activation) -> Result<()> {
        require(gate.shape == up.shape, "activate_gated", &[gate.shape, up.shape])?;
        activation::activate_gated(gate, up, activation);
        Ok(())
    }

    fn rotary(&self, x: &mut CpuTensor, cos: &CpuTensor, sin: &CpuTensor, head_dim: usize) -> Result<()> {
        let table = cos.shape;
        let fits = table == sin.shape && (table.batch, table.rows) == (x.shape.batch, x.shape.rows);
        let heads = table.cols > 0 && head_dim >= 2 * table.cols && x.shape.cols.is_multiple_of(head_dim);
        require(fits && heads, "rotary", &[x.shape, cos.shape, sin.shape])?;
        rotary::rotary(x, cos, sin, head_dim);
        Ok(())
    }

    fn attention(
        &self,
        q: &CpuTensor,
        k: &CpuTensor,
        v: &CpuTensor,
        segments: &CpuSegments,
        attention: Attention,
        positions: Option<&CpuTensor>,
    ) -> Result<CpuTensor> {
        let shapes = [q.shape, k.shape, v.shape];
        let fits = attention.fits(shapes, positions.map(|p| p.shape), segments.longest());
        require(fits && segments.rows() == q.shape.rows, "attention", &shapes)?;
        Ok(attention::attention(q, k, v, segments, attention, positions))
    }

    fn mean_rows(&self, x: &CpuTensor, segments: &CpuSegments) -> Result<CpuTensor> {
        let rows = Shape::matrix(segments.rows(), segments.samples());
        require(x.shape.batch == 1 && segments.rows() == x.shape.rows, "mean_rows", &[x.shape, rows])?;
        Ok(pool::mean_rows(x, segments))
    }

    fn accumulate_gram(&self, x: &CpuTensor, high: &mut CpuTensor, low: &mut CpuTensor) -> Result<()> {
        let square = Shape::matrix(x.shape.cols, x.shape.cols);
        let fits = x.shape.batch == 1 && high.shape == square && low.shape == square;
        require(fits, "accumulate_gram", &[x.shape, high.shape, low.shape])?;
        gram_sum::accumulate_gram(x, high, low);
        Ok(())
    }
}
