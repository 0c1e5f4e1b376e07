//! What is measured: kernels, sizes, and what each costs.

use super::{Error, Peak, Result, Selection};
use crate::kernels::LARGEST_EIGENPROBLEM;
use crate::matrix::{Dtype, Op};
use std::fmt;
use std::str::FromStr;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// `C = op(A) op(B)`
    Gemm(Op, Op),
    /// `C = op(X) op(X)^T`
    Syrk(Op),
    /// Stored numbers to f32.
    Unpack,
    /// f32 to stored numbers.
    Pack,
    /// `y = alpha x + beta y`
    Axpby,
    /// A copy between layouts.
    CopyBlock,
    /// A factor for every row.
    ScaleRows,
    /// A factor for every column.
    ScaleColumns,
    /// Norms of rows.
    ReduceRows,
    /// Norms of columns.
    ReduceColumns,
    /// Random numbers.
    RandomNormal,
    /// The inverse of a Cholesky factor.
    InverseCholesky,
    /// All eigenpairs of a small matrix.
    SymmetricEigen,
    /// LayerNorm of rows.
    LayerNorm,
    /// Attention with heads of 64.
    Attention,
    /// An orthonormal basis of the rows, by CholeskyQR.
    OrthonormalizeRows,
    /// Leading eigenvectors by subspace iteration.
    LeadingEigenpairs,
    /// The polar factor.
    Polar,
}

const ALL: [(&str, Kernel); 21] = [
    ("gemm", Kernel::Gemm(Op::None, Op::None)),
    ("gemm-nt", Kernel::Gemm(Op::None, Op::Transpose)),
    ("gemm-tn", Kernel::Gemm(Op::Transpose, Op::None)),
    ("syrk", Kernel::Syrk(Op::None)),
    ("syrk-t", Kernel::Syrk(Op::Transpose)),
    ("unpack", Kernel::Unpack),
    ("pack", Kernel::Pack),
    ("axpby", Kernel::Axpby),
    ("copy_block", Kernel::CopyBlock),
    ("scale_rows", Kernel::ScaleRows),
    ("scale_columns", Kernel::ScaleColumns),
    ("reduce_rows", Kernel::ReduceRows),
    ("reduce_columns", Kernel::ReduceColumns),
    ("random_normal", Kernel::RandomNormal),
    ("inverse_cholesky", Kernel::InverseCholesky),
    ("symmetric_eigen", Kernel::SymmetricEigen),
    ("layer_norm", Kernel::LayerNorm),
    ("attention", Kernel::Attention),
    ("orthonormalize_rows", Kernel::OrthonormalizeRows),
    ("leading_eigenpairs", Kernel::LeadingEigenpairs),
    ("polar", Kernel::Polar),
];

/// The width of a head in [`Kernel::Attention`].
pub(super) const HEAD: usize = 64;

/// What is not chosen by name runs for no more than so many seconds at the peak.
const PATIENCE: f64 = 0.25;

/// Bytes of all operands together, at most: beyond it they fit few devices, and no binding.
const LARGEST: f64 = (4u64 << 30) as f64;

impl Kernel {
    /// Every kernel and its name.
    pub fn all() -> impl Iterator<Item = (&'static str, Kernel)> {
        ALL.into_iter()
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        Kernel::all().find(|&(_, kernel)| kernel == self).map_or("", |(name, _)| name)
    }

    /// The sizes measured when none is asked for: what a merge of common models meets, and cubes that others quote.
    fn sizes(self) -> &'static [&'static str] {
        match self {
            Kernel::Gemm(Op::None, Op::None) => &[
                "256x256x256",
                "512x512x512",
                "1024x1024x1024",
                "4096x4096x4096",
                "768x768x768",
                "3072x768x1600",
                "2304x96x2304",
                "8:144x1600x1600",
            ],
            Kernel::Gemm(Op::None, _) => &["512x512x512", "1600x3072x768", "8:96x96x1600"],
            Kernel::Gemm(..) => &["512x512x512", "2304x768x1600"],
            Kernel::Syrk(_) => &["512x512", "768x1600", "3072x1600", "4096x4096"],
            Kernel::InverseCholesky => &["8:144x144", "576x576"],
            Kernel::SymmetricEigen => &["8:96x96", "256x256", "8:461x461"],
            Kernel::LayerNorm => &["1600x3072"],
            Kernel::Attention => &["32:50x768"],
            Kernel::OrthonormalizeRows => &["8:144x1600", "576x3072"],
            Kernel::LeadingEigenpairs => &["8:96x768x1600", "8:384x3072x1600"],
            Kernel::Polar => &["768x768", "768x3072", "3072x3072"],
            _ => &["4096x4096"],
        }
    }

    fn dtypes(self) -> &'static [Dtype] {
        match self {
            Kernel::Unpack | Kernel::Pack => &[Dtype::F16, Dtype::Bf16],
            _ => &[Dtype::F32],
        }
    }

    /// Whether it is many kernels, some of which wait for a result of others: the host times it, on every device.
    pub fn is_algorithm(self) -> bool {
        use Kernel::{Attention, LeadingEigenpairs, OrthonormalizeRows, Polar};
        matches!(self, Attention | OrthonormalizeRows | LeadingEigenpairs | Polar)
    }

    /// Whether a size is of the right kind, and what that kind is.
    fn suits(self, size: Size) -> (bool, &'static str) {
        match self {
            Kernel::Gemm(..) => (size.depth.is_some(), "MxNxK, for C of M x N and a depth of K"),
            Kernel::Syrk(_) => (size.depth.is_none(), "NxK, for C of N x N and a depth of K"),
            Kernel::InverseCholesky => (size.is_square(), "NxN"),
            Kernel::SymmetricEigen => {
                (size.is_square() && size.rows <= LARGEST_EIGENPROBLEM, "NxN, of 4096 at most")
            }
            Kernel::Attention => {
                let heads = size.depth.is_none() && size.cols.is_multiple_of(HEAD);
                (heads, "SAMPLES:TOKENSxWIDTH, with a width of whole heads of 64")
            }
            Kernel::LayerNorm => (size.depth.is_none() && size.batch == 1, "ROWSxCOLUMNS, one matrix"),
            Kernel::OrthonormalizeRows => {
                (size.depth.is_none() && size.rows <= size.cols, "ROWSxCOLUMNS, no more rows than columns")
            }
            Kernel::LeadingEigenpairs => {
                let enough = size.depth.is_some_and(|tokens| size.rows <= size.cols.min(tokens));
                (enough, "KxDxN: the K leading eigenvectors of X^T X, X of N x D, K at most N and D")
            }
            _ => (size.depth.is_none(), "ROWSxCOLUMNS"),
        }
    }
}

impl FromStr for Kernel {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Kernel, String> {
        let found = Kernel::all().find(|&(name, _)| name == text).map(|(_, kernel)| kernel);
        found.ok_or_else(|| {
            let names: Vec<_> = Kernel::all().map(|(name, _)| name).collect();
            // Part of a name is nearer than any other that is spelt alike.
            let likeness =
                |name: &str| f64::from(u8::from(name.contains(text))) + strsim::jaro_winkler(text, name);
            let nearest = names.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
            let nearest = nearest.unwrap_or_default();
            format!("there is no kernel '{text}'; did you mean '{nearest}'? There are {}", names.join(", "))
        })
    }
}

/// Sizes of a case: `512x512`, `256x256x1024` with a depth, `8:96x96` for a batch of eight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Size {
    /// Matrices side by side.
    pub batch: usize,
    /// Rows, of the result if there is a depth.
    pub rows: usize,
    /// Columns, likewise.
    pub cols: usize,
    /// What is summed over.
    pub depth: Option<usize>,
}

impl Size {
    fn is_square(self) -> bool {
        self.depth.is_none() && self.rows == self.cols
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Size, String> {
        let wrong = || format!("'{text}' is no size: use MxNxK, ROWSxCOLUMNS, or BATCH:ROWSxCOLUMNS");
        // A matrix of 2^15 x 2^15 is 4 GiB, and no binding holds more.
        let number = |text: &str| match text.parse::<usize>() {
            Ok(n) if (1..=1 << 20).contains(&n) => Ok(n),
            _ => Err(wrong()),
        };
        let (batch, sizes) = text.split_once(':').unwrap_or(("1", text));
        let batch = number(batch)?;
        let sizes = sizes.split('x').map(number).collect::<std::result::Result<Vec<_>, _>>()?;
        match sizes[..] {
            [rows, cols] => Ok(Size { batch, rows, cols, depth: None }),
            [rows, cols, depth] => Ok(Size { batch, rows, cols, depth: Some(depth) }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch > 1 {
            write!(f, "{}:", self.batch)?;
        }
        write!(f, "{}x{}", self.rows, self.cols)?;
        self.depth.map_or(Ok(()), |depth| write!(f, "x{depth}"))
    }
}

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Case {
    /// What runs.
    pub kernel: Kernel,
    /// On how much.
    pub size: Size,
    /// The type of what is stored.
    pub dtype: Dtype,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.kernel.name(), self.size, self.dtype)
    }
}

impl Case {
    /// Floating-point operations of one run, by the usual count; 0 where memory is all that counts, and for algorithms
    /// that are free to choose how many they need.
    pub fn flops(&self) -> f64 {
        let Size { batch, rows, cols, depth } = self.size;
        let (m, n) = (rows as f64, cols as f64);
        batch as f64
            * match self.kernel {
                Kernel::Gemm(..) => 2.0 * m * n * depth.unwrap_or(0) as f64,
                Kernel::Syrk(_) => m * (m + 1.0) * n,
                // Half of a factorization's and half of an inversion's 2/3 n^3.
                Kernel::InverseCholesky => 2.0 / 3.0 * m.powi(3),
                // A tridiagonalization, the eigenvectors and their way back, as LAPACK counts them.
                Kernel::SymmetricEigen => 9.0 * m.powi(3),
                Kernel::Attention => 4.0 * m * m * n,
                // Two passes of a Gram matrix, its factor's inverse and a product.
                Kernel::OrthonormalizeRows => 2.0 * (3.0 * m * m * n + 2.0 / 3.0 * m.powi(3)),
                _ => 0.0,
            }
    }

    /// Bytes that one run has to read and write, if it does each once; 0 for algorithms.
    pub fn bytes(&self) -> f64 {
        let Size { batch, rows, cols, depth } = self.size;
        let (m, n) = (rows as f64, cols as f64);
        let stored = self.dtype.size() as f64;
        batch as f64
            * match self.kernel {
                Kernel::Gemm(..) => 4.0 * (m * n + (m + n) * depth.unwrap_or(0) as f64),
                Kernel::Syrk(_) => 4.0 * (m * n + m * m),
                Kernel::Unpack | Kernel::Pack => (4.0 + stored) * m * n,
                Kernel::Axpby => 12.0 * m * n,
                Kernel::ReduceRows | Kernel::ReduceColumns | Kernel::RandomNormal => 4.0 * m * n,
                _ if self.kernel.is_algorithm() => 0.0,
                _ => 8.0 * m * n,
            }
    }

    /// Bytes of its operands and results.
    fn footprint(&self) -> f64 {
        let Size { batch, rows, cols, depth } = self.size;
        let (m, n) = (rows as f64, cols as f64);
        4.0 * batch as f64
            * match self.kernel {
                Kernel::Gemm(..) => m * n + (m + n) * depth.unwrap_or(0) as f64,
                Kernel::Syrk(_) | Kernel::OrthonormalizeRows => m * n + m * m,
                Kernel::LeadingEigenpairs => n * (n + m + depth.unwrap_or(0) as f64),
                Kernel::Polar => 2.0 * m * n + m.min(n).powi(2),
                Kernel::Attention => 4.0 * m * n,
                _ => 2.0 * m * n,
            }
    }

    /// Whether it is quick enough to be measured without having been asked for.
    pub fn is_affordable(&self, peak: Peak) -> bool {
        let flops = match (self.kernel, self.size) {
            // About what today's iterations need.
            (Kernel::Polar, Size { rows, cols, .. }) => {
                50.0 * rows.min(cols).pow(2) as f64 * rows.max(cols) as f64
            }
            (Kernel::LeadingEigenpairs, Size { batch, rows, cols, depth }) => {
                let side = cols.min(depth.unwrap_or(cols)) as f64;
                20.0 * (batch * rows) as f64 * side * side
            }
            // Jacobi's rotations are ten times the operations that are counted
            (Kernel::SymmetricEigen, _) => 10.0 * self.flops(),
            _ => self.flops(),
        };
        flops < PATIENCE * 1e9 * peak.gflops
    }
}

/// The cases of a selection.
pub(super) fn choose(selection: &Selection) -> Result<Vec<Case>> {
    let wanted = |kernel: &Kernel| selection.kernels.is_empty() || selection.kernels.contains(kernel);
    let kernels: Vec<Kernel> = Kernel::all().map(|(_, kernel)| kernel).filter(wanted).collect();
    if let Some(size) = selection.sizes.iter().find(|&&size| !kernels.iter().any(|k| k.suits(size).0)) {
        let kinds: Vec<_> =
            kernels.iter().map(|k| format!("{} takes {}", k.name(), k.suits(*size).1)).collect();
        return Err(Error::Usage(format!("{size} is no size here: {}", kinds.join("; "))));
    }
    let mut cases = Vec::new();
    for &kernel in &kernels {
        for size in sizes(kernel, selection)? {
            let dtypes = kernel.dtypes().iter().copied();
            let wanted = |dtype: &Dtype| selection.dtypes.is_empty() || selection.dtypes.contains(dtype);
            cases.extend(dtypes.filter(wanted).map(|dtype| Case { kernel, size, dtype }));
        }
    }
    if cases.is_empty() {
        let nothing = "no chosen kernel is of a chosen size and type";
        return Err(Error::Usage(format!("{nothing}; only pack and unpack have other types than float32")));
    }
    match cases.iter().find(|case| case.footprint() > LARGEST) {
        Some(case) => Err(Error::Usage(format!(
            "{case} takes {:.0} GiB; measure no more than {:.0} GiB at once",
            case.footprint() / (1u64 << 30) as f64,
            LARGEST / (1u64 << 30) as f64
        ))),
        None => Ok(cases),
    }
}

/// The sizes of a kernel: its own, or those asked for that fit. If the kernel was asked for too, one has to.
fn sizes(kernel: Kernel, selection: &Selection) -> Result<Vec<Size>> {
    if selection.sizes.is_empty() {
        return Ok(kernel.sizes().iter().filter_map(|text| text.parse().ok()).collect());
    }
    let sizes: Vec<Size> = selection.sizes.iter().copied().filter(|&size| kernel.suits(size).0).collect();
    match selection.sizes.first() {
        Some(&size) if sizes.is_empty() && !selection.kernels.is_empty() => {
            let (name, (_, kind)) = (kernel.name(), kernel.suits(size));
            Err(Error::Usage(format!("{size} is no size for {name}, which takes {kind}")))
        }
        _ => Ok(sizes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_sizes_are_read_as_they_are_written() {
        for (name, kernel) in Kernel::all() {
            assert_eq!((kernel.name(), name.parse()), (name, Ok(kernel)));
            assert!(!kernel.sizes().is_empty());
            for text in kernel.sizes() {
                let size: Size = text.parse().unwrap();
                assert_eq!(&size.to_string(), text);
                assert!(kernel.suits(size).0, "{name} {text}");
            }
        }
        for text in ["", "12", "0x4", "4x", "4x4x4x4", "a:4x4", "-1x4", "99999999x1"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_selection_of_nothing_is_everything_and_every_choice_narrows_it() {
        let all = choose(&Selection::default()).unwrap();
        let some = choose(&Selection { kernels: vec![Kernel::Pack], ..Selection::default() }).unwrap();
        assert!(all.len() > some.len() && some.iter().all(|case| all.contains(case)));
        let half = Selection { dtypes: vec![Dtype::F16], ..Selection::default() };
        assert!(choose(&half).unwrap().iter().all(|case| case.dtype == Dtype::F16));
        let cube = Selection { sizes: vec!["8x8x8".parse().unwrap()], ..Selection::default() };
        assert!(choose(&cube).unwrap().iter().all(|case| case.kernel.suits(case.size).0));
        let wrong = Selection { kernels: vec![Kernel::Syrk(Op::None)], ..cube };
        assert!(choose(&wrong).is_err());
    }

    #[test]
    fn a_case_beyond_any_memory_is_refused() {
        let huge =
            Selection { sizes: vec!["1048576:1048576x1048576".parse().unwrap()], ..Selection::default() };
        assert!(choose(&huge).is_err());
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_nearest() {
        let error = "cholesky".parse::<Kernel>().unwrap_err();
        assert!(error.contains("did you mean 'inverse_cholesky'"), "{error}");
    }
}
