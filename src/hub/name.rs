//! What a model is called in the hub.

use std::fmt;

/// `ORG/NAME` or `ORG/NAME@REVISION`. Its parts are plain: none leads out of the folder it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    repository: String,
    revision: Option<String>,
}

impl Name {
    /// The name that a text is; none if it is not one of the hub's.
    pub fn parse(text: &str) -> Option<Name> {
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (text, None),
        };
        let (owner, model) = repository.split_once('/')?;
        let parts = [Some(owner), Some(model), revision];
        let revision = revision.map(str::to_owned);
        parts
            .into_iter()
            .flatten()
            .all(is_plain)
            .then(|| Name { repository: repository.to_owned(), revision })
    }

    /// `ORG/NAME`
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// A branch, a tag or a commit; `main` where none is named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.repository),
            None => write!(f, "{}", self.repository),
        }
    }
}

/// Whether a part of a name is one file name of letters that mean nothing to a file system or a URL.
pub(super) fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}
