//! What the loop of a product consists of, from the machine code that RADV's compiler prints.

/// The loop over the depth, counted in the order of its text.
#[derive(Default)]
pub struct Loop {
    pub multiply_adds: u64,
    pub other_vector: u64,
    pub loads: u64,
    /// Waits for loads since which nothing was multiplied: the memory's latency shows.
    pub exposed_waits: u64,
}

enum Kind {
    MultiplyAdd,
    OtherVector,
    Load,
    WaitForLoads,
    Other,
}

/// The loop over the depth of a product: that around the innermost loop that multiplies, or that itself.
pub fn product_loop(assembly: &str) -> Option<Loop> {
    let (instructions, loops) = parse(assembly);
    let multiplies = |&(from, to): &(usize, usize)| {
        instructions[from..=to].iter().filter(|i| matches!(kind(i), Kind::MultiplyAdd)).count() >= 16
    };
    let mut of_products: Vec<_> = loops.into_iter().filter(multiplies).collect();
    of_products.sort_by_key(|(from, to)| to - from);
    let &inner = of_products.first()?;
    let around =
        of_products.iter().find(|&&outer| outer != inner && outer.0 <= inner.0 && inner.1 <= outer.1);
    let &(from, to) = around.unwrap_or(&inner);
    Some(count(&instructions[from..=to]))
}

/// Instructions, and the ranges between a backward jump's target and the jump.
fn parse(assembly: &str) -> (Vec<&str>, Vec<(usize, usize)>) {
    let mut instructions = Vec::new();
    let mut labels = std::collections::HashMap::new();
    for line in assembly.lines() {
        let line = line.split(';').next().unwrap_or_default().trim();
        match line.strip_suffix(':') {
            Some(label) => drop(labels.insert(label, instructions.len())),
            None if !line.is_empty() => instructions.push(line),
            None => {}
        }
    }
    let target = |instruction: &str| {
        let (name, label) = instruction.split_once(char::is_whitespace)?;
        if name.contains("branch") { labels.get(label.trim()).copied() } else { None }
    };
    let backward =
        |(at, instruction): (usize, &&str)| target(instruction).filter(|&to| to <= at).map(|to| (to, at));
    let loops = instructions.iter().enumerate().filter_map(backward).collect();
    (instructions, loops)
}

fn kind(instruction: &str) -> Kind {
    let name = instruction.split_whitespace().next().unwrap_or_default();
    match name {
        _ if name.starts_with("v_") && (name.contains("fma") || name.contains("mac_f32")) => {
            Kind::MultiplyAdd
        }
        _ if name.starts_with("v_") => Kind::OtherVector,
        _ if name.starts_with("buffer_load") || name.starts_with("global_load") => Kind::Load,
        "s_waitcnt" if instruction.contains("vmcnt(0)") => Kind::WaitForLoads,
        _ => Kind::Other,
    }
}

fn count(instructions: &[&str]) -> Loop {
    let mut found = Loop::default();
    let mut is_bare = false; // loads are under way, and nothing was multiplied since
    for instruction in instructions {
        match kind(instruction) {
            Kind::MultiplyAdd => {
                found.multiply_adds += 1;
                is_bare = false;
            }
            Kind::OtherVector => found.other_vector += 1,
            Kind::Load => {
                found.loads += 1;
                is_bare = true;
            }
            Kind::WaitForLoads => {
                found.exposed_waits += u64::from(is_bare);
                is_bare = false;
            }
            Kind::Other => {}
        }
    }
    found
}
