//! What the host gives where it is not everywhere the same: files, a clock, threads for faer.
//!
//! Everything below goes through [`fs`], [`PathExt`] and [`Instant`]. On a machine with an operating system they are the standard
//! library's. In a browser `fs` is [`disk`]: names and small files in memory, what somebody chose read where it lies, and large
//! outputs in a scratch file; whoever embeds the library there mounts the one and gives the other.

#[cfg(any(target_family = "wasm", test))]
#[cfg_attr(not(target_family = "wasm"), allow(dead_code, unused_imports))] // tests look at a part of it
pub mod disk;

#[cfg(target_family = "wasm")]
pub(crate) use disk as fs;
#[cfg(not(target_family = "wasm"))]
pub(crate) use std::fs;

#[cfg(not(target_family = "wasm"))]
pub(crate) use std::time::Instant;
#[cfg(target_family = "wasm")]
pub(crate) use web_time::Instant;

#[cfg(feature = "merge")]
use std::path::Path;

/// What faer may use of the machine.
#[cfg(feature = "merge")]
pub(crate) fn all_threads() -> faer::Par {
    #[cfg(not(target_family = "wasm"))]
    return faer::Par::rayon(0);
    #[cfg(target_family = "wasm")]
    return faer::Par::Seq;
}

/// What a path leads to, on whatever disk there is: the standard library's own methods know the operating system's alone.
#[cfg(feature = "merge")]
pub(crate) trait PathExt {
    /// `exists`
    fn is_there(&self) -> bool;
    /// `is_file`
    fn leads_to_file(&self) -> bool;
    /// `is_dir`
    fn leads_to_folder(&self) -> bool;
    /// `is_symlink`
    fn is_link(&self) -> bool;
}

#[cfg(feature = "merge")]
impl PathExt for Path {
    fn is_there(&self) -> bool {
        fs::metadata(self).is_ok()
    }

    fn leads_to_file(&self) -> bool {
        fs::metadata(self).is_ok_and(|meta| meta.is_file())
    }

    fn leads_to_folder(&self) -> bool {
        fs::metadata(self).is_ok_and(|meta| meta.is_dir())
    }

    fn is_link(&self) -> bool {
        fs::symlink_metadata(self).is_ok_and(|meta| meta.file_type().is_symlink())
    }
}
