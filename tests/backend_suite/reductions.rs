//! Norms and inner products.

use crate::matrices::{Matrix, download, upload};
use crate::{U, assert_near};
use esmerge::backend::{Error, Shape};

/// Shapes on either side of what one step sums.
const SHAPES: [(u64, usize, usize); 8] = [
    (1, 1, 1),
    (3, 17, 33),
    (2, 127, 129),
    (2, 257, 64),
    (1, 3, 5000),
    (2, 700, 5),
    (1, 70, 2003),
    (1, 1, 100_003),
];

fn batch(count: u64, rows: usize, cols: usize, seed: u64) -> Vec<Matrix> {
    (0..count).map(|i| Matrix::random(rows, cols, seed + i)).collect()
}

/// The most roundings on one term's way into a sum of `n`: one of the product, and in any order at most `n`. The
/// kernels' trees have far fewer, at most 8192 / 64 + 8 + 64.
fn roundings(n: usize) -> f64 {
    n.min(256) as f64 + 2.0
}

claims! {
    async fn norms_of_rows_columns_and_matrices_are_right(backend) {
        for (count, rows, cols) in SHAPES {
            let x = batch(count, rows, cols, 9);
            let tensor = upload(backend, &x)?;
            let by_row = download(backend, &backend.row_norms(&tensor)?).await?;
            let by_column = download(backend, &backend.column_norms(&tensor)?).await?;
            let by_matrix = backend.download(&backend.frobenius_norms(&tensor)?).await?;
            for (i, x) in x.iter().enumerate() {
                let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
                let rows_: Vec<_> = (0..rows).map(|j| norm(&mut (0..cols).map(|k| x.at(j, k)))).collect();
                let cols_: Vec<_> = (0..cols).map(|k| norm(&mut (0..rows).map(|j| x.at(j, k)))).collect();
                // half of the sum's relative error, and the root's own, 2 U and more
                let bound = |n: usize| (roundings(n) / 2.0 + 5.0) * U;
                let what = format!("{rows} x {cols}");
                assert_near(&by_row[i].values, &rows_, |j| bound(cols) * rows_[j], &what);
                assert_near(&by_column[i].values, &cols_, |j| bound(rows) * cols_[j], &what);
                assert_near(&[f64::from(by_matrix[i])], &[x.norm()], |_| bound(rows * cols) * x.norm(), &what);
            }
        }
        Ok(())
    }

    async fn norms_are_right_wherever_f32_has_them(backend) {
        for size in [-120, -66, -41, -38, 38, 41, 66, 110] {
            for (count, rows, cols) in SHAPES {
                // beside numbers of another size, which count for little or for all
                let x: Vec<Matrix> = batch(count, rows, cols, 9).iter().map(|x| Matrix::from_fn(rows, cols, |i, j| {
                    x.at(i, j) * 2f64.powi(if (i + j) % 7 == 3 { -35 } else { size })
                })).collect();
                let tensor = upload(backend, &x)?;
                let norms = backend.download(&backend.frobenius_norms(&tensor)?).await?;
                let by_row = download(backend, &backend.row_norms(&tensor)?).await?;
                let by_column = download(backend, &backend.column_norms(&tensor)?).await?;
                for (i, x) in x.iter().enumerate() {
                    let what = format!("2^{size}, {rows} x {cols}");
                    let near = |got: f64, expected: f64| {
                        let bound = (roundings(rows * cols) / 2.0 + 8.0) * U * expected;
                        assert!((got - expected).abs() <= bound, "{what}: {got:e}, not {expected:e}");
                    };
                    near(norms[i].into(), x.norm());
                    near(by_row[i].norm(), x.norm());
                    near(by_column[i].norm(), x.norm());
                }
            }
        }
        Ok(())
    }

    async fn inner_products_are_right(backend) {
        for (count, rows, cols) in SHAPES {
            let (x, y) = (batch(count, rows, cols, 9), batch(count, rows, cols, 90));
            let got = backend.inner_products(&upload(backend, &x)?, &upload(backend, &y)?)?;
            for (i, got) in backend.download(&got).await?.iter().enumerate() {
                let terms = || x[i].values.iter().zip(&y[i].values).map(|(x, y)| x * y);
                let most: f64 = terms().map(f64::abs).sum();
                let bound = roundings(rows * cols) * U * most * 1.0001;
                assert_near(&[f64::from(*got)], &[terms().sum()], |_| bound, &format!("{rows} x {cols}"));
            }
        }
        Ok(())
    }

    async fn sums_are_the_same_bits_twice(backend) {
        let x = upload(backend, &batch(2, 300, 700, 4))?;
        let run = async || -> esmerge::backend::Result<Vec<f32>> {
            let mut all = backend.download(&backend.row_norms(&x)?).await?;
            all.extend(backend.download(&backend.column_norms(&x)?).await?);
            all.extend(backend.download(&backend.frobenius_norms(&x)?).await?);
            all.extend(backend.download(&backend.inner_products(&x, &x)?).await?);
            Ok(all)
        };
        assert!(run().await? == run().await?);
        Ok(())
    }

    async fn sums_over_nothing_are_zero(backend) {
        let x = backend.zeros(Shape::new(2, 3, 0))?;
        assert_eq!(backend.download(&backend.row_norms(&x)?).await?, [0.0; 6]);
        assert_eq!(backend.download(&backend.frobenius_norms(&x)?).await?, [0.0; 2]);
        assert!(backend.download(&backend.column_norms(&x)?).await?.is_empty());
        let x = backend.zeros(Shape::new(2, 0, 3))?;
        assert_eq!(backend.download(&backend.column_norms(&x)?).await?, [0.0; 6]);
        assert_eq!(backend.download(&backend.inner_products(&x, &x)?).await?, [0.0; 2]);
        Ok(())
    }

    async fn an_inner_product_of_different_shapes_is_an_error(backend) {
        let (x, y) = (backend.zeros(Shape::matrix(3, 4))?, backend.zeros(Shape::matrix(4, 3))?);
        assert!(matches!(backend.inner_products(&x, &y), Err(Error::Shape { operation: "inner_products", .. })));
        Ok(())
    }
}
