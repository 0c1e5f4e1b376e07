//! Moving data: conversion, copies, random numbers.

use esmerge::backend::cpu::Cpu;
use esmerge::backend::{Backend, Dtype, Error, Shape, Tensor};

/// The value of an f16, by the definition of the format.
fn f16_value(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    sign * match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1.0 + fraction / 1024.0) * 2f64.powi(e - 15),
    }
}

fn bytes(patterns: &[u16]) -> Vec<u8> {
    patterns.iter().flat_map(|p| p.to_le_bytes()).collect()
}

fn patterns(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

/// Every finite non-negative number of a 16-bit format but the largest, with the midpoint to its successor.
fn midpoints(largest: u16, value: impl Fn(u16) -> f64) -> Vec<(u16, f32)> {
    (0..largest).map(|p| (p, ((value(p) + value(p + 1)) / 2.0) as f32)).collect()
}

/// What halves, and their neighbours on either side, round to; and so with the other sign.
fn rounding_cases(midpoints: &[(u16, f32)]) -> (Vec<f32>, Vec<u16>) {
    let cases = midpoints.iter().flat_map(|&(p, middle)| {
        let even = p + p % 2;
        [(middle.next_down(), p), (middle, even), (middle.next_up(), p + 1)]
    });
    cases.flat_map(|(x, p)| [(x, p), (-x, p | 0x8000)]).unzip()
}

claims! {
    async fn differences_and_rounded_sums_are_those_of_the_separate_steps(backend) {
        for (rows, cols) in [(1, 1), (3, 5), (7, 1001), (2, 40_000)] {
            let shape = Shape::matrix(rows, cols);
            let numbers = |seed: usize| -> Vec<f32> {
                (0..shape.len()).map(|i| (((i + seed) * 7919 % 10_007) as f32 - 5000.0) / 31.0).collect()
            };
            let base = backend.upload(shape, &numbers(1))?;
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let mut members = Vec::new();
                for seed in [2, 3] {
                    members.push(backend.pack(&backend.upload(shape, &numbers(seed))?, dtype).await?);
                }
                let deltas = backend.differences::<_, Error>(&base, 2, |t| Ok((dtype, &members[t][..])))?;
                let mut expected = Vec::new();
                for member in &members {
                    let mut x = backend.unpack(shape, dtype, member)?;
                    backend.axpby(-1.0, &base, 1.0, &mut x)?;
                    expected.extend(backend.download(&x).await?);
                }
                assert_eq!(deltas.shape(), Shape { batch: 2, ..shape });
                assert!(backend.download(&deltas).await? == expected, "{rows} x {cols}, {dtype}");

                let mut x = backend.upload(shape, &numbers(4))?;
                let packed = backend.pack_sum(&base, 0.3, &mut x, dtype).await?;
                let mut x = backend.upload(shape, &numbers(4))?;
                backend.axpby(1.0, &base, 0.3, &mut x)?;
                assert!(packed == backend.pack(&x, dtype).await?, "{rows} x {cols}, {dtype}");
            }
        }
        Ok(())
    }

    async fn what_is_uploaded_comes_back_bit_by_bit(backend) {
        let bits: Vec<u32> = (0..1000u32).map(|i| i.wrapping_mul(0x9E37_79B9) ^ (i << 7)).collect();
        let values: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
        for shape in [Shape::new(2, 20, 25), Shape::new(1000, 1, 1), Shape::matrix(1, 1000)] {
            let x = backend.upload(shape, &values)?;
            assert_eq!(x.shape(), shape);
            let back = backend.download(&x).await?;
            assert!(back.iter().map(|v| v.to_bits()).eq(bits.iter().copied()));
            let copy = backend.download(&backend.duplicate(&x)?).await?;
            assert!(copy.iter().map(|v| v.to_bits()).eq(bits.iter().copied()));
        }
        Ok(())
    }

    async fn tensors_larger_than_a_staging_buffer_come_back(backend) {
        let values: Vec<f32> = (0..600_007).map(|i| i as f32).collect();
        let tensors = [0, 1, 2].map(|_| backend.upload(Shape::matrix(1, values.len()), &values));
        for x in tensors {
            assert!(backend.download(&x?).await? == values);
        }
        Ok(())
    }

    async fn every_f16_is_widened_exactly(backend) {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let x = backend.unpack(Shape::matrix(256, 256), Dtype::F16, &bytes(&all))?;
        for (p, got) in all.iter().zip(backend.download(&x).await?) {
            let expected = f16_value(*p) as f32;
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{p:#x}: {got}");
        }
        Ok(())
    }

    async fn every_bf16_is_widened_exactly(backend) {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let x = backend.unpack(Shape::matrix(512, 128), Dtype::Bf16, &bytes(&all))?;
        for (p, got) in all.iter().zip(backend.download(&x).await?) {
            let expected = f32::from_bits(u32::from(*p) << 16);
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{p:#x}: {got}");
        }
        Ok(())
    }

    async fn every_16_bit_number_survives_a_round_trip(backend) {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let x = backend.unpack(Shape::matrix(1, all.len()), dtype, &bytes(&all))?;
            let infinity = if dtype == Dtype::F16 { 0x7c00 } else { 0x7f80 };
            for (p, got) in all.iter().zip(patterns(&backend.pack(&x, dtype).await?)) {
                let nan = p & 0x7fff > infinity;
                assert!(got == *p || nan && got & 0x7fff > infinity, "{dtype} {p:#x}: {got:#x}");
            }
        }
        Ok(())
    }

    async fn packing_rounds_to_nearest_and_ties_to_even(backend) {
        let f16 = midpoints(0x7bff, f16_value);
        let bf16 = midpoints(0x7f7f, |p| f64::from(f32::from_bits(u32::from(p) << 16)));
        for (dtype, middles) in [(Dtype::F16, f16), (Dtype::Bf16, bf16)] {
            let (values, expected) = rounding_cases(&middles);
            let x = backend.upload(Shape::matrix(1, values.len()), &values)?;
            let got = patterns(&backend.pack(&x, dtype).await?);
            for ((x, e), g) in values.iter().zip(&expected).zip(&got) {
                assert_eq!(g, e, "{dtype} of {x:e} ({:#x})", x.to_bits());
            }
        }
        Ok(())
    }

    async fn packing_overflows_to_infinity_and_keeps_nan(backend) {
        let below = 65520f32.next_down();
        let values = [below, 65520.0, -65520.0, f32::MAX, f32::INFINITY, -f32::INFINITY, 1e-30, -1e-45, f32::NAN];
        let x = backend.upload(Shape::new(1, 1, 9), &values)?;
        let f16 = patterns(&backend.pack(&x, Dtype::F16).await?);
        assert_eq!(f16[..8], [0x7bff, 0x7c00, 0xfc00, 0x7c00, 0x7c00, 0xfc00, 0, 0x8000]);
        assert!(f16_value(f16[8]).is_nan());
        let bf16 = patterns(&backend.pack(&x, Dtype::Bf16).await?);
        assert_eq!(bf16[3..6], [0x7f80, 0x7f80, 0xff80]);
        assert!(bf16[8] & 0x7fff > 0x7f80);
        let f32s = backend.pack(&x, Dtype::F32).await?;
        assert!(f32s.chunks(4).zip(values).take(8).all(|(b, v)| b == v.to_le_bytes()));
        Ok(())
    }

    async fn odd_numbers_of_16_bit_values_are_packed_and_unpacked(backend) {
        for n in [1, 3, 255, 256, 257, 513, 40_001] {
            let all: Vec<u16> = (0..n).map(|i| (i * 7919 % 0x7c00) as u16).collect();
            let x = backend.unpack(Shape::matrix(1, n as usize), Dtype::F16, &bytes(&all))?;
            assert_eq!(patterns(&backend.pack(&x, Dtype::F16).await?), all);
        }
        Ok(())
    }

    async fn zeros_are_zero_even_where_memory_was_used(backend) {
        drop(backend.upload(Shape::matrix(30, 30), &[f32::NAN; 900])?);
        let zeros = backend.download(&backend.zeros(Shape::matrix(30, 30))?).await?;
        assert_eq!(zeros, [0.0; 900]);
        Ok(())
    }

    async fn blocks_are_copied_between_any_corners_and_nothing_else_is(backend) {
        let (s, d) = (Shape::new(3, 17, 33), Shape::new(4, 20, 31));
        let source: Vec<f32> = (0..s.len()).map(|i| i as f32).collect();
        let x = backend.upload(s, &source)?;
        let whole = ([0; 3], [0; 3], [3, 17, 31]);
        let cases = [([1, 2, 3], [0, 5, 7], [2, 11, 13]), ([0, 16, 32], [3, 19, 30], [1, 1, 1]), whole];
        for (from, to, extent) in cases {
            let mut y = backend.upload(d, &vec![-1.0; d.len()])?;
            backend.copy_block(&x, from, &mut y, to, extent)?;
            let mut expected = vec![-1.0; d.len()];
            for b in 0..extent[0] {
                for i in 0..extent[1] {
                    for j in 0..extent[2] {
                        expected[((to[0] + b) * d.rows + to[1] + i) * d.cols + to[2] + j] =
                            source[((from[0] + b) * s.rows + from[1] + i) * s.cols + from[2] + j];
                    }
                }
            }
            assert_eq!(backend.download(&y).await?, expected, "{from:?} {to:?} {extent:?}");
        }
        let rows = backend.slice(&x, 1..2, 4..9, 0..33)?;
        assert_eq!(backend.download(&rows).await?, source[(17 + 4) * 33..(17 + 9) * 33]);
        Ok(())
    }

    async fn transposed_matrices_have_the_same_bits_across(backend) {
        for shape in [Shape::new(3, 17, 33), Shape::new(1, 1, 70), Shape::new(2, 64, 32), Shape::new(2, 300, 129), Shape::new(2, 0, 4)] {
            let mut values: Vec<f32> = (0..shape.len()).map(|i| i as f32).collect();
            if let Some(first) = values.first_mut() {
                *first = f32::from_bits(0x7fc1_2345); // a NaN with a payload
            }
            let across = backend.transpose(&backend.upload(shape, &values)?)?;
            assert_eq!(across.shape(), Shape::new(shape.batch, shape.cols, shape.rows));
            let mut expected = vec![0.0; shape.len()];
            for (at, value) in values.iter().enumerate() {
                let (b, i, j) = (at / shape.cols / shape.rows, at / shape.cols % shape.rows, at % shape.cols);
                expected[(b * shape.cols + j) * shape.rows + i] = *value;
            }
            let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(backend.download(&across).await?), bits(expected));
        }
        Ok(())
    }

    async fn a_block_outside_its_matrix_is_an_error(backend) {
        let x = backend.zeros(Shape::new(2, 3, 4))?;
        let mut y = backend.zeros(Shape::new(2, 3, 4))?;
        for (from, to, extent) in [([0; 3], [0; 3], [3, 1, 1]), ([0, 2, 0], [0; 3], [1, 2, 1]), ([0; 3], [0, 0, 4], [1, 1, 1])] {
            let result = backend.copy_block(&x, from, &mut y, to, extent);
            assert!(matches!(result, Err(Error::Shape { operation: "copy_block", .. })));
        }
        assert!(backend.upload(Shape::matrix(2, 2), &[1.0; 3]).is_err());
        assert!(backend.unpack(Shape::matrix(2, 2), Dtype::F16, &[0; 9]).is_err());
        Ok(())
    }

    async fn a_tensor_without_elements_goes_through(backend) {
        for shape in [Shape::new(0, 3, 4), Shape::new(2, 0, 4), Shape::new(2, 3, 0)] {
            let x = backend.upload(shape, &[])?;
            assert!(backend.download(&x).await?.is_empty());
            assert!(backend.pack(&x, Dtype::Bf16).await?.is_empty());
            assert!(backend.download(&backend.duplicate(&x)?).await?.is_empty());
            assert!(backend.download(&backend.random_normal(shape, 1, 2)?).await?.is_empty());
        }
        Ok(())
    }

    async fn a_reshape_keeps_the_elements_and_their_number(backend) {
        let x = backend.upload(Shape::new(2, 3, 4), &(0..24).map(|i| i as f32).collect::<Vec<_>>())?;
        let x = x.reshape(Shape::matrix(6, 4))?;
        assert_eq!((x.shape(), backend.download(&x).await?[23]), (Shape::matrix(6, 4), 23.0));
        assert!(matches!(x.reshape(Shape::matrix(5, 5)), Err(Error::Shape { .. })));
        Ok(())
    }

    async fn random_numbers_are_the_same_bits_on_every_device(backend) {
        for (shape, seed, stream) in
            [(Shape::new(2, 33, 127), 0, 0), (Shape::matrix(1, 1), 1 << 40, 7), (Shape::matrix(3, 40_000), u64::MAX, u32::MAX)]
        {
            let got = backend.download(&backend.random_normal(shape, seed, stream)?).await?;
            let expected = Cpu.download(&Cpu.random_normal(shape, seed, stream)?).await?;
            assert!(got.iter().map(|v| v.to_bits()).eq(expected.iter().map(|v| v.to_bits())));
        }
        Ok(())
    }
}
