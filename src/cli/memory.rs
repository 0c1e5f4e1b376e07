//! How much memory this machine has.

use std::fs;

/// Where that cannot be told.
const UNKNOWN: u64 = 3 << 30;

/// What a run takes beside its work on a layer, unless it is told otherwise: a third of the memory there is.
pub(super) fn by_default() -> u64 {
    let physical = system::physical().filter(|&bytes| bytes > 0).unwrap_or(UNKNOWN);
    physical.min(of_container().unwrap_or(u64::MAX)) / 3
}

/// What the container may take in which this runs on Linux, if it is limited.
fn of_container() -> Option<u64> {
    let places = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = |place: &&str| fs::read_to_string(place).ok()?.trim().parse().ok();
    places.iter().find_map(limit)
}

#[cfg(unix)]
mod system {
    pub fn physical() -> Option<u64> {
        // SAFETY: it takes any name.
        let value = |name| u64::try_from(unsafe { libc::sysconf(name) }).ok();
        value(libc::_SC_PHYS_PAGES)?.checked_mul(value(libc::_SC_PAGESIZE)?)
    }
}

#[cfg(windows)]
mod system {
    #[repr(C)]
    #[derive(Default)]
    struct Status {
        length: u32,
        load: u32,
        physical: u64,
        others: [u64; 6],
    }

    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn GlobalMemoryStatusEx(status: *mut Status) -> i32;
    }

    pub fn physical() -> Option<u64> {
        let mut status = Status { length: size_of::<Status>() as u32, ..Status::default() };
        // SAFETY: the structure is the system's, and says how long it is.
        (unsafe { GlobalMemoryStatusEx(&mut status) } != 0).then_some(status.physical)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_machine_has_memory() {
        let bytes = super::by_default();
        assert!((16 << 20..1 << 50).contains(&bytes), "{bytes}");
    }
}
