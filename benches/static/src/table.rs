//! The table of products in the documentation: its rows name pipelines, and the numbers are those that are kept.

use crate::Result;
use crate::report::{Numbers, Report};
use std::path::Path;

/// Families of its columns, by their files.
const AMD: &str = "navi21.json";
const NVIDIA: &str = "sm_90.json";

/// Whether the page's numbers are those that are kept; with `keep` they become so.
pub fn hold(folder: &Path, page: &Path, keep: bool) -> Result<bool> {
    let kept = |file| -> Result<Report> {
        Ok(Report::read(&folder.join(file))?.ok_or_else(|| format!("{file} is not kept"))?)
    };
    let (amd, nvidia) = (kept(AMD)?, kept(NVIDIA)?);
    let text = std::fs::read_to_string(page).map_err(|e| format!("{}: {e}", page.display()))?;
    let mut is = String::with_capacity(text.len());
    for line in text.lines() {
        let row = pipeline(line).and_then(|(cell, name)| {
            Some(row(cell, amd.pipelines.get(&name)?, nvidia.pipelines.get(&name)?))
        });
        is += row.as_deref().unwrap_or(line);
        is += "\n";
    }
    if keep {
        std::fs::write(page, is).map_err(|e| format!("{}: {e}", page.display()))?;
        return Ok(true);
    }
    let differing: Vec<_> = text.lines().zip(is.lines()).filter(|(says, is)| says != is).collect();
    for (says, is) in &differing {
        println!(
            "{}: a row is not what is kept; run scripts/gpu-static --keep\n  {says}\n  {is}",
            page.display()
        );
    }
    Ok(differing.is_empty())
}

/// The first cell of a row, `gemm_vec4`, large, f32 x f32, and the pipeline that it names, with the second operand transposed.
fn pipeline(line: &str) -> Option<(&str, String)> {
    let cell = line.strip_prefix("| ")?.split(" |").next()?;
    let (shader, rest) = cell.strip_prefix('`')?.split_once("`, ")?;
    let (tile, types) = rest.split_once(", ")?;
    Some((cell, format!("{shader} {tile} nt {}", types.replace(" x ", " "))))
}

fn row(cell: &str, amd: &Numbers, nvidia: &Numbers) -> String {
    let mut cells = vec![amd.registers, amd.spilled, amd.shared, amd.waves];
    cells
        .extend(amd.of_loop.iter().flat_map(|l| [l.multiply_adds, l.other_vector, l.loads, l.exposed_waits]));
    cells.extend([nvidia.registers, nvidia.spilled]);
    cells.extend(nvidia.of_loop.iter().map(|l| l.exposed_waits));
    let cells: Vec<_> = cells.iter().map(u64::to_string).collect();
    format!("| {cell} | {} |", cells.join(" | "))
}
