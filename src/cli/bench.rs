use super::args;
use super::device::Device;
use super::failure::Failure;
use super::output;
use crate::backend::gpu::Config;
use crate::bench::{self, Comparison, Measurement, Report, Selection};
use crate::report::{align_right, new_table};
use std::io::IsTerminal;

/// `esmerge bench`
pub(super) fn run(args: &args::Bench) -> Result<(), Failure> {
    let before = args.compare.as_deref().map(Report::read).transpose()?; // a wrong file is told before any work
    let config = Config { features: bench::features(), ..Config::default() };
    let (device, why_not) = args.device.open_with(&config)?;
    if let Some(why_not) = why_not {
        output::warning(&why_not);
    }
    let device = match &device {
        Device::Cpu(cpu) => bench::Device::Cpu(cpu),
        Device::Gpu(gpu) => bench::Device::Gpu(gpu),
    };
    let selection =
        Selection { kernels: args.kernel.clone(), sizes: args.shape.clone(), dtypes: args.dtype.clone() };
    let mut next = |what: &str| {
        if std::io::stderr().is_terminal() {
            output::say(&format!("measuring {what}"));
        }
    };
    let report = pollster::block_on(bench::run(device, &selection, args.seconds, &mut next))?;
    output::print(&table(&report));
    if let Some(file) = &args.json {
        report.write(file)?;
    }
    before.map_or(Ok(()), |before| judge(&before, &report, args.tolerance))
}

fn table(report: &Report) -> String {
    let mut table = new_table([
        "kernel", "size", "type", "fastest", "median", "slowest", "GFLOP/s", "of peak", "GB/s", "of peak",
    ]);
    let peak = report.peak;
    for result in &report.results {
        let seconds = result.seconds;
        let [gflops, of_arithmetic] = match result.flops {
            0.0 => [String::new(), String::new()],
            _ => [number(result.gflops()), percent(result.gflops() / peak.gflops)],
        };
        let [gbytes, of_bandwidth] = match result.bytes {
            0.0 => [String::new(), String::new()],
            _ => [number(result.gbytes()), percent(result.gbytes() / peak.gbytes)],
        };
        table.add_row(vec![
            result.kernel.clone(),
            result.size.clone(),
            result.dtype.clone(),
            duration(seconds.min),
            duration(seconds.median),
            duration(seconds.max),
            gflops,
            of_arithmetic,
            gbytes,
            of_bandwidth,
        ]);
    }
    align_right(&mut table, &[3, 4, 5, 6, 7, 8, 9]);
    let Report { device, clock, .. } = report;
    let peak = format!("{} GFLOP/s, {} GB/s", number(peak.gflops), number(peak.gbytes));
    format!("{device}\npeaks, measured: {peak}; time by the {clock}'s clock; rates by the median\n{table}")
}

/// Names every case that became slower, and fails if there is one.
fn judge(before: &Report, now: &Report, tolerance: f64) -> Result<(), Failure> {
    let comparisons = bench::compare(before, now)?;
    let mut table = new_table(["kernel", "size", "type", "before", "now", "time"]);
    for Comparison { now: Measurement { kernel, size, dtype, seconds, .. }, before, ratio } in &comparisons {
        let (before, now) = (duration(*before), duration(seconds.min));
        let change = format!("{:+.1}%", 100.0 * (ratio - 1.0));
        table.add_row(vec![kernel.clone(), size.clone(), dtype.clone(), before, now, change]);
    }
    align_right(&mut table, &[3, 4, 5]);
    output::print(&table.to_string());
    let slower: Vec<String> = comparisons
        .iter()
        .filter(|c| c.ratio > 1.0 + tolerance / 100.0)
        .map(|c| format!("{} {} {}", c.now.kernel, c.now.size, c.now.dtype))
        .collect();
    if slower.is_empty() {
        return Ok(());
    }
    Err(Failure::other(&format!("slower by more than {tolerance}%: {}", slower.join(", "))))
}

fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}

/// Three digits.
fn number(x: f64) -> String {
    let decimals = if x < 10.0 { 2 } else { usize::from(x < 100.0) };
    format!("{x:.decimals$}")
}

fn duration(seconds: f64) -> String {
    if seconds < 1e-3 {
        format!("{} us", number(1e6 * seconds))
    } else if seconds < 1.0 {
        format!("{} ms", number(1e3 * seconds))
    } else {
        format!("{} s", number(seconds))
    }
}
