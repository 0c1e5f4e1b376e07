//! Shaders out of their parts.
//!
//! A line `//# include parts/x.wgsl` is replaced by that file. With `parts/x_{one,two}.wgsl` there are two shaders: one of
//! the file's own name, with `parts/x_one.wgsl`, and `NAME_two` with `parts/x_two.wgsl`. Further lines with braces take the
//! alternative in the same place. The first may name a shader apart from its part: `{one,two,other=one}` has `NAME_other` too.

use std::{fs, path::Path, path::PathBuf};

/// The shaders of a folder, by name.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries
        .map(|entry| entry.unwrap_or_else(|e| panic!("{}: {e}", folder.display())).path())
        .filter(|path| path.extension().is_some_and(|e| e == "wgsl"))
        .collect();
    paths.sort();
    paths
}

const INCLUDE: &str = "//# include ";

/// Names and sources of the shaders that a file makes.
pub fn variants(path: &Path) -> Vec<(String, String)> {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let text = read(path);
    let choices = text.lines().filter_map(|line| line.strip_prefix(INCLUDE)).find_map(alternatives);
    let Some((_, choices, _)) = choices else { return vec![(name, compose(path, &text, 0))] };
    let named = |(place, choice): (usize, &&str)| {
        let suffix = choice.split('=').next().unwrap_or_default();
        let suffix = if place == 0 { String::new() } else { format!("_{suffix}") };
        (name.clone() + &suffix, compose(path, &text, place))
    };
    choices.iter().enumerate().map(named).collect()
}

/// What stands before braces, what between them, and what after.
fn alternatives(part: &str) -> Option<(&str, Vec<&str>, &str)> {
    let (before, rest) = part.split_once('{')?;
    let (inside, after) = rest.split_once('}')?;
    Some((before, inside.split(',').map(str::trim).collect(), after.trim()))
}

/// The text with its includes, where there are alternatives the one in this place.
fn compose(path: &Path, text: &str, place: usize) -> String {
    let folder = path.parent().expect("a shader is in a folder");
    let line = |line: &str| match line.strip_prefix(INCLUDE) {
        Some(part) => match alternatives(part) {
            Some((before, choices, after)) => {
                let choice =
                    choices.get(place).unwrap_or_else(|| panic!("{}: {line}: too few", path.display()));
                let choice = choice.rsplit('=').next().unwrap_or_default();
                read(&folder.join(format!("{before}{choice}{after}")))
            }
            None => read(&folder.join(part.trim())),
        },
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
