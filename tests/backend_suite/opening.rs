//! Opening adapters, their limits, and what happens when they fail.

use crate::devices::{Device, Variant, for_each_device};
use esmerge::backend::gpu::{Config, Gpu};
use esmerge::backend::{Backend, Dtype, Error, Op, Shape};
use libtest_mimic::Trial;

type Test = fn(&Device);

/// The tests, and those of every adapter.
pub fn trials() -> Vec<Trial> {
    let tests: [(&str, Test); 7] = [
        ("an_adapter_is_found_by_its_name_in_any_case", named),
        ("a_matrix_beyond_the_largest_buffer_is_too_large", too_large),
        ("a_small_device_gives_the_results_of_a_large_one", small_as_large),
        ("the_device_widens_float16_as_integers_do_or_not_at_all", half_floats),
        ("memory_is_reused_and_given_back", memory),
        ("a_lost_device_is_an_error_until_it_is_opened_again", lost),
        ("memory_that_ran_out_makes_slices_smaller", short_of_memory),
    ];
    let mut trials = vec![Trial::test("an_unknown_adapter_is_named_with_those_there_are", || {
        unknown();
        Ok(())
    })];
    for device in for_each_device() {
        if device != Device::Cpu {
            for (name, test) in tests {
                let (absent, device, full_name) =
                    (!device.present(), device.clone(), format!("{device}/{name}"));
                let run = move || {
                    test(&device);
                    Ok(())
                };
                trials.push(Trial::test(full_name, run).with_ignored_flag(absent));
            }
        }
    }
    trials
}

fn open(device: &Device, config: &Config) -> Gpu {
    let Device::Gpu(selector, _) = device else { panic!("{device} is no GPU") };
    pollster::block_on(Gpu::open_with(Some(selector), config)).expect("it was listed")
}

fn unknown() {
    let error = pollster::block_on(Gpu::open(Some("no such adapter"))).err();
    let Some(Error::NoAdapter(text)) = error else { panic!("{error:?}") };
    assert!(text.contains("no such adapter"));
    for adapter in pollster::block_on(Gpu::list()) {
        assert!(text.contains(&adapter.name), "{text}");
    }
}

fn named(device: &Device) {
    let Device::Gpu(selector, _) = device else { panic!("{device} is no GPU") };
    let gpu = pollster::block_on(Gpu::open(Some(&selector.to_uppercase()))).expect("found");
    assert!(gpu.name().contains(selector));
    // software is never chosen by itself
    let all = pollster::block_on(Gpu::list());
    if all.iter().all(|adapter| adapter.is_software()) {
        assert!(matches!(pollster::block_on(Gpu::open(None)), Err(Error::NoAdapter(_))));
    }
}

fn too_large(device: &Device) {
    let small = device.opened(Variant::Small).gpu();
    let error = small.zeros(Shape::matrix(4097, 1024)).err();
    assert!(matches!(error, Some(Error::TooLarge { bytes: 16_781_312, limit: 16_777_216, .. })), "{error:?}");
    assert!(small.max_tensor_bytes() <= 288 << 10);
    // and everything goes on
    let x = small.zeros(Shape::matrix(4, 4)).expect("memory");
    assert_eq!(pollster::block_on(small.download(&x)), Ok(vec![0.0; 16]));
}

/// Where no sum is cut in depth, small bindings change no bit.
fn small_as_large(device: &Device) {
    let run = |gpu: &Gpu| -> esmerge::backend::Result<Vec<Vec<f32>>> {
        let x = gpu.random_normal(Shape::new(3, 150, 200), 1, 2)?;
        let mut scaled = gpu.duplicate(&x)?;
        gpu.scale_rows(&mut scaled, &gpu.row_norms(&x)?)?;
        gpu.scale_columns(&mut scaled, &gpu.column_norms(&x)?)?;
        gpu.axpby(0.5, &x, 2.0, &mut scaled)?;
        let (values, vectors) =
            gpu.symmetric_eigen(&gpu.gram(&gpu.slice(&x, 0..3, 0..40, 0..200)?, Op::None)?)?;
        let results =
            [gpu.row_norms(&x)?, gpu.column_norms(&x)?, gpu.frobenius_norms(&x)?, scaled, values, vectors, x];
        results.iter().map(|result| pollster::block_on(gpu.download(result))).collect()
    };
    let (large, small) = (run(device.gpu()), run(device.opened(Variant::Small).gpu()));
    assert!(large.expect("results") == small.expect("results"));
}

fn half_floats(device: &Device) {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let widened = |gpu: &Gpu| {
        let x = gpu.unpack(Shape::matrix(256, 256), Dtype::F16, &bytes).expect("memory");
        pollster::block_on(gpu.download(&x)).expect("values")
    };
    let by_device = open(device, &Config::default());
    let by_integers = open(device, &Config { half_floats: false, ..Config::default() });
    assert!(!by_integers.half_floats());
    let has_them = by_device.device().features().contains(wgpu::Features::SHADER_F16);
    println!("{device}: float16 {has_them}, used {}", by_device.half_floats());
    assert!(has_them || !by_device.half_floats());
    for (got, expected) in widened(&by_device).iter().zip(widened(&by_integers)) {
        assert!(
            got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
            "{got}, not {expected}"
        );
    }
}

fn memory(device: &Device) {
    let gpu = open(device, &Config::default());
    for _ in 0..50 {
        drop(gpu.zeros(Shape::matrix(512, 512)).expect("memory"));
    }
    assert!(gpu.allocated_bytes() < 3 << 20, "{}", gpu.allocated_bytes());
    gpu.trim();
    assert_eq!(gpu.allocated_bytes(), 0);
}

fn lost(device: &Device) {
    let gpu = open(device, &Config::default());
    let x = gpu.upload(Shape::matrix(2, 2), &[1.0; 4]).expect("memory");
    gpu.device().destroy();
    let first = pollster::block_on(gpu.download(&x));
    assert!(first.is_err());
    assert!(matches!(gpu.zeros(Shape::matrix(2, 2)).err(), Some(Error::DeviceLost(_))), "{first:?}");
    assert!(pollster::block_on(gpu.download(&x)).is_err());
    // and it can be opened again, for work that starts anew
    let error = first.expect_err("an error");
    assert!(pollster::block_on(gpu.recover(&error)));
    let y = gpu.upload(Shape::matrix(2, 2), &[2.0; 4]).expect("memory");
    assert_eq!(pollster::block_on(gpu.download(&y)), Ok(vec![2.0; 4]));
    // an error of the caller's is not the device's
    assert!(!pollster::block_on(gpu.recover(&Error::Internal("something else".into()))));
}

fn short_of_memory(device: &Device) {
    let gpu = open(device, &Config::default());
    let error = Error::OutOfMemory { what: "a test", bytes: 1 << 40 };
    let mut slice = gpu.max_tensor_bytes();
    let mut tries = 0;
    while pollster::block_on(gpu.recover(&error)) {
        assert_eq!(gpu.max_tensor_bytes(), slice / 2, "slices of half the size");
        slice /= 2;
        tries += 1;
    }
    assert!((1..20).contains(&tries), "there is an end to it: {tries}");
}
