//! Which share of the work a run does: said on the command line, or by the engine that has started it.

use std::str::FromStr;

/// One of so many shares, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shard {
    pub index: usize,
    pub count: usize,
}

/// Where engines say it: the variable of the index, that of the first index or the first index itself, and that of the count.
const ENGINES: [(&str, First, &str); 5] = [
    ("SLURM_ARRAY_TASK_ID", First::Variable("SLURM_ARRAY_TASK_MIN"), "SLURM_ARRAY_TASK_COUNT"),
    ("JOB_COMPLETION_INDEX", First::Zero, "JOB_COMPLETIONS"),
    ("OMPI_COMM_WORLD_RANK", First::Zero, "OMPI_COMM_WORLD_SIZE"),
    ("RAY_ESMERGE_SHARD", First::Zero, "RAY_ESMERGE_SHARDS"),
    // last, because every process of a job has it
    ("SLURM_PROCID", First::Zero, "SLURM_NTASKS"),
];

#[derive(Clone, Copy)]
enum First {
    Zero,
    Variable(&'static str),
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        if text == "auto" {
            return automatic(|name| std::env::var(name).ok());
        }
        let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Shard { index, count }),
            _ => Err("expected K/N with 1 <= K <= N, such as 3/8, or auto".to_owned()),
        }
    }
}

/// The share that an engine has set in the environment.
fn automatic(variable: impl Fn(&str) -> Option<String>) -> Result<Shard, String> {
    for (index, first, count) in ENGINES {
        let Some(text) = variable(index) else { continue };
        let number = |name: &str| -> Result<usize, String> {
            let text = variable(name).ok_or_else(|| format!("{index} is set, but {name} is not"))?;
            text.parse().map_err(|_| format!("{name} is `{text}`, not a number"))
        };
        let first = match first {
            First::Zero => 0,
            First::Variable(name) => number(name)?,
        };
        let (own, count) = (number(index)?, number(count)?);
        return match own.checked_sub(first) {
            Some(at) if at < count => Ok(Shard { index: at + 1, count }),
            _ => Err(format!("{index} is {text}, which is not one of {count} from {first} on")),
        };
    }
    let names: Vec<&str> = ENGINES.iter().map(|(index, ..)| *index).collect();
    Err(format!("no engine has said which share this is: none of {} is set", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Shard, String> {
        automatic(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn shares_are_read_from_the_command_line() {
        assert_eq!("3/8".parse(), Ok(Shard { index: 3, count: 8 }));
        assert_eq!("1/1".parse(), Ok(Shard { index: 1, count: 1 }));
        for wrong in ["0/8", "9/8", "3", "3/", "/3", "a/b", "-1/2", "1/0", ""] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_read_from_what_engines_set() {
        let array = [
            ("SLURM_ARRAY_TASK_MIN", "4"),
            ("SLURM_ARRAY_TASK_COUNT", "3"),
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "1"),
        ];
        let task = |id| [&array[..], &[("SLURM_ARRAY_TASK_ID", id)]].concat();
        assert_eq!(of(&task("4")), Ok(Shard { index: 1, count: 3 }));
        assert_eq!(of(&task("6")), Ok(Shard { index: 3, count: 3 }));
        assert!(of(&task("7")).is_err() && of(&task("3")).is_err());
        assert_eq!(of(&[("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")]), Ok(Shard { index: 2, count: 2 }));
        assert_eq!(
            of(&[("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETIONS", "5")]),
            Ok(Shard { index: 1, count: 5 })
        );
        assert_eq!(
            of(&[("OMPI_COMM_WORLD_RANK", "7"), ("OMPI_COMM_WORLD_SIZE", "8")]),
            Ok(Shard { index: 8, count: 8 })
        );
        assert_eq!(
            of(&[("RAY_ESMERGE_SHARD", "0"), ("RAY_ESMERGE_SHARDS", "2")]),
            Ok(Shard { index: 1, count: 2 })
        );
        assert!(of(&[("JOB_COMPLETION_INDEX", "0")]).unwrap_err().contains("JOB_COMPLETIONS is not"));
        assert!(of(&[("SLURM_PROCID", "x"), ("SLURM_NTASKS", "2")]).unwrap_err().contains("`x`"));
        assert!(of(&[]).unwrap_err().contains("JOB_COMPLETION_INDEX"));
    }
}
