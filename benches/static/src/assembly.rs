//! What the loop of a product consists of, whoever compiled it.

use std::collections::HashMap;

/// The loop over the depth, counted in the order of its text.
#[derive(Default)]
pub struct Loop {
    pub multiply_adds: u64,
    pub other_vector: u64,
    pub loads: u64,
    /// Waits for loads since which nothing was multiplied: the memory's latency shows.
    pub exposed_waits: u64,
}

/// Machine code, as far as it matters here.
#[derive(Default)]
pub struct Program {
    instructions: Vec<Instruction>,
    /// Where labels are.
    labels: HashMap<String, usize>,
    /// Jumps, and the labels that they go to.
    jumps: Vec<(usize, String)>,
}

pub struct Instruction {
    pub kind: Kind,
    /// Whether it waits for a load from global memory.
    pub waits_for_loads: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    MultiplyAdd,
    OtherVector,
    /// From global memory.
    Load,
    Other,
}

impl Program {
    pub fn label(&mut self, label: &str) {
        self.labels.insert(label.to_owned(), self.instructions.len());
    }

    /// The next instruction, and where it may jump.
    pub fn push(&mut self, instruction: Instruction, target: Option<&str>) {
        self.jumps.extend(target.map(|label| (self.instructions.len(), label.to_owned())));
        self.instructions.push(instruction);
    }

    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// The loop over the depth of a product: that around the innermost loop that multiplies, or that itself.
    pub fn product_loop(&self) -> Option<Loop> {
        let backward = |(at, label): &(usize, String)| {
            self.labels.get(label).filter(|to| *to <= at).map(|&to| (to, *at))
        };
        let multiplies = |&(from, to): &(usize, usize)| {
            self.instructions[from..=to].iter().filter(|i| i.kind == Kind::MultiplyAdd).count() >= 16
        };
        let mut of_products: Vec<_> = self.jumps.iter().filter_map(backward).filter(multiplies).collect();
        of_products.sort_by_key(|(from, to)| to - from);
        let &inner = of_products.first()?;
        let around =
            of_products.iter().find(|&&outer| outer != inner && outer.0 <= inner.0 && inner.1 <= outer.1);
        let &(from, to) = around.unwrap_or(&inner);
        Some(count(&self.instructions[from..=to]))
    }
}

fn count(instructions: &[Instruction]) -> Loop {
    let mut is_bare = false; // loads are under way, and nothing was multiplied since
    count_once(instructions, &mut is_bare);
    count_once(instructions, &mut is_bare) // as it is in every round but the first: after another
}

fn count_once(instructions: &[Instruction], is_bare: &mut bool) -> Loop {
    let mut found = Loop::default();
    for Instruction { kind, waits_for_loads } in instructions {
        if *waits_for_loads {
            found.exposed_waits += u64::from(*is_bare);
            *is_bare = false;
        }
        match kind {
            Kind::MultiplyAdd => {
                found.multiply_adds += 1;
                *is_bare = false;
            }
            Kind::OtherVector => found.other_vector += 1,
            Kind::Load => {
                found.loads += 1;
                *is_bare = true;
            }
            Kind::Other => {}
        }
    }
    found
}

/// AMD's machine code as RADV prints it.
pub fn of_radv(text: &str) -> Program {
    let mut program = Program::default();
    for line in text.lines() {
        let line = line.split(';').next().unwrap_or_default().trim();
        if let Some(label) = line.strip_suffix(':') {
            program.label(label);
        } else if let Some(name) = line.split_whitespace().next() {
            let kind = match name {
                _ if name.starts_with("v_") && (name.contains("fma") || name.contains("mac_f32")) => {
                    Kind::MultiplyAdd
                }
                _ if name.starts_with("v_") => Kind::OtherVector,
                _ if name.starts_with("buffer_load") || name.starts_with("global_load") => Kind::Load,
                _ => Kind::Other,
            };
            let waits_for_loads = name == "s_waitcnt" && line.contains("vmcnt(0)");
            let target = if name.contains("branch") { line[name.len()..].trim().into() } else { None };
            program.push(Instruction { kind, waits_for_loads }, target);
        }
    }
    program
}
