//! Claims about the merging methods, on every device.

#[path = "common/claims.rs"]
#[macro_use]
mod claims;
#[path = "method_suite/compressed.rs"]
mod compressed;
#[path = "common/devices.rs"]
mod devices;
#[path = "common/matrices.rs"]
mod matrices;
#[path = "method_suite/promise.rs"]
mod promise;
#[path = "method_suite/scales.rs"]
mod scales;
#[path = "method_suite/spectral.rs"]
mod spectral;

use claims::Stated;
use devices::{Device, Variant};
use esmerge::backend::gpu::Gpu;
use esmerge::backend::{Backend, Dtype, Polarity, Result, Shape};
use esmerge::linalg::Accuracy;
use esmerge::method::esd::{EssentialSubspace, Inputs, essential_subspace};
use esmerge::method::esm::{eigenvalue_weights, esm_layers, join_factors, merge_factors, task_factors};
use esmerge::method::{Decomposition, EsmOptions, Fusion, Preset, Scale, Solver, assembly, tsv};
use libtest_mimic::Trial;
use matrices::{Matrix, download, upload, upload_one};

const EXACT: Solver = Solver { accuracy: Accuracy::Exact, seed: 0 };

fn main() {
    let mut trials = claims();
    trials.extend(compressed::claims());
    trials.extend(promise::claims());
    trials.extend(scales::claims());
    trials.extend(spectral::claims());
    // as hardware does, these keep every projected problem to themselves
    for device in devices::for_each_device() {
        if let Device::Gpu(..) = device {
            let device = device.opened(Variant::Tiled);
            let name = format!("{device}/the_host_waits_once_in_each_half_of_a_merge");
            trials.push(Trial::test(name, move || Ok(pollster::block_on(waits_once(device.gpu()))?)));
        }
    }
    claims::run(trials, Stated { cpu: 32, adapter: 33, besides: 0 });
}

/// Each half of a merge waits once, whatever the number of layers and tasks: whether subspaces have converged, and for what is
/// known of the layers.
async fn waits_once(gpu: &Gpu) -> Result<()> {
    let solver = Solver { accuracy: Accuracy::Balanced, ..EXACT };
    let (layers, tasks) = (3, 4);
    let (d, x) = (deltas((layers * tasks) as u64, 128, 96), activations((layers * tasks) as u64, 160, 96));
    let (d, x, options) = (upload(gpu, &d)?, inputs(gpu, &x)?, Preset::Esm.options());
    let before = gpu.read_backs();
    let factors = task_factors(gpu, &d, &x, 12, &options, solver).await?;
    assert_eq!(gpu.read_backs(), before + 1);
    let merged = merge_factors(gpu, factors, tasks, &options, solver).await?;
    assert_eq!(gpu.read_backs(), before + 2);
    assert!(merged.layers.iter().all(|layer| !layer.rank_deficient));

    let merged = tsv::tsv_m(gpu, &d, tasks, true, solver).await?;
    assert_eq!(gpu.read_backs(), before + 4);
    assert!(merged.layers.iter().all(|layer| !layer.rank_deficient));
    Ok(())
}

/// Deltas of `d_out x d_in` for T tasks, with decaying spectra.
fn deltas(tasks: u64, d_out: usize, d_in: usize) -> Vec<Matrix> {
    (0..tasks).map(|t| Matrix::with_decay(d_out, d_in, 0.85, 100 + 2 * t)).collect()
}

fn activations(tasks: u64, n: usize, d_in: usize) -> Vec<Matrix> {
    (0..tasks).map(|t| Matrix::random(n, d_in, 200 + t)).collect()
}

fn inputs<B: Backend>(backend: &B, x: &[Matrix]) -> Result<Inputs<B::Tensor>> {
    Ok(Inputs::Activations { x: upload(backend, x)?, tokens: vec![x[0].rows; x.len()] })
}

async fn esd<B: Backend>(
    backend: &B,
    d: &[Matrix],
    inputs: &Inputs<B::Tensor>,
    r: usize,
) -> Result<EssentialSubspace<B::Tensor>> {
    essential_subspace(backend, &upload(backend, d)?, inputs, Decomposition::Esd, r, EXACT).await
}

async fn merged<B: Backend>(
    backend: &B,
    d: &[Matrix],
    inputs: &Inputs<B::Tensor>,
    r: usize,
    options: &EsmOptions,
) -> Result<Matrix> {
    let merged = esm_layers(backend, &upload(backend, d)?, inputs, d.len(), r, options, EXACT).await?;
    Ok(download(backend, &merged.deltas).await?.remove(0))
}

/// `E^T E` of a basis kept as rows.
fn projector(basis: &Matrix) -> Matrix {
    basis.transposed().times(basis)
}

claims! {
    async fn esd_error_equals_the_discarded_eigenvalues(backend) {
        let (d, x) = (deltas(2, 33, 20), activations(2, 50, 20));
        let (all, few) = (esd(backend, &d, &inputs(backend, &x)?, 20).await?, esd(backend, &d, &inputs(backend, &x)?, 7).await?);
        let basis = download(backend, &few.basis).await?;
        for t in 0..2 {
            let kept = projector(&basis[t]).times(&d[t]);
            let error = x[t].times(&d[t].minus(&kept).transposed()).norm().powi(2);
            let discarded = 49.0 * all.eigenvalues[t][7..].iter().sum::<f64>();
            assert!((error - discarded).abs() < 1e-4 * discarded, "{error} {discarded}");
            let total: f64 = all.eigenvalues[t].iter().sum();
            let retained = all.eigenvalues[t][..7].iter().sum::<f64>() / total;
            assert!((few.energy_retention[t] - retained).abs() < 1e-5);
        }
        Ok(())
    }

    async fn no_other_output_projection_of_the_same_rank_does_better(backend) {
        let (d, x) = (deltas(1, 30, 24), activations(1, 40, 24));
        let basis = download(backend, &esd(backend, &d, &inputs(backend, &x)?, 5).await?.basis).await?.remove(0);
        let error = |rows: &Matrix| {
            let kept = projector(rows).times(&d[0]);
            x[0].times(&d[0].minus(&kept).transposed()).norm()
        };
        let best = error(&basis);
        let svd = download(backend, &esd(backend, &d, &Inputs::DataFree, 5).await?.basis).await?.remove(0);
        assert!(best < error(&svd), "the truncated SVD is optimal for the weights, not for the outputs");
        for seed in 0..20 {
            let nudge = Matrix::random(5, 30, 300 + seed);
            let other = Matrix::from_fn(5, 30, |i, j| basis.at(i, j) + 0.05 * nudge.at(i, j));
            assert!(best < error(&other.transposed().orthonormal_columns().transposed()));
        }
        Ok(())
    }

    async fn scaling_the_inputs_scales_eigenvalues_and_leaves_the_subspace(backend) {
        let (d, x) = (deltas(1, 24, 30), activations(1, 60, 30));
        let scaled: Vec<Matrix> = vec![Matrix::from_fn(60, 30, |i, j| 4.0 * x[0].at(i, j))];
        let (a, b) = (esd(backend, &d, &inputs(backend, &x)?, 6).await?, esd(backend, &d, &inputs(backend, &scaled)?, 6).await?);
        let (ea, eb) = (download(backend, &a.basis).await?, download(backend, &b.basis).await?);
        assert!(projector(&eb[0]).distance(&projector(&ea[0])) < 1e-5);
        for (p, q) in a.eigenvalues[0].iter().zip(&b.eigenvalues[0]) {
            assert!((q / p - 16.0).abs() < 1e-4);
        }
        Ok(())
    }

    async fn without_calibration_esd_is_the_truncated_svd(backend) {
        let d = deltas(1, 40, 28);
        let free = esd(backend, &d, &Inputs::DataFree, 9).await?;
        for (j, value) in free.eigenvalues[0].iter().enumerate() {
            let truth = 0.85f64.powi(2 * j as i32);
            assert!((value - truth).abs() < 1e-5 * truth, "sigma^2 {j}");
        }
        let basis = download(backend, &free.basis).await?.remove(0);
        let error = projector(&basis).times(&d[0]).minus(&d[0]).norm().powi(2);
        let discarded: f64 = (9..28).map(|j| 0.85f64.powi(2 * j)).sum();
        assert!((error - discarded).abs() < 1e-5 * discarded);
        Ok(())
    }

    async fn a_gram_says_the_same_as_the_tokens_it_sums(backend) {
        let (d, x) = (deltas(2, 26, 18), activations(2, 70, 18));
        let grams: Vec<Matrix> = x.iter().map(|x| x.transposed().times(x)).collect();
        let gram = Inputs::Gram { gram: upload(backend, &grams)?, tokens: vec![70, 70] };
        let (a, b) = (esd(backend, &d, &inputs(backend, &x)?, 6).await?, esd(backend, &d, &gram, 6).await?);
        let (ea, eb) = (download(backend, &a.basis).await?, download(backend, &b.basis).await?);
        for t in 0..2 {
            assert!(projector(&eb[t]).distance(&projector(&ea[t])) < 1e-4);
            assert!((a.energy_retention[t] - b.energy_retention[t]).abs() < 1e-5);
        }
        Ok(())
    }

    async fn zero_rows_that_pad_a_shorter_expert_change_nothing(backend) {
        let (d, x) = (deltas(1, 20, 16), activations(1, 30, 16));
        let padded = Matrix::from_fn(45, 16, |i, j| if i < 30 { x[0].at(i, j) } else { 0.0 });
        let padded = Inputs::Activations { x: upload(backend, &[padded])?, tokens: vec![30] };
        let (a, b) = (esd(backend, &d, &inputs(backend, &x)?, 8).await?, esd(backend, &d, &padded, 8).await?);
        for (p, q) in a.eigenvalues[0].iter().zip(&b.eigenvalues[0]) {
            assert!((p - q).abs() < 1e-6 * a.eigenvalues[0][0]);
        }
        Ok(())
    }

    async fn with_fewer_tokens_than_directions_none_is_invented(backend) {
        let (d, x) = (deltas(2, 40, 30), activations(2, 4, 30));
        for accuracy in [Accuracy::Exact, Accuracy::Balanced] {
            let solver = Solver { accuracy, ..EXACT };
            let found = essential_subspace(backend, &upload(backend, &d)?, &inputs(backend, &x)?, Decomposition::Esd, 9, solver).await?;
            let basis = download(backend, &found.basis).await?;
            assert!(basis.iter().all(|b| b.values[4 * 40..].iter().all(|&v| v == 0.0)), "{accuracy}");
            assert!(found.eigenvalues.iter().all(|l| l[3] > 0.0 && l[4..].iter().all(|&v| v == 0.0)), "{accuracy}");
        }
        Ok(())
    }

    async fn decomposition_svd_ignores_the_calibration(backend) {
        let (d, x) = (deltas(3, 24, 16), activations(3, 30, 16));
        let svd = EsmOptions { decomposition: Decomposition::Svd, ..Preset::Esm.options() };
        let with = merged(backend, &d, &inputs(backend, &x)?, 8, &svd).await?;
        let without = merged(backend, &d, &Inputs::DataFree, 8, &Preset::Esm.options()).await?;
        assert_eq!(with.values, without.values);
        Ok(())
    }

    async fn one_task_of_full_rank_without_scaling_comes_back_whole(backend) {
        let (d, x) = (deltas(1, 12, 20), activations(1, 50, 20));
        let plain = EsmOptions {
            eigen_weight_power: 0.0, inter_task: None, inter_dimension: None, fusion: Fusion::Concat, gain: 1.0,
            ..Preset::Esm.options()
        };
        let back = merged(backend, &d, &inputs(backend, &x)?, 12, &plain).await?;
        assert!(back.distance(&d[0]) < 1e-5);
        Ok(())
    }

    async fn the_order_of_tasks_does_not_matter(backend) {
        let (d, x) = (deltas(3, 30, 21), activations(3, 40, 21));
        let order = [2, 0, 1];
        let (d2, x2): (Vec<_>, Vec<_>) = order.iter().map(|&t| (d[t].clone(), x[t].clone())).unzip();
        let a = merged(backend, &d, &inputs(backend, &x)?, 10, &Preset::Esm.options()).await?;
        let b = merged(backend, &d2, &inputs(backend, &x2)?, 10, &Preset::Esm.options()).await?;
        assert!(b.distance(&a) < 1e-4, "{}", b.distance(&a));
        Ok(())
    }

    async fn tasks_taken_a_few_at_a_time_merge_to_the_same_layer(backend) {
        let (d, x) = (deltas(3, 24, 18), activations(3, 40, 18));
        let options = Preset::Esm.options();
        let whole = merged(backend, &d, &inputs(backend, &x)?, 8, &options).await?;
        let mut parts = Vec::new();
        for range in [0..2, 2..3] {
            let (d, x) = (&d[range.clone()], &x[range]);
            parts.push(task_factors(backend, &upload(backend, d)?, &inputs(backend, x)?, 8, &options, EXACT).await?);
        }
        let merged = merge_factors(backend, join_factors(backend, parts)?, 3, &options, EXACT).await?;
        let joined = download(backend, &merged.deltas).await?.remove(0);
        assert!(joined.distance(&whole) < 1e-5);
        Ok(())
    }

    async fn layers_in_one_batch_merge_as_each_would_alone(backend) {
        // three layers of two tasks; one is rank-deficient by more than exact zeros, one has a task without a delta
        let (mut d, mut x) = (Vec::new(), Vec::new());
        for layer in 0..3 {
            d.extend((0..2).map(|t| Matrix::with_decay(24, 18, 0.85, 500 + 10 * layer + 2 * t)));
            x.extend((0..2).map(|t| Matrix::random(40, 18, 600 + 10 * layer + t)));
        }
        (d[1], x[1]) = (d[0].clone(), x[0].clone());
        d[1].values.iter_mut().for_each(|v| *v *= 1.0 + 1e-7);
        d[4].values.fill(0.0);
        for fusion in [Fusion::Polar, Fusion::Qr, Fusion::Concat] {
            let options = EsmOptions { fusion, ..Preset::Esm.options() };
            let all = esm_layers(backend, &upload(backend, &d)?, &inputs(backend, &x)?, 2, 8, &options, EXACT).await?;
            let deltas = download(backend, &all.deltas).await?;
            for (l, (d, x)) in d.chunks(2).zip(x.chunks(2)).enumerate() {
                let alone = esm_layers(backend, &upload(backend, d)?, &inputs(backend, x)?, 2, 8, &options, EXACT).await?;
                assert!(deltas[l].distance(&download(backend, &alone.deltas).await?[0]) < 1e-5, "{fusion:?}, layer {l}");
                let (one, same) = (&alone.layers[0], &all.layers[l]);
                assert_eq!(one.rank_deficient, same.rank_deficient);
                for (a, b) in one.energy_retention.iter().zip(&same.energy_retention) {
                    assert!((a - b).abs() < 1e-5, "{a} {b}");
                }
                for (a, b) in one.task_scales.iter().zip(&same.task_scales) {
                    assert!((a - b).abs() < 1e-5, "{a} {b}");
                }
            }
            assert_eq!(all.layers[0].rank_deficient, fusion != Fusion::Concat);
            assert!(!all.layers[1].rank_deficient);
        }
        let all = tsv::tsv_m(backend, &upload(backend, &d)?, 2, true, EXACT).await?;
        let deltas = download(backend, &all.deltas).await?;
        for (l, d) in d.chunks(2).enumerate() {
            let alone = tsv::tsv_m(backend, &upload(backend, d)?, 2, true, EXACT).await?;
            assert!(deltas[l].distance(&download(backend, &alone.deltas).await?[0]) < 1e-5, "TSV-M, layer {l}");
        }
        Ok(())
    }

    async fn a_layer_that_needs_filters_leaves_the_others_as_they_are(backend) {
        // eigenvalues that hardly decay, which power steps do not resolve, between ones that do
        let slow: Vec<Matrix> = (0..2).map(|t| Matrix::with_spectrum(110, 150, |j| (1.0 / (1.0 + j as f64 / 60.0)).sqrt(), 70 + 2 * t)).collect();
        let quick = |seed: u64| (0..2).map(move |t| Matrix::with_decay(110, 150, 0.9, seed + 2 * t)).collect::<Vec<_>>();
        let options = Preset::Esm.options();
        let solver = Solver { accuracy: Accuracy::Balanced, ..EXACT };
        let merged = async |d: &[Matrix], solver| {
            let merged = esm_layers(backend, &upload(backend, d)?, &Inputs::DataFree, 2, 12, &options, solver).await?;
            let deltas = download(backend, &merged.deltas).await?;
            Ok::<_, esmerge::backend::Error>((deltas, merged.layers))
        };
        let (all, layers) = merged(&[quick(80), slow.clone(), quick(90)].concat(), solver).await?;
        for (l, seed) in [(0, 80), (2, 90)] {
            let (alone, _) = merged(&quick(seed), solver).await?;
            // directions are found to 1e-4 at least, and in a batch by as many steps as its slowest member takes
            assert!(all[l].distance(&alone[0]) < 1e-4, "layer {l}: {}", all[l].distance(&alone[0]));
        }
        let (_, exact) = merged(&slow, EXACT).await?;
        for (found, exact) in layers[1].energy_retention.iter().zip(&exact[0].energy_retention) {
            assert!((found - exact).abs() < 1e-3 * exact, "{found} {exact}");
        }
        Ok(())
    }

    async fn a_task_without_a_delta_leaves_the_others_their_directions(backend) {
        let (mut d, x) = (deltas(3, 24, 18), activations(3, 40, 18));
        d[1].values.fill(0.0);
        let layer = merged(backend, &d, &inputs(backend, &x)?, 8, &Preset::Esm.options()).await?;
        assert!(layer.values.iter().all(|v| v.is_finite()) && layer.norm() > 0.0);
        d.iter_mut().for_each(|d| d.values.fill(0.0));
        let nothing = merged(backend, &d, &inputs(backend, &x)?, 8, &Preset::Esm.options()).await?;
        assert!(nothing.values.iter().all(|&v| v == 0.0));
        Ok(())
    }

    async fn the_polarized_scale_has_its_four_forms_on_the_device_too(backend) {
        let norms = [0.0, 0.5, 1.0, 2.5];
        for (polarity, expected) in [
            (Polarity::Full, [0.0, 0.25, 1.0, 6.25]),
            (Polarity::Amplify, [1.0, 1.0, 1.0, 6.25]),
            (Polarity::Suppress, [0.0, 0.25, 1.0, 1.0]),
            (Polarity::Reversed, [0.0, 4.0, 1.0, 0.16]),
        ] {
            assert_eq!(norms.map(|norm| polarity.scale(norm, 1.0, 2.0)), expected);
            let mut device = upload(backend, &[Matrix { rows: 1, cols: 4, values: norms.to_vec() }])?;
            backend.polarize(&mut device, 2.0, polarity)?;
            let got = download(backend, &device).await?.remove(0);
            got.values.iter().zip(expected).for_each(|(g, e)| assert!((g - e).abs() < 1e-6 * e.max(1.0), "{polarity:?}"));
        }
        Ok(())
    }

    async fn tsv_m_of_one_task_is_the_task(backend) {
        let d = deltas(1, 14, 22);
        let merged = tsv::tsv_m(backend, &upload(backend, &d)?, 1, false, EXACT).await?;
        assert!(download(backend, &merged.deltas).await?[0].distance(&d[0]) < 1e-5);
        assert!((merged.layers[0].energy_retention[0] - 1.0).abs() < 1e-5);
        Ok(())
    }

    async fn balanced_and_fast_merges_are_near_the_exact_one(backend) {
        // decays to 1e-4 of the first singular value within the rank budget, like a real task vector's output shift
        let (d, x) = (deltas(4, 128, 96), activations(4, 160, 96));
        let options = Preset::Esm.options();
        let exact = merged(backend, &d, &inputs(backend, &x)?, 32, &options).await?;
        for (accuracy, bound) in [(Accuracy::Balanced, 0.05), (Accuracy::Fast, 0.25)] {
            let solver = Solver { accuracy, ..EXACT };
            let merged = esm_layers(backend, &upload(backend, &d)?, &inputs(backend, &x)?, 4, 32, &options, solver).await?;
            let got = download(backend, &merged.deltas).await?.remove(0);
            assert!(got.distance(&exact) < bound, "{accuracy}: {}", got.distance(&exact));
        }
        Ok(())
    }

    async fn eigenvalue_weights_have_mean_one_and_follow_the_power(backend) {
        // eigenvalues 16, 1 and 0, and a task without any shift
        let sigma = backend.upload(Shape::new(2, 1, 3), &[4.0, 1.0, 0.0, 0.0, 0.0, 0.0])?;
        let w = backend.download(&eigenvalue_weights(backend, &sigma, 0.5)?).await?;
        assert!((w[..3].iter().sum::<f32>() / 3.0 - 1.0).abs() < 1e-6 && (w[0] / w[1] - 4.0).abs() < 1e-5);
        assert_eq!(w[2..], [0.0; 4]);
        assert_eq!(backend.download(&eigenvalue_weights(backend, &sigma, 0.0)?).await?, [1.0; 6]);
        // no size of the shifts is too large or too small for the squares
        let far = backend.upload(Shape::new(2, 1, 2), &[4e30, 1e30, 4e-30, 1e-30])?;
        for w in backend.download(&eigenvalue_weights(backend, &far, 0.5)?).await?.chunks(2) {
            assert!((w[0] - 1.6).abs() < 1e-5 && (w[1] - 0.4).abs() < 1e-5, "{w:?}");
        }
        Ok(())
    }

    async fn inter_layer_scales_compare_a_layer_with_its_group_only(backend) {
        let groups = [Some("fc"), Some("qkv"), Some("fc"), None];
        let beta = assembly::inter_layer_scales(&[1.0, 7.0, 3.0, 5.0], &groups, Some(Scale::default()));
        assert_eq!(beta, [0.25, 1.0, 2.25, 1.0]);
        assert_eq!(assembly::inter_layer_scales(&[1.0, 7.0, 3.0, 5.0], &groups, None), [1.0; 4]);
        let mut delta = upload(backend, &[Matrix { rows: 1, cols: 2, values: vec![1.0, -2.0] }])?;
        let base = upload(backend, &[Matrix { rows: 1, cols: 2, values: vec![10.0, 20.0] }])?;
        let weights = assembly::assemble(backend, &base, &mut delta, (0.5, 4.0), Dtype::F32).await?;
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&weights), [12.0, 16.0]);
        Ok(())
    }
}
