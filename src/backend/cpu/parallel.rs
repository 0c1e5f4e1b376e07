//! How work is spread over threads: over the batch where it is wide enough, else inside each matrix. The split
//! depends on shapes and the number of threads only, so results repeat bit for bit.

use crate::host::all_threads;
use faer::Par;
use rayon::prelude::*;

/// Below this many flops a second thread costs more than it saves.
const FLOPS_WORTH_A_THREAD: usize = 1 << 20;
/// Elements one thread takes at a time in element-by-element loops.
pub const ELEMENTS_PER_TASK: usize = 1 << 15;

/// Calls `work(i, chunk_i, par)` for the chunks of `matrix_len` elements of `out`; each call costs `flops`.
pub fn for_each_matrix<T: Send>(
    out: &mut [T],
    matrix_len: usize,
    flops: usize,
    work: impl Fn(usize, &mut [T], Par) + Sync,
) {
    if matrix_len == 0 {
        return;
    }
    let batch = out.len() / matrix_len;
    let threads = rayon::current_num_threads();
    if batch >= threads && batch > 1 && flops * batch > FLOPS_WORTH_A_THREAD {
        out.par_chunks_mut(matrix_len).enumerate().for_each(|(i, c)| work(i, c, Par::Seq));
    } else {
        let par = if flops > FLOPS_WORTH_A_THREAD { all_threads() } else { Par::Seq };
        out.chunks_mut(matrix_len).enumerate().for_each(|(i, c)| work(i, c, par));
    }
}

/// Calls `work(first, chunk)` over pieces of `out` that are whole multiples of `unit` elements long.
pub fn for_each_piece<T: Send>(out: &mut [T], unit: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let unit = unit.max(1);
    let piece = (ELEMENTS_PER_TASK / unit).max(1) * unit;
    if out.len() <= piece {
        if !out.is_empty() {
            work(0, out);
        }
    } else {
        out.par_chunks_mut(piece).enumerate().for_each(|(i, c)| work(i * piece, c));
    }
}
