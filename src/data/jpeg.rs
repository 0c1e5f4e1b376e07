//! Whether a JPEG is all there: the decoder fills what is missing with grey and says nothing.

/// Whether the markers of a JPEG lead to its end (ITU T.81, B.1.1). What lies behind that, as some cameras append, is not
/// looked at.
pub fn is_whole(bytes: &[u8]) -> bool {
    const RESTARTS: std::ops::RangeInclusive<u8> = 0xD0..=0xD7;
    let mut at = 2; // behind the marker that starts the image
    loop {
        // data of a scan, or fill bytes, up to the next marker; FF 00 is an FF of the data
        let Some(skipped) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xFF)) else {
            return false;
        };
        at += skipped + 1;
        match bytes.get(at) {
            None => return false,
            Some(0xD9) => return true,
            Some(0xFF) => {}
            Some(0x00 | 0x01) => at += 1,
            Some(marker) if RESTARTS.contains(marker) => at += 1,
            Some(_) => {
                let Some(&[high, low]) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([high, low]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_is_whole_up_to_its_end_marker() {
        // start, a segment that holds an end marker of its own (a thumbnail's), a scan with FF 00 and a restart, the end
        let segment = [0xFF, 0xE1, 0, 4, 0xFF, 0xD9];
        let scan = [0xFF, 0xDA, 0, 2, 1, 0xFF, 0, 2, 0xFF, 0xD3, 3];
        let whole = [&[0xFF, 0xD8][..], &segment, &scan, &[0xFF, 0xD9]].concat();
        assert!(is_whole(&whole));
        assert!(is_whole(&[&whole[..], &[7; 9]].concat()), "something appended");
        for cut in 0..whole.len() {
            assert!(!is_whole(&whole[..cut]), "cut at {cut}");
        }
    }
}
