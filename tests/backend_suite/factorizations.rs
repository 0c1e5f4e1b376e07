//! Small factorizations.

use crate::matrices::{Matrix, download, upload};
use crate::{SIZES, U};
use esmerge::backend::{Error, Op, Shape, Tensor};

fn identity(n: usize) -> Matrix {
    Matrix::from_fn(n, n, |i, j| f64::from(u8::from(i == j)))
}

fn largest(x: &Matrix) -> f64 {
    x.values.iter().fold(0.0, |most, v| v.abs().max(most))
}

/// A symmetric matrix with given eigenvalues, and its eigenvectors as columns.
fn symmetric(spectrum: &[f64], seed: u64) -> Matrix {
    let n = spectrum.len();
    let q = Matrix::random(n, n, seed).orthonormal_columns();
    let scaled = Matrix::from_fn(n, n, |i, j| q.at(i, j) * spectrum[j]);
    let a = scaled.times(&q.transposed());
    Matrix::from_fn(n, n, |i, j| f64::from(((a.at(i, j) + a.at(j, i)) / 2.0) as f32))
}

claims! {
    async fn the_inverse_cholesky_factor_whitens_its_matrix(backend) {
        for n in SIZES {
            // rows of very different size, which the scaling takes out
            let y: Vec<_> = (0..2).map(|b| Matrix::from_fn(n, 3 * n, |i, j| {
                Matrix::random(1, 1, (b * 77 + i * 3 * n + j) as u64).values[0] * 10f64.powi(i as i32 % 7 - 3)
            })).collect();
            let g = backend.gram(&upload(backend, &y)?, Op::None)?;
            let w = download(backend, &backend.inverse_cholesky(&g)?).await?;
            for (w, g) in w.iter().zip(download(backend, &g).await?) {
                assert!((0..n).all(|i| (i + 1..n).all(|j| w.at(i, j) == 0.0)), "lower triangular");
                let off = largest(&w.times(&g).times(&w.transposed()).minus(&identity(n)));
                // backward stable: n + 1 roundings of a matrix whose condition number is below 40 here
                assert!(off < 40.0 * (n + 8) as f64 * U, "{n}: {off:e}");
            }
        }
        Ok(())
    }

    async fn a_zero_row_of_the_gram_matrix_gives_a_zero_row_and_column(backend) {
        let mut y = Matrix::random(40, 90, 3);
        for i in [0, 7, 35] {
            y.values[i * 90..(i + 1) * 90].fill(0.0);
        }
        let g = backend.gram(&upload(backend, &[y])?, Op::None)?;
        let w = download(backend, &backend.inverse_cholesky(&g)?).await?.remove(0);
        let g = download(backend, &g).await?.remove(0);
        for i in [0, 7, 35] {
            assert!((0..40).all(|j| w.at(i, j) == 0.0 && w.at(j, i) == 0.0));
        }
        let product = w.times(&g).times(&w.transposed());
        let expected = Matrix::from_fn(40, 40, |i, j| f64::from(u8::from(i == j && ![0, 7, 35].contains(&i))));
        assert!(largest(&product.minus(&expected)) < 1e-4);
        Ok(())
    }

    async fn the_inverse_cholesky_factor_of_a_singular_matrix_is_finite(backend) {
        for (n, rank) in [(64, 3), (100, 50), (257, 20)] {
            let y = Matrix::random(n, rank, 8).times(&Matrix::random(rank, n, 9));
            let g = backend.gram(&upload(backend, &[y])?, Op::None)?;
            let w = backend.download(&backend.inverse_cholesky(&g)?).await?;
            assert!(w.iter().all(|v| v.is_finite() && v.abs() < 1e6));
        }
        Ok(())
    }

    async fn the_inverse_cholesky_factor_is_applied_as_it_is_given(backend) {
        for n in SIZES {
            let y: Vec<_> = (0..2).map(|b| Matrix::random(n, 2 * n, 70 + b)).collect();
            let mut zero_row = y[1].clone();
            zero_row.values[..2 * n].fill(0.0);
            let y = upload(backend, &[y[0].clone(), zero_row])?;
            let g = backend.gram(&y, Op::None)?;
            let w = download(backend, &backend.inverse_cholesky(&g)?).await?;
            let q = download(backend, &backend.apply_inverse_cholesky(&g, &y)?).await?;
            for ((w, y), q) in w.iter().zip(download(backend, &y).await?).zip(&q) {
                let expected = w.times(&y);
                // both are backward stable, and the condition number is below 40: sqrt(2n) / sqrt(n) from the edge of the spectrum
                let off = largest(&q.minus(&expected));
                assert!(off < 40.0 * (n + 8) as f64 * U * largest(&expected).max(1e-30), "{n}: {off:e}");
            }
            assert!(q[1].values[..2 * n].iter().all(|&v| v == 0.0), "{n}: a zero row stays zero");
        }
        Ok(())
    }

    async fn solving_a_system_and_multiplying_gives_the_right_hand_side(backend) {
        for n in SIZES {
            let cols = n / 2 + 5;
            let m: Vec<_> = (0..2).map(|b| {
                let y = Matrix::random(n, 2 * n, 80 + b);
                let gram = y.times(&y.transposed());
                Matrix::from_fn(n, n, |i, j| gram.at(i, j) + if i == j { n as f64 } else { 0.0 })
            }).collect();
            let on_device = upload(backend, &m)?;
            let m = download(backend, &on_device).await?; // as it was rounded
            for side in [Op::None, Op::Transpose] {
                let of = |rows, cols, seed| (0..2u64).map(|b| Matrix::random(rows, cols, seed + b)).collect::<Vec<_>>();
                let (rows, cols) = if side == Op::None { (n, cols) } else { (cols, n) };
                let (x, y) = (of(rows, cols, 90), of(rows, cols, 95));
                for beta in [0.0f32, 0.5] {
                    let mut out = upload(backend, &y)?;
                    if beta == 0.0 {
                        out = backend.upload(out.shape(), &vec![f32::NAN; out.shape().len()])?;
                    }
                    backend.solve(3.0, (&on_device, 1e-7), side, &upload(backend, &x)?, beta, &mut out)?;
                    for (b, out) in download(backend, &out).await?.iter().enumerate() {
                        let z = Matrix::from_fn(rows, cols, |i, j| (out.at(i, j) - f64::from(beta) * y[b].at(i, j)) / 3.0);
                        let back = if side == Op::None { m[b].times(&z) } else { z.times(&m[b]) };
                        // backward stable: the residual is of the roundings of |M| |z|, and of those of beta y, which M enlarges
                        let size = m[b].norm() * (z.norm() + y[b].norm() * f64::from(beta));
                        let off = back.minus(&x[b]).norm();
                        assert!(off < 4.0 * (n + 8) as f64 * U * size, "{n}, {side:?}, {beta}: {:e}", off / size);
                    }
                }
            }
        }
        Ok(())
    }

    async fn eigenpairs_reproduce_their_matrix(backend) {
        for n in SIZES.into_iter().chain([2, 31, 49]) {
            let a: Vec<_> = (0..2).map(|b| {
                let spectrum: Vec<f64> = (0..n).map(|i| if b == 0 { 0.9f64.powi(i as i32) } else { ((i * 37) % n) as f64 - n as f64 / 3.0 }).collect();
                symmetric(&spectrum, 60 + b)
            }).collect();
            let (values, vectors) = backend.symmetric_eigen(&upload(backend, &a)?)?;
            let (values, vectors) = (download(backend, &values).await?, download(backend, &vectors).await?);
            for ((a, values), v) in a.iter().zip(&values).zip(&vectors) {
                let scale = values.values.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                assert!(values.values.windows(2).all(|w| w[0] >= w[1]), "{n}: descending");
                let off = largest(&v.times(&v.transposed()).minus(&identity(n)));
                // the last step's own rounding: of sums of n terms, which grow like n at worst
                assert!(off < (8.0 + n as f64 / 8.0) * U, "{n}: orthonormal rows but for {:.1} U", off / U);
                let residual = v.times(a).minus(&Matrix::from_fn(n, n, |i, j| values.values[i] * v.at(i, j)));
                for row in residual.values.chunks(n) {
                    let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                    assert!(norm < 60.0 * U * scale, "{n}: residual {:.1} U", norm / scale / U);
                }
            }
        }
        Ok(())
    }

    async fn eigenvalues_are_right_to_a_few_roundings_of_the_largest(backend) {
        for n in [17, 100, 150] {
            let spectrum: Vec<f64> = (0..n).map(|i| 1e-3 * 0.93f64.powi(i)).collect();
            let (values, _) = backend.symmetric_eigen(&upload(backend, &[symmetric(&spectrum, 5)])?)?;
            let values = backend.download(&values).await?;
            for (got, expected) in values.iter().zip(&spectrum) {
                assert!((f64::from(*got) - expected).abs() < 16.0 * U * spectrum[0], "{n}: {got:e}, not {expected:e}");
            }
        }
        Ok(())
    }

    async fn degenerate_matrices_have_eigenpairs_too(backend) {
        for n in [48, 49, 144] {
            let low_rank = {
                let y = Matrix::random(n, 5, 1);
                y.times(&y.transposed())
            };
            let repeated = symmetric(&(0..n).map(|i| if i < 20 { 2.0 } else { 1.0 }).collect::<Vec<_>>(), 2);
            let diagonal = Matrix::from_fn(n, n, |i, j| if i == j { (i % 7) as f64 } else { 0.0 });
            let zero = Matrix::from_fn(n, n, |_, _| 0.0);
            let all = [low_rank, repeated, diagonal, zero, identity(n)];
            let (values, vectors) = backend.symmetric_eigen(&upload(backend, &all)?)?;
            let values = download(backend, &values).await?;
            for ((a, v), values) in all.iter().zip(download(backend, &vectors).await?).zip(values) {
                assert!(largest(&v.times(&v.transposed()).minus(&identity(n))) < (8.0 + n as f64 / 8.0) * U);
                let rotated = v.times(a).times(&v.transposed());
                let off = Matrix::from_fn(n, n, |i, j| if i == j { 0.0 } else { rotated.at(i, j) });
                assert!(largest(&off) <= 40.0 * U * values.values[0], "{:.1} U", largest(&off) / values.values[0] / U);
            }
        }
        Ok(())
    }

    async fn factorizations_are_the_same_bits_twice_and_alone_as_in_a_batch(backend) {
        let n = 140;
        let a: Vec<_> = (0..2).map(|i| { let y = Matrix::random(n, 160, i); y.times(&y.transposed()) }).collect();
        let run = async |a: &[Matrix]| -> esmerge::backend::Result<[Vec<f32>; 3]> {
            let x = upload(backend, a)?;
            let (values, vectors) = backend.symmetric_eigen(&x)?;
            let w = backend.inverse_cholesky(&x)?;
            Ok([backend.download(&values).await?, backend.download(&vectors).await?, backend.download(&w).await?])
        };
        let (first, second, alone) = (run(&a).await?, run(&a).await?, run(&a[1..2]).await?);
        assert!(first == second);
        assert!(first[0][n..2 * n] == alone[0] && (1..3).all(|i| first[i][n * n..2 * n * n] == alone[i]));
        Ok(())
    }

    async fn factorizations_of_nothing_and_of_what_is_not_square(backend) {
        let empty = backend.zeros(Shape::new(0, 4, 4))?;
        assert!(backend.download(&backend.inverse_cholesky(&empty)?).await?.is_empty());
        assert!(backend.download(&backend.symmetric_eigen(&empty)?.0).await?.is_empty());
        let oblong = backend.zeros(Shape::matrix(3, 4))?;
        assert!(matches!(backend.inverse_cholesky(&oblong), Err(Error::Shape { .. })));
        assert!(matches!(backend.symmetric_eigen(&oblong), Err(Error::Shape { .. })));
        assert!(backend.download(&backend.apply_inverse_cholesky(&empty, &empty)?).await?.is_empty());
        let (three, mut y) = (backend.upload(Shape::matrix(3, 3), &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])?, backend.zeros(Shape::matrix(4, 4))?);
        assert!(matches!(backend.apply_inverse_cholesky(&three, &y), Err(Error::Shape { .. })));
        let x = backend.zeros(Shape::matrix(4, 4))?;
        assert!(matches!(backend.solve(1.0, (&three, 1e-7), Op::None, &x, 0.0, &mut y), Err(Error::Shape { .. })));
        Ok(())
    }
}
