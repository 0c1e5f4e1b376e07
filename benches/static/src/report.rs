//! What was found of all pipelines on one family: a table, a file to keep, and what is worse than it may be.

use crate::Result;
use crate::assembly::Program;
use crate::cases::Case;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// More registers leave a SIMD of the families that have 512 a lane with less than four waves.
const MOST_REGISTERS: u64 = 128;

/// WebGPU's default limit.
const MOST_SHARED: u64 = 16_384;

/// Instructions, in percent, that a program may gain before it is a regression.
const MORE_INSTRUCTIONS: u64 = 5;

/// What a compiler made of a pipeline.
pub struct Compiled {
    pub registers: u64,
    pub spilled: u64,
    pub shared: u64,
    pub waves: u64,
    pub instructions: u64,
    pub program: Program,
}

/// Of one family.
#[derive(Serialize, Deserialize)]
pub struct Report {
    family: String,
    /// Other versions of the compiler make other programs.
    pub driver: String,
    pub pipelines: BTreeMap<String, Numbers>,
}

/// Of one pipeline.
#[derive(Serialize, Deserialize)]
pub struct Numbers {
    pub registers: u64,
    pub spilled: u64,
    /// Bytes of workgroup memory.
    pub shared: u64,
    /// Waves that a SIMD holds, or warps a scheduler.
    pub waves: u64,
    pub instructions: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_loop: Option<LoopNumbers>,
}

/// Of a product's loop over the depth.
#[derive(Serialize, Deserialize)]
pub struct LoopNumbers {
    pub multiply_adds: u64,
    pub other_vector: u64,
    pub loads: u64,
    pub exposed_waits: u64,
}

impl Report {
    pub fn new(family: &str, driver: String) -> Report {
        Report { family: family.to_owned(), driver, pipelines: BTreeMap::new() }
    }

    /// What is kept, if anything is.
    pub fn read(path: &Path) -> Result<Option<Report>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?)
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        Ok(std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?)
    }

    pub fn add(&mut self, case: &Case, compiled: &Compiled) {
        let of_loop = compiled.program.product_loop().filter(|_| case.is_product).map(|it| LoopNumbers {
            multiply_adds: it.multiply_adds,
            other_vector: it.other_vector,
            loads: it.loads,
            exposed_waits: it.exposed_waits,
        });
        let &Compiled { registers, spilled, shared, waves, instructions, .. } = compiled;
        let numbers = Numbers { registers, spilled, shared, waves, instructions, of_loop };
        self.pipelines.insert(case.name.clone(), numbers);
    }

    pub fn table(&self) -> String {
        let mut text = format!(
            "{}, {}\n{:32} registers spilled  shared waves instructions | of the loop: fma other loads exposed waits\n",
            self.family, self.driver, "pipeline"
        );
        for (name, n) in &self.pipelines {
            let row = format!(
                "{name:32} {:9} {:7} {:7} {:5} {:12}",
                n.registers, n.spilled, n.shared, n.waves, n.instructions
            );
            let of_loop = n.of_loop.as_ref().map_or(String::new(), |l| {
                format!(" | {:16} {:5} {:5} {:13}", l.multiply_adds, l.other_vector, l.loads, l.exposed_waits)
            });
            let _ = writeln!(text, "{row}{of_loop}");
        }
        text
    }

    /// A line for everything beyond its limit, or worse than it was with the same compiler.
    pub fn complaints(&self, kept: Option<&Report>) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut at_most = |name: &str, what: &str, is: u64, limit: u64| {
            if is > limit {
                complaints.push(format!("{name}: {what} {is}, at most {limit}"));
            }
        };
        let same = kept.filter(|kept| kept.driver == self.driver);
        for (name, n) in &self.pipelines {
            let before = same.and_then(|kept| kept.pipelines.get(name));
            at_most(name, "registers", n.registers, MOST_REGISTERS);
            at_most(name, "spilled registers", n.spilled, before.map_or(0, |before| before.spilled));
            at_most(name, "bytes of workgroup memory", n.shared, MOST_SHARED);
            let Some(before) = before else { continue };
            at_most(name, "registers", n.registers, before.registers);
            let instructions = before.instructions * (100 + MORE_INSTRUCTIONS) / 100;
            at_most(name, "instructions", n.instructions, instructions);
            if let (Some(now), Some(before)) = (&n.of_loop, &before.of_loop) {
                at_most(name, "exposed waits", now.exposed_waits, before.exposed_waits);
            }
        }
        match (kept, same) {
            (_, Some(kept)) => {
                let new = self.pipelines.keys().filter(|name| !kept.pipelines.contains_key(*name));
                let gone = kept.pipelines.keys().filter(|name| !self.pipelines.contains_key(*name));
                complaints.extend(new.map(|name| format!("{name}: not kept; run scripts/gpu-static --keep")));
                complaints.extend(
                    gone.map(|name| {
                        format!("{name}: kept, and no longer there; run scripts/gpu-static --keep")
                    }),
                );
            }
            (Some(kept), None) => {
                println!("{}: kept of {}, so held against limits alone", self.family, kept.driver);
            }
            (None, None) => println!("{}: nothing is kept, so held against limits alone", self.family),
        }
        complaints
    }
}
