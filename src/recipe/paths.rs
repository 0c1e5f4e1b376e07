//! Where the models are that a recipe names.

use crate::hub::{self, Missing};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// What names stand for.
#[derive(Clone, Copy)]
pub(super) struct Paths<'a> {
    /// Where relative paths start.
    pub folder: &'a Path,
    /// Models that earlier documents of the recipe have made.
    pub made: &'a [(String, PathBuf)],
    /// Collects the models that were asked for and are not whole on this machine.
    pub missing: &'a RefCell<Vec<Missing>>,
}

impl Paths<'_> {
    /// A model: one that was made under this name, a path, or a model of the Hugging Face hub (`ORG/NAME`, `ORG/NAME@REVISION`) that
    /// is in its cache.
    pub fn find(&self, text: &str) -> PathBuf {
        if let Some((_, path)) = self.made.iter().find(|(name, _)| name == text) {
            return path.clone();
        }
        let (path, missing) = hub::find(self.folder, text);
        if let Some(missing) = missing.filter(|missing| !self.missing.borrow().contains(missing)) {
            self.missing.borrow_mut().push(missing);
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_was_made_comes_before_a_path() {
        let made = [("first".to_owned(), PathBuf::from("/made/first"))];
        let paths = Paths { folder: Path::new("work"), made: &made, missing: &RefCell::default() };
        assert_eq!(paths.find("first"), PathBuf::from("/made/first"));
        assert_eq!(paths.find("models/a"), PathBuf::from("work/models/a"));
    }
}
