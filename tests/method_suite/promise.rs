//! What the accuracies promise, against the formulas in f64, whatever the spectrum: `exact` is within [`EXACTLY`] of them, `balanced`
//! within [`ALL`] over all methods and layers of a spectrum, and within [`WORST`] for any one.

use super::{EXACT, Matrix, activations, download, upload};
use esmerge::backend::{Backend, Result};
use esmerge::linalg::Accuracy;
use esmerge::method::esd::Inputs;
use esmerge::method::esm::esm_layers;
use esmerge::method::esm_plus::low_rank_experts;
use esmerge::method::{Decomposed, Decomposition, Matrices, Preset, Solver, Values, table, tsv};
use faer::Mat;

/// Relative Frobenius errors, as README.md and docs/numerics.md state them.
const EXACTLY: f64 = 1e-5;
const ALL: f64 = 2e-3;
const WORST: f64 = 2e-2;

/// At `exact` where the smallest numbers that count are 1e-3 of the largest and less: those of f32 that the concatenations are
/// made of are rounded to 6e-8, which their small singular values bear 1e4-fold.
const STEEP: f64 = 5e-4;

const TASKS: usize = 4;
/// Directions of an expert of ESM++.
const RANK: usize = 8;

/// Spectra of differences; `i` counts from 1 to `n`.
type Spectrum = (&'static str, fn(usize, usize) -> f64);

const SPECTRA: [Spectrum; 5] = [
    ("flat", |i, n| 1.0 - 0.5 * i as f64 / n as f64),
    ("1/i", |i, _| 1.0 / i as f64),
    ("exponential", |i, n| 1e-3f64.powf(i as f64 / n as f64)),
    ("null space", |i, n| if i <= 2 * n / 3 { 1.0 / (i as f64).sqrt() } else { 0.0 }),
    ("one large", |i, _| if i == 1 { 100.0 } else { 1.0 / (10.0 + i as f64) }),
];

/// What is merged.
struct Case {
    deltas: Vec<Matrix>,
    inputs: Vec<Matrix>,
}

impl Case {
    fn new((rows, cols): (usize, usize), tokens: usize, spectrum: fn(usize, usize) -> f64) -> Case {
        let n = rows.min(cols);
        let delta = |t: u64| Matrix::with_spectrum(rows, cols, |j| spectrum(j + 1, n), 700 + 2 * t);
        let decay = |x: Matrix| Matrix::from_fn(x.rows, x.cols, |i, j| x.at(i, j) / (1.0 + j as f64).sqrt());
        Case {
            deltas: (0..TASKS as u64).map(delta).collect(),
            inputs: activations(TASKS as u64, tokens, cols).into_iter().map(decay).map(rounded).collect(),
        }
    }
}

fn rounded(x: Matrix) -> Matrix {
    Matrix { values: x.values.iter().map(|&v| f64::from(v as f32)).collect(), ..x }
}

/// Ways to merge a layer, and the experts of ESM++ as products.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Esm,
    DataFree,
    Tsv,
    IsoC,
    IsoCts,
    Expert,
}

const WAYS: [Way; 6] = [Way::Esm, Way::DataFree, Way::Tsv, Way::IsoC, Way::IsoCts, Way::Expert];

async fn merged<B: Backend>(backend: &B, way: Way, case: &Case, accuracy: Accuracy) -> Result<Matrix> {
    let solver = Solver { accuracy, ..EXACT };
    let deltas = upload(backend, &case.deltas)?;
    let tokens = || -> Result<Inputs<B::Tensor>> {
        Ok(Inputs::Activations {
            x: upload(backend, &case.inputs)?,
            tokens: vec![case.inputs[0].rows; TASKS],
        })
    };
    let esm = async |inputs: Inputs<B::Tensor>| {
        let rank = case.deltas[0].rows / TASKS;
        esm_layers(backend, &deltas, &inputs, TASKS, rank, &Preset::Esm.options(), solver).await
    };
    let spectral = async |name: &str| -> Result<Matrix> {
        let method = table::find(name).unwrap();
        let method = Decomposed::new(method, &Values::defaults(method, TASKS)).unwrap().unwrap();
        let each = case.deltas.iter().map(|d| upload(backend, std::slice::from_ref(d)));
        let deltas = each.collect::<Result<Vec<_>>>()?;
        let layer = Matrices { deltas: &deltas, inputs: &[], base: None };
        Ok(download(backend, &method.merge(backend, &layer, solver).await?).await?.remove(0))
    };
    Ok(match way {
        Way::Esm => download(backend, &esm(tokens()?).await?.deltas).await?.remove(0),
        Way::DataFree => download(backend, &esm(Inputs::DataFree).await?.deltas).await?.remove(0),
        Way::Tsv => {
            let merged = tsv::tsv_m(backend, &deltas, TASKS, false, solver).await?;
            download(backend, &merged.deltas).await?.remove(0)
        }
        Way::IsoC => spectral("iso_c").await?,
        Way::IsoCts => spectral("iso_cts").await?,
        Way::Expert => {
            let found =
                low_rank_experts(backend, &deltas, &tokens()?, Decomposition::Esd, RANK, solver).await?;
            let (b, a) = (download(backend, &found.b).await?, download(backend, &found.a).await?);
            b[0].transposed().times(&a[0])
        }
    })
}

/// The formulas, in f64 throughout, by faer's singular value decomposition.
mod f64s {
    use super::{Case, Mat, Matrix, RANK, TASKS, Way};

    /// Singular values at or below this fraction of the largest are null (docs/numerics.md).
    const CUT: f64 = 1e-6;

    pub fn merged(way: Way, case: &Case) -> Matrix {
        let d: Vec<Mat<f64>> = case.deltas.iter().map(faer_of).collect();
        let shifts = || -> Vec<Mat<f64>> {
            case.inputs.iter().zip(&d).map(|(x, d)| d * faer_of(x).transpose()).collect()
        };
        let merged = match way {
            Way::Esm => esm(&d, &shifts()),
            Way::DataFree => esm(&d, &d),
            Way::Tsv => tsv(&d),
            Way::IsoC => iso_c(&d),
            Way::IsoCts => iso_cts(&d, 0.8),
            Way::Expert => {
                let u = left(&shifts()[0], RANK).0;
                &u * (u.transpose() * &d[0])
            }
        };
        Matrix::from_fn(merged.nrows(), merged.ncols(), |i, j| merged[(i, j)])
    }

    fn faer_of(m: &Matrix) -> Mat<f64> {
        Mat::from_fn(m.rows, m.cols, |i, j| m.at(i, j))
    }

    /// `k` leading singular triples: `U`, `s`, `V`.
    fn triples(a: &Mat<f64>, k: usize) -> (Mat<f64>, Vec<f64>, Mat<f64>) {
        let svd = a.thin_svd().unwrap();
        let s = (0..k).map(|j| svd.S().column_vector()[j]).collect();
        (svd.U().subcols(0, k).to_owned(), s, svd.V().subcols(0, k).to_owned())
    }

    fn left(a: &Mat<f64>, k: usize) -> (Mat<f64>, Vec<f64>) {
        let (u, s, _) = triples(a, k);
        (u, s)
    }

    /// The polar factor on what is above the cut, and the mean singular value.
    fn polar(a: &Mat<f64>) -> (Mat<f64>, f64) {
        let n = a.nrows().min(a.ncols());
        let (u, s, v) = triples(a, n);
        let kept = s.iter().filter(|&&v| v > CUT * s[0]).count();
        (u.subcols(0, kept) * v.subcols(0, kept).transpose(), s.iter().sum::<f64>() / n as f64)
    }

    fn side_by_side(parts: &[Mat<f64>]) -> Mat<f64> {
        let (rows, cols) = (parts[0].nrows(), parts.iter().map(|part| part.ncols()).sum());
        let mut all = Mat::zeros(rows, cols);
        let mut at = 0;
        for part in parts {
            all.as_mut().subcols_mut(at, part.ncols()).copy_from(part);
            at += part.ncols();
        }
        all
    }

    fn scaled(a: &Mat<f64>, rows: impl Fn(usize) -> f64, cols: impl Fn(usize) -> f64) -> Mat<f64> {
        Mat::from_fn(a.nrows(), a.ncols(), |i, j| rows(i) * a[(i, j)] * cols(j))
    }

    /// `(v / mean v)^2`
    fn polarized(v: &[f64]) -> Vec<f64> {
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        v.iter().map(|v| (v / mean).powi(2)).collect()
    }

    /// The preset `esm`, before inter-layer scaling.
    fn esm(d: &[Mat<f64>], shifts: &[Mat<f64>]) -> Mat<f64> {
        let r = d[0].nrows() / TASKS;
        let scales = polarized(&d.iter().map(|d| d.norm_l2()).collect::<Vec<_>>());
        let (mut e_cat, mut a_cat) = (Vec::new(), Vec::new());
        for ((d, shift), scale) in d.iter().zip(shifts).zip(scales) {
            let found = r.min(shift.nrows()).min(shift.ncols());
            let (e, sigma) = left(shift, found);
            let lambda: Vec<f64> = sigma.iter().map(|s| s * s).collect();
            let there = |j: usize| lambda[j] > 1e-10 * lambda[0];
            let mean = (0..found).filter(|&j| there(j)).map(|j| lambda[j]).sum::<f64>() / r as f64;
            let weight = |j: usize| if there(j) { (lambda[j] / mean).powf(0.15) } else { 0.0 };
            let mean_weight = (0..found).map(weight).sum::<f64>() / r as f64;
            let weight = |j: usize| weight(j) / mean_weight;
            a_cat.push(scaled(&(d.transpose() * &e), |_| 1.0, |j| scale * weight(j)));
            e_cat.push(scaled(&e, |_| 1.0, weight));
        }
        let (e_cat, a_cat) = (side_by_side(&e_cat), side_by_side(&a_cat)); // a_cat is d_in x rT
        let column = |i: usize| (0..a_cat.ncols()).map(|j| a_cat[(i, j)].powi(2)).sum::<f64>().sqrt();
        let scales = polarized(&(0..a_cat.nrows()).map(column).collect::<Vec<_>>());
        let (e, mean_e) = polar(&e_cat);
        let (a, mean_a) = polar(&scaled(&a_cat, |i| scales[i], |_| 1.0));
        scaled(&(e * a.transpose()), |_| 2.0 * mean_e * mean_a, |_| 1.0)
    }

    fn tsv(d: &[Mat<f64>]) -> Mat<f64> {
        let k = d[0].nrows().min(d[0].ncols()) / TASKS;
        let (mut u, mut s, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for d in d {
            let (ut, st, vt) = triples(d, k);
            u.push(ut);
            s.extend(st);
            v.push(vt);
        }
        scaled(&polar(&side_by_side(&u)).0, |_| 1.0, |j| s[j]) * polar(&side_by_side(&v)).0.transpose()
    }

    fn sum(d: &[Mat<f64>]) -> Mat<f64> {
        d.iter().skip(1).fold(d[0].clone(), |sum, d| sum + d)
    }

    fn iso_c(d: &[Mat<f64>]) -> Mat<f64> {
        let (p, mean) = polar(&sum(d));
        scaled(&p, |_| mean, |_| 1.0)
    }

    fn iso_cts(d: &[Mat<f64>], fraction: f64) -> Mat<f64> {
        let n = d[0].nrows().min(d[0].ncols());
        let (common, specific) = esmerge::method::iso::split(n, TASKS, fraction);
        let (shared_u, shared_s, shared_v) = triples(&sum(d), common);
        let (mut u, mut s, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for d in d {
            let own = d - &shared_u * (shared_u.transpose() * d);
            let (ut, st, vt) = triples(&own, specific);
            u.push(ut);
            s.extend(st);
            v.push(vt);
        }
        u.push(shared_u);
        s.extend(shared_s);
        v.push(shared_v);
        let mean = s.iter().sum::<f64>() / s.len() as f64;
        let (u, v) = (polar(&side_by_side(&u)).0, polar(&side_by_side(&v)).0);
        scaled(&(u * v.transpose()), |_| mean, |_| 1.0)
    }
}

claims! {
    async fn the_accuracies_keep_what_they_promise_whatever_the_spectrum(backend) {
        for (name, spectrum) in SPECTRA {
            let (mut squares, mut count) = (0.0, 0);
            // the last with more tokens than input dimensions, so many that the CPU takes fewer in their place
            for (shape, tokens) in [((96, 96), 150), ((144, 80), 150), ((72, 160), 150), ((144, 80), 400)] {
                let case = Case::new(shape, tokens, spectrum);
                for way in WAYS {
                    let truth = f64s::merged(way, &case);
                    let exact = merged(backend, way, &case, Accuracy::Exact).await?.distance(&truth);
                    let balanced = merged(backend, way, &case, Accuracy::Balanced).await?.distance(&truth);
                    println!("{name}, {shape:?}, {tokens} tokens, {way:?}: exact {exact:.1e}, balanced {balanced:.1e}");
                    let bound = if name == "one large" { STEEP } else { EXACTLY };
                    let what = format!("{name}, {shape:?}, {tokens} tokens, {way:?}");
                    assert!(exact <= bound, "{what}: exact is off by {exact:.1e}");
                    assert!(balanced <= WORST, "{what}: balanced is off by {balanced:.1e}");
                    squares += balanced * balanced;
                    count += 1;
                }
            }
            let all = (squares / f64::from(count)).sqrt();
            println!("{name}: balanced is off by {all:.1e} in all");
            assert!(all <= ALL, "{name}: balanced is off by {all:.1e} in all");
        }
        Ok(())
    }
}
