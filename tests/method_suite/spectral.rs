//! The methods for matrices of layers, and last steps on their spectra.

use super::{EXACT, Matrix, deltas, download, upload_one};
use crate::matrices::upload;
use esmerge::backend::{Backend, Result};
use esmerge::linalg::singular_values;
use esmerge::method::esd::Inputs;
use esmerge::method::{Calibrate, Decomposed, Matrices, Value, Values, methods, table};

/// The merged delta of some tasks.
async fn merged<B: Backend>(
    backend: &B,
    method: &str,
    set: &[(&'static str, Value)],
    tasks: &[Matrix],
    inputs: &[Inputs<B::Tensor>],
) -> Result<Matrix> {
    let method = table::find(method).unwrap();
    let mut values = Values::defaults(method, tasks.len());
    set.iter().for_each(|(name, value)| values.set(name, *value));
    let method = Decomposed::new(method, &values).unwrap().unwrap();
    let deltas = tasks.iter().map(|task| upload_one(backend, task)).collect::<Result<Vec<_>>>()?;
    let layer = Matrices { deltas: &deltas, inputs, base: None };
    Ok(download(backend, &method.merge(backend, &layer, EXACT).await?).await?.remove(0))
}

fn sum(tasks: &[Matrix]) -> Matrix {
    Matrix::from_fn(tasks[0].rows, tasks[0].cols, |i, j| tasks.iter().map(|t| t.at(i, j)).sum())
}

/// `size` times orthonormal rows in rows and columns that no other task has.
fn apart(task: usize, size: f64) -> Matrix {
    let turn = Matrix::random(6, 6, 90 + task as u64).orthonormal_columns();
    Matrix::from_fn(18, 24, |i, j| {
        let (i, j) = (i as i64 - 6 * task as i64, j as i64 - 7 * task as i64);
        if (0..6).contains(&i) && (0..6).contains(&j) {
            f64::from((size * turn.at(i as usize, j as usize)) as f32)
        } else {
            0.0
        }
    })
}

claims! {
    async fn iso_c_has_equal_singular_values_that_sum_to_those_of_the_sum(backend) {
        let tasks = deltas(3, 20, 28);
        let flat = merged(backend, "iso_c", &[], &tasks, &[]).await?;
        let got = singular_values(backend, &upload_one(backend, &flat)?).await?.remove(0);
        let of_sum = singular_values(backend, &upload_one(backend, &sum(&tasks))?).await?.remove(0);
        let mean = of_sum.iter().sum::<f64>() / 20.0;
        assert!(got.iter().all(|s| (s - mean).abs() < 1e-4 * mean), "{got:?} {mean}");
        // with every direction common, iso_cts is iso_c
        let common = merged(backend, "iso_cts", &[("fraction", Value::Number(1.0))], &tasks, &[]).await?;
        assert!(common.distance(&flat) < 1e-4, "{}", common.distance(&flat));
        Ok(())
    }

    async fn tasks_that_share_no_direction_are_summed(backend) {
        let tasks: Vec<Matrix> = (0..3).map(|t| apart(t, 0.5 + t as f64)).collect();
        let whole = sum(&tasks);
        let one = ("density", Value::Number(1.0));
        for (method, set) in [
            ("tsv_m", &[][..]),
            ("swudi", &[]),
            ("swudi", &[("filter", Value::Word("flow")), ("rho", Value::Number(1.0))]),
            ("dc_merge", &[one]),
            ("knots_ties", &[one]),
            ("knots_dare_ties", &[one]),
        ] {
            let got = merged(backend, method, set, &tasks, &[]).await?;
            assert!(got.distance(&whole) < 2e-4, "{method}: {}", got.distance(&whole));
        }
        Ok(())
    }

    async fn one_task_alone_comes_back(backend) {
        let task = deltas(1, 16, 22);
        let one = ("density", Value::Number(1.0));
        for (method, set) in [("tsv_m", &[][..]), ("knots_ties", &[one]), ("dc_merge", &[one])] {
            let got = merged(backend, method, set, &task, &[]).await?;
            assert!(got.distance(&task[0]) < 1e-4, "{method}: {}", got.distance(&task[0]));
        }
        Ok(())
    }

    async fn regmean_gives_each_task_what_only_it_has_seen(backend) {
        // inputs of each task in columns of its own: there the merged layer is the task's
        let tasks = deltas(2, 10, 12);
        let gram = |t: usize| {
            let x = Matrix::random(40, 6, 70 + t as u64);
            let g = x.transposed().times(&x);
            Matrix::from_fn(12, 12, |i, j| if i / 6 == t && j / 6 == t { g.at(i % 6, j % 6) } else { 0.0 })
        };
        let mut inputs = Vec::new();
        for t in 0..2 {
            inputs.push(Inputs::Gram { gram: upload(backend, &[gram(t)])?, tokens: vec![40] });
        }
        let off = ("off_diagonal", Value::Number(0.9));
        let got = merged(backend, "regmean", &[off], &tasks, &inputs).await?;
        let expected = Matrix::from_fn(10, 12, |i, j| tasks[j / 6].at(i, j));
        assert!(got.distance(&expected) < 1e-4, "{}", got.distance(&expected));
        // without calibration it is the average
        let none = [Inputs::DataFree, Inputs::DataFree];
        let average = Matrix::from_fn(10, 12, |i, j| (tasks[0].at(i, j) + tasks[1].at(i, j)) / 2.0);
        assert!(merged(backend, "regmean", &[], &tasks, &none).await?.distance(&average) < 1e-5);
        Ok(())
    }

    async fn calibrating_singular_values_leaves_one_expert_as_it_is_and_halves_what_two_share(backend) {
        let task = deltas(1, 14, 20).remove(0);
        let own = upload_one(backend, &task)?;
        let mended = Calibrate::Svc.apply(backend, backend.duplicate(&own)?, std::slice::from_ref(&own), EXACT).await?;
        assert!(download(backend, &mended).await?[0].distance(&task) < 1e-4);
        // the sum of a task with itself counts everything twice
        let twice = Matrix::from_fn(14, 20, |i, j| 2.0 * task.at(i, j));
        let both = [backend.duplicate(&own)?, own];
        let mended = Calibrate::Svc.apply(backend, upload_one(backend, &twice)?, &both, EXACT).await?;
        assert!(download(backend, &mended).await?[0].distance(&task) < 1e-4);
        Ok(())
    }

    async fn boosting_raises_small_singular_values_to_that_of_the_share(backend) {
        let spectrum = |i: usize| [8.0, 4.0, 2.0, 1.0, 0.5][i];
        let task = Matrix::with_spectrum(5, 9, spectrum, 3);
        for (beta, expected) in [(0.0, [8.0; 5]), (0.6, [8.0, 4.0, 4.0, 4.0, 4.0]), (1.0, [8.0, 4.0, 2.0, 1.0, 0.5])] {
            let boosted = Calibrate::Boost(beta).apply(backend, upload_one(backend, &task)?, &[], EXACT).await?;
            let got = singular_values(backend, &boosted).await?.remove(0);
            for (got, expected) in got.iter().zip(expected) {
                assert!((got - expected).abs() < 1e-3, "{beta}: {got:?} {expected:?}");
            }
        }
        Ok(())
    }

    async fn zeros_merge_to_zeros_by_every_method(backend) {
        let tasks: Vec<Matrix> = (0..2).map(|_| Matrix::from_fn(7, 5, |_, _| 0.0)).collect();
        for method in methods().filter(|m| m.kind == table::Kind::Spectral) {
            let none = [Inputs::DataFree, Inputs::DataFree];
            let got = merged(backend, method.name, &[], &tasks, &none).await?;
            assert!(got.values.iter().all(|&v| v == 0.0), "{}", method.name);
        }
        Ok(())
    }
}
