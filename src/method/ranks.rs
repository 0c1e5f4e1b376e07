//! Exact selection of the k largest magnitudes of a tensor that comes in slabs.
//!
//! Magnitudes are ordered by their 31 bits, equal ones by their place. One look at the tensor counts the upper 15 bits, a second
//! the lower 16 of those that decide; a third, at one slab, finds the place where equal ones are cut.

use super::elementwise::{Slab, Slabs};
use crate::backend::{Backend, CountBy, Cut, Result, Shape, Tensor};

/// What magnitudes are ranked.
#[allow(async_fn_in_trait)]
pub trait Ranked<B: Backend> {
    /// The batch of rows whose magnitudes are ranked, each for itself; none where they are those of the slab's differences, which
    /// are rows then.
    fn of_slab(&self, backend: &B, slab: &Slab<B::Tensor>) -> Result<Option<B::Tensor>>;
}

/// The differences of each model.
pub struct Deltas;

impl<B: Backend> Ranked<B> for Deltas {
    fn of_slab(&self, _: &B, _: &Slab<B::Tensor>) -> Result<Option<B::Tensor>> {
        Ok(None)
    }
}

/// What is looked for: the `k` largest of row `row`.
#[derive(Clone, Copy, Debug)]
struct Target {
    row: usize,
    /// How many of those with the bits found so far lie before the cut.
    rest: u64,
    upper: u32,
    /// Found without a further look.
    known: Option<Cut>,
}

/// The cuts behind the `k` largest magnitudes for every `k` that is wanted of each row: `wanted[row]` -> cuts.
pub async fn cuts<B: Backend, S: Slabs<B>>(
    backend: &B,
    slabs: &mut S,
    ranked: &impl Ranked<B>,
    wanted: &[Vec<u64>],
) -> std::result::Result<Vec<Vec<Cut>>, S::Error> {
    let elements = slabs.elements() as u64;
    let mut targets = Vec::new();
    for (row, ks) in wanted.iter().enumerate() {
        for &k in ks {
            let known = (k == 0).then_some(Cut::START).or((k >= elements).then_some(Cut::END));
            targets.push(Target { row, rest: k, upper: 0, known });
        }
    }
    if targets.iter().any(|target| target.known.is_none()) {
        search(backend, slabs, ranked, wanted.len(), &mut targets).await?;
    }
    let mut found: Vec<Vec<Cut>> = vec![Vec::new(); wanted.len()];
    targets.into_iter().for_each(|target| found[target.row].push(target.known.unwrap_or(Cut::END)));
    Ok(found)
}

async fn search<B: Backend, S: Slabs<B>>(
    backend: &B,
    slabs: &mut S,
    ranked: &impl Ranked<B>,
    rows: usize,
    targets: &mut [Target],
) -> std::result::Result<(), S::Error> {
    let mut high = vec![vec![0u64; CountBy::High.counts(0)]; rows];
    for index in 0..slabs.count() {
        let counts = count(backend, slabs, ranked, index, &vec![CountBy::High; rows]).await?;
        for (sum, counts) in high.iter_mut().zip(counts) {
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += u64::from(count));
        }
    }
    for target in targets.iter_mut().filter(|target| target.known.is_none()) {
        target.upper = descend(&high[target.row], &mut target.rest) as u32;
    }
    drop(high);

    // the lower bits, slab by slab: which slab holds the last of equal ones is known then
    let mut low: Vec<Vec<Vec<u32>>> = vec![Vec::new(); targets.len()];
    for index in 0..slabs.count() {
        for (keys, which) in rounds(targets, rows) {
            let mut counts = count(backend, slabs, ranked, index, &keys).await?;
            which.into_iter().for_each(|(row, target)| low[target].push(std::mem::take(&mut counts[row])));
        }
    }
    for (target, low) in targets.iter_mut().zip(low) {
        if target.known.is_some() {
            continue;
        }
        let mut sum = vec![0u64; CountBy::Low(0).counts(0)];
        for counts in &low {
            sum.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += u64::from(count));
        }
        let lower = descend(&sum, &mut target.rest);
        let bits = target.upper << 16 | lower as u32;
        target.known = Some(if target.rest == sum[lower] {
            Cut { bits, places: u32::MAX }
        } else {
            place(
                backend,
                slabs,
                ranked,
                (target.row, rows),
                bits,
                (target.rest, low.iter().map(|l| l[lower])),
            )
            .await?
        });
    }
    Ok(())
}

/// The largest key down to which `rest` are counted; `rest` becomes how many of that key.
fn descend(counts: &[u64], rest: &mut u64) -> usize {
    for (key, &count) in counts.iter().enumerate().rev() {
        if *rest <= count {
            return key;
        }
        *rest -= count;
    }
    0
}

/// A look at lower bits: a key for each row, and which target that of a row is for.
type Round = (Vec<CountBy>, Vec<(usize, usize)>);

/// Looks at lower bits, one target of each row at a time.
fn rounds(targets: &[Target], rows: usize) -> Vec<Round> {
    let mut rounds: Vec<Round> = Vec::new();
    for (i, target) in targets.iter().enumerate().filter(|(_, target)| target.known.is_none()) {
        let free = |which: &[(usize, usize)]| which.iter().all(|(row, _)| *row != target.row);
        let at = rounds.iter().position(|(_, which)| free(which)).unwrap_or_else(|| {
            // rows without a target count what no magnitude has
            rounds.push((vec![CountBy::Low(u32::MAX); rows], Vec::new()));
            rounds.len() - 1
        });
        rounds[at].0[target.row] = CountBy::Low(target.upper);
        rounds[at].1.push((target.row, i));
    }
    rounds
}

/// Bits of counts of places.
const PLACES: u32 = 16;

/// The cut behind the first `rest` of equal magnitudes, of which each slab holds so many.
async fn place<B: Backend, S: Slabs<B>>(
    backend: &B,
    slabs: &mut S,
    ranked: &impl Ranked<B>,
    (row, rows): (usize, usize),
    bits: u32,
    (mut rest, of_slabs): (u64, impl Iterator<Item = u32>),
) -> std::result::Result<Cut, S::Error> {
    let mut index = 0;
    for count in of_slabs {
        if rest <= u64::from(count) {
            break;
        }
        rest -= u64::from(count);
        index += 1;
    }
    let slab = slabs.slab(index).await?;
    let (first, len) = (slab.first, slab.base.shape().len());
    let shift = (usize::BITS - len.leading_zeros()).saturating_sub(PLACES);
    let mut keys = vec![CountBy::Low(u32::MAX); rows];
    keys[row] = CountBy::Places { magnitude: bits, shift };
    let derived = ranked.of_slab(backend, slab)?;
    let numbers = derived.as_ref().unwrap_or(&slab.deltas);
    let counts = backend.histogram(numbers, &keys).await?.swap_remove(row);
    let mut part = 0;
    for count in counts {
        if rest <= u64::from(count) {
            break;
        }
        rest -= u64::from(count);
        part += 1;
    }
    let begin = part << shift;
    let end = len.min(begin + (1 << shift));
    let few = backend.download(&backend.slice(numbers, row..row + 1, 0..1, begin..end)?).await?;
    let is_equal = |number: f32| number.to_bits() & 0x7fff_ffff == bits;
    let equal = few.iter().enumerate().filter(|(_, number)| is_equal(**number));
    let last = equal.map(|(at, _)| at).nth(rest as usize - 1).unwrap_or(end - begin);
    Ok(Cut { bits, places: (first + begin + last + 1) as u32 })
}

async fn count<B: Backend, S: Slabs<B>>(
    backend: &B,
    slabs: &mut S,
    ranked: &impl Ranked<B>,
    index: usize,
    keys: &[CountBy],
) -> std::result::Result<Vec<Vec<u32>>, S::Error> {
    let slab = slabs.slab(index).await?;
    let derived = ranked.of_slab(backend, slab)?;
    Ok(backend.histogram(derived.as_ref().unwrap_or(&slab.deltas), keys).await?)
}

/// Numbers that are not zero, of one row.
pub async fn count_nonzero<B: Backend, S: Slabs<B>>(
    backend: &B,
    slabs: &mut S,
    ranked: &impl Ranked<B>,
) -> std::result::Result<u64, S::Error> {
    let mut zeros = 0;
    for index in 0..slabs.count() {
        zeros += u64::from(count(backend, slabs, ranked, index, &[CountBy::Low(0)]).await?[0][0]);
    }
    Ok(slabs.elements() as u64 - zeros)
}

/// A tensor as one row a member.
pub fn as_rows<T: Tensor>(x: T) -> Result<T> {
    let shape = x.shape();
    x.reshape(Shape::new(shape.batch, 1, shape.matrix_len()))
}

/// Cuts of the parts of rows that a slab holds.
pub fn of_slab(cuts: &[(Cut, Cut)], first: usize) -> Vec<(Cut, Cut)> {
    cuts.iter().map(|(keep, drop)| (keep.from(first), drop.from(first))).collect()
}
