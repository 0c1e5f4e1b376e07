//! Which part of a task: `test`, `val`, `test[:20%]`, `test[20%:]`, `test[:100]`.

use serde::{Serialize, Serializer};
use std::ops::Range;
use std::str::FromStr;

/// A split of a task file, or a contiguous part of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Its name in the file.
    pub name: String,
    from: Option<Bound>,
    to: Option<Bound>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Samples(usize),
    Percent(f64),
}

impl Bound {
    fn of(self, n: usize) -> usize {
        match self {
            Bound::Samples(k) => k.min(n),
            Bound::Percent(p) => ((n as f64 * p / 100.0).round() as usize).min(n),
        }
    }
}

impl Split {
    /// The whole of a split.
    pub fn whole(name: &str) -> Split {
        Split { name: name.to_owned(), from: None, to: None }
    }

    /// The samples of a split of `n`.
    pub fn range(&self, n: usize) -> Range<usize> {
        let from = self.from.map_or(0, |b| b.of(n));
        let to = self.to.map_or(n, |b| b.of(n));
        from..to.max(from)
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bound = |b: Option<Bound>| match b {
            None => String::new(),
            Some(Bound::Samples(k)) => k.to_string(),
            Some(Bound::Percent(p)) => format!("{p}%"),
        };
        match (self.from, self.to) {
            (None, None) => f.write_str(&self.name),
            _ => write!(f, "{}[{}:{}]", self.name, bound(self.from), bound(self.to)),
        }
    }
}

impl Serialize for Split {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Split, String> {
        let wrong = || {
            format!("`{text}` is not a split; use a name, or a part of it such as test[:20%] or test[100:]")
        };
        let Some((name, rest)) = text.split_once('[') else {
            return if text.is_empty() { Err(wrong()) } else { Ok(Split::whole(text)) };
        };
        let (from, to) = rest.strip_suffix(']').and_then(|r| r.split_once(':')).ok_or_else(wrong)?;
        let bound = |text: &str| match (text, text.strip_suffix('%')) {
            ("", _) => Ok(None),
            (_, Some(p)) => match p.parse::<f64>() {
                Ok(p) if (0.0..=100.0).contains(&p) => Ok(Some(Bound::Percent(p))),
                _ => Err(wrong()),
            },
            (k, None) => k.parse().map(|k| Some(Bound::Samples(k))).map_err(|_| wrong()),
        };
        Ok(Split { name: name.to_owned(), from: bound(from)?, to: bound(to)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_split_are_slices() {
        let range = |text: &str| text.parse::<Split>().unwrap().range(500);
        assert_eq!(range("test"), 0..500);
        assert_eq!(range("test[:20%]"), 0..100);
        assert_eq!(range("test[20%:]"), 100..500);
        assert_eq!(range("test[10:30]"), 10..30);
        assert_eq!(range("test[:9999]"), 0..500);
        for wrong in ["", "test[", "test[1]", "test[:x]", "test[:120%]"] {
            assert!(wrong.parse::<Split>().is_err(), "{wrong}");
        }
        assert_eq!("test[:20%]".parse::<Split>().unwrap().to_string(), "test[:20%]");
    }
}
