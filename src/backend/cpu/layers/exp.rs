//! The exponential in a form that compilers vectorise, with the same bits on every machine; the system's is a call for
//! each element.

/// `e^x` to about one unit in the last place; 0 below -87, and at most `e^88`.
#[inline]
pub fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4; // few bits, so that its products with small integers are exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let clamped = x.clamp(-87.0, 88.0);
    let n = clamped * std::f32::consts::LOG2_E + ROUND;
    let exponent = (n.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let n = n - ROUND;
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    // Cephes' polynomial for |r| <= ln(2)/2
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let e = p * (r * r) + r + 1.0;
    let e = e * f32::from_bits(((exponent + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { e }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_a_rounding() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.0 + 0.003;
            let expected = f64::from(x.min(88.0)).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 1.5e-7 || x < -87.0, "exp({x}) is off by {error:.1e}");
        }
        assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }
}
