//! Test matrices with known spectra, and f64 arithmetic on them.

#![allow(dead_code)] // each test binary uses some of these

use esmerge::backend::{Backend, Result, Shape, Tensor};

/// A row-major f64 matrix.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub values: Vec<f64>,
}

impl Matrix {
    pub fn from_fn(rows: usize, cols: usize, f: impl Fn(usize, usize) -> f64) -> Matrix {
        Matrix { rows, cols, values: (0..rows * cols).map(|k| f(k / cols, k % cols)).collect() }
    }

    /// Uniform in (-1, 1); no two seeds alike, and never symmetric.
    pub fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // rounded to f32, so that an upload is exact
            f64::from(((state >> 11) as f64 / (1u64 << 52) as f64 - 1.0) as f32)
        };
        Matrix { rows, cols, values: (0..rows * cols).map(|_| next()).collect() }
    }

    /// Random singular vectors and singular values `decay^i`.
    pub fn with_decay(rows: usize, cols: usize, decay: f64, seed: u64) -> Matrix {
        Matrix::with_spectrum(rows, cols, |j| decay.powi(j as i32), seed)
    }

    /// Random singular vectors, given singular values; entries are those of f32.
    pub fn with_spectrum(rows: usize, cols: usize, sigma: impl Fn(usize) -> f64, seed: u64) -> Matrix {
        let k = rows.min(cols);
        let u = Matrix::random(rows, k, seed).orthonormal_columns();
        let v = Matrix::random(cols, k, seed + 1).orthonormal_columns();
        let scaled = Matrix::from_fn(rows, k, |i, j| u.at(i, j) * sigma(j));
        let product = scaled.times(&v.transposed());
        Matrix { values: product.values.iter().map(|&v| f64::from(v as f32)).collect(), ..product }
    }

    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.cols + j]
    }

    pub fn transposed(&self) -> Matrix {
        Matrix::from_fn(self.cols, self.rows, |i, j| self.at(j, i))
    }

    pub fn times(&self, other: &Matrix) -> Matrix {
        assert_eq!(self.cols, other.rows);
        Matrix::from_fn(self.rows, other.cols, |i, j| {
            (0..self.cols).map(|k| self.at(i, k) * other.at(k, j)).sum()
        })
    }

    pub fn minus(&self, other: &Matrix) -> Matrix {
        Matrix::from_fn(self.rows, self.cols, |i, j| self.at(i, j) - other.at(i, j))
    }

    pub fn norm(&self) -> f64 {
        self.values.iter().map(|v| v * v).sum::<f64>().sqrt()
    }

    /// `||self - other|| / ||other||`
    pub fn distance(&self, other: &Matrix) -> f64 {
        self.minus(other).norm() / other.norm()
    }

    /// Modified Gram-Schmidt, twice.
    pub fn orthonormal_columns(&self) -> Matrix {
        let mut columns: Vec<Vec<f64>> =
            (0..self.cols).map(|j| (0..self.rows).map(|i| self.at(i, j)).collect()).collect();
        for j in 0..self.cols {
            for _ in 0..2 {
                for k in 0..j {
                    let dot: f64 = columns[j].iter().zip(&columns[k]).map(|(a, b)| a * b).sum();
                    let previous = columns[k].clone();
                    columns[j].iter_mut().zip(previous).for_each(|(a, b)| *a -= dot * b);
                }
            }
            let norm = columns[j].iter().map(|v| v * v).sum::<f64>().sqrt();
            columns[j].iter_mut().for_each(|v| *v /= norm);
        }
        Matrix::from_fn(self.rows, self.cols, |i, j| columns[j][i])
    }

    /// `||Q Q^T - I||` of rows.
    pub fn row_orthogonality_error(&self) -> f64 {
        let gram = self.times(&self.transposed());
        gram.minus(&Matrix::from_fn(self.rows, self.rows, |i, j| f64::from(i == j))).norm()
    }
}

/// Matrices of one shape as a batched tensor.
pub fn upload<B: Backend>(backend: &B, matrices: &[Matrix]) -> Result<B::Tensor> {
    let values: Vec<f32> = matrices.iter().flat_map(|m| m.values.iter().map(|&v| v as f32)).collect();
    backend.upload(Shape::new(matrices.len(), matrices[0].rows, matrices[0].cols), &values)
}

/// One matrix as a tensor.
pub fn upload_one<B: Backend>(backend: &B, matrix: &Matrix) -> Result<B::Tensor> {
    upload(backend, std::slice::from_ref(matrix))
}

/// A batched tensor as matrices.
pub async fn download<B: Backend>(backend: &B, x: &B::Tensor) -> Result<Vec<Matrix>> {
    let Shape { rows, cols, .. } = x.shape();
    let values = backend.download(x).await?;
    let matrix = |chunk: &[f32]| Matrix { rows, cols, values: chunk.iter().map(|&v| f64::from(v)).collect() };
    Ok(values.chunks((rows * cols).max(1)).map(matrix).collect())
}
