//! Weights that are stored as codes: 8-bit floats with scales, 4-bit floats of experts, and the blocks of GGUF. They are widened to float32 as they are read,
//! by the formulas of the formats' reference implementations, to the same bits.

use super::mxfp4::Mxfp4;
use super::rows;
use super::{Error, Extent};
use crate::backend::Dtype;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// How values are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// 4 bits of exponent, 3 of fraction, no infinities (`float8_e4m3fn`).
    E4M3,
    /// 5 bits of exponent, 2 of fraction.
    E5M2,
    /// Numbers that need no decoding but their rows' order.
    Plain(Dtype),
    /// 32 values of 8 bits with a scale in float16.
    Q8_0,
    /// 32 values of 4 bits with a scale in float16.
    Q4_0,
    /// 256 values of 4 bits in eight blocks, each with a scale and a least value of 6 bits.
    Q4K,
    /// 256 values of 6 bits in sixteen blocks, each with a scale of 8 bits.
    Q6K,
}

impl Format {
    /// Values of a unit, which cannot be decoded apart, and its bytes.
    pub fn unit(self) -> (usize, usize) {
        match self {
            Format::E4M3 | Format::E5M2 => (1, 1),
            Format::Plain(dtype) => (1, dtype.size()),
            Format::Q8_0 => (32, 34),
            Format::Q4_0 => (32, 18),
            Format::Q4K => (256, 144),
            Format::Q6K => (256, 210),
        }
    }

    /// Bytes of so many values.
    pub fn bytes(self, values: usize) -> u64 {
        let (unit, bytes) = self.unit();
        (values.div_ceil(unit) * bytes) as u64
    }

    /// The values of whole units.
    fn decode(self, codes: &[u8], values: &mut [f32]) {
        let half = |at: &[u8]| half::f16::from_le_bytes([at[0], at[1]]).to_f32();
        let (unit, bytes) = self.unit();
        match self {
            Format::E4M3 => values.iter_mut().zip(codes).for_each(|(v, &c)| *v = e4m3(c)),
            // the upper half of a float16
            Format::E5M2 => values.iter_mut().zip(codes).for_each(|(v, &c)| *v = half(&[0, c])),
            Format::Plain(dtype) => values.copy_from_slice(&super::widen(dtype, codes)),
            Format::Q8_0 => {
                for (values, block) in values.chunks_mut(unit).zip(codes.chunks_exact(bytes)) {
                    let d = half(block);
                    values.iter_mut().zip(&block[2..]).for_each(|(v, &q)| *v = d * f32::from(q as i8));
                }
            }
            Format::Q4_0 => {
                for (values, block) in values.chunks_mut(unit).zip(codes.chunks_exact(bytes)) {
                    let (d, nibbles) = (half(block), &block[2..]);
                    for (i, v) in values.iter_mut().enumerate() {
                        let q = nibbles[i % 16] >> (4 * (i / 16)) & 15;
                        *v = d * (f32::from(q) - 8.0);
                    }
                }
            }
            Format::Q4K => {
                for (values, block) in values.chunks_mut(unit).zip(codes.chunks_exact(bytes)) {
                    let (d, least) = (half(block), half(&block[2..]));
                    let (scales, nibbles) = (&block[4..16], &block[16..]);
                    for (i, v) in values.iter_mut().enumerate() {
                        let [scale, minimum] = six_bits(scales, i / 32);
                        let q = nibbles[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15;
                        *v = d * f32::from(scale) * f32::from(q) - least * f32::from(minimum);
                    }
                }
            }
            Format::Q6K => {
                for (values, block) in values.chunks_mut(unit).zip(codes.chunks_exact(bytes)) {
                    let (low, high, scales, d) =
                        (&block[..128], &block[128..192], &block[192..208], half(&block[208..]));
                    for (i, v) in values.iter_mut().enumerate() {
                        // each half of the block: four lines of 32 share 64 bytes of low and 32 of high bits
                        let (part, line, at) = (i / 128, i / 32 % 4, i % 32);
                        let low = low[64 * part + 32 * (line % 2) + at] >> (4 * (line / 2)) & 15;
                        let high = high[32 * part + at] >> (2 * line) & 3;
                        let q = f32::from(low | high << 4) - 32.0;
                        *v = d * f32::from(scales[i / 16] as i8) * q;
                    }
                }
            }
        }
    }
}

/// The scale and the least value of one of eight blocks, out of twelve bytes.
fn six_bits(packed: &[u8], block: usize) -> [u8; 2] {
    match block {
        0..4 => [packed[block] & 63, packed[block + 4] & 63],
        _ => {
            let (both, top) = (packed[block + 4], block - 4);
            [both & 15 | packed[top] >> 6 << 4, both >> 4 | packed[top + 4] >> 6 << 4]
        }
    }
}

fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-9),
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 128 == 0 { magnitude } else { -magnitude }
}

/// Factors of the values, one a block of rows and columns.
#[derive(Clone, Debug)]
pub(super) struct Scales {
    extent: Extent,
    dtype: Dtype,
    /// Rows and columns that share one.
    block: [usize; 2],
    /// Scales of a row of blocks.
    across: usize,
    read: OnceLock<Vec<f32>>,
}

impl Scales {
    /// Those of a matrix; none if there is no such arrangement.
    pub fn of(extent: Extent, dtype: Dtype, shape: &[usize], [rows, cols]: [usize; 2]) -> Option<Scales> {
        const BLOCK: usize = 128;
        let count: usize = shape.iter().product();
        let blocks = [rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)];
        let (block, across) = match shape {
            _ if count == 1 => ([rows.max(1), cols.max(1)], 1),
            [n] | [n, 1] if *n == rows => ([1, cols.max(1)], 1),
            _ if *shape == blocks => ([BLOCK; 2], blocks[1]),
            _ => return None,
        };
        Some(Scales { extent, dtype, block, across, read: OnceLock::new() })
    }

    fn values(&self) -> Result<&[f32], Error> {
        if let Some(values) = self.read.get() {
            return Ok(values);
        }
        let values = super::widen(self.dtype, &self.extent.read()?);
        Ok(self.read.get_or_init(|| values))
    }
}

/// How the values of a tensor are coded.
#[derive(Clone, Debug)]
pub(super) enum Codes {
    /// In the order of the tensor, but for rows within heads.
    Rows(Rows),
    /// 4-bit floats of experts, transposed.
    Mxfp4(Mxfp4),
}

/// Values that are float32 to a reader and something else in files.
#[derive(Clone, Debug)]
pub(super) enum Made {
    /// Codes.
    Of(Codes),
    /// Rows of other tensors.
    From(rows::Rows),
}

impl Made {
    /// Reads the values `range`; of codes through `read`, which fills a slice with the bytes from a place among the tensor's codes.
    pub fn read(
        &self,
        range: Range<usize>,
        read: impl Fn(&mut [u8], u64) -> Result<(), Error>,
        take: impl FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        match self {
            Made::Of(Codes::Rows(codes)) => codes.read(range, read, take),
            Made::Of(Codes::Mxfp4(experts)) => experts.read(range, read, take),
            Made::From(rows) => rows.read(range, take),
        }
    }
}

/// Coded values of a tensor of so many columns.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub format: Format,
    pub cols: usize,
    pub scales: Option<Arc<Scales>>,
    /// Rows of a head, where those of its two halves alternate in the file (GGUF's order for rotary positions).
    pub head_rows: Option<usize>,
    /// Added to every value.
    pub plus: f32,
}

impl Rows {
    /// Reads the values `range`, as [`Codes::read`].
    fn read(
        &self,
        range: Range<usize>,
        read: impl Fn(&mut [u8], u64) -> Result<(), Error>,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        /// Values decoded at a time, so that they stay in the cache.
        const PIECE: usize = 1 << 16;
        let (unit, bytes) = self.format.unit();
        let scales =
            self.scales.as_ref().map(|scales| Ok::<_, Error>((scales, scales.values()?))).transpose()?;
        let (mut codes, mut values) = (Vec::new(), Vec::new());
        let mut at = range.start;
        while at < range.end {
            let row_end = (at / self.cols + 1) * self.cols;
            let end = range.end.min(if self.head_rows.is_some() { row_end } else { at + PIECE });
            let stored = self.stored(at); // where the run begins in the file
            let units = stored / unit..(stored + end - at).div_ceil(unit);
            codes.resize(units.len() * bytes, 0);
            values.resize(units.len() * unit, 0.0);
            read(&mut codes, (units.start * bytes) as u64)?;
            self.format.decode(&codes, &mut values);
            let first = stored - units.start * unit;
            let run = &mut values[first..first + end - at];
            if let Some((Scales { block, across, .. }, factors)) = scales.as_ref().map(|(s, f)| (&***s, f)) {
                for (i, value) in run.iter_mut().enumerate() {
                    let (row, col) = ((at + i) / self.cols, (at + i) % self.cols);
                    *value *= factors[row / block[0] * across + col / block[1]];
                }
            }
            if self.plus != 0.0 {
                run.iter_mut().for_each(|value| *value += self.plus);
            }
            take(at, run);
            at = end;
        }
        Ok(())
    }

    /// The place of a value among those of the file.
    fn stored(&self, at: usize) -> usize {
        let Some(head) = self.head_rows else { return at };
        let (row, col) = (at / self.cols, at % self.cols);
        let (first, within) = (row / head * head, row % head);
        // the first half of the rows stand at even places, the second at odd ones
        let place = within % (head / 2) * 2 + within / (head / 2);
        (first + place) * self.cols + col
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_are_what_the_formats_say() {
        assert_eq!(
            [0x00, 0x38, 0x7e, 0xfe, 0x01, 0x08].map(e4m3),
            [0.0, 1.0, 448.0, -448.0, 2f32.powi(-9), 2f32.powi(-6)]
        );
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan() && e4m3(0x80).is_sign_negative());
        let mut wide = [0.0; 4];
        Format::E5M2.decode(&[0x3c, 0x7b, 0x01, 0xbc], &mut wide);
        assert_eq!(wide, [1.0, 57344.0, 2f32.powi(-16), -1.0]);
    }

    #[test]
    fn scales_are_of_all_of_a_row_or_of_a_block() {
        let extent = || Extent::empty();
        let block = |shape: &[usize]| {
            Scales::of(extent(), Dtype::F32, shape, [300, 200]).map(|scales| (scales.block, scales.across))
        };
        assert_eq!(block(&[]), Some(([300, 200], 1)));
        assert_eq!(block(&[1]), Some(([300, 200], 1)));
        assert_eq!(block(&[300]), Some(([1, 200], 1)));
        assert_eq!(block(&[300, 1]), Some(([1, 200], 1)));
        assert_eq!(block(&[3, 2]), Some(([128, 128], 2)));
        assert_eq!(block(&[2, 3]), None);
    }
}
