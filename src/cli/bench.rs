use super::args;
use super::device::Device;
use super::failure::Failure;
use super::output;
use super::terminal;
use crate::backend::gpu::Config;
use crate::bench::{self, Comparison, Event, Measurement, Report, Selection};
use crate::report::{Column, Grid, wrapped};
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
    let mut tell = |event: Event<'_>| match event {
        Event::Planned { cases, seconds } => {
            output::say(&format!(
                "{cases} {} at most, about {}; --seconds, --kernel and --shape make it less",
                if cases == 1 { "case" } else { "cases" },
                time(seconds)
            ));
        }
        Event::Next(what) if std::io::stderr().is_terminal() => output::say(&format!("measuring {what}")),
        Event::Next(_) => {}
    };
    let report = pollster::block_on(bench::run(device, &selection, args.seconds, &mut tell))?;
    output::print(&table(&report, terminal::width()));
    if let Some(file) = &args.json {
        report.write(file)?;
    }
    before.map_or(Ok(()), |before| judge(&before, &report, args.tolerance))
}

fn table(report: &Report, width: usize) -> String {
    let mut grid = Grid::new([
        Column::text("kernel"),
        Column::text("size"),
        Column::text("type"),
        Column::number("fastest"),
        Column::number("median"),
        Column::number("slowest"),
        Column::number("GFLOP/s"),
        Column::number("of peak").meaning(
            "of the multiply-adds or of the copy measured first; more where operands stay in caches",
        ),
        Column::number("GB/s"),
        Column::number("of peak"),
        Column::number("error")
            .meaning("distance from what float64 gives, relative to it, on some of the numbers"),
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
        grid.row(vec![
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
            result.error.map_or_else(String::new, |error| format!("{error:.0e}")),
        ]);
    }
    let Report { device, clock, .. } = report;
    let peak = format!("{} GFLOP/s, {} GB/s", number(peak.gflops), number(peak.gbytes));
    let peaks = format!("peaks, measured: {peak}; time by the {clock}'s clock; rates by the median");
    format!("{}\n{}\n\n{}", wrapped(device, width), wrapped(&peaks, width), grid.render(width))
}

/// Names every case that became slower, and fails if there is one.
fn judge(before: &Report, now: &Report, tolerance: f64) -> Result<(), Failure> {
    let comparisons = bench::compare(before, now)?;
    let texts = ["kernel", "size", "type"].map(Column::text);
    let mut grid = Grid::new(texts.into_iter().chain(["before", "now", "time"].map(Column::number)));
    for Comparison { now: Measurement { kernel, size, dtype, seconds, .. }, before, ratio } in &comparisons {
        let (before, now) = (duration(*before), duration(seconds.min));
        let change = format!("{:+.1}%", 100.0 * (ratio - 1.0));
        grid.row(vec![kernel.clone(), size.clone(), dtype.clone(), before, now, change]);
    }
    output::print(&grid.render(terminal::width()));
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

/// `40 s`, `3 min`
fn time(seconds: f64) -> String {
    if seconds < 100.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) }
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
