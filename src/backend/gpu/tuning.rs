//! Finding, by the clock, how each class of products is best shared out on this device, and remembering it.
//!
//! A merge does not do this unless it is told to: with the built-in table the same recipe, seed and device give the same
//! bytes.

use super::products::Product;
use super::{Gpu, Result};
use crate::host::Instant;
use crate::host::fs;
use crate::kernels::{Choice, Kernels, Products, ShapeClass, Tile};
use crate::matrix::Shape;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, io};

/// How long one candidate is timed, unless a single run takes longer.
const PATIENCE: Duration = Duration::from_millis(50);

/// How a class of products is computed, and where that was learnt.
#[derive(Clone, Copy, Debug)]
pub struct Tuned {
    /// The products.
    pub class: ShapeClass,
    /// How they are computed.
    pub choice: Choice,
    /// Whether it was read from the cache; else it was timed in this run.
    pub cached: bool,
}

/// What has been found out.
pub(super) struct Tuner {
    cache: Option<PathBuf>,
    /// First lines of the cache: what device and what shaders it is about.
    header: String,
    tuned: RefCell<Vec<Tuned>>,
}

impl Tuner {
    /// Takes up what the cache in `folder` knows; without a folder nothing is remembered.
    pub fn open(info: &wgpu::AdapterInfo, kernels: &Kernels, folder: Option<&Path>) -> Self {
        let header = header(info);
        let cache = folder.map(|folder| folder.join(format!("{:016x}.tiles", hash(&header))));
        let known = cache.as_deref().and_then(|path| fs::read_to_string(path).ok());
        let tuned: Vec<Tuned> = known.and_then(|text| parse(&text, &header)).unwrap_or_default();
        tuned.iter().for_each(|t| kernels.choose(t.class, t.choice));
        Tuner { cache, header, tuned: RefCell::new(tuned) }
    }

    fn learn(&self, class: ShapeClass, choice: Choice) -> io::Result<()> {
        self.tuned.borrow_mut().push(Tuned { class, choice, cached: false });
        let Some(path) = &self.cache else { return Ok(()) };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // whole or not at all: another process may read it meanwhile
        let draft = path.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&draft, self.text())?;
        fs::rename(&draft, path)
    }

    fn text(&self) -> String {
        let line = |t: &Tuned| format!("{} {} {}\n", t.class, t.choice.tile, t.choice.splits);
        self.header.clone() + &self.tuned.borrow().iter().map(line).collect::<String>()
    }
}

/// Where choices are kept: `ESMERGE_CACHE_DIR`, else the user's folder for caches.
pub fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let of_user = || {
        if cfg!(windows) {
            return folder("LOCALAPPDATA").map(|f| f.join("esmerge").join("cache"));
        }
        if cfg!(target_os = "macos") {
            return folder("HOME").map(|f| f.join("Library/Caches/esmerge"));
        }
        folder("XDG_CACHE_HOME")
            .or_else(|| folder("HOME").map(|f| f.join(".cache")))
            .map(|f| f.join("esmerge"))
    };
    folder("ESMERGE_CACHE_DIR").or_else(of_user)
}

fn header(info: &wgpu::AdapterInfo) -> String {
    let clean = |text: &str| text.replace(['\n', '\r'], " ");
    format!(
        "esmerge tiles 1\nadapter {} ({})\ndriver {} {}\nshaders {:016x}\n",
        clean(&info.name),
        info.backend,
        clean(&info.driver),
        clean(&info.driver_info),
        Kernels::products_version()
    )
}

/// FNV-1a
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// What a cache says; nothing if it is about something else, or not whole.
fn parse(text: &str, header: &str) -> Option<Vec<Tuned>> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (class, tile) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let splits = words.next()?.parse().ok().filter(|s| (1..=64).contains(s))?;
        Some(Tuned { class, choice: Choice { tile, splits }, cached: true })
    };
    text.strip_prefix(header)?.lines().map(line).collect()
}

/// What is worth timing for a product.
fn candidates(batch: usize, [m, n, k]: [usize; 3], triangular: bool) -> Vec<Choice> {
    let mut found = Vec::new();
    for tile in Tile::ALL {
        let (rows, cols) = tile.sides();
        let square = rows == cols;
        if !square && (triangular || m.max(n) < 128 || m.min(n) > 64) {
            continue;
        }
        found.push(Choice { tile, splits: 1 });
        let few = batch == 1 && tile.count(m, n, triangular) < 64;
        for splits in [4, 16] {
            if few && tile != Tile::Direct && k >= 128 * splits {
                found.push(Choice { tile, splits });
            }
        }
    }
    found
}

impl Gpu {
    /// How products were found to be best computed, in the order in which they were met.
    pub fn tuned(&self) -> Vec<Tuned> {
        self.live().tuner.as_ref().map(|tuner| tuner.tuned.borrow().clone()).unwrap_or_default()
    }

    /// Times the ways to compute a product, if its class has not been met.
    pub(super) fn tune(&self, p: &Product<'_>, triangular: bool) -> Result<()> {
        let live = self.live();
        let Some(tuner) = &live.tuner else { return Ok(()) };
        let kernels = &live.context.kernels;
        let class = p.class(triangular);
        if matches!(kernels.products(), Products::Only(_)) || kernels.chosen(class).is_some() {
            return Ok(());
        }
        // what is queued must not be timed with it
        live.queue.submit()?;
        live.context.wait(None)?;
        let packed = |shape: Shape| self.allocate("operands to time", shape);
        let (a, b, c) = (packed(p.a.shape)?, packed(p.b.shape)?, packed(p.c.shape)?);
        let sample = Product { a: a.view(), b: b.view(), c: c.view(), beta: 0.0, ..p.clone() };
        let mut best: Option<(Duration, Choice)> = None;
        for choice in candidates(p.c.shape.batch, p.sizes().into(), triangular) {
            kernels.choose(class, choice);
            let took = self.time(|| self.encode_product(&sample, triangular, choice))?;
            if best.is_none_or(|(least, _)| took < least) {
                best = Some((took, choice));
            }
        }
        if let Some((_, choice)) = best {
            kernels.choose(class, choice);
            tuner.learn(class, choice).map_err(|e| {
                super::Error::Internal(format!("the cache of tile choices cannot be written: {e}"))
            })?;
        }
        Ok(())
    }

    /// The shortest run, of as many as fit into the time for one candidate; the first, which compiles, does not count.
    fn time(&self, run: impl Fn() -> Result<()>) -> Result<Duration> {
        let timed = || -> Result<Duration> {
            let start = Instant::now();
            run()?;
            self.live().queue.submit()?;
            self.live().context.wait(None)?;
            Ok(start.elapsed())
        };
        timed()?;
        let start = Instant::now();
        let mut least = timed()?;
        while start.elapsed() < PATIENCE {
            least = least.min(timed()?);
        }
        Ok(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Dtype, Op};

    #[test]
    fn a_cache_is_read_as_it_was_written_and_only_for_its_device() {
        let class = ShapeClass::new(1, [100, 200, 300], [Op::None; 2], [Dtype::F32; 2], false);
        let choice = Choice { tile: Tile::Wide, splits: 4 };
        let tuner = Tuner {
            cache: None,
            header: "a header\n".into(),
            tuned: RefCell::new(vec![Tuned { class, choice, cached: false }]),
        };
        let read = parse(&tuner.text(), "a header\n").expect("its own text");
        assert_eq!((read[0].class, read[0].choice, read[0].cached), (class, choice, true));
        assert!(parse(&tuner.text(), "another\n").is_none());
        assert!(parse(&format!("{}broken line\n", tuner.text()), "a header\n").is_none());
        assert!(parse("a header\ngemm-nn-32-32-1x1x1x1 small 0\n", "a header\n").is_none());
    }

    #[test]
    fn triangles_get_square_tiles_only() {
        assert!(candidates(1, [32, 4096, 64], false).iter().any(|c| c.tile == Tile::Wide));
        let of_triangle = candidates(1, [32, 32, 4096], true);
        assert!(of_triangle.iter().all(|c| c.tile.sides().0 == c.tile.sides().1));
        assert!(of_triangle.iter().any(|c| c.splits == 16));
    }
}
