//! `tokenizer_source`, `tokenizer` and `chat_template`: what tokens the output has, and how it talks.

use super::Error;
use super::cursor::{Cursor, Mapping};
use super::paths::Paths;
use crate::host::PathExt;
use std::path::PathBuf;

/// ChatML, as its models have it.
const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + \
    '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The tokenizer of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenizer {
    /// Where it comes from.
    pub source: TokenizerSource,
    /// Tokens that it has in any case, and what their rows are.
    pub tokens: Vec<Token>,
    /// Rows of the tables of tokens are a multiple of this.
    pub pad_to_multiple_of: Option<usize>,
}

/// Where the output's tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The base.
    Base,
    /// The base, with the tokens of all models.
    Union,
    /// Another model.
    Model(PathBuf),
}

/// A token whose row is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub token: String,
    /// Its row in models that lack it.
    pub row: TokenRow,
    /// Whether that is its row in those that have it too.
    pub force: bool,
}

/// What a token's row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenRow {
    /// Nothing is said: as for any other token.
    Unset,
    /// Zeros.
    Zero,
    /// That of the same token in a model.
    Model(PathBuf),
    /// That of another token of a model.
    Token(PathBuf, String),
    /// The row of a model by its number.
    Id(PathBuf, usize),
}

/// Reads `tokenizer_source` or `tokenizer`.
pub(super) fn tokenizer(top: &Mapping, paths: Paths) -> Result<Option<Tokenizer>, Error> {
    match (top.get("tokenizer_source"), top.get("tokenizer")) {
        (Some(_), Some(second)) => {
            Err(second.error("either `tokenizer_source` or `tokenizer` is given, not both"))
        }
        (Some(c), None) => {
            let source = source(&c, paths)?;
            Ok(Some(Tokenizer { source, tokens: Vec::new(), pad_to_multiple_of: None }))
        }
        (None, Some(c)) => {
            let map = c.map(&["source", "tokens", "pad_to_multiple_of"])?;
            let source = map.get("source").map(|c| source(&c, paths)).transpose()?;
            let of_token = |(token, c): (String, Cursor)| self::token(token, &c, paths);
            let tokens = map.get("tokens").map(|c| c.entries()).transpose()?.unwrap_or_default();
            let multiple = |c: Cursor| match c.unsigned()? {
                n @ 1..=1_048_576 => Ok(n as usize),
                _ => Err(c.error("a whole number from 1 to 1048576 is expected")),
            };
            Ok(Some(Tokenizer {
                source: source.unwrap_or(TokenizerSource::Union),
                tokens: tokens.into_iter().map(of_token).collect::<Result<_, _>>()?,
                pad_to_multiple_of: map.get("pad_to_multiple_of").map(multiple).transpose()?,
            }))
        }
        (None, None) => Ok(None),
    }
}

fn source(c: &Cursor, paths: Paths) -> Result<TokenizerSource, Error> {
    match c.text()? {
        "base" => Ok(TokenizerSource::Base),
        "union" => Ok(TokenizerSource::Union),
        text => {
            let path = paths.find(text);
            match path.leads_to_folder() {
                true => Ok(TokenizerSource::Model(path)),
                false => Err(c.error(format!(
                    "`{text}` is neither `base`, `union` nor the folder of a model with its tokenizer"
                ))),
            }
        }
    }
}

/// `{source: MODEL}`, `{source: {kind: zero}}`, `{source: {kind: model_token, model: ..., token: ...}}`, each with `force`.
fn token(token: String, c: &Cursor, paths: Paths) -> Result<Token, Error> {
    let map = c.map(&["source", "force"])?;
    let force = map.get("force").map(|c| c.boolean()).transpose()?.unwrap_or(false);
    let row = match map.get("source") {
        None if force => return Err(c.error("`force` needs a `source` of the row")),
        None => TokenRow::Unset,
        Some(source) if source.is_map() => row(&source, paths)?,
        Some(source) => TokenRow::Model(paths.find(source.text()?)),
    };
    Ok(Token { token, row, force })
}

fn row(c: &Cursor, paths: Paths) -> Result<TokenRow, Error> {
    let map = c.map(&["kind", "model", "token", "token_id"])?;
    let kind = map.require("kind", "`zero`, or `model_token`")?;
    if kind.choice(&[("zero", true), ("model_token", false)])? {
        return Ok(TokenRow::Zero);
    }
    let model = paths.find(map.require("model", "the model whose row it is")?.text()?);
    match (map.get("token"), map.get("token_id")) {
        (Some(token), None) => Ok(TokenRow::Token(model, token.text()?.to_owned())),
        (None, Some(id)) => usize::try_from(id.unsigned()?)
            .map(|row| TokenRow::Id(model, row))
            .map_err(|_| id.error("there is no such row")),
        _ => Err(c.error("either `token` or `token_id` is needed")),
    }
}

/// The template of chats: a name, or a text; none where the base's is wanted.
pub(super) fn chat_template(c: &Cursor) -> Result<Option<String>, Error> {
    match c.text()? {
        "auto" => Ok(None),
        "chatml" => Ok(Some(CHATML.to_owned())),
        text if text.contains("{{") || text.contains("{%") => Ok(Some(text.to_owned())),
        name => Err(c.error(format!(
            "`{name}` is no template that is known here: give `auto` (the base's), `chatml`, or the text of the template"
        ))),
    }
}
