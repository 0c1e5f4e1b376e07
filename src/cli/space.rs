//! How much room a file system has.

use super::failure::Failure;
use std::path::Path;

/// Refuses work for which there is not enough room where it will be written. `without` says how less would do.
pub(super) fn check(place: &Path, bytes: u64, what: &str, without: &str) -> Result<(), Failure> {
    let folder = place.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    match system::available(folder) {
        Some(free) if free < bytes => Err(Failure::other(&format!(
            "{what} need {} of disk at {}, where {} are free{without}",
            gigabytes(bytes),
            folder.display(),
            gigabytes(free)
        ))),
        _ => Ok(()),
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(unix)]
mod system {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    pub fn available(folder: &Path) -> Option<u64> {
        let path = CString::new(folder.as_os_str().as_bytes()).ok()?;
        // SAFETY: all bytes of this structure may be zero; the call writes to it and reads the path, both of which outlive it.
        let (told, stat) = unsafe {
            let mut stat: libc::statvfs = std::mem::zeroed();
            (libc::statvfs(path.as_ptr(), &mut stat), stat)
        };
        #[allow(clippy::unnecessary_cast)] // narrower on some systems
        let bytes = stat.f_bavail as u64 * stat.f_frsize as u64;
        (told == 0).then_some(bytes)
    }
}

#[cfg(windows)]
mod system {
    use std::os::windows::ffi::OsStrExt;
    use std::path::Path;

    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn GetDiskFreeSpaceExW(
            folder: *const u16,
            available: *mut u64,
            total: *mut u64,
            free: *mut u64,
        ) -> i32;
    }

    pub fn available(folder: &Path) -> Option<u64> {
        let path: Vec<u16> = folder.as_os_str().encode_wide().chain([0]).collect();
        let [mut available, mut total, mut free] = [0; 3];
        // SAFETY: the path ends in a zero, and all four outlive the call.
        let told = unsafe { GetDiskFreeSpaceExW(path.as_ptr(), &mut available, &mut total, &mut free) };
        (told != 0).then_some(available)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_what_does_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("not/yet/there");
        assert!(check(&place, 1, "they", "").is_ok());
        let error = check(&place, u64::MAX, "they", "; do without").unwrap_err();
        assert!(format!("{error:?}").contains("do without"));
    }
}
