//! Several documents in one file: merges one after the other, of which a later one may take what an earlier one has made.

use super::Error;
use std::path::Path;

/// One document of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What later documents call its model; the last one needs no name.
    pub name: Option<String>,
    /// Its text, on the lines that it has in the file.
    pub text: String,
}

/// The documents of a text; `path` is where it came from.
pub(super) fn split(text: &str, path: &Path) -> Result<Vec<Document>, Error> {
    let mut documents: Vec<Document> = Vec::new();
    let (mut own, mut first) = (String::new(), 0);
    let mut take = |own: &mut String, first: usize| {
        let says = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
        if own.lines().any(says) {
            let text = "\n".repeat(first) + own;
            documents.push(Document { name: name(own), text });
        }
        own.clear();
    };
    for (number, line) in text.lines().enumerate() {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            take(&mut own, first);
            first = number + 1;
            continue;
        }
        own += line;
        own.push('\n');
    }
    take(&mut own, first);
    if documents.is_empty() {
        documents.push(Document { name: None, text: text.to_owned() });
    }
    let last = documents.len() - 1;
    for (i, document) in documents.iter().enumerate() {
        let wrong = |message: String| Err(Error::new(path, line_of(&document.text), "name", message));
        match &document.name {
            None if i < last => {
                return wrong("missing: of several documents all but the last need a `name`, by which later ones take them".into());
            }
            Some(name) if documents[..i].iter().any(|other| other.name.as_ref() == Some(name)) => {
                return wrong(format!("`{name}` is an earlier document's name; give this one another"));
            }
            Some(name) if i < last && (name.contains(['/', '\\']) || name.starts_with('.')) => {
                return wrong(format!(
                    "`{name}` cannot name a model: leave out / and \\, and a dot at its beginning"
                ));
            }
            _ => {}
        }
    }
    Ok(documents)
}

/// The value of `name:` at the top.
fn name(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("name:"))?;
    let value = line.split(" #").next().unwrap_or(line).trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_owned())
}

/// The first line that says something.
fn line_of(text: &str) -> Option<u64> {
    text.lines().position(|line| !line.trim().is_empty()).map(|line| line as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_lines_and_need_names() {
        let of = |text: &str| split(text, Path::new("r.yaml"));
        let one = of("merge_method: linear\n").unwrap();
        assert_eq!(one, [Document { name: None, text: "merge_method: linear\n".to_owned() }]);
        let two = of("# first\nname: a # comment\nx: 1\n---\nname: \"b\"\ny: 2\n").unwrap();
        assert_eq!(two.iter().map(|d| d.name.as_deref()).collect::<Vec<_>>(), [Some("a"), Some("b")]);
        assert!(two[1].text.starts_with("\n\n\n\nname: \"b\"\n"), "errors tell the lines of the file");
        assert_eq!(of("---\nx: 1\n---\n").unwrap().len(), 1);
        assert_eq!(of("x: 1\n---\ny: 2\n").unwrap_err().key(), "name");
        assert!(of("name: a\n---\nname: a\n---\ny: 2\n").unwrap_err().to_string().contains("earlier"));
        assert!(of("name: a/b\n---\ny: 2\n").is_err());
    }
}
