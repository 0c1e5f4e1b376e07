//! A Chebyshev filter for subspace iteration where the spectrum decays slowly (Zhou, Saad, Tiago and Chelikowsky,
//! J. Comput. Phys. 2006).
//!
//! A power step turns `lambda_k / lambda_l` towards 1 or 0 by one factor; a polynomial of degree m that is small on the
//! unwanted part `[0, a]` of the spectrum grows like `exp(m sqrt(lambda / a - 1))` past it.

use crate::backend::{Backend, Op, Result, Shape, Tensor};

/// `Q T_m(2/a A - I)` for a block of rows `q` (`batch x k x n`), symmetric `a` (`batch x n x n`), and one bound of the unwanted
/// part for each member of the batch.
pub fn filter<B: Backend>(
    backend: &B,
    a: &B::Tensor,
    q: B::Tensor,
    unwanted: &[f64],
    degree: usize,
) -> Result<B::Tensor> {
    let mut scaled = backend.duplicate(a)?;
    let factors: Vec<f32> = unwanted.iter().map(|&bound| (2.0 / bound) as f32).collect();
    backend.scale_batches(&mut scaled, &backend.upload(Shape::new(q.shape().batch, 1, 1), &factors)?)?;
    // T_0 = Q, T_1 = Q L, T_(j+1) = 2 T_j L - T_(j-1), with L = 2/a A - I
    let mut before = q;
    let mut now = backend.duplicate(&before)?;
    backend.gemm(1.0, &before, Op::None, &scaled, Op::None, -1.0, &mut now)?;
    for _ in 1..degree {
        backend.axpby(-2.0, &now, -1.0, &mut before)?;
        backend.gemm(2.0, &now, Op::None, &scaled, Op::None, 1.0, &mut before)?;
        std::mem::swap(&mut before, &mut now);
    }
    Ok(now)
}

#[cfg(all(test, feature = "merge"))]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn a_filter_is_the_polynomial_of_its_degree() {
        // diagonal: every column of Q is multiplied by T_m of its own eigenvalue
        let values = [2.0f32, 1.2, 0.9, 0.4, 0.0];
        let diagonal: Vec<f32> = (0..25).map(|i| if i / 5 == i % 5 { values[i / 5] } else { 0.0 }).collect();
        let a = Cpu.upload(Shape::matrix(5, 5), &diagonal).unwrap();
        for m in 1..6 {
            let q = Cpu.upload(Shape::matrix(1, 5), &[1.0; 5]).unwrap();
            let filtered = filter(&Cpu, &a, q, &[1.0], m).unwrap();
            for (&value, &got) in values.iter().zip(filtered.values()) {
                let x = 2.0 * f64::from(value) - 1.0;
                let expected =
                    if x > 1.0 { (m as f64 * x.acosh()).cosh() } else { (m as f64 * x.acos()).cos() };
                assert!((f64::from(got) - expected).abs() < 1e-5 * expected.abs().max(1.0), "{m}, {value}");
            }
        }
    }
}
