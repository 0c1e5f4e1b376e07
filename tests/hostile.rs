//! Files from strangers: whatever their bytes are, they are refused or read, in little time and memory, and nothing panics.
//!
//! Each reader is given the files of `fuzz/corpus` and others made of them. `ESMERGE_HOSTILE=10000` is how many of those.

#[path = "../fuzz/readers.rs"]
mod readers;

use readers::{READERS, Reader};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Takes note of the largest piece of memory that was asked for.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system's.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Bytes that may be asked for at once.
const MOST: usize = 256 << 20;
/// How long a file may keep its reader.
const LONGEST: Duration = Duration::from_secs(5);

fn runs() -> usize {
    std::env::var("ESMERGE_HOSTILE").ok().and_then(|runs| runs.parse().ok()).unwrap_or(2000)
}

/// Files are attributed by their number, so one after the other, and one reader after the other: memory is everybody's.
#[test]
fn no_file_makes_a_reader_panic_or_take_long_or_much() {
    for (name, reader) in READERS {
        let folder = place();
        let seeds = seeds(name);
        for seed in &seeds {
            look(name, reader, folder.path(), seed);
        }
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for _ in 0..runs() {
            look(name, reader, folder.path(), &mutant(&seeds, &mut numbers));
        }
    }
}

#[test]
fn every_reader_has_a_target_and_whole_files_to_begin_with() {
    let manifest = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).expect("it is in the tree");
    for (name, _) in READERS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        assert!(root().join(format!("fuzz/fuzz_targets/{name}.rs")).is_file(), "{name}");
        assert!(!seeds(name).is_empty(), "{name}");
    }
    let targets = manifest.matches("[[bin]]").count();
    assert_eq!(targets, READERS.len());
}

fn look(name: &str, reader: Reader, place: &Path, bytes: &[u8]) {
    let started = Instant::now();
    LARGEST.store(0, Ordering::Relaxed);
    let read = std::panic::catch_unwind(|| reader(place, bytes));
    let (time, largest) = (started.elapsed(), LARGEST.load(Ordering::Relaxed));
    if read.is_err() || time > LONGEST || largest > MOST {
        let kept = std::env::temp_dir().join(format!("esmerge-{name}-{:08x}", crc32fast::hash(bytes)));
        std::fs::write(&kept, bytes).expect("room for it");
        panic!(
            "{name}: panicked {}, {time:?}, {} MiB at once: see {}",
            read.is_err(),
            largest >> 20,
            kept.display()
        );
    }
}

/// A folder in memory where there is such a thing: the journal waits for its disk.
fn place() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    place.expect("a temporary folder")
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a reader, in the order of their names.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = std::fs::read_dir(root().join("fuzz/corpus").join(name)).expect("a folder for each reader");
    let paths: BTreeSet<PathBuf> = folder.map(|entry| entry.expect("a file").path()).collect();
    paths.iter().map(|path| std::fs::read(path).expect("a file")).collect()
}

/// Numbers that look random and are the same everywhere (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// What numbers in texts become.
const ODD_NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1e400",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775807",
    "4294967295",
    "2147483648",
    "65536",
    "0.5",
    "NaN",
    "null",
];
/// What lengths and offsets become.
const ODD_WORDS: [u64; 8] =
    [0, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX - 7, u64::MAX];

/// A file made of others by some changes.
fn mutant(seeds: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = numbers.pick(seeds).clone();
    for _ in 0..1 + numbers.below(4) {
        let at = numbers.below(bytes.len());
        match numbers.below(9) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << numbers.below(8),
            1 if !bytes.is_empty() => {
                bytes[at] = *numbers.pick(&[0, 1, 0x7f, 0x80, 0xff, b'{', b'"', b'[', b'9', b'\n'])
            }
            2 => bytes.truncate(at),
            3 => {
                let end = (at + 1 + numbers.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = (at + 1 + numbers.below(64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => {
                let other = numbers.pick(seeds);
                let from = numbers.below(other.len());
                let piece = &other[from..(from + 1 + numbers.below(128)).min(other.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            6 if bytes.len() >= at + 8 => {
                let odd = numbers.pick(&ODD_WORDS).to_le_bytes();
                bytes[at..at + 8].copy_from_slice(&odd);
            }
            7 | 8 => replace_number(&mut bytes, at, numbers),
            _ => bytes.push(numbers.below(256) as u8),
        }
    }
    bytes
}

/// Replaces the next digits from a place on.
fn replace_number(bytes: &mut Vec<u8>, from: usize, numbers: &mut Numbers) {
    let Some(first) = bytes.iter().skip(from).position(u8::is_ascii_digit).map(|at| from + at) else {
        return;
    };
    let digits = bytes[first..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    bytes.splice(first..first + digits, numbers.pick(&ODD_NUMBERS).bytes());
}
