//! Experts' weights in the microscaling format MXFP4, as gpt-oss stores them: 4-bit floats (E2M1), 32 of a row with a power of two.
//! `NAME_blocks` of experts x outputs x groups x 16 bytes and `NAME_scales` of experts x outputs x groups stand for `NAME` of experts x
//! inputs x outputs; the formula is transformers' `convert_moe_packed_tensors`.

use super::{Error, Extent, Stored, TensorMeta};
use std::ops::Range;

/// Endings of the names of the codes and of their scales.
pub(super) const BLOCKS: &str = "_blocks";
pub(super) const SCALES: &str = "_scales";

/// Values of a group, which share a scale, and the bytes of their codes.
const GROUP: usize = 32;
const BYTES: usize = GROUP / 2;

/// What the 16 codes stand for.
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Coded weights of experts. The file has them by outputs, the tensor by inputs.
#[derive(Clone, Debug)]
pub(super) struct Mxfp4 {
    scales: Extent,
    outputs: usize,
    groups: usize,
}

impl Mxfp4 {
    /// The coding, and the shape of the values; none if these are no such tensors.
    pub fn of(blocks: &TensorMeta, scales: &TensorMeta, extent: Extent) -> Option<(Mxfp4, Vec<usize>)> {
        let [experts, outputs, groups, BYTES] = blocks.shape[..] else { return None };
        let bytes = [blocks.dtype, scales.dtype] == [Stored::U8; 2];
        if !bytes || scales.shape[..] != [experts, outputs, groups] || blocks.elements() == 0 {
            return None;
        }
        Some((Mxfp4 { scales: extent, outputs, groups }, vec![experts, groups * GROUP, outputs]))
    }

    /// Reads the values `range` through `read`, which fills a slice with the bytes from a place among the codes. One expert's codes
    /// are in memory at a time, and one group's values.
    pub fn read(
        &self,
        range: Range<usize>,
        read: impl Fn(&mut [u8], u64) -> Result<(), Error>,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        let of_group = GROUP * self.outputs;
        let of_expert = of_group * self.groups;
        let mut codes = vec![0; of_expert / 2];
        let mut values = vec![0.0; of_group];
        let (mut at, mut loaded) = (range.start, None);
        let mut scales = Vec::new();
        while at < range.end {
            let (expert, group) = (at / of_expert, at % of_expert / of_group);
            if loaded != Some(expert) {
                read(&mut codes, (expert * of_expert / 2) as u64)?;
                let each = self.outputs * self.groups;
                scales = self.scales.part(expert * each, each).read()?;
                loaded = Some(expert);
            }
            self.decode(&codes, &scales, group, &mut values);
            let first = expert * of_expert + group * of_group;
            let end = range.end.min(first + of_group);
            take(at, &values[at - first..end - first]);
            at = end;
        }
        Ok(())
    }

    /// One group of all of an expert's outputs, inputs by outputs.
    fn decode(&self, codes: &[u8], scales: &[u8], group: usize, values: &mut [f32]) {
        for output in 0..self.outputs {
            let place = output * self.groups + group;
            let scale = power_of_two(scales[place]);
            for (i, &pair) in codes[place * BYTES..][..BYTES].iter().enumerate() {
                values[2 * i * self.outputs + output] = E2M1[usize::from(pair & 15)] * scale;
                values[(2 * i + 1) * self.outputs + output] = E2M1[usize::from(pair >> 4)] * scale;
            }
        }
    }
}

/// `2^(code - 127)` (E8M0); infinite for 255, as the reference has it.
fn power_of_two(code: u8) -> f32 {
    f32::from_bits(if code == 0 { 1 << 22 } else { u32::from(code) << 23 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_powers_of_two() {
        assert_eq!(
            [0, 1, 126, 127, 128].map(power_of_two),
            [2f32.powi(-126) / 2.0, 2f32.powi(-126), 0.5, 1.0, 2.0]
        );
        assert_eq!(power_of_two(254), 2f32.powi(127));
        assert!(power_of_two(255).is_infinite());
    }
}
