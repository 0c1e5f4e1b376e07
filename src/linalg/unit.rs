//! Powers of two that bring matrices to about unit norm, so that no product of them leaves what f32 holds.

use crate::backend::{Backend, Result, Tensor};

/// Matrices times powers of two: every norm is at least 1 and less than 2, but for zero matrices, and for norms past 2^126 or
/// below its inverse.
pub(super) struct UnitScaled<T> {
    /// `s_b A_b`
    pub values: T,
    /// `s_b`, `batch x 1 x 1`.
    pub scales: T,
}

impl<T: Tensor> UnitScaled<T> {
    /// Of matrices with these Frobenius norms, `batch x 1 x 1`. The host waits for nothing.
    pub fn of<B: Backend<Tensor = T>>(backend: &B, a: &T, norms: &T) -> Result<Self> {
        let mut scales = backend.duplicate(norms)?;
        backend.unit_scale(&mut scales)?;
        let mut values = backend.duplicate(a)?;
        backend.scale_batches(&mut values, &scales)?;
        Ok(UnitScaled { values, scales })
    }

    /// Brings numbers that go with the scale of the matrices, `batch x 1 x n`, back to that of the unscaled ones.
    pub fn undo<B: Backend<Tensor = T>>(&self, backend: &B, numbers: &mut T) -> Result<()> {
        backend.divide_rows(numbers, &self.scales)
    }
}

/// `s_b^2 G_b` and `s_b` for matrices that are squares of what the `s_b` bring to unit norm: Gram matrices.
pub(super) fn unit_scaled_gram<B: Backend>(backend: &B, g: &B::Tensor) -> Result<UnitScaled<B::Tensor>> {
    let mut roots = backend.frobenius_norms(g)?;
    backend.power(&mut roots, 0.5)?;
    let mut scaled = UnitScaled::of(backend, g, &roots)?;
    backend.scale_batches(&mut scaled.values, &scaled.scales)?; // s^2 alone may be out of range
    Ok(scaled)
}

#[cfg(all(test, feature = "merge"))]
mod tests {
    use super::*;
    use crate::backend::{Shape, cpu::Cpu};

    #[test]
    fn scaling_is_exact_and_undone() {
        let sizes = [3e-38f32, 1e-20, 1.0, 1.999, 1e10, 3e38];
        let a = Cpu.upload(Shape::new(sizes.len(), 1, 1), &sizes).unwrap();
        let unit = UnitScaled::of(&Cpu, &a, &Cpu.frobenius_norms(&a).unwrap()).unwrap();
        assert!(unit.values.values().iter().all(|v| (1.0..4.0).contains(v)), "{:?}", unit.values.values());
        let mut back = Cpu.duplicate(&unit.values).unwrap();
        unit.undo(&Cpu, &mut back).unwrap();
        assert_eq!(back.values(), sizes);
        let gram = unit_scaled_gram(&Cpu, &a).unwrap();
        assert!(
            gram.values.values()[..5].iter().all(|v| (1.0..4.0).contains(v)),
            "{:?}",
            gram.values.values()
        );
    }
}
