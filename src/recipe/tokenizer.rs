//! `tokenizer_source`, `tokenizer` and `chat_template`: what of the base's tokenizer is the output's.

use super::Error;
use super::cursor::{Cursor, Mapping};
use super::paths::Paths;
use crate::checkpoint::weights_file;
use std::path::Path;

/// ChatML, as its models have it.
const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + \
    '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Whether the tokenizer that is asked for is the base's, which the output has.
pub(super) fn check(top: &Mapping, paths: Paths, base: &Path) -> Result<(), Error> {
    if let Some(c) = top.get("tokenizer_source") {
        is_the_bases(&c, paths, base)?;
    }
    if let Some(c) = top.get("tokenizer") {
        let map = c.map(&["source"])?;
        if let Some(source) = map.get("source") {
            is_the_bases(&source, paths, base)?;
        }
    }
    Ok(())
}

fn is_the_bases(c: &Cursor, paths: Paths, base: &Path) -> Result<(), Error> {
    let text = c.text()?;
    let named = paths.find(text);
    let same = || weights_file(&named).is_some_and(|file| Some(file) == weights_file(base));
    if text == "base" || named == base || same() {
        return Ok(());
    }
    Err(c.error(match text {
        "union" => "a union of vocabularies is not supported in this version: the output has the base's tokenizer; write `base`, or give \
                    models of one vocabulary"
            .to_owned(),
        _ => format!("the output has the tokenizer of the base in this version, not that of `{text}`; write `base`"),
    }))
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
