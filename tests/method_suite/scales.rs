//! The size of numbers does not matter: scaled deltas give the scaled merge, and scaled inputs the same.

use super::{EXACT, Matrix, activations, deltas, download, upload};
use esmerge::backend::{Backend, Result};
use esmerge::linalg::Accuracy;
use esmerge::method::esd::Inputs;
use esmerge::method::esm::esm_layers;
use esmerge::method::esm_plus::low_rank_experts;
use esmerge::method::{Decomposition, EsmOptions, Fusion, Preset, Solver, tsv};

const TASKS: usize = 3;
const RANK: usize = 16;
const TOKENS: usize = 60;

/// Powers of two that take entries of about 0.02 to between 1e-36 and 1e14.
const SCALES: [i32; 7] = [-114, -100, -73, -40, 20, 33, 52];

/// Those that a device is held to. SwiftShader takes whatever comes near the smallest numbers of f32 for zeros, intermediate results
/// of entries of 1e-36 too; all others keep them.
fn scales<B: Backend>(backend: &B) -> Vec<i32> {
    let flushes = backend.name().contains("SwiftShader");
    SCALES.into_iter().filter(|&exponent| !flushes || exponent > -110).collect()
}

/// What is merged, and by what.
#[derive(Clone, Copy, Debug)]
enum Way {
    Tsv,
    DataFree,
    Svd,
    Gram,
    Tokens,
    Concat,
}

const WAYS: [Way; 6] = [Way::Tsv, Way::DataFree, Way::Svd, Way::Gram, Way::Tokens, Way::Concat];

fn times(x: &[Matrix], exponent: i32) -> Vec<Matrix> {
    let scaled = |x: &Matrix| Matrix::from_fn(x.rows, x.cols, |i, j| x.at(i, j) * 2f64.powi(exponent));
    x.iter().map(scaled).collect()
}

fn inputs<B: Backend>(backend: &B, way: Way, x: &[Matrix]) -> Result<Inputs<B::Tensor>> {
    let tokens = vec![TOKENS; TASKS];
    Ok(match way {
        Way::Tsv | Way::DataFree => Inputs::DataFree,
        Way::Gram => {
            let grams: Vec<Matrix> = x.iter().map(|x| x.transposed().times(x)).collect();
            Inputs::Gram { gram: upload(backend, &grams)?, tokens }
        }
        Way::Svd | Way::Tokens | Way::Concat => Inputs::Activations { x: upload(backend, x)?, tokens },
    })
}

/// The merged delta, and the share of energy that is kept of each task.
async fn merged<B: Backend>(
    backend: &B,
    way: Way,
    (d, x): (&[Matrix], &[Matrix]),
    accuracy: Accuracy,
) -> Result<(Matrix, Vec<f64>)> {
    let solver = Solver { accuracy, ..EXACT };
    let options = EsmOptions {
        decomposition: if let Way::Svd = way { Decomposition::Svd } else { Decomposition::Esd },
        fusion: if let Way::Concat = way { Fusion::Concat } else { Fusion::Polar },
        ..Preset::Esm.options()
    };
    let (deltas, inputs) = (upload(backend, d)?, inputs(backend, way, x)?);
    let merged = match way {
        Way::Tsv => tsv::tsv_m(backend, &deltas, TASKS, true, solver).await?,
        _ => esm_layers(backend, &deltas, &inputs, TASKS, RANK, &options, solver).await?,
    };
    let retention = merged.layers[0].energy_retention.clone();
    Ok((download(backend, &merged.deltas).await?.remove(0), retention))
}

fn assert_same_share(got: &[f64], expected: &[f64], what: &str) {
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-4, "{what}: energy kept {got}, not {expected}");
    }
}

claims! {
    async fn scaled_deltas_give_the_scaled_merge(backend) {
        let (d, x) = (deltas(TASKS as u64, 64, 80), activations(TASKS as u64, TOKENS, 80));
        for accuracy in [Accuracy::Balanced, Accuracy::Exact] {
            for way in WAYS {
                let (whole, shares) = merged(backend, way, (&d, &x), accuracy).await?;
                // all of them where products are formed in f32, their ends where f64 does it
                let scales = scales(backend);
                    let every = if accuracy == Accuracy::Exact { scales.len() - 1 } else { 1 };
                for exponent in scales.into_iter().step_by(every) {
                    let what = format!("{way:?}, {accuracy}, deltas times 2^{exponent}");
                    let (got, kept) = merged(backend, way, (&times(&d, exponent), &x), accuracy).await?;
                    let distance = times(&[got], -exponent)[0].distance(&whole);
                    // a device may take the smallest of f32 for zeros: 1.2e-38 of 1e-36
                    let bound = if exponent < -110 { 3e-3 } else { 1e-5 };
                    assert!(distance < bound, "{what}: {distance:e}");
                    assert_same_share(&kept, &shares, &what);
                }
            }
        }
        Ok(())
    }

    async fn scaled_inputs_give_the_same_merge(backend) {
        let (d, x) = (deltas(TASKS as u64, 64, 80), activations(TASKS as u64, TOKENS, 80));
        for (way, exponents) in [(Way::Tokens, [-99, -40, 33, 66]), (Way::Gram, [-50, -30, 20, 40])] {
            let (whole, shares) = merged(backend, way, (&d, &x), Accuracy::Balanced).await?;
            for exponent in exponents {
                let what = format!("{way:?}, inputs times 2^{exponent}");
                let (got, kept) = merged(backend, way, (&d, &times(&x, exponent)), Accuracy::Balanced).await?;
                assert!(got.distance(&whole) < 1e-5, "{what}: {:e}", got.distance(&whole));
                assert_same_share(&kept, &shares, &what);
            }
        }
        Ok(())
    }

    async fn experts_of_different_size_merge_as_in_exact_arithmetic(backend) {
        // an expert 1e20 times as large as the others leaves them nothing, and is merged itself
        let (mut d, x) = (deltas(TASKS as u64, 64, 80), activations(TASKS as u64, TOKENS, 80));
        d[1] = times(&d[1..2], 66).remove(0);
        let (got, kept) = merged(backend, Way::Tokens, (&d, &x), Accuracy::Balanced).await?;
        let (exact, shares) = merged(backend, Way::Tokens, (&d, &x), Accuracy::Exact).await?;
        assert!(got.norm().is_finite() && got.norm() > 0.0);
        assert!(got.distance(&exact) < 0.05, "{}", got.distance(&exact));
        assert_same_share(&kept, &shares, "an expert of another size");
        Ok(())
    }

    async fn low_rank_experts_scale_with_their_residuals(backend) {
        let (d, x) = (deltas(TASKS as u64, 64, 80), activations(TASKS as u64, TOKENS, 80));
        let solver = Solver { accuracy: Accuracy::Balanced, ..EXACT };
        for way in [Way::DataFree, Way::Gram, Way::Tokens] {
            let experts = async |exponent| {
                let (residuals, inputs) = (upload(backend, &times(&d, exponent))?, inputs(backend, way, &x)?);
                low_rank_experts(backend, &residuals, &inputs, Decomposition::Esd, 8, solver).await
            };
            let whole = experts(0).await?;
            let restored = download(backend, &whole.a).await?;
            for exponent in scales(backend) {
                let scaled = experts(exponent).await?;
                let a = times(&download(backend, &scaled.a).await?, -exponent);
                let bound = if exponent < -110 { 3e-3 } else { 1e-5 };
                for (a, expected) in a.iter().zip(&restored) {
                    assert!(a.distance(expected) < bound, "{way:?}, 2^{exponent}: {:e}", a.distance(expected));
                }
                for (t, (got, expected)) in scaled.eigenvalues.iter().zip(&whole.eigenvalues).enumerate() {
                    let ratio = got[0] / expected[0] / 4f64.powi(exponent);
                    assert!((ratio - 1.0).abs() < 1e-4, "{way:?}, 2^{exponent}, task {t}: {ratio}");
                }
            }
        }
        Ok(())
    }
}
