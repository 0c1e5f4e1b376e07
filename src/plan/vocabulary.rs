//! The output's vocabulary, where the recipe asks for a tokenizer: which row every token has in the tables of every model.
//!
//! A token's row is its own in the models that have it; in those that lack it that of the only model that has it, else the base's,
//! else the mean of those that have it, as in mergekit 0.1.5.

use super::Error;
use super::names::{is_input_embedding, is_output_embedding};
use crate::checkpoint::{Checkpoint, Row, Table, TensorMeta, weights_file};
use crate::data::{self, Vocabulary};
use crate::recipe::{self, Recipe, Source, TokenRow, Tokenizer, TokenizerSource};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of no token that a vocabulary may have, beside as many as it has tokens.
const MOST_GAPS: usize = 1 << 16;

/// What the output is told of its vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Rows of its tables.
    pub rows: usize,
    /// The folder whose tokenizer it has, if that is not the base's.
    pub folder: Option<PathBuf>,
    /// Its `tokenizer.json`, if it is no model's.
    pub json: Option<String>,
    /// For the reader of the log.
    pub note: String,
}

/// The models of a recipe, and how the rows of each become the output's.
pub(super) struct Aligned {
    pub tokens: Tokens,
    members: Vec<Member>,
    /// By member.
    rows: Vec<Arc<Vec<Row>>>,
}

/// A model with its vocabulary.
struct Member {
    path: PathBuf,
    model: Arc<Checkpoint>,
    ids: HashMap<String, usize>,
    /// Rows of its tables.
    rows: usize,
}

impl Member {
    /// A token's row.
    fn row(&self, token: &str) -> Option<usize> {
        self.ids.get(token).copied().filter(|&row| row < self.rows)
    }

    /// Whether a tensor has a row a token.
    fn is_table(&self, name: &str, meta: &TensorMeta) -> bool {
        let of_bias = name.strip_suffix("bias").map(|stem| format!("{stem}weight"));
        let of_output =
            of_bias.is_some_and(|weight| is_output_embedding(&weight)) || name.ends_with("predictions.bias");
        meta.shape.first() == Some(&self.rows)
            && (is_input_embedding(name) || is_output_embedding(name) || of_output)
    }

    /// Its tensor of a name, which may have a prefix more or less here.
    fn table(&self, name: &str) -> Option<Table> {
        let is_it = |own: &&str| {
            *own == name || own.ends_with(&format!(".{name}")) || name.ends_with(&format!(".{own}"))
        };
        let tensor = self.model.get(name).map(|_| name).or_else(|| self.model.names().find(is_it))?;
        Some(Table { model: Arc::clone(&self.model), tensor: tensor.to_owned() })
    }
}

/// Opens the models' tokenizers; none where the recipe asks for none, or for that of a base that has none.
pub(super) fn align(recipe: &Recipe) -> Result<Option<Aligned>, Error> {
    let Some(wanted) = &recipe.tokenizer else { return Ok(None) };
    let folder = |model: &Checkpoint| model.folder().map(Path::to_path_buf).unwrap_or_default();
    let base = Arc::new(Checkpoint::open(&recipe.base_model)?);
    let source = match &wanted.source {
        TokenizerSource::Model(path) if is_same(path, &recipe.base_model) => &TokenizerSource::Base,
        source => source,
    };
    let Some(of_base) = Vocabulary::open(&folder(&base))? else {
        return match source {
            TokenizerSource::Base if wanted.tokens.is_empty() => Ok(None),
            _ => Err(lacks_tokenizer(&recipe.base_model).into()),
        };
    };
    let mut out = match source {
        TokenizerSource::Base | TokenizerSource::Union => of_base.clone(),
        TokenizerSource::Model(path) => Vocabulary::open(path)?.ok_or_else(|| lacks_tokenizer(path))?,
    };
    let before = out.ids().len();
    let mut members: Vec<Member> = Vec::new();
    for path in paths(recipe) {
        let model =
            if *path == recipe.base_model { Arc::clone(&base) } else { Arc::new(Checkpoint::open(path)?) };
        let table = model.names().find(|name| is_input_embedding(name)).and_then(|name| model.get(name));
        let rows = table.and_then(|meta| meta.shape.first().copied()).unwrap_or(0);
        // a model without a tokenizer is taken to have the base's
        let own = if members.is_empty() { Some(of_base.clone()) } else { Vocabulary::open(&folder(&model))? };
        if let (TokenizerSource::Union, Some(own)) = (source, &own) {
            out.add(own, rows)?;
        }
        let ids = own.as_ref().unwrap_or(&of_base).ids().clone();
        members.push(Member { path: path.to_path_buf(), model, ids, rows });
    }
    for token in &wanted.tokens {
        if !out.ids().contains_key(&token.token) {
            out.add_token(&token.token)?;
        }
    }
    if out.rows() > 2 * out.ids().len() + MOST_GAPS {
        let reason = format!(
            "its {} tokens have ids up to {}: one row each would be mostly rows of no token",
            out.ids().len(),
            out.rows()
        );
        return Err(data::Error::bad(out.path(), reason).into());
    }
    let rows = Chooser { recipe, wanted, members: &members }.rows(&out)?;
    let added = out.ids().len() - before;
    let whose = match source {
        TokenizerSource::Base => "the base's",
        TokenizerSource::Union => "the base's with those of all models",
        TokenizerSource::Model(_) => "another model's",
    };
    let count = rows.first().map_or(0, |rows| rows.len());
    let note = format!(
        "the tokens are {whose}: {} in tables of {count} rows, {added} of them added",
        out.ids().len()
    );
    let folder = match source {
        TokenizerSource::Model(path) => Some(path.clone()),
        _ => None,
    };
    let json = if added > 0 { Some(out.to_json()?) } else { None };
    Ok(Some(Aligned { tokens: Tokens { rows: count, folder, json, note }, members, rows }))
}

fn lacks_tokenizer(path: &Path) -> data::Error {
    data::Error::bad(
        path,
        "there is no tokenizer.json beside the model, by which the rows of its tokens are known; download it, or \
        leave `tokenizer_source` and `tokenizer` out",
    )
}

/// The models with tables of their own, the base first.
fn paths(recipe: &Recipe) -> Vec<&PathBuf> {
    let own = |model: &'_ recipe::Model| match &model.source {
        Source::Checkpoint(_) | Source::Adapter { model: Some(_), .. } => true,
        Source::Delta(_) | Source::Adapter { model: None, .. } => false,
    };
    let of_models = recipe.models.iter().filter(|model| own(model) && recipe.slices.is_empty());
    let of_models = of_models.filter_map(|model| match &model.source {
        Source::Checkpoint(path) | Source::Adapter { model: Some(path), .. } => Some(path),
        _ => None,
    });
    let of_slices = recipe.slices.iter().flat_map(|slice| {
        std::iter::once(&slice.base.0).chain(slice.sources.iter().map(|source| &source.path))
    });
    let mut paths: Vec<&PathBuf> = Vec::new();
    for path in std::iter::once(&recipe.base_model).chain(of_models).chain(of_slices) {
        if !paths.iter().any(|known| is_same(known, path)) {
            paths.push(path);
        }
    }
    paths
}

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || weights_file(a).is_some_and(|file| Some(file) == weights_file(b))
}

/// What rows are made of.
struct Chooser<'a> {
    recipe: &'a Recipe,
    wanted: &'a Tokenizer,
    members: &'a [Member],
}

impl Chooser<'_> {
    /// The output's rows, in the terms of every member.
    fn rows(&self, out: &Vocabulary) -> Result<Vec<Arc<Vec<Row>>>, Error> {
        let count = out.rows();
        let multiple = self.wanted.pad_to_multiple_of.unwrap_or(1);
        let mut rows = vec![vec![Row::Zero; count]; self.members.len()];
        for (token, &id) in out.ids() {
            let said = self.wanted.tokens.iter().find(|said| said.token == *token);
            let default = self.default(token, said.map_or(&TokenRow::Unset, |said| &said.row))?;
            let force = said.is_some_and(|said| said.force);
            for (table, member) in self.members.iter().enumerate() {
                let own = member.row(token).filter(|_| !force).map(|row| Row::Of { table, row });
                rows[table][id] = own.unwrap_or_else(|| default.clone());
            }
        }
        let padded = count.next_multiple_of(multiple);
        rows.iter_mut().for_each(|rows| rows.resize(padded, Row::Average));
        Ok(rows.into_iter().map(Arc::new).collect())
    }

    /// The row of models that lack a token.
    fn default(&self, token: &str, said: &TokenRow) -> Result<Row, Error> {
        let of = |path: &Path, row: &dyn Fn(&Member) -> Option<usize>| {
            let table = self.members.iter().position(|member| is_same(&member.path, path));
            let found = table.and_then(|table| Some(Row::Of { table, row: row(&self.members[table])? }));
            found.ok_or_else(|| {
                let why = format!(
                    "there is no such row: {} is no model of this recipe, or lacks it",
                    path.display()
                );
                recipe::Error::new(&self.recipe.path, None, format!("tokenizer.tokens.{token}"), why).into()
            })
        };
        match said {
            TokenRow::Zero => Ok(Row::Zero),
            TokenRow::Model(path) => of(path, &|member| member.row(token)),
            TokenRow::Token(path, other) => of(path, &|member| member.row(other)),
            TokenRow::Id(path, row) => of(path, &|member| Some(*row).filter(|&row| row < member.rows)),
            TokenRow::Unset => Ok(self.usual(token)),
        }
    }

    fn usual(&self, token: &str) -> Row {
        let named = self.recipe.method.tabled().is_none_or(|tabled| tabled.has_base);
        let rows = self.members.iter().enumerate();
        let having: Vec<(usize, usize)> =
            rows.filter_map(|(table, member)| Some((table, member.row(token)?))).collect();
        match having[..] {
            [] => Row::Zero,
            [(table, row)] => Row::Of { table, row },
            [(0, row), ..] if named => Row::Of { table: 0, row },
            _ => Row::Mean(having),
        }
    }
}

impl Aligned {
    /// A model with the output's rows; `path` is where it was opened.
    pub fn apply(&self, mut model: Checkpoint, path: &Path) -> Result<Checkpoint, Error> {
        let Some(m) = self.members.iter().position(|member| is_same(&member.path, path)) else {
            return Ok(model);
        };
        let (member, rows) = (&self.members[m], &self.rows[m]);
        let is_own = |(i, row): (usize, &Row)| *row == Row::Of { table: m, row: i };
        if rows.len() == member.rows && rows.iter().enumerate().all(is_own) {
            return Ok(model);
        }
        let is_table = |name: &&str| model.get(name).is_some_and(|meta| member.is_table(name, meta));
        let names: Vec<String> = model.names().filter(is_table).map(str::to_owned).collect();
        for name in names {
            let tables = self.tables(m, &name)?;
            model = model.with_rows(&name, tables, Arc::clone(rows))?;
        }
        Ok(model)
    }

    /// The tables of a name in all models; a model from which no row is taken needs none.
    fn tables(&self, m: usize, name: &str) -> Result<Vec<Table>, Error> {
        let unsupported =
            |member: &Member, reason: String| Error::Unsupported { path: member.path.clone(), reason };
        let own = &self.members[m];
        let columns = |table: &Table| table.model.get(&table.tensor).map(|meta| meta.shape[1..].to_vec());
        let lacks = |member: &Member| {
            unsupported(member, format!("it lacks `{name}`, of which rows are wanted for tokens"))
        };
        let of_own = own.table(name).ok_or_else(|| lacks(own))?;
        let table = |(at, member): (usize, &Member)| {
            let is_used = || {
                self.rows[m].iter().any(|row| match row {
                    Row::Of { table, .. } => *table == at,
                    Row::Mean(of) => of.iter().any(|(table, _)| *table == at),
                    Row::Average | Row::Zero => false,
                })
            };
            match member.table(name) {
                Some(table) if columns(&table) == columns(&of_own) => Ok(table),
                Some(_) if is_used() => Err(unsupported(
                    member,
                    format!("`{name}` has rows of another length than in {}", own.path.display()),
                )),
                None if is_used() => Err(lacks(member)),
                _ => Ok(of_own.clone()),
            }
        };
        self.members.iter().enumerate().map(table).collect()
    }
}
