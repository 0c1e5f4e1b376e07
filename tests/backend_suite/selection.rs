//! Ranks of magnitude, chance, and what tasks make of an element together.

use crate::matrices::{Matrix, download, upload};
use crate::{U, assert_near};
use esmerge::backend::{Across, Backend, Chance, CountBy, Cut, Divide, Error, Shape, cpu::Cpu};

/// Rows around the workgroup of the kernels, and one that small bindings cannot hold with its twins.
const SHAPES: [(u64, usize, usize); 6] =
    [(1, 1, 1), (3, 17, 33), (2, 1, 257), (2, 5, 1000), (1, 127, 300), (3, 1, 30_000)];

fn batch(count: u64, rows: usize, cols: usize, seed: u64) -> Vec<Matrix> {
    (0..count).map(|i| Matrix::random(rows, cols, seed + i)).collect()
}

/// Numbers of few magnitudes, so that many are equal.
fn coarse(count: u64, rows: usize, cols: usize, seed: u64) -> Vec<Matrix> {
    let mut all = batch(count, rows, cols, seed);
    all.iter_mut().for_each(|m| m.values.iter_mut().for_each(|x| *x = (*x * 8.0).round() / 8.0));
    all
}

fn magnitude(x: f64) -> u32 {
    (x as f32).to_bits() & 0x7fff_ffff
}

/// Places in the order that a [`Cut`] cuts.
fn order(row: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(magnitude(row[i])), i));
    order
}

/// What lies before the `k` largest and the others.
fn cut_after(row: &[f64], k: usize) -> Cut {
    match order(row).get(k) {
        None => Cut::END,
        Some(&next) => Cut { bits: magnitude(row[next]), places: next as u32 },
    }
}

claims! {
    async fn histograms_count_every_number_once_under_its_key(backend) {
        for (count, rows, cols) in SHAPES {
            for x in [batch(count, rows, cols, 1), coarse(count, rows, cols, 2)] {
                let on_device = upload(backend, &x)?;
                let wanted: Vec<u32> = x.iter().map(|m| magnitude(m.values[m.values.len() / 2])).collect();
                let keys: [Vec<CountBy>; 3] = [
                    wanted.iter().map(|_| CountBy::High).collect(),
                    wanted.iter().map(|m| CountBy::Low(m >> 16)).collect(),
                    wanted.iter().map(|&magnitude| CountBy::Places { magnitude, shift: 3 }).collect(),
                ];
                for by in keys {
                    let counts = backend.histogram(&on_device, &by).await?;
                    for ((x, by), counts) in x.iter().zip(&by).zip(&counts) {
                        let mut expected = vec![0u32; by.counts(x.values.len())];
                        for (i, m) in x.values.iter().map(|&x| magnitude(x)).enumerate() {
                            match *by {
                                CountBy::High => expected[(m >> 16) as usize] += 1,
                                CountBy::Low(upper) if m >> 16 == upper => expected[(m & 0xffff) as usize] += 1,
                                CountBy::Places { magnitude, shift } if m == magnitude => expected[i >> shift] += 1,
                                _ => {}
                            }
                        }
                        assert!(*counts == expected, "{by:?} of {count} x {rows} x {cols}");
                    }
                }
            }
        }
        Ok(())
    }

    async fn what_tasks_make_of_trimmed_numbers_is_that_of_both_steps(backend) {
        for (count, rows, cols) in SHAPES {
            let x = coarse(count, rows, cols, 3);
            let n = rows * cols;
            let cuts: Vec<(Cut, Cut)> =
                x.iter().map(|m| (cut_after(&m.values, n.div_ceil(2)), cut_after(&m.values, n / 10))).collect();
            let factors: Vec<f32> = [0.5, -1.0, 2.0, 1.0, 1.0, 3.0][..2 * x.len()].to_vec();
            let rules = [
                Across::Elect { factors: &factors, divide: Divide::UnlessZero },
                Across::Weigh(&factors[..x.len()]),
            ];
            for rule in rules {
                let mut trimmed = upload(backend, &x)?;
                backend.trim(&mut trimmed, None, &cuts)?;
                let expected = backend.download(&backend.across(&trimmed, rule)?).await?;
                let got = backend.across_trimmed(upload(backend, &x)?, &cuts, rule)?;
                assert!(backend.download(&got).await? == expected, "{count} x {rows} x {cols}");
            }
        }
        Ok(())
    }

    async fn trims_keep_as_many_as_are_asked_for_even_of_equal_ones(backend) {
        for (count, rows, cols) in SHAPES {
            for x in [batch(count, rows, cols, 5), coarse(count, rows, cols, 6)] {
                let n = rows * cols;
                let (drop, keep) = (n / 10, n / 3);
                let cuts: Vec<_> = x.iter().map(|m| (cut_after(&m.values, drop + keep), cut_after(&m.values, drop))).collect();
                let mut trimmed = upload(backend, &x)?;
                backend.trim(&mut trimmed, None, &cuts)?;
                // by the order of the first, for all
                let mut by_first = upload(backend, &x)?;
                backend.trim(&mut by_first, Some(&upload(backend, &x[..1])?), &vec![cuts[0]; x.len()])?;
                let (trimmed, by_first) = (download(backend, &trimmed).await?, download(backend, &by_first).await?);
                for (t, m) in x.iter().enumerate() {
                    let expected = |by: &Matrix| {
                        let kept: std::collections::HashSet<usize> = order(&by.values)[drop..drop + keep].iter().copied().collect();
                        (0..n).map(|i| if kept.contains(&i) { m.values[i] } else { 0.0 }).collect::<Vec<_>>()
                    };
                    assert!(trimmed[t].values == expected(m), "{count} x {rows} x {cols}");
                    assert!(by_first[t].values == expected(&x[0]), "{count} x {rows} x {cols}, by the first");
                }
            }
        }
        let x = batch(1, 3, 5, 1);
        let mut all = upload(backend, &x)?;
        backend.trim(&mut all, None, &[(Cut::END, Cut::START)])?;
        assert_eq!(download(backend, &all).await?[0].values, x[0].values);
        backend.trim(&mut all, None, &[(Cut::START, Cut::START)])?;
        assert_eq!(download(backend, &all).await?[0].values, [0.0; 15]);
        Ok(())
    }

    async fn chance_keeps_the_same_numbers_everywhere_and_as_many_as_it_should(backend) {
        let (rows, cols) = (50, 600);
        let x: Vec<Matrix> = (0..2).map(|_| Matrix::from_fn(rows, cols, |_, _| 1.0)).collect();
        let magnitudes = batch(2, rows, cols, 3);
        let chance = |key| Chance { key, least: Chance::units(0.3), span: 0 };
        let rising = |key| Chance { key, least: Chance::units(0.2), span: Chance::units(0.4) };
        let mut kept = Vec::new();
        let ranks = backend.row_ranks(&upload(backend, &magnitudes)?)?;
        for (chances, ranks) in [([chance(1), chance(u64::MAX)], None), ([rising(3), rising(4)], Some(&ranks))] {
            let mut dropped = upload(backend, &x)?;
            backend.drop_out(&mut dropped, ranks, &chances, 0)?;
            let whole = backend.download(&dropped).await?;
            // in two parts, as a large tensor comes
            let (upper, lower) = (20 * cols, (rows - 20) * cols);
            let part = |from: usize| -> Result<B::Tensor, Error> {
                let rows = if from == 0 { 0..20 } else { 20..rows };
                let mut part = backend.slice(&upload(backend, &x)?, 0..2, rows.clone(), 0..cols)?;
                let ranks = ranks.map(|r| backend.slice(r, 0..2, rows, 0..cols)).transpose()?;
                backend.drop_out(&mut part, ranks.as_ref(), &chances, from)?;
                Ok(part)
            };
            let (first, second) = (backend.download(&part(0)?).await?, backend.download(&part(upper)?).await?);
            for t in 0..2 {
                let joined = [&first[t * upper..(t + 1) * upper], &second[t * lower..(t + 1) * lower]].concat();
                assert!(joined == whole[t * rows * cols..(t + 1) * rows * cols]);
            }
            // and as on the CPU
            let mut here = upload(&Cpu, &x)?;
            let ranks_here = Cpu.row_ranks(&upload(&Cpu, &magnitudes)?)?;
            Cpu.drop_out(&mut here, ranks.map(|_| &ranks_here), &chances, 0)?;
            assert!(whole == here.values());
            kept.push(whole);
        }
        let n = (rows * cols) as f64;
        for (kept, probability) in kept.iter().zip([0.3, 0.4]) {
            for own in kept.chunks(rows * cols) {
                let share = f64::from(own.iter().sum::<f32>()) / n;
                // five standard deviations
                assert!((share - probability).abs() < 5.0 * (probability * (1.0 - probability) / n).sqrt(), "{share}");
            }
            assert!(kept[..rows * cols] != kept[rows * cols..], "each member has a key of its own");
        }
        // the larger half of each row stays with 0.5 on average
        let ranks = backend.download(&ranks).await?;
        let larger = ranks.iter().zip(&kept[1]).filter(|(rank, _)| **rank as usize >= cols / 2);
        let share = larger.map(|(_, kept)| f64::from(*kept)).sum::<f64>() / n;
        assert!((share - 0.5).abs() < 5.0 * (0.25 / n).sqrt(), "{share}");
        Ok(())
    }

    async fn ranks_are_places_in_the_order_of_magnitudes(backend) {
        for (count, rows, cols) in SHAPES {
            for x in [batch(count, rows, cols, 7), coarse(count, rows, cols, 8)] {
                let ranks = download(backend, &backend.row_ranks(&upload(backend, &x)?)?).await?;
                for (x, ranks) in x.iter().zip(ranks) {
                    for (row, ranks) in x.values.chunks(cols).zip(ranks.values.chunks(cols)) {
                        for (place, &i) in order(row).iter().enumerate() {
                            assert_eq!(ranks[i], (cols - 1 - place) as f64, "{count} x {rows} x {cols}");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn sums_of_magnitudes_are_exact(backend) {
        for (count, rows, cols) in SHAPES {
            let mut x = batch(count, rows, cols, 9);
            // over all of float32's range, subnormals too
            for m in &mut x {
                for (i, v) in m.values.iter_mut().enumerate() {
                    *v = f64::from((*v * 2f64.powi((i as i32 * 37) % 250 - 135)) as f32);
                }
            }
            let sums = backend.magnitude_sums(&upload(backend, &x)?).await?;
            let here = Cpu.magnitude_sums(&upload(&Cpu, &x)?).await?;
            for ((x, sum), here) in x.iter().zip(&sums).zip(&here) {
                let mut sorted: Vec<f64> = x.values.iter().map(|v| v.abs()).collect();
                sorted.sort_by(f64::total_cmp);
                let expected: f64 = sorted.iter().sum();
                assert_eq!(sum.total().to_bits(), here.total().to_bits());
                assert!((sum.total() - expected).abs() <= 1e-12 * expected, "{} {expected}", sum.total());
            }
        }
        Ok(())
    }

    async fn tasks_combine_by_every_rule(backend) {
        for (count, rows, cols) in SHAPES {
            for x in [batch(count, rows, cols, 11), coarse(count, rows, cols, 12)] {
                let tasks = count as usize;
                let on_device = upload(backend, &x)?;
                let votes: Vec<f32> = (0..tasks).map(|t| [0.7, -0.4, 1.5][t]).collect();
                let weights: Vec<f32> = (0..tasks).map(|t| [0.5, 0.8, 0.3][t]).collect();
                let factors = [&votes[..], &weights].concat();
                let epsilon = 0.3f32;
                let rules = [
                    Across::Weigh(&votes),
                    Across::Positive(&votes),
                    Across::Elect { factors: &factors, divide: Divide::Never },
                    Across::Elect { factors: &factors, divide: Divide::UnlessZero },
                    Across::Elect { factors: &factors, divide: Divide::BySome },
                    Across::Share { epsilon, factors: &weights },
                    Across::Having { epsilon, task: 0, shared: false },
                    Across::Having { epsilon, task: tasks - 1, shared: true },
                    Across::Agree { factors: &weights, least: 2 },
                    Across::Variance,
                    Across::Approach(0.2),
                ];
                for rule in rules {
                    let got = download(backend, &backend.across(&on_device, rule)?).await?.remove(0);
                    for (k, &got) in got.values.iter().enumerate() {
                        let own: Vec<f64> = x.iter().map(|m| m.values[k]).collect();
                        let Some(expected) = combined(&own, rule) else { continue };
                        let size = own.iter().map(|x| x.abs()).sum::<f64>() * 2.0 + 1e-30;
                        // a few sums and a division of 2.5 units
                        let bound = 20.0 * U * size * if matches!(rule, Across::Elect { .. }) { 4.0 } else { 1.0 };
                        assert!((got - expected).abs() <= bound, "{rule:?}: {got}, not {expected}, of {own:?}");
                    }
                }
            }
        }
        Ok(())
    }

    async fn divergences_of_softmaxes_are_those_of_float64(backend) {
        for (count, rows, cols) in [(1u64, 1usize, 1usize), (1, 7, 33), (2, 3, 300), (1, 5, 1000)] {
            for scale in [1e-4, 0.01, 1.0] {
                let b = batch(count, rows, cols, 21);
                let mut d = batch(count, rows, cols, 31);
                d.iter_mut().for_each(|m| m.values.iter_mut().for_each(|v| *v = f64::from((*v * scale) as f32)));
                let got = backend.row_divergence(&upload(backend, &b)?, &upload(backend, &d)?)?;
                for ((got, b), d) in download(backend, &got).await?.iter().zip(&b).zip(&d) {
                    let softmax = |x: Vec<f64>| {
                        let sum: f64 = x.iter().map(|x| x.exp()).sum();
                        x.into_iter().map(|x| x.exp() / sum + 1e-8).collect::<Vec<_>>()
                    };
                    for i in 0..rows {
                        let q = softmax((0..cols).map(|j| b.at(i, j)).collect());
                        let p = softmax((0..cols).map(|j| b.at(i, j) + d.at(i, j)).collect());
                        let expected: f64 = p.iter().zip(&q).map(|(p, q)| q * ((p / q) * (p / q).ln() - (p / q) + 1.0)).sum();
                        // float64 leaves its own rounding where the two are close
                        let bound = 2e-4 * expected + 1e-15;
                        assert!((got.at(i, 0) - expected).abs() <= bound, "{cols} {scale}: {} {expected}", got.at(i, 0));
                    }
                }
            }
        }
        Ok(())
    }

    async fn rows_and_columns_have_inner_products(backend) {
        for (count, rows, cols) in SHAPES {
            let (x, y) = (batch(count, rows, cols, 41), batch(count, rows, cols, 51));
            let (a, b) = (upload(backend, &x)?, upload(backend, &y)?);
            let by_row = download(backend, &backend.row_products(&a, &b)?).await?;
            let by_column = download(backend, &backend.column_products(&a, &b)?).await?;
            for t in 0..x.len() {
                let term = |i: usize, j: usize| x[t].at(i, j) * y[t].at(i, j);
                for (got, len, other, at) in [
                    (&by_row[t], rows, cols, false),
                    (&by_column[t], cols, rows, true),
                ] {
                    let terms = |k: usize| (0..other).map(move |l| if at { term(l, k) } else { term(k, l) });
                    let expected: Vec<f64> = (0..len).map(|k| terms(k).sum()).collect();
                    let bound = |k: usize| (other as f64).min(600.0) * U * terms(k).map(f64::abs).sum::<f64>() + 1e-30;
                    assert_near(&got.values, &expected, bound, "inner products");
                }
            }
        }
        Ok(())
    }

    async fn what_does_not_fit_is_an_error(backend) {
        let mut x = backend.zeros(Shape::new(2, 3, 4))?;
        let other = backend.zeros(Shape::new(2, 4, 3))?;
        let cut = (Cut::END, Cut::START);
        let chance = Chance { key: 1, least: 0, span: 0 };
        let errors = [
            backend.trim(&mut x, None, &[cut]).is_err(),
            backend.trim(&mut x, Some(&other), &[cut, cut]).is_err(),
            backend.drop_out(&mut x, None, &[chance], 0).is_err(),
            backend.drop_out(&mut x, Some(&other), &[chance, chance], 0).is_err(),
            backend.across(&x, Across::Weigh(&[1.0])).is_err(),
            backend.row_products(&x, &other).is_err(),
            backend.column_products(&x, &other).is_err(),
            backend.row_divergence(&x, &other).is_err(),
            backend.histogram(&x, &[CountBy::High]).await.is_err(),
        ];
        assert_eq!(errors, [true; 9]);
        Ok(())
    }
}

/// A rule in float64; none where rounding may decide otherwise.
fn combined(own: &[f64], rule: Across<'_>) -> Option<f64> {
    let near = |a: f64, b: f64| (a - b).abs() < 1e-6 && a != b;
    Some(match rule {
        Across::Weigh(w) => own.iter().zip(w).map(|(x, &w)| x * f64::from(w)).sum(),
        Across::Positive(votes) => {
            let sum: f64 = own.iter().zip(votes).map(|(x, &v)| x * f64::from(v)).sum();
            if sum.abs() < 1e-6 && sum != 0.0 || sum == 0.0 && own.iter().any(|x| *x != 0.0) {
                return None;
            }
            f64::from(u8::from(sum > 0.0))
        }
        Across::Elect { factors, divide } => {
            let (votes, weights) = factors.split_at(own.len());
            let sum: f64 = own.iter().zip(votes).map(|(x, &v)| x * f64::from(v)).sum();
            if sum.abs() < 1e-6 {
                return None; // float32's sum has a sign of its own
            }
            let agrees = |x: f64, v: f32| x * f64::from(v) * sum > 0.0;
            let those = || own.iter().zip(votes).zip(weights).filter(|((x, v), _)| agrees(**x, **v));
            let total: f64 = those().map(|(_, &w)| f64::from(w)).sum();
            let sum: f64 = those().map(|((x, _), &w)| x * f64::from(w)).sum();
            match divide {
                Divide::Never => sum,
                Divide::UnlessZero => sum / if total == 0.0 { 1.0 } else { total },
                Divide::BySome => sum / total.max(1e-6),
            }
        }
        Across::Share { epsilon, factors } => {
            let those = || own.iter().zip(factors).filter(|(x, _)| x.abs() > f64::from(epsilon));
            match those().count() {
                0 => 0.0,
                1 => those().map(|(x, &f)| x * f64::from(f)).sum(),
                n => those().map(|(x, _)| x).sum::<f64>() / n as f64,
            }
        }
        Across::Having { epsilon, task, shared } => {
            let has = |t: usize| own[t].abs() > f64::from(epsilon);
            let others = (0..own.len()).any(|t| t != task && has(t));
            f64::from(u8::from(has(task) && others == shared))
        }
        Across::Agree { factors, least } => {
            let sum: f64 = own.iter().sum();
            let sides = |(x, &f): (&f64, &f32)| (x.abs(), f64::from(f) * (sum - x).abs());
            if own.iter().zip(factors).map(sides).any(|(a, b)| near(a, b) || a == b && a != 0.0) {
                return None;
            }
            let counted = own.iter().zip(factors).map(sides).filter(|(a, b)| a > b).count();
            if counted >= least { sum } else { 0.0 }
        }
        Across::Variance => {
            let mean = own.iter().sum::<f64>() / own.len() as f64;
            own.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / own.len() as f64
        }
        Across::Approach(t) => own[0] * (f64::from(t) / own[0].abs().max(1e-6)).clamp(0.0, 1.0),
    })
}
