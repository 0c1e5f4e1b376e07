use super::recorder::{Dispatch, require};
use super::shaders::histogram::{Bindings, HIGH, HISTOGRAM, KEY, LOW, PLACES, Params};
use super::{Recorder, Result, View};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountBy {
    /// The upper 15 bits of the magnitude: 2^15 counts.
    High,
    /// The lower 16 bits, of numbers whose upper bits are these: 2^16 counts.
    Low(u32),
    /// The place in the row, shifted, of numbers whose magnitude has these bits.
    Places {
        /// All 31 bits of the magnitude.
        magnitude: u32,
        /// A count is of `2^shift` places.
        shift: u32,
    },
}

impl CountBy {
    /// How many counts there are for a row of `len` numbers.
    pub fn counts(self, len: usize) -> usize {
        match self {
            CountBy::High => 1 << 15,
            CountBy::Low(_) => 1 << 16,
            CountBy::Places { shift, .. } => (len.saturating_sub(1) >> shift) + 1,
        }
    }
}

/// Adds to the counts (32-bit integers, one after the other from the start of `counts`) those of the packed `x`, whose first
/// number has the place `first` in its row.
///
/// # Errors
/// If a view has gaps or does not fit its buffer or the device's bindings, or there are too few counts.
pub fn histogram(
    recorder: &mut Recorder<'_>,
    x: &View<'_>,
    first: usize,
    by: CountBy,
    counts: &View<'_>,
) -> Result<()> {
    const NAME: &str = "histogram";
    let count = x.shape.len();
    require(x.is_packed() && counts.is_packed(), NAME, || "x or counts have gaps".into())?;
    require(counts.shape.len() >= by.counts(first + count), NAME, || "too few counts".into())?;
    if count == 0 {
        return Ok(());
    }
    let (from, to) = (recorder.window(NAME, &x.flat())?, recorder.window_mut(NAME, &counts.flat())?);
    let groups = recorder.grid(NAME, count as u64, HISTOGRAM.workgroup)?;
    let (key, value, shift) = match by {
        CountBy::High => (HIGH, 0, 0),
        CountBy::Low(upper) => (LOW, upper, 0),
        CountBy::Places { magnitude, shift } => (PLACES, magnitude, shift),
    };
    recorder.dispatch(Dispatch {
        entry: HISTOGRAM.on(Bindings { x: from, counts: to }),
        constants: &[KEY.is(key)],
        params: Params {
            count: count as u32,
            x_offset: from.first,
            first: first as u32,
            value,
            shift,
            out_offset: to.first,
        },
        groups,
    });
    Ok(())
}
