//! Claims about the algorithms of `linalg`, on every device.

#[path = "common/claims.rs"]
#[macro_use]
mod claims;
#[path = "common/devices.rs"]
mod devices;
#[path = "common/matrices.rs"]
mod matrices;

use claims::Stated;
use devices::{Variant, for_each_device};
use esmerge::backend::{Op, Shape};
use esmerge::linalg::{
    Accuracy, SymmetricProduct, append_block, leading_eigenpairs, orthonormalize_rows, polar, qr_rows,
};
use matrices::{Matrix, download, upload, upload_one};

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

fn main() {
    let mut trials = claims();
    // problems that only hardware keeps to itself are solved on the device
    let tiled: Vec<_> = for_each_device().iter().map(|device| device.opened(Variant::Tiled)).collect();
    trials.extend(large_problems::claims_on(&tiled));
    claims::run(trials, Stated { cpu: 14, adapter: 14, besides: 0 });
}

claims! {
    async fn choleskyqr_makes_rows_orthonormal_and_keeps_their_span(backend) {
        for (k, d, seed) in [(1, 1, 1), (3, 17, 2), (33, 64, 3), (40, 127, 4)] {
            let y = Matrix::random(k, d, seed);
            let q = download(backend, &orthonormalize_rows(backend, upload(backend, &[y.clone(), y.clone()])?, 2)?).await?;
            // an inner product of d terms is off by at most d u; there are k^2 of them
            assert!(q[0].row_orthogonality_error() < 4.0 * (d * k) as f64 * U, "{k} x {d}");
            let inside = y.times(&q[0].transposed()).times(&q[0]);
            assert!(inside.distance(&y) < 1e-5, "{k} x {d}: the span moved");
            assert_eq!(q[0].values, q[1].values, "members of a batch do not depend on each other");
        }
        Ok(())
    }

    async fn choleskyqr_survives_rows_of_very_different_size_and_nearly_dependent_ones(backend) {
        let mut y = Matrix::random(12, 50, 5);
        for j in 0..50 {
            y.values[3 * 50 + j] *= 1e-9;
            y.values[7 * 50 + j] = y.values[6 * 50 + j] + 1e-5 * y.values[7 * 50 + j];
        }
        let q = download(backend, &orthonormalize_rows(backend, upload(backend, &[y])?, 4)?).await?;
        assert!(q[0].row_orthogonality_error() < 1e-5, "{}", q[0].row_orthogonality_error());
        Ok(())
    }

    async fn zero_rows_stay_zero_under_choleskyqr(backend) {
        let mut y = Matrix::random(5, 20, 6);
        y.values[40..60].fill(0.0);
        let q = download(backend, &orthonormalize_rows(backend, upload(backend, &[y])?, 2)?).await?;
        let norms: Vec<f64> = q[0].values.chunks(20).map(|r| r.iter().map(|v| v * v).sum::<f64>().sqrt()).collect();
        assert_eq!(norms[2], 0.0);
        assert!(norms.iter().enumerate().all(|(i, n)| i == 2 || (n - 1.0).abs() < 1e-5), "{norms:?}");
        Ok(())
    }

    async fn an_appended_block_is_orthonormal_and_orthogonal_to_the_basis(backend) {
        let basis = Matrix::random(64, 10, 7).orthonormal_columns().transposed();
        // mostly inside the basis already: what plain Gram-Schmidt loses
        let inside = Matrix::random(6, 10, 8).times(&basis);
        let outside = Matrix::random(6, 64, 9);
        let y = Matrix::from_fn(6, 64, |i, j| inside.at(i, j) + 1e-3 * outside.at(i, j));
        let q = append_block(backend, &upload_one(backend, &basis)?, upload(backend, &[y])?)?;
        let q = download(backend, &q).await?.remove(0);
        assert!(q.row_orthogonality_error() < 1e-5);
        assert!(q.times(&basis.transposed()).norm() < 1e-5);
        Ok(())
    }

    async fn qr_has_a_positive_diagonal_and_orthonormal_rows_or_columns(backend) {
        for (rows, cols) in [(9, 30), (30, 9), (17, 17)] {
            let a = Matrix::random(rows, cols, 10);
            let q = download(backend, &qr_rows(backend, &upload_one(backend, &a)?).await?).await?.remove(0);
            let (q, a) = if rows <= cols { (q, a) } else { (q.transposed(), a.transposed()) };
            assert!(q.row_orthogonality_error() < 1e-5);
            let l = a.times(&q.transposed());
            for i in 0..l.rows {
                assert!(l.at(i, i) > 0.0);
                assert!((i + 1..l.cols).all(|j| l.at(i, j).abs() < 1e-5), "R is triangular");
            }
        }
        Ok(())
    }

    async fn the_polar_factor_is_orthonormal_and_its_trace_is_the_nuclear_norm(backend) {
        for (rows, cols, decay) in [(1, 1, 1.0), (1, 7, 1.0), (24, 24, 0.8), (16, 65, 0.7), (100, 33, 0.75)] {
            let a = Matrix::with_decay(rows, cols, decay, 11);
            let sigma: f64 = (0..rows.min(cols)).map(|i| decay.powi(i as i32)).sum();
            let p = polar(backend, &upload(backend, &[a.clone(), a.clone()])?, Accuracy::Exact).await?;
            assert!((p.nuclear_norms[1] - sigma).abs() < 1e-5 * sigma, "{rows} x {cols}: {}", p.nuclear_norms[1]);
            assert_eq!(p.rank_deficient, [false, false]);
            let factor = download(backend, &p.factor).await?.remove(0);
            let wide = if rows <= cols { factor.clone() } else { factor.transposed() };
            assert!(wide.row_orthogonality_error() < 1e-4, "{rows} x {cols}: {}", wide.row_orthogonality_error());
            // P^T A is symmetric positive semidefinite: that, and orthonormality, define the polar factor
            let h = factor.transposed().times(&a);
            assert!(h.minus(&h.transposed()).norm() < 1e-5 * h.norm());
        }
        Ok(())
    }

    async fn rational_steps_give_the_polar_factor_too(backend) {
        // the last step leaves singular values within this of 1 (`src/linalg/rational.rs`)
        let off = 5.2e-5;
        for (rows, cols, decay) in [(1, 7, 1.0), (24, 24, 0.8), (16, 65, 0.7), (100, 33, 0.75), (120, 90, 0.95)] {
            let a = Matrix::with_decay(rows, cols, decay, 11);
            let sigma: f64 = (0..rows.min(cols)).map(|i| decay.powi(i as i32)).sum();
            let p = polar(backend, &upload(backend, &[a.clone(), a.clone()])?, Accuracy::Balanced).await?;
            let norm_error = (p.nuclear_norms[1] - sigma).abs() / sigma;
            assert!(norm_error < off + 1e-5, "{rows} x {cols}: {}", p.nuclear_norms[1]);
            assert_eq!(p.rank_deficient, [false, false]);
            let factor = download(backend, &p.factor).await?.remove(1);
            let wide = if rows <= cols { factor.clone() } else { factor.transposed() };
            let orthogonality_error = wide.row_orthogonality_error();
            let in_all = 2.0 * off * (wide.rows as f64).sqrt(); // the norm of all of them
            assert!(orthogonality_error < in_all + 1e-5, "{rows} x {cols}: {orthogonality_error}");
            // the first step, with c = 8e4, costs two directions below sigma = 1/sqrt(c) up to c 2^-24 of their angle: that
            // is c 2^-24 / sqrt(c) = 1.7e-5 in this difference for each, of which there are 13 at 100 x 33
            let h = factor.transposed().times(&a);
            assert!(h.minus(&h.transposed()).norm() < 13.0 * 1.7e-5 * h.norm(), "{rows} x {cols}");
        }
        Ok(())
    }

    async fn a_direction_that_did_not_arrive_is_noticed_whatever_the_size(backend) {
        // one singular value of 40, and one of 150, is lost in the rounding of the others; beyond 64, random rows look for it
        for n in [40, 150] {
            let a = Matrix::with_spectrum(n, n, |i| if i + 1 < n { 1.0 } else { 1e-7 }, 3);
            let p = polar(backend, &upload(backend, &[Matrix::with_decay(n, n, 1.0, 4), a])?, Accuracy::Balanced).await?;
            assert_eq!(p.rank_deficient, [false, true], "{n}");
        }
        Ok(())
    }

    async fn a_rank_deficient_matrix_is_noticed_and_its_null_space_left_alone(backend) {
        // rank 6 up to the rounding of its entries, which an iteration in f32 blows up
        let mixed = Matrix::random(12, 6, 20).times(&Matrix::random(6, 40, 21));
        let good = Matrix::random(12, 40, 22);
        let p = polar(backend, &upload(backend, &[good, mixed])?, Accuracy::Exact).await?;
        assert_eq!(p.rank_deficient, [false, true]);
        let factor = download(backend, &p.factor).await?.remove(1);
        let gram = factor.times(&factor.transposed());
        let trace: f64 = (0..12).map(|i| gram.at(i, i)).sum();
        assert!((trace - 6.0).abs() < 1e-4, "six directions, none invented: {trace}");
        assert!(gram.times(&gram).distance(&gram) < 1e-4);
        Ok(())
    }

    async fn a_zero_matrix_has_a_zero_polar_factor(backend) {
        let p = polar(backend, &backend.zeros(Shape::matrix(5, 9))?, Accuracy::Exact).await?;
        assert!(download(backend, &p.factor).await?[0].values.iter().all(|&v| v == 0.0));
        assert_eq!(p.nuclear_norms, [0.0]);
        Ok(())
    }

    async fn subspace_iteration_finds_the_leading_eigenpairs_on_either_side_of_the_factor(backend) {
        // d < n, d > n, and C given by a congruence; r + p well below min(n, d), so that the iteration runs
        for (n, d) in [(160, 90), (90, 160)] {
            let (decay, r) = (0.9f64, 12);
            let x = Matrix::with_decay(n, d, decay, 30);
            let c = SymmetricProduct::Factor { x: &upload(backend, &[x.clone(), x.clone()])?, op: Op::Transpose };
            let pairs = leading_eigenpairs(backend, c, r, &[n.min(d); 2], Accuracy::Balanced, 1).await?;
            let basis = download(backend, &pairs.basis).await?.remove(1);
            assert!(basis.row_orthogonality_error() < 1e-5);
            for (j, &value) in pairs.values[1].iter().enumerate() {
                let truth = decay.powi(2 * j as i32);
                assert!((value - truth).abs() < 1e-3 * truth, "eigenvalue {j}: {value}, not {truth}");
            }
            // what r directions can capture at most, less 1e-4 of it
            let energy = x.times(&basis.transposed()).norm().powi(2);
            let best: f64 = (0..r).map(|j| decay.powi(2 * j as i32)).sum();
            assert!(energy > best * (1.0 - 1e-4) && energy < best * (1.0 + 1e-5), "{energy} of {best}");
            assert!((pairs.traces[0] - x.norm().powi(2)).abs() < 1e-5 * x.norm().powi(2));
        }
        Ok(())
    }

    async fn a_spectrum_that_hardly_decays_is_resolved_too(backend) {
        // eigenvalues 1 / (1 + j / 60): power steps alone leave the last wanted one 8% short
        let (n, d, r) = (150, 110, 12);
        let x = Matrix::with_spectrum(n, d, |j| (1.0 / (1.0 + j as f64 / 60.0)).sqrt(), 50);
        let c = SymmetricProduct::Factor { x: &upload(backend, &[x.clone(), x])?, op: Op::Transpose };
        let pairs = leading_eigenpairs(backend, c, r, &[d; 2], Accuracy::Balanced, 1).await?;
        for (j, &value) in pairs.values[1].iter().enumerate() {
            let truth = 1.0 / (1.0 + j as f64 / 60.0);
            assert!((value - truth).abs() < 2e-3 * truth, "eigenvalue {j}: {value}, not {truth}");
        }
        Ok(())
    }

    async fn a_congruence_gives_the_eigenpairs_of_its_product(backend) {
        let (d, x) = (Matrix::with_decay(80, 60, 0.9, 40), Matrix::random(50, 60, 41));
        let g = x.transposed().times(&x);
        let shift = x.times(&d.transposed());
        for accuracy in [Accuracy::Exact, Accuracy::Balanced] {
            let (d, g) = (upload_one(backend, &d)?, upload_one(backend, &g)?);
            let given = SymmetricProduct::Congruence { d: &d, g: &g };
            let given = leading_eigenpairs(backend, given, 6, &[50], accuracy, 0).await?;
            let factor = SymmetricProduct::Factor { x: &upload_one(backend, &shift)?, op: Op::Transpose };
            let factor = leading_eigenpairs(backend, factor, 6, &[50], Accuracy::Exact, 0).await?;
            for (a, b) in given.values[0].iter().zip(&factor.values[0]) {
                assert!((a - b).abs() < 1e-3 * b, "{accuracy}: {a} {b}");
            }
            assert!((given.traces[0] - factor.traces[0]).abs() < 1e-4 * factor.traces[0]);
        }
        Ok(())
    }

    async fn the_same_seed_gives_the_same_bits_and_another_seed_other_ones(backend) {
        let x = upload(backend, &[Matrix::random(150, 100, 50)])?;
        let run = async |seed| {
            let c = SymmetricProduct::Factor { x: &x, op: Op::Transpose };
            let pairs = leading_eigenpairs(backend, c, 10, &[100], Accuracy::Fast, seed).await?;
            backend.download(&pairs.basis).await
        };
        let (a, b, c) = (run(1).await?, run(1).await?, run(2).await?);
        assert!(a == b && a != c);
        Ok(())
    }
}

mod large_problems {
    use super::*;

    claims! {
        async fn a_large_projected_problem_is_solved_as_well_as_a_small_one(backend) {
            // r + p = 195, past the order from which software leaves the problem to the host
            let (n, d, r, decay) = (300, 250, 130, 0.96f64);
            let x = Matrix::with_decay(n, d, decay, 31);
            let c = SymmetricProduct::Factor { x: &upload(backend, &[x.clone(), x.clone()])?, op: Op::Transpose };
            let pairs = leading_eigenpairs(backend, c, r, &[d; 2], Accuracy::Balanced, 1).await?;
            let basis = download(backend, &pairs.basis).await?.remove(1);
            assert!(basis.row_orthogonality_error() < 1e-5, "{}", basis.row_orthogonality_error());
            for (j, &value) in pairs.values[1].iter().enumerate() {
                // relative to its own size, but for the rounding of the Gram matrix
                let truth = decay.powi(2 * j as i32);
                assert!((value - truth).abs() < 1e-3 * truth + 64.0 * U, "eigenvalue {j}: {value}, not {truth}");
            }
            Ok(())
        }
    }
}
