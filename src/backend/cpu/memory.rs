//! Memory of freed tensors, kept for the next ones of about the same length: fresh pages cost the kernel more time to
//! clear than most operations take to fill them.

use std::cell::RefCell;

/// Shorter ones are left to the allocator, which keeps them itself.
const SHORTEST: usize = 1 << 16;

/// A tensor may get memory for so many times its length.
const WASTE: usize = 2;

/// Elements kept at most, 384 MiB.
const MOST: usize = 96 << 20;

/// What is kept is at most so many times the longest tensor kept, so that small layers leave little behind. The
/// longest idle go first.
const ALIKE: usize = 3;

thread_local! {
    static IDLE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// `len` elements that hold anything.
pub fn take(len: usize) -> Vec<f32> {
    reuse(len).unwrap_or_else(|| vec![0.0; len])
}

/// `len` zeros.
pub fn zeros(len: usize) -> Vec<f32> {
    match reuse(len) {
        Some(mut values) => {
            values.fill(0.0);
            values
        }
        None => vec![0.0; len],
    }
}

fn reuse(len: usize) -> Option<Vec<f32>> {
    if len < SHORTEST {
        return None;
    }
    IDLE.with_borrow_mut(|idle| {
        let fits = |values: &Vec<f32>| (len..=WASTE * len).contains(&values.capacity());
        let (at, _) = idle.iter().enumerate().filter(|(_, v)| fits(v)).min_by_key(|(_, v)| v.capacity())?;
        let mut values = idle.remove(at);
        values.resize(len, 0.0);
        Some(values)
    })
}

/// Keeps the memory of a tensor that is gone.
pub fn give_back(values: Vec<f32>) {
    if !(SHORTEST..=MOST).contains(&values.capacity()) {
        return;
    }
    // at the end of a thread there is no one left to keep it for
    let _ = IDLE.try_with(|idle| {
        let Ok(mut idle) = idle.try_borrow_mut() else { return };
        idle.push(values);
        let lens = || idle.iter().map(Vec::capacity);
        let (mut kept, longest) = (lens().sum::<usize>(), lens().max().unwrap_or(0));
        while kept > MOST.min(ALIKE * longest) {
            kept -= idle.remove(0).capacity();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_for_the_same_length_and_zeros_are_zeros() {
        let mut values = take(SHORTEST);
        values.fill(7.0);
        let place = values.as_ptr();
        give_back(values);
        assert!(take(SHORTEST + 1).iter().all(|&v| v == 0.0));
        let again = zeros(SHORTEST);
        assert_eq!(again.as_ptr(), place);
        assert!(again.iter().all(|&v| v == 0.0));
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        for _ in 0..4 {
            give_back(vec![0.0; MOST / 3]);
        }
        let kept = IDLE.with_borrow(|idle| idle.iter().map(Vec::len).sum::<usize>());
        assert!((1..=MOST).contains(&kept), "{kept}");
    }
}
