use super::failure::Failure;
use super::{args, merge};
use crate::recipe::{Overrides, Recipe};
use std::path::Path;

/// `esmerge apply`: the sum of what adapters add, as a merge with a recipe of its own.
pub(super) fn run(args: &args::Apply) -> Result<(), Failure> {
    let text = recipe(args)?;
    let overrides = Overrides { allow_mismatch: args.allow_mismatch.clone(), ..Overrides::default() };
    let parse = || Recipe::parse(&text, Path::new("esmerge apply"), &overrides);
    let recipe = args.run.download().recipe(parse)?;
    let merge = args::Merge {
        recipe: args.base.clone(),
        out: args.out.clone(),
        run: args.run.clone(),
        accuracy: None,
        alpha: None,
        seed: None,
        allow_mismatch: args.allow_mismatch.clone(),
        dry_run: args.dry_run,
        keep_delta: None,
        resume: false,
        fresh: false,
        verify: false,
        journal_every: std::time::Duration::ZERO,
        no_journal: true, // a sum is soon made again
        shard: None,
        fallback: None,
        foreign: args::ForeignFlags::default(),
    };
    merge::carry_out(&merge, &recipe)
}

/// `W + scale (s_1 B_1 A_1 + s_2 B_2 A_2 + ...)`
fn recipe(args: &args::Apply) -> Result<String, Failure> {
    let quoted = |path: &Path| serde_json::to_string(&path.to_string_lossy()).map_err(Failure::from);
    let mut text = format!("merge_method: task_arithmetic\nbase_model: {}\nmodels:\n", quoted(&args.base)?);
    for (i, adapter) in args.adapters.iter().enumerate() {
        let name = adapter
            .file_name()
            .map_or_else(|| format!("adapter-{i}"), |name| name.to_string_lossy().into_owned());
        let again = args.adapters.iter().filter(|other| other.file_name() == adapter.file_name()).count() > 1;
        let name = if again { format!("{name}-{}", i + 1) } else { name };
        let (base, lora) = (quoted(&args.base)?, quoted(adapter)?);
        text += &format!("  - {{name: {}, model: {base}, lora: {lora}}}\n", serde_json::to_string(&name)?);
    }
    text += &format!("parameters: {{lambda: {}}}\n", args.scale);
    if let Some(dtype) = args.out_dtype {
        text += &format!("out_dtype: {dtype}\n");
    }
    Ok(text)
}
