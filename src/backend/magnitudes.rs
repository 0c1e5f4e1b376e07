use crate::kernels::{MAGNITUDE_PIECES, magnitude_sum};

/// A sum of magnitudes that does not depend on the order of its terms: integers for each power of two.
#[derive(Clone, Debug)]
pub struct MagnitudeSum(Vec<u64>);

impl MagnitudeSum {
    /// Of no numbers.
    pub fn zero() -> Self {
        MagnitudeSum(vec![0; MAGNITUDE_PIECES])
    }

    /// Adds pieces as [`magnitude_sums`](crate::kernels::magnitude_sums) leaves them.
    pub fn add_pieces(&mut self, pieces: impl Iterator<Item = u32>) {
        self.0.iter_mut().zip(pieces).for_each(|(sum, piece)| *sum += u64::from(piece));
    }

    /// Adds one number.
    pub fn add(&mut self, number: f32) {
        let bits = number.to_bits();
        let exponent = (bits >> 23 & 0xff) as usize;
        let mantissa = u64::from(bits & 0x7f_ffff | u32::from(exponent > 0) << 23);
        // all in the lowest piece: pieces may be of any size here
        self.0[3 * exponent] += mantissa;
    }

    /// The sum, rounded.
    pub fn total(&self) -> f64 {
        magnitude_sum(&self.0)
    }
}

impl std::ops::AddAssign<&MagnitudeSum> for MagnitudeSum {
    fn add_assign(&mut self, other: &MagnitudeSum) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, piece)| *sum += piece);
    }
}
