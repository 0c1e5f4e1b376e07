//! Products: gemm and syrk.

use crate::matrices::{Matrix, download, upload, upload_one};
use crate::{SIZES, U, assert_near};
use esmerge::backend::{Error, Op, Shape};

const OPS: [(Op, Op); 4] = [
    (Op::None, Op::None),
    (Op::None, Op::Transpose),
    (Op::Transpose, Op::None),
    (Op::Transpose, Op::Transpose),
];

/// A matrix whose `op` is the given one.
fn stored(x: &Matrix, op: Op) -> Matrix {
    if op == Op::None { x.clone() } else { x.transposed() }
}

fn absolute(x: &Matrix) -> Matrix {
    Matrix { values: x.values.iter().map(|v| v.abs()).collect(), ..*x }
}

/// Asserts `got = alpha a b + beta c` within the rounding of a sum of `k` products in any order (at most `k` roundings on
/// each product's way into the sum), and of the three operations after it.
fn assert_product(got: &Matrix, alpha: f64, a: &Matrix, b: &Matrix, beta: f64, c: &Matrix, what: &str) {
    let (product, most) = (a.times(b), absolute(a).times(&absolute(b)));
    let expected: Vec<f64> =
        product.values.iter().zip(&c.values).map(|(p, c)| alpha * p + beta * c).collect();
    let bound = |i: usize| {
        ((a.cols + 3) as f64 * alpha.abs() * most.values[i] + 3.0 * (beta * c.values[i]).abs()) * U * 1.0001
    };
    assert_near(&got.values, &expected, bound, what);
}

claims! {
    async fn gemm_is_right_for_all_transpositions_at_odd_sizes(backend) {
        for (seed, &m) in SIZES.iter().enumerate() {
            for (n, k) in [(SIZES[(seed * 3 + 5) % 8], SIZES[(seed * 5 + 2) % 8]), (SIZES[(seed + 3) % 8], SIZES[7 - seed])] {
                let seed = (1000 * m + 10 * n + k) as u64;
                let (a, b, c) =
                    (Matrix::random(m, k, seed), Matrix::random(k, n, seed + 1), Matrix::random(m, n, seed + 2));
                for (op_a, op_b) in OPS {
                    let (x, y) = (upload(backend, &[stored(&a, op_a)])?, upload(backend, &[stored(&b, op_b)])?);
                    let what = format!("{m} x {n} x {k} {op_a:?} {op_b:?}");
                    let mut z = upload_one(backend, &c)?;
                    backend.gemm(-1.5, &x, op_a, &y, op_b, 0.75, &mut z)?;
                    assert_product(&download(backend, &z).await?[0], -1.5, &a, &b, 0.75, &c, &what);
                    let product = backend.matmul(&x, op_a, &y, op_b)?;
                    assert_product(&download(backend, &product).await?[0], 1.0, &a, &b, 0.0, &c, &what);
                }
            }
        }
        Ok(())
    }

    async fn members_of_a_batch_are_multiplied_each_with_its_own(backend) {
        let a: Vec<_> = (0..5).map(|i| Matrix::random(33, 40, 10 + i)).collect();
        let b: Vec<_> = (0..5).map(|i| Matrix::random(40, 35, 20 + i)).collect();
        let zero = Matrix::from_fn(33, 35, |_, _| 0.0);
        let c = backend.matmul(&upload(backend, &a)?, Op::None, &upload(backend, &b)?, Op::None)?;
        for (i, c) in download(backend, &c).await?.iter().enumerate() {
            assert_product(c, 1.0, &a[i], &b[i], 0.0, &zero, &format!("member {i}"));
        }
        // one b for all
        let c = backend.matmul(&upload(backend, &a)?, Op::None, &upload(backend, &b[2..3])?, Op::None)?;
        for (i, c) in download(backend, &c).await?.iter().enumerate() {
            assert_product(c, 1.0, &a[i], &b[2], 0.0, &zero, &format!("member {i} with one b"));
        }
        Ok(())
    }

    // what the choices of a router rest on
    async fn rows_of_a_linear_layer_do_not_depend_on_how_many_there_are(backend) {
        for (n, k) in [(8, 64), (8, 384), (64, 8), (192, 64), (100, 600), (400, 1100)] {
            let (a, b) = (Matrix::random(150, k, 3), Matrix::random(n, k, 4));
            for op in [Op::Transpose, Op::None] {
                let w = upload_one(backend, &if op == Op::None { b.transposed() } else { b.clone() })?;
                let whole = backend.linear(&upload_one(backend, &a)?, &w, op)?;
                assert_product(
                    &download(backend, &whole).await?[0],
                    1.0,
                    &a,
                    &b.transposed(),
                    0.0,
                    &Matrix::from_fn(150, n, |_, _| 0.0),
                    &format!("{n} columns of {k}"),
                );
                let whole = backend.download(&whole).await?;
                for (start, rows) in [(0, 97), (53, 97), (31, 50), (9, 7), (70, 2), (33, 1), (149, 1)] {
                    let some = Matrix::from_fn(rows, k, |i, j| a.at(start + i, j));
                    let part = backend.linear(&upload_one(backend, &some)?, &w, op)?;
                    let part = backend.download(&part).await?;
                    let expected = &whole[start * n..(start + rows) * n];
                    assert!(part == expected, "{rows} rows from {start} of 150, {n} columns of {k}, {op:?}");
                }
            }
        }
        Ok(())
    }

    async fn long_batches_of_small_matrices_are_multiplied(backend) {
        let a: Vec<_> = (0..700).map(|i| Matrix::random(2, 3, 10 + i)).collect();
        let b: Vec<_> = (0..700).map(|i| Matrix::random(3, 1, 20 + i)).collect();
        let c = backend.matmul(&upload(backend, &a)?, Op::None, &upload(backend, &b)?, Op::None)?;
        for (i, c) in download(backend, &c).await?.iter().enumerate() {
            assert_product(c, 1.0, &a[i], &b[i], 0.0, &Matrix::from_fn(2, 1, |_, _| 0.0), &format!("member {i}"));
        }
        Ok(())
    }

    async fn matrices_larger_than_a_small_binding_are_multiplied(backend) {
        let (m, n, k) = (300, 310, 700);
        let (a, b, c) = (Matrix::random(m, k, 1), Matrix::random(k, n, 2), Matrix::random(m, n, 3));
        for (op_a, op_b) in OPS {
            let (x, y) = (upload(backend, &[stored(&a, op_a)])?, upload(backend, &[stored(&b, op_b)])?);
            let mut z = upload_one(backend, &c)?;
            backend.gemm(1.0, &x, op_a, &y, op_b, -1.0, &mut z)?;
            assert_product(&download(backend, &z).await?[0], 1.0, &a, &b, -1.0, &c, &format!("{op_a:?} {op_b:?}"));
        }
        for op in [Op::None, Op::Transpose] {
            let g = backend.gram(&upload(backend, &[stored(&a, op)])?, op)?;
            let (g, zero) = (download(backend, &g).await?.remove(0), Matrix::from_fn(m, m, |_, _| 0.0));
            assert_product(&g, 1.0, &a, &a.transposed(), 0.0, &zero, &format!("gram {op:?}"));
            assert_eq!(g.values, g.transposed().values, "symmetric to the last bit");
        }
        Ok(())
    }

    async fn beta_zero_ignores_what_was_there(backend) {
        let (a, b) = (Matrix::random(20, 30, 1), Matrix::random(30, 10, 2));
        let (x, y) = (upload_one(backend, &a)?, upload_one(backend, &b)?);
        let mut c = backend.upload(Shape::matrix(20, 10), &[f32::NAN; 200])?;
        backend.gemm(1.0, &x, Op::None, &y, Op::None, 0.0, &mut c)?;
        assert_product(&download(backend, &c).await?[0], 1.0, &a, &b, 0.0, &Matrix::random(20, 10, 3), "gemm");
        let mut g = backend.upload(Shape::matrix(20, 20), &[f32::NAN; 400])?;
        backend.syrk(1.0, &x, Op::None, 0.0, &mut g)?;
        assert_product(&download(backend, &g).await?[0], 1.0, &a, &a.transposed(), 0.0, &Matrix::random(20, 20, 3), "syrk");
        Ok(())
    }

    async fn a_product_over_nothing_is_beta_c(backend) {
        let (a, b) = (backend.zeros(Shape::new(2, 5, 0))?, backend.zeros(Shape::new(2, 0, 4))?);
        let mut c = backend.upload(Shape::new(2, 5, 4), &[3.0; 40])?;
        backend.gemm(2.0, &a, Op::None, &b, Op::None, 0.5, &mut c)?;
        assert_eq!(backend.download(&c).await?, [1.5; 40]);
        assert_eq!(backend.download(&backend.gram(&b, Op::Transpose)?).await?, [0.0; 32]);
        let empty = backend.matmul(&backend.zeros(Shape::new(2, 0, 3))?, Op::None, &backend.zeros(Shape::new(2, 3, 4))?, Op::None)?;
        assert!(backend.download(&empty).await?.is_empty());
        Ok(())
    }

    async fn syrk_is_right_and_exactly_symmetric_at_odd_sizes(backend) {
        for (i, &n) in SIZES.iter().enumerate() {
            let k = SIZES[(i * 3 + 4) % 8];
            let x: Vec<_> = (0..2).map(|b| Matrix::random(n, k, (100 * n + k) as u64 + b)).collect();
            let zero = Matrix::from_fn(n, n, |_, _| 0.0);
            for op in [Op::None, Op::Transpose] {
                let stored: Vec<_> = x.iter().map(|x| stored(x, op)).collect();
                let c = download(backend, &backend.gram(&upload(backend, &stored)?, op)?).await?;
                for (c, x) in c.iter().zip(&x) {
                    assert_product(c, 1.0, x, &x.transposed(), 0.0, &zero, &format!("{n} x {k} {op:?}"));
                    assert_eq!(c.values, c.transposed().values, "{n} x {k} {op:?}: symmetric to the last bit");
                }
            }
        }
        Ok(())
    }

    async fn syrk_accumulates_over_slabs_of_tokens(backend) {
        let x = Matrix::random(257, 66, 5);
        let whole = upload_one(backend, &x)?;
        let mut c = backend.zeros(Shape::matrix(66, 66))?;
        for slab in [0..100, 100..101, 101..257] {
            backend.syrk(0.5, &backend.slice(&whole, 0..1, slab, 0..66)?, Op::Transpose, 1.0, &mut c)?;
        }
        let (got, zero) = (download(backend, &c).await?.remove(0), Matrix::from_fn(66, 66, |_, _| 0.0));
        assert_product(&got, 0.5, &x.transposed(), &x, 0.0, &zero, "three slabs");
        assert_eq!(got.values, got.transposed().values);
        Ok(())
    }

    async fn products_are_the_same_bits_twice(backend) {
        let (a, b) = (upload(backend, &[Matrix::random(127, 300, 1)])?, upload(backend, &[Matrix::random(300, 65, 2)])?);
        let first = backend.download(&backend.matmul(&a, Op::None, &b, Op::None)?).await?;
        assert!(first == backend.download(&backend.matmul(&a, Op::None, &b, Op::None)?).await?);
        let first = backend.download(&backend.gram(&a, Op::None)?).await?;
        assert!(first == backend.download(&backend.gram(&a, Op::None)?).await?);
        Ok(())
    }

    async fn products_that_do_not_fit_are_errors(backend) {
        let (a, b) = (backend.zeros(Shape::new(2, 3, 4))?, backend.zeros(Shape::new(3, 4, 5))?);
        let fails = |result, name| assert!(matches!(result, Err(Error::Shape { operation, .. }) if operation == name));
        let mut c = backend.zeros(Shape::new(2, 3, 5))?;
        fails(backend.gemm(1.0, &a, Op::None, &b, Op::None, 0.0, &mut c), "gemm");
        fails(backend.gemm(1.0, &a, Op::Transpose, &b, Op::None, 0.0, &mut c), "gemm");
        fails(backend.syrk(1.0, &a, Op::None, 0.0, &mut c), "syrk");
        Ok(())
    }
}
