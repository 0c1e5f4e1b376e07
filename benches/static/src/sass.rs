//! NVIDIA's machine code as nvdisasm prints it with its encoding, in which stands what an instruction waits for.

use crate::assembly::{Instruction, Kind, Program};

/// Instructions that start a load say which of six barriers it will open; others which barriers they wait for.
pub fn parse(text: &str) -> Program {
    let mut program = Program::default();
    let mut lines = text.lines();
    let mut loads = 0u64; // barriers that loads under way open
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(label) = line.strip_suffix(':') {
            program.label(label);
            continue;
        }
        // /*0010*/  @P0 LDG.E R0, desc[UR6][R2.64] ;   /* 0x... */, and the encoding's upper half on the next line
        let Some((_, rest)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) else {
            continue;
        };
        let Some((instruction, _)) = rest.split_once(';') else { continue };
        let upper = lines.next().and_then(encoding).unwrap_or_default();
        let mut words = instruction.split_whitespace().filter(|word| !word.starts_with('@'));
        let name = words.next().unwrap_or_default();
        let kind = kind(name);
        let waits = upper >> 52 & 0x3f & loads;
        loads &= !waits;
        let opens = upper >> 46 & 7;
        if kind == Kind::Load && opens < 6 {
            loads |= 1 << opens;
        }
        let target = if name.starts_with("BRA") { words.next_back() } else { None };
        let target = target.map(|label| label.trim_matches(['`', '(', ')']));
        program.push(Instruction { kind, waits_for_loads: waits != 0 }, target);
    }
    program
}

fn encoding(line: &str) -> Option<u64> {
    let (_, digits) = line.split_once("0x")?;
    u64::from_str_radix(digits.split_whitespace().next()?, 16).ok()
}

fn kind(name: &str) -> Kind {
    match name.split('.').next().unwrap_or_default() {
        "FFMA" | "FFMA2" => Kind::MultiplyAdd,
        "LDG" => Kind::Load,
        // control, barriers, memory, and what is done once for a warp
        "BRA" | "EXIT" | "RET" | "BSSY" | "BSYNC" | "BAR" | "WARPSYNC" | "NOP" | "LDS" | "STS" | "STG"
        | "LDC" | "ULDC" | "LDL" | "STL" | "ATOMS" | "ATOMG" | "RED" | "DEPBAR" | "ERRBAR" | "MEMBAR" => {
            Kind::Other
        }
        name if name.starts_with('U') => Kind::Other,
        _ => Kind::OtherVector,
    }
}
