use super::args;
use super::failure::Failure;
use super::merge::{self, carry_out_in};
use super::output;
use crate::checkpoint::journal::{Earlier, Identity, Journal, Writer};
use crate::recipe::{Overrides, Recipe};
use std::collections::BTreeMap;
use std::str::FromStr;

/// `esmerge join`
pub(super) fn run(args: &args::Join) -> Result<(), Failure> {
    if Journal::tidied(&args.out, &mut merge::waiting)? {
        if !args.run.quiet {
            output::say(&format!(
                "{} is complete: an earlier run was killed when it had but to tidy up",
                args.out.display()
            ));
        }
        return Ok(());
    }
    let writer = match args.shard {
        Some(shard) => Writer::share(format!("files-{}", shard.index), shard.count),
        None => Writer::join(),
    };
    let writer = Writer { every: args.journal_every, ..writer };
    let journal = Journal::open(&args.out, args.run.force, writer, Earlier::Insist, &mut merge::waiting)?;
    let Some(begun) = journal.before() else {
        return Err(Failure::other("there is nothing to join")); // an error above
    };
    let merge = merge_of(args, begun)?;
    let overrides = Overrides {
        alpha: merge.alpha,
        accuracy: merge.accuracy,
        seed: merge.seed,
        allow_mismatch: merge.allow_mismatch.clone(),
        made: Vec::new(),
    };
    let parse = || Recipe::parse(&begun.recipe, &begun.recipe_path, &overrides);
    let recipe = args.run.download().recipe(parse)?;
    carry_out_in(&merge, &recipe, Some(journal), true)
}

/// The merge whose shares are joined, as its command line was.
fn merge_of(args: &args::Join, begun: &Identity) -> Result<args::Merge, Failure> {
    let flags = Flags(&begun.flags);
    let mut run = args.run.clone();
    if let Some(size) =
        begun.flags.get("--out-shard-size").and_then(|text| text.split(' ').next()?.parse().ok())
    {
        run.out_shard_size = size;
    }
    if begun.flags.contains_key("--keep-delta") && args.keep_delta.is_none() && args.shard.is_none() {
        return Err(Failure::usage(
            "the shares were run with --keep-delta; say here in which file the deltas are kept",
        ));
    }
    Ok(args::Merge {
        recipe: begun.recipe_path.clone(),
        out: Some(args.out.clone()),
        run,
        accuracy: flags.parsed("--accuracy"),
        alpha: flags.parsed("--alpha"),
        seed: flags.parsed("--seed"),
        allow_mismatch: flags.list("--allow-mismatch"),
        dry_run: false,
        keep_delta: args.keep_delta.clone(),
        resume: true,
        fresh: false,
        verify: args.verify,
        journal_every: args.journal_every,
        no_journal: false,
        shard: args.shard,
        fallback: args.fallback,
        foreign: args::ForeignFlags::default(),
    })
}

/// Flags as a journal has them.
struct Flags<'a>(&'a BTreeMap<String, String>);

impl Flags<'_> {
    fn parsed<T: FromStr>(&self, flag: &str) -> Option<T> {
        self.0.get(flag)?.parse().ok()
    }

    fn list(&self, flag: &str) -> Vec<String> {
        self.0.get(flag).map_or(Vec::new(), |values| values.split(", ").map(str::to_owned).collect())
    }
}
