//! Compress-then-Merge (arXiv 2606.03723) against its formulas in f64, from full differences: shared subspaces by a Tucker-2
//! decomposition that is alternated until nothing changes, and methods entry by entry of the cores.

use super::{EXACT, Matrix, download, upload};
use esmerge::backend::{Backend, Result, Tensor};
use esmerge::method::low_rank::{Compressed, Cores};
use esmerge::method::{Streamed, Value, Values, table};
use faer::Mat;

const TASKS: usize = 3;
/// Directions of an adapter, and of the output.
const R: usize = 10;
const RANK: usize = 6;
const D_OUT: usize = 40;
const D_IN: usize = 56;
const DENSITY: f64 = 0.4;

/// `B_t^T` and `A_t`: `RANK` directions that all tasks share, more or less, and others; of norms far apart, which are levelled.
fn factors() -> (Vec<Matrix>, Vec<Matrix>) {
    let shared = |d: usize, seed| Matrix::random(RANK, d, seed);
    let (u, v) = (shared(D_OUT, 1), shared(D_IN, 2));
    let side = |shared: &Matrix, t: usize, seed: u64| {
        let (own, noise) =
            (Matrix::random(R, RANK, seed).times(shared), Matrix::random(R, shared.cols, seed + 1));
        let size = [1.0, 3.0, 0.4][t];
        Matrix::from_fn(R, shared.cols, |i, j| {
            f64::from((size * (own.at(i, j) + 0.1 * noise.at(i, j))) as f32)
        })
    };
    let all = |shared: &Matrix, seed: u64| (0..TASKS).map(|t| side(shared, t, seed + 2 * t as u64)).collect();
    (all(&u, 10), all(&v, 20))
}

/// `U_r`, `V_r` as columns, and the `O_t`.
struct Reference {
    u: Mat<f64>,
    v: Mat<f64>,
    o: Vec<Mat<f64>>,
}

impl Reference {
    fn new(b: &[Matrix], a: &[Matrix]) -> Reference {
        let of = |m: &Matrix| Mat::from_fn(m.rows, m.cols, |i, j| m.at(i, j));
        let d: Vec<Mat<f64>> = b.iter().zip(a).map(|(b, a)| of(b).transpose() * of(a)).collect();
        let mean = d.iter().map(Mat::norm_l2).sum::<f64>() / TASKS as f64;
        let level = |d: &Mat<f64>| {
            let scale = (0.25 * d.norm_l2() + 0.75 * mean) / d.norm_l2();
            Mat::from_fn(D_OUT, D_IN, |i, j| scale * d[(i, j)])
        };
        let level: Vec<Mat<f64>> = d.iter().map(level).collect();
        let mut v = leading(level.iter().map(|d| d.transpose().to_owned()));
        let mut u = Mat::zeros(D_OUT, RANK);
        for _ in 0..200 {
            u = leading(level.iter().map(|d| d * &v));
            v = leading(level.iter().map(|d| d.transpose() * &u));
        }
        let o = d.iter().map(|d| u.transpose() * d * &v).collect();
        Reference { u, v, o }
    }

    fn product(&self, o: &Mat<f64>) -> Matrix {
        let product = &self.u * o * self.v.transpose();
        Matrix::from_fn(D_OUT, D_IN, |i, j| product[(i, j)])
    }

    /// Trimmed, with signs elected; the mean of what agrees.
    fn ties(&self) -> Mat<f64> {
        let kept = (DENSITY * (RANK * RANK) as f64) as usize;
        let trimmed = self.o.iter().map(|o| {
            let all = || (0..RANK).flat_map(|i| (0..RANK).map(move |j| (i, j)));
            let mut sizes: Vec<f64> = all().map(|at| o[at].abs()).collect();
            sizes.sort_by(|a, b| b.total_cmp(a));
            Mat::from_fn(RANK, RANK, |i, j| if o[(i, j)].abs() >= sizes[kept - 1] { o[(i, j)] } else { 0.0 })
        });
        let trimmed: Vec<Mat<f64>> = trimmed.collect();
        Mat::from_fn(RANK, RANK, |i, j| {
            let each: Vec<f64> = trimmed.iter().map(|o| o[(i, j)]).collect();
            let positive = each.iter().sum::<f64>() >= 0.0;
            let agreeing: Vec<f64> =
                each.into_iter().filter(|&x| x != 0.0 && (x > 0.0) == positive).collect();
            agreeing.iter().sum::<f64>() / agreeing.len().max(1) as f64
        })
    }
}

/// `RANK` left singular vectors of matrices side by side.
fn leading(parts: impl Iterator<Item = Mat<f64>>) -> Mat<f64> {
    let parts: Vec<Mat<f64>> = parts.collect();
    let cols = parts[0].ncols();
    let all = Mat::from_fn(parts[0].nrows(), cols * parts.len(), |i, j| parts[j / cols][(i, j % cols)]);
    all.thin_svd().unwrap().U().subcols(0, RANK).to_owned()
}

fn method(name: &str) -> Streamed {
    let method = table::find(name).unwrap();
    let mut values = Values::defaults(method, TASKS);
    values.set("density", Value::Number(DENSITY));
    Streamed::new(method, &values).unwrap().unwrap()
}

async fn merged<B: Backend>(backend: &B, compressed: &Compressed<B::Tensor>, name: &str) -> Result<Matrix> {
    let merged = compressed.elementwise(backend, &method(name)).await?;
    let (b, a) = (download(backend, &merged.b).await?, download(backend, &merged.a).await?);
    Ok(b[0].transposed().times(&a[0]))
}

claims! {
    async fn compressed_adapters_merge_as_the_formulas_say(backend) {
        let (b, a) = factors();
        let reference = Reference::new(&b, &a);
        let cores = Cores::new(backend, &upload(backend, &b)?, &upload(backend, &a)?, EXACT.accuracy).await?;
        let compressed = cores.compressed(backend, RANK, EXACT).await?;
        assert_eq!(compressed.o.shape().rows, RANK);
        let error = merged(backend, &compressed, "ties").await?.distance(&reference.product(&reference.ties()));
        println!("ties: {error:.1e}");
        assert!(error < 1e-5, "ties: {error:.1e}");

        // the same method, of the reference's cores
        let o: Vec<Matrix> = reference.o.iter().map(|o| Matrix::from_fn(RANK, RANK, |i, j| o[(i, j)])).collect();
        let basis = |x: &Mat<f64>| Matrix::from_fn(RANK, x.nrows(), |i, j| x[(j, i)]);
        let given = Compressed {
            u: upload(backend, &[basis(&reference.u)])?,
            v: upload(backend, &[basis(&reference.v)])?,
            o: upload(backend, &o)?,
        };
        for name in ["ties", "dare_ties", "della", "breadcrumbs_ties", "dare_linear", "della_linear", "breadcrumbs"] {
            let (got, want) = (merged(backend, &compressed, name).await?, merged(backend, &given, name).await?);
            println!("{name}: {:.1e}", got.distance(&want));
            assert!(got.distance(&want) < 1e-5, "{name}: {:.1e}", got.distance(&want));
        }
        Ok(())
    }

    async fn compressed_adapters_merge_alike_in_any_order(backend) {
        let (b, a) = factors();
        let mut results = Vec::new();
        for order in [[0, 1, 2], [2, 0, 1]] {
            let of = |all: &[Matrix]| order.map(|t| all[t].clone()).to_vec();
            let (b, a) = (upload(backend, &of(&b))?, upload(backend, &of(&a))?);
            let cores = Cores::new(backend, &b, &a, EXACT.accuracy).await?;
            let compressed = cores.compressed(backend, RANK, EXACT).await?;
            results.push(merged(backend, &compressed, "ties").await?);
        }
        assert!(results[1].distance(&results[0]) < 1e-5, "{:.1e}", results[1].distance(&results[0]));
        Ok(())
    }
}
