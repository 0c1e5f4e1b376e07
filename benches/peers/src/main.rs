//! The products of esmerge beside those of burn (cubecl) and of wgmath (wgebra), on one adapter, in one run:
//!
//!     cargo run --release -- [ADAPTER] [--seconds 3] [--shape MxNxK | BATCH:MxNxK]
//!
//! Every contender gets the same numbers, runs until its choices are made (burn tunes itself), and is then timed in turn
//! with the others, so that whatever else the machine does hits all of them. A time is a host's: so many products are
//! queued in one sample that the wait for them does not count. Accuracy is against f64.

mod burn;
mod ours;
mod shape;
mod timing;
#[cfg(feature = "wgmath")]
mod wgmath;

use shape::{Inputs, Shape};
use std::process::ExitCode;
use timing::Contender;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The published table.
const SHAPES: [&str; 8] = [
    "256x256x256",
    "512x512x512",
    "1024x1024x1024",
    "3072x768x1600",
    "2304x96x2304",
    "768x3072x1600",
    "768x96x768",
    "8:384x384x384",
];

const USAGE: &str = "usage: peers [ADAPTER] [--seconds S] [--shape MxNxK | BATCH:MxNxK]...";

fn main() -> ExitCode {
    match arguments().and_then(|arguments| pollster::block_on(run(&arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    /// Part of the adapter's name or driver, in lower case.
    adapter: String,
    /// For each contender and shape.
    seconds: f64,
    shapes: Vec<Shape>,
}

fn arguments() -> Result<Arguments> {
    let mut found = Arguments { adapter: String::new(), seconds: 3.0, shapes: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => found.seconds = words.next().ok_or(USAGE)?.parse().map_err(|_| USAGE)?,
            "--shape" => found.shapes.push(words.next().ok_or(USAGE)?.parse()?),
            _ if word.starts_with('-') => return Err(USAGE.into()),
            _ => found.adapter = word.to_lowercase(),
        }
    }
    if found.shapes.is_empty() {
        found.shapes = SHAPES.iter().map(|text| text.parse()).collect::<Result<_>>()?;
    }
    Ok(found)
}

async fn run(arguments: &Arguments) -> Result<()> {
    let (adapter, device, queue) = open(&arguments.adapter).await?;
    let info = adapter.get_info();
    println!("{}, {} {}, {}", info.name, info.driver, info.driver_info, info.backend);
    let mut contenders: Vec<Box<dyn Contender>> = vec![
        Box::new(ours::Ours::new(&device, &queue)),
        Box::new(burn::Burn::new(&adapter, &device, &queue)?),
    ];
    #[cfg(feature = "wgmath")]
    contenders.push(Box::new(wgmath::Wgmath::new(&info.name, &info.driver).await?));
    let names: Vec<String> = contenders.iter().map(|contender| contender.name()).collect();
    println!("{}", names.join("; "));
    println!(
        "GFLOP/s of the fastest sample; ratio: median of time over esmerge's, sample by sample; error: relative, to f64\n"
    );
    println!("{:<16} {:<10} {:>9} {:>9} {:>7} {:>9}", "shape", "", "ms", "GFLOP/s", "ratio", "error");
    for &shape in &arguments.shapes {
        let inputs = Inputs::new(shape);
        let results = timing::measure(&mut contenders, &inputs, arguments.seconds)?;
        for (i, result) in results.iter().enumerate() {
            let title = if i == 0 { shape.to_string() } else { String::new() };
            println!("{title:<16} {result}");
        }
    }
    Ok(())
}

/// The adapter, and a device as burn opens it, which both use.
async fn open(selector: &str) -> Result<(wgpu::Adapter, wgpu::Device, wgpu::Queue)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = instance.enumerate_adapters(wgpu::Backends::PRIMARY).await;
    let wanted = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        format!("{} {}", info.name, info.driver).to_lowercase().contains(selector)
    };
    let adapter = adapters.into_iter().find(wanted).ok_or("no such adapter")?;
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter.features().difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
        required_limits: adapter.limits(),
        // SAFETY: burn looks at the adapter's features, experimental ones too, and expects them of the device.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        ..Default::default()
    };
    let (device, queue) = adapter.request_device(&descriptor).await?;
    Ok((adapter, device, queue))
}
