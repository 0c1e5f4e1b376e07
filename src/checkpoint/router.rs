//! `esmerge-router-1`: the prototypes by which samples are routed to the experts of ESM++.

use super::{Error, Stored, TensorFile, TensorSpec, TensorWriter};
use crate::backend::Dtype;
use crate::host::PathExt;
use indexmap::IndexMap;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;

/// The router in a folder of ESM++.
pub const ROUTER: &str = "router.safetensors";
/// The folder of the adapters beside it.
pub const ADAPTERS: &str = "adapters";
/// The value of `format` in the metadata.
const FORMAT: &str = "esmerge-router-1";

/// What the file says beside the prototypes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterMeta {
    /// The experts, in the order of the prototypes' rows; each is a folder of adapters.
    pub tasks: Vec<String>,
    /// Largest rank of an expert.
    pub rank: usize,
    /// What residuals were taken against.
    pub residual_base: String,
    /// Weight to the weight whose prototypes route it.
    pub aliases: IndexMap<String, String>,
    /// Weights that were decomposed as one matrix, so that they share their `A`.
    pub stacks: Vec<Vec<String>>,
}

impl RouterMeta {
    fn to_strings(&self) -> Result<BTreeMap<String, String>, serde_json::Error> {
        Ok(BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("tasks".to_owned(), serde_json::to_string(&self.tasks)?),
            ("rank".to_owned(), self.rank.to_string()),
            ("residual_base".to_owned(), self.residual_base.clone()),
            ("aliases".to_owned(), serde_json::to_string(&self.aliases)?),
            ("stacks".to_owned(), serde_json::to_string(&self.stacks)?),
        ]))
    }
}

/// A router being written, weights in the order given at the start.
pub struct RouterWriter {
    writer: TensorWriter,
}

impl RouterWriter {
    /// The router of a folder, for weights of so many inputs.
    pub fn create(
        folder: &Path,
        weights: &[(String, usize)],
        meta: &RouterMeta,
    ) -> Result<RouterWriter, Error> {
        let path = folder.join(ROUTER);
        let metadata = meta.to_strings().map_err(|e| Error::io("write", &path)(e.into()))?;
        let spec = |(weight, d_in): &(String, usize)| TensorSpec {
            name: key(weight),
            dtype: Stored::F32,
            shape: vec![meta.tasks.len(), *d_in],
        };
        let specs: Vec<TensorSpec> = weights.iter().map(spec).collect();
        Ok(RouterWriter { writer: TensorWriter::create(&path, &specs, &metadata)? })
    }

    /// Appends the prototypes of the next weight, `tasks x d_in`.
    pub fn write(&mut self, prototypes: &[f32]) -> Result<(), Error> {
        self.writer.write(bytemuck::cast_slice(prototypes))
    }

    /// Flushes the file to the disk.
    pub fn finish(self) -> Result<(), Error> {
        self.writer.finish().map(drop)
    }
}

/// Whether a task's name can be that of its adapter's folder, on any system.
pub fn names_adapter(task: &str) -> bool {
    let unfit = |ch: char| ch.is_control() || "/\\:*?\"<>|".contains(ch);
    !task.is_empty() && !task.starts_with('.') && !task.contains(unfit)
}

fn key(weight: &str) -> String {
    format!("{weight}.prototypes")
}

/// The router of a folder, opened and checked.
#[derive(Clone, Debug)]
pub struct RouterFile {
    file: TensorFile,
    meta: RouterMeta,
}

impl RouterFile {
    /// Whether a folder has a router: whether it is an output of ESM++.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(ROUTER).leads_to_file()
    }

    /// Opens and checks the router of a folder.
    pub fn open(folder: &Path) -> Result<RouterFile, Error> {
        let path = folder.join(ROUTER);
        if !path.leads_to_file() {
            let hint = "only a model made by merge_method esm++ has experts to route to";
            return Err(Error::NotFound { path, hint });
        }
        let file = TensorFile::open(&path)?;
        let router = RouterFile { meta: metadata(&file)?, file };
        router.check()?;
        Ok(router)
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// What the file says beside the prototypes.
    pub fn meta(&self) -> &RouterMeta {
        &self.meta
    }

    /// The weights with prototypes of their own, in the order of the file.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.file.tensors().keys().filter_map(|key| key.strip_suffix(".prototypes"))
    }

    /// The weight whose prototypes route `weight`; none if it is not routed.
    pub fn prototypes_of<'a>(&'a self, weight: &'a str) -> Option<&'a str> {
        if self.file.tensors().contains_key(&key(weight)) {
            return Some(weight);
        }
        self.meta.aliases.get(weight).map(String::as_str)
    }

    /// The dimensions of the prototypes stored under `weight`, if there are any.
    pub fn inputs(&self, weight: &str) -> Option<usize> {
        self.file.tensors().get(&key(weight))?.shape.last().copied()
    }

    /// The prototypes stored under `weight`, `tasks x d_in`.
    pub fn read(&self, weight: &str) -> Result<Vec<f32>, Error> {
        let key = key(weight);
        let elements = self.file.meta(&key)?.elements();
        Ok(bytemuck::pod_collect_to_vec(&self.file.read_values(&key, 0..elements)?))
    }

    fn check(&self) -> Result<(), Error> {
        let bad = |reason: String| Err(malformed(&self.file, reason));
        self.check_tasks().or_else(bad)?;
        let tasks = self.meta.tasks.len();
        for (key, meta) in self.file.tensors() {
            let fits = matches!(meta.shape[..], [t, d] if t == tasks && d > 0);
            if !key.ends_with(".prototypes") || meta.float() != Some(Dtype::F32) || !fits {
                return bad(format!(
                    "`{key}` should be `<weight>.prototypes`, float32, one row for each of the {tasks} tasks"
                ));
            }
        }
        if let Some((weight, to)) =
            self.meta.aliases.iter().find(|(_, to)| !self.file.tensors().contains_key(&self::key(to)))
        {
            return bad(format!("`aliases` sends `{weight}` to `{to}`, which has no prototypes"));
        }
        self.meta.stacks.iter().try_for_each(|stack| self.check_stack(stack)).or_else(bad)
    }

    /// Every task has a folder of its own beside the model.
    fn check_tasks(&self) -> Result<(), String> {
        let RouterMeta { tasks, rank, .. } = &self.meta;
        if tasks.is_empty() || *rank == 0 {
            return Err("its metadata should have at least one task, and a `rank` from 1".to_owned());
        }
        if let Some(task) = tasks.iter().find(|task| !names_adapter(task)) {
            return Err(format!("the task `{}` cannot name the folder of an adapter", task.escape_debug()));
        }
        match tasks.iter().enumerate().find(|(i, task)| tasks[..*i].contains(task)) {
            Some((_, task)) => Err(format!("it has the task `{task}` more than once")),
            None => Ok(()),
        }
    }

    /// Weights that share an `A` share their inputs, and so their prototypes.
    fn check_stack(&self, stack: &[String]) -> Result<(), String> {
        let prototypes = |weight: &String| self.prototypes_of(weight).map(str::to_owned);
        let first = stack.first().and_then(prototypes);
        match stack.iter().find(|weight| first.is_none() || prototypes(weight) != first) {
            Some(weight) => {
                Err(format!("`stacks` puts `{weight}` together with weights that other prototypes route"))
            }
            None => Ok(()),
        }
    }
}

fn metadata(file: &TensorFile) -> Result<RouterMeta, Error> {
    let format = file.metadata().get("format").map(String::as_str);
    if format != Some(FORMAT) {
        return Err(malformed(file, format!("its metadata has no `format: {FORMAT}`")));
    }
    Ok(RouterMeta {
        tasks: json(file, "tasks")?,
        rank: json(file, "rank")?,
        residual_base: text(file, "residual_base")?.to_owned(),
        aliases: json(file, "aliases")?,
        stacks: json(file, "stacks")?,
    })
}

fn text<'a>(file: &'a TensorFile, key: &str) -> Result<&'a str, Error> {
    let value = file.metadata().get(key).map(String::as_str);
    value.ok_or_else(|| malformed(file, format!("its metadata lacks `{key}`")))
}

fn json<T: DeserializeOwned>(file: &TensorFile, key: &str) -> Result<T, Error> {
    serde_json::from_str(text(file, key)?)
        .map_err(|e| malformed(file, format!("`{key}` in its metadata cannot be read ({e})")))
}

fn malformed(file: &TensorFile, reason: String) -> Error {
    Error::BadRouter { path: file.path().to_path_buf(), reason: format!("{reason}; merge again") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> RouterMeta {
        RouterMeta {
            tasks: vec!["cars".into(), "birds".into()],
            rank: 8,
            residual_base: "esm".into(),
            aliases: IndexMap::from([("k.weight".into(), "q.weight".into())]),
            stacks: vec![vec!["q.weight".into(), "k.weight".into()]],
        }
    }

    fn written(meta: &RouterMeta) -> Result<RouterFile, Error> {
        let folder = tempfile::tempdir().unwrap();
        let weights = ["q.weight", "f.weight"].map(|weight| (weight.to_owned(), 3));
        let mut writer = RouterWriter::create(folder.path(), &weights, meta).unwrap();
        let rows: Vec<f32> = (1..=3 * meta.tasks.len()).map(|v| v as f32).collect();
        weights.iter().for_each(|_| writer.write(&rows).unwrap());
        writer.finish().unwrap();
        RouterFile::open(folder.path())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let meta = meta();
        let mut writer = RouterWriter::create(folder.path(), &[("q.weight".into(), 3)], &meta).unwrap();
        writer.write(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        writer.finish().unwrap();
        let router = RouterFile::open(folder.path()).unwrap();
        assert_eq!(router.meta(), &meta);
        assert_eq!(router.prototypes_of("k.weight"), Some("q.weight"));
        assert_eq!(router.prototypes_of("v.weight"), None);
        assert_eq!(router.read("q.weight").unwrap()[3..], [4.0, 5.0, 6.0]);
        assert_eq!(router.weights().collect::<Vec<_>>(), ["q.weight"]);
    }

    #[test]
    fn tasks_are_folders_of_their_own_and_stacks_share_their_prototypes() {
        assert!(written(&meta()).is_ok());
        let tasks =
            |names: &[&str]| RouterMeta { tasks: names.iter().map(|&n| n.into()).collect(), ..meta() };
        let stack = |names: [&str; 2]| RouterMeta { stacks: vec![names.map(Into::into).to_vec()], ..meta() };
        for (meta, word) in [
            (tasks(&[]), "at least one task"),
            (RouterMeta { rank: 0, ..meta() }, "`rank`"),
            (tasks(&["cars", "../../elsewhere"]), "`../../elsewhere`"),
            (tasks(&["cars", "/etc"]), "`/etc`"),
            (tasks(&["cars", ""]), "``"),
            (tasks(&["cars", "cars"]), "more than once"),
            (stack(["q.weight", "f.weight"]), "`f.weight`"),
            (stack(["v.weight", "q.weight"]), "`v.weight`"),
        ] {
            let error = written(&meta).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(ROUTER), "{word}: {error}");
        }
    }
}
