use super::recorder::{Dispatch, Window, WindowMut, require};
use super::shaders::gemm::{self as shader, Bindings, Params};
use super::shaders::gemm_blocks::GEMM_BLOCKS;
use super::shaders::gemm_direct::{self, GEMM_DIRECT};
use super::shaders::sum_parts::{self, SUM_PARTS};
use super::shaders::{Setting, Takes, names};
use super::unpack::format;
use super::{Activation, Choice, Recorder, Result, ShapeClass, Tile, View};
use crate::matrix::{Dtype, Op, Shape};

/// Matrices that a product reads, and the type of their numbers. Offset and strides of the view count numbers.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Where the matrices are.
    pub view: View<'a>,
    /// How their numbers are stored.
    pub dtype: Dtype,
}

impl<'a> From<View<'a>> for Operand<'a> {
    fn from(view: View<'a>) -> Self {
        Operand { view, dtype: Dtype::F32 }
    }
}

impl Operand<'_> {
    /// Whether every row starts, and ends, at a multiple of four numbers.
    fn is_aligned(&self) -> bool {
        let whole = (self.view.buffer.size() / 16) * 16 / self.dtype.size() as u64;
        self.view.is_in_fours() && self.view.offset + self.view.span() <= whole
    }
}

/// Factors of a product's rows or columns.
#[derive(Clone, Copy, Debug)]
pub enum Scaling<'a> {
    /// One for each row, `batch x 1 x m`.
    Rows(View<'a>),
    /// One for each column, `batch x 1 x n`.
    Columns(View<'a>),
}

/// What is done with each element before it is stored: scaled, then the bias added, then activated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Factors of rows or columns.
    pub scale: Option<Scaling<'a>>,
    /// A number added to each column, `batch x 1 x n`.
    pub bias: Option<View<'a>>,
    /// The nonlinearity.
    pub activation: Option<Activation>,
}

/// `c = f(s (alpha op(a) op(b) + beta c) + bias)` for each member of the batch.
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a> {
    /// Factor of the product.
    pub alpha: f32,
    /// The left operand.
    pub a: Operand<'a>,
    /// Whether it is transposed.
    pub op_a: Op,
    /// The right operand.
    pub b: Operand<'a>,
    /// Whether it is transposed.
    pub op_b: Op,
    /// Factor of what `c` held; with 0 that is not read.
    pub beta: f32,
    /// The result.
    pub c: View<'a>,
    /// What is done with it before it is stored.
    pub epilogue: Epilogue<'a>,
}

impl<'a> Gemm<'a> {
    /// `c = op(a) op(b)`
    pub fn new(
        a: impl Into<Operand<'a>>,
        op_a: Op,
        b: impl Into<Operand<'a>>,
        op_b: Op,
        c: View<'a>,
    ) -> Self {
        let (a, b) = (a.into(), b.into());
        Gemm { alpha: 1.0, a, op_a, b, op_b, beta: 0.0, c, epilogue: Epilogue::default() }
    }

    /// The class that decides how it is computed.
    pub fn class(&self) -> ShapeClass {
        self.product("gemm", false).class()
    }

    fn product(self, name: &'static str, triangular: bool) -> Product<'a> {
        Product { name, gemm: self, triangular, trapezoid: false }
    }

    fn check(&self, name: &'static str) -> Result<()> {
        let Gemm { a, op_a, b, op_b, c, epilogue, .. } = self;
        let ((m, k), (k_b, n)) = (op_a.apply(a.view.shape), op_b.apply(b.view.shape));
        let batch = c.shape.batch;
        let fits = k == k_b
            && c.shape == Shape::new(batch, m, n)
            && a.view.shape.batch == batch
            && b.view.shape.batch == batch;
        require(fits, name, || {
            let (a, b) = (a.view.shape, b.view.shape);
            format!("a is {a} ({op_a:?}), b is {b} ({op_b:?}), c is {}", c.shape)
        })?;
        let scale = epilogue.scale.map(|scale| match scale {
            Scaling::Rows(s) => (s.shape, m),
            Scaling::Columns(s) => (s.shape, n),
        });
        let bias = epilogue.bias.map(|bias| (bias.shape, n));
        let vectors = [scale, bias].into_iter().flatten().all(|(s, len)| s == Shape::new(batch, 1, len));
        require(vectors, name, || format!("a vector of {epilogue:?} does not fit c, which is {}", c.shape))
    }
}

/// `c = alpha op(a) op(b) + beta c` for each member of the batch. With `beta = 0` what `c` held is not read, NaN
/// included. One `a` or `b` may stand for all members of the batch ([`View::repeated`]).
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
#[allow(clippy::too_many_arguments)] // BLAS's own
pub fn gemm(
    recorder: &mut Recorder<'_>,
    alpha: f32,
    a: &View<'_>,
    op_a: Op,
    b: &View<'_>,
    op_b: Op,
    beta: f32,
    c: &View<'_>,
) -> Result<()> {
    gemm_fused(recorder, &Gemm { alpha, beta, ..Gemm::new(*a, op_a, *b, op_b, *c) })
}

/// A product with everything that can be said of it: operands of 16 bits, and an [`Epilogue`].
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn gemm_fused(recorder: &mut Recorder<'_>, gemm: &Gemm<'_>) -> Result<()> {
    gemm.check("gemm")?;
    encode(recorder, &gemm.product("gemm", false))
}

/// [`gemm_fused`] of what is on and left of the diagonal that ends in the last corner of `c`; right of it `c` holds anything.
pub(super) fn gemm_trapezoid(recorder: &mut Recorder<'_>, gemm: &Gemm<'_>) -> Result<()> {
    gemm.check("gemm")?;
    encode(recorder, &Product { trapezoid: true, ..gemm.product("gemm", false) })
}

/// The symmetric rank-k update `c = alpha op(x) op(x)^T + beta c`: half the work of [`gemm`], the whole of `c` written,
/// exactly symmetric. Only the lower triangle of `c` is read.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn syrk(
    recorder: &mut Recorder<'_>,
    alpha: f32,
    x: &View<'_>,
    op: Op,
    beta: f32,
    c: &View<'_>,
) -> Result<()> {
    let gemm = symmetric(alpha, x, op, beta, c);
    gemm.check("syrk")?;
    encode(recorder, &gemm.product("syrk", true))
}

fn symmetric<'a>(alpha: f32, x: &View<'a>, op: Op, beta: f32, c: &View<'a>) -> Gemm<'a> {
    let other = if op == Op::None { Op::Transpose } else { Op::None };
    Gemm { alpha, beta, ..Gemm::new(*x, op, *x, other, *c) }
}

/// [`gemm`] for one matrix of few elements and great depth: `splits` parts of the depth side by side, into `scratch`
/// (`splits x m x n`), then their sum in order. [`Choice::splits`] says how many are worth it.
///
/// # Errors
/// As [`gemm_fused`]; and if there is a batch, or `scratch` has another shape.
pub fn gemm_split(
    recorder: &mut Recorder<'_>,
    gemm: &Gemm<'_>,
    splits: usize,
    scratch: &View<'_>,
) -> Result<()> {
    gemm.check("gemm")?;
    split(recorder, &gemm.product("gemm", false), splits, scratch)
}

/// [`syrk`] in the manner of [`gemm_split`].
///
/// # Errors
/// As [`gemm_split`].
#[allow(clippy::too_many_arguments)]
pub fn syrk_split(
    recorder: &mut Recorder<'_>,
    alpha: f32,
    x: &View<'_>,
    op: Op,
    beta: f32,
    c: &View<'_>,
    splits: usize,
    scratch: &View<'_>,
) -> Result<()> {
    let gemm = symmetric(alpha, x, op, beta, c);
    gemm.check("syrk")?;
    split(recorder, &gemm.product("syrk", true), splits, scratch)
}

/// A product about to be encoded.
#[derive(Clone, Copy)]
struct Product<'a> {
    name: &'static str,
    gemm: Gemm<'a>,
    triangular: bool,
    /// Of which nothing is wanted right of the diagonal that ends in its last corner.
    trapezoid: bool,
}

impl<'a> Product<'a> {
    fn sizes(&self) -> [usize; 3] {
        let g = &self.gemm;
        [g.c.shape.rows, g.c.shape.cols, g.op_a.apply(g.a.view.shape).1]
    }

    fn class(&self) -> ShapeClass {
        let g = &self.gemm;
        let dtypes = [g.a.dtype, g.b.dtype];
        ShapeClass::new(g.c.shape.batch, self.sizes(), [g.op_a, g.op_b], dtypes, self.triangular)
    }

    fn choice(&self, recorder: &Recorder<'_>) -> Choice {
        recorder.kernels().choice(self.class(), self.gemm.c.shape.batch, self.sizes(), self.triangular)
    }

    /// What its shader must be told.
    fn settings<O: TakesProduct>(&self, tile: Tile, stored: &Stored<'_>) -> Vec<Setting<O>> {
        let (g, (rows, cols)) = (&self.gemm, tile.sides());
        let mut settings = stored.settings();
        settings.extend([
            shader::TILE_M.is(rows as u32),
            shader::TILE_N.is(cols as u32),
            shader::TRANSPOSE_A.is(g.op_a == Op::Transpose),
            shader::TRANSPOSE_B.is(g.op_b == Op::Transpose),
            shader::TRIANGULAR.is(self.triangular),
            shader::TRAPEZOID.is(self.trapezoid),
            shader::FORMAT_A.is(format(g.a.dtype)),
            shader::FORMAT_B.is(format(g.b.dtype)),
        ]);
        settings
    }

    /// Some of the batch.
    fn batches(&self, part: std::ops::Range<usize>) -> Self {
        let cut = |view: View<'a>| view.batches(part.clone());
        let Gemm { a, b, c, epilogue, .. } = self.gemm;
        let scale = epilogue.scale.map(|scale| match scale {
            Scaling::Rows(s) => Scaling::Rows(cut(s)),
            Scaling::Columns(s) => Scaling::Columns(cut(s)),
        });
        let epilogue = Epilogue { scale, bias: epilogue.bias.map(cut), ..epilogue };
        let (a, b) = (Operand { view: cut(a.view), ..a }, Operand { view: cut(b.view), ..b });
        Product { gemm: Gemm { a, b, c: cut(c), epilogue, ..self.gemm }, ..*self }
    }

    /// Columns of `op(a)` and rows of `op(b)`, in `count` parts of `depth` from `first` on: a batch, made into `c`.
    fn deep(&self, first: usize, depth: usize, count: usize, c: View<'a>) -> Self {
        let part = |operand: Operand<'a>, along_rows: bool| {
            let range = first..first + depth;
            let view = if along_rows { operand.view.rows(range) } else { operand.view.cols(range) };
            let step = if along_rows { depth * view.row_stride } else { depth };
            let shape = Shape { batch: count, ..view.shape };
            Operand { view: View { shape, batch_stride: step, ..view }, ..operand }
        };
        let g = &self.gemm;
        let (a, b) = (part(g.a, g.op_a == Op::Transpose), part(g.b, g.op_b == Op::None));
        let gemm = Gemm { alpha: 1.0, a, b, beta: 0.0, c, epilogue: Epilogue::default(), ..*g };
        Product { gemm, ..*self }
    }
}

/// One dispatch, or several where the batch is longer than a dispatch may be deep.
fn encode(recorder: &mut Recorder<'_>, p: &Product<'_>) -> Result<()> {
    if p.gemm.c.shape.is_empty() {
        return Ok(());
    }
    let tile = p.choice(recorder).tile;
    let deepest = recorder.kernels().limits().max_compute_workgroups_per_dimension as usize;
    let batch = p.gemm.c.shape.batch;
    for first in (0..batch).step_by(deepest) {
        encode_part(recorder, tile, &p.batches(first..batch.min(first + deepest)))?;
    }
    Ok(())
}

fn encode_part(recorder: &mut Recorder<'_>, tile: Tile, p: &Product<'_>) -> Result<()> {
    let tile = if p.triangular { tile.for_triangle() } else { tile };
    let g = &p.gemm;
    let [m, n, k] = p.sizes();
    let operands_in_fours = k > 0 && g.a.is_aligned() && g.b.is_aligned();
    // tiles through workgroup memory are stored in fours too
    let in_fours = operands_in_fours && (tile == Tile::Direct || Operand::from(g.c).is_aligned());
    let narrow = [g.a, g.b].iter().any(|operand| operand.dtype != Dtype::F32);
    let tiles = tile.count(m, n, p.triangular);
    let [x, y, _] = recorder.grid(p.name, tiles as u64, 1)?;
    let (a, b) = (
        operand_window(recorder, p.name, &g.a, in_fours)?,
        operand_window(recorder, p.name, &g.b, in_fours)?,
    );
    let mut params = Params {
        k: k as u32,
        tiles: tiles as u32,
        a_offset: a.first,
        a_row_stride: g.a.view.row_stride as u32,
        a_batch_stride: g.a.view.batch_stride as u32,
        b_offset: b.first,
        b_row_stride: g.b.view.row_stride as u32,
        b_batch_stride: g.b.view.batch_stride as u32,
        ..result_params(g)
    };
    let stored_in_fours = in_fours && tile != Tile::Direct;
    let stored = Stored::new(recorder, p.name, g, stored_in_fours, &mut params)?;
    let operands = Bindings {
        a,
        b,
        c: stored.c,
        bias: stored.bias.unwrap_or(a),
        scale: stored.scale.map_or(a, |s| s.0),
    };
    let groups = [x, y, g.c.shape.batch as u32];
    match tile {
        Tile::Direct if in_fours => {
            let constants = p.settings(tile, &stored);
            recorder.dispatch(Dispatch {
                entry: GEMM_BLOCKS.on(operands),
                constants: &constants,
                params,
                groups,
            });
        }
        Tile::Direct => {
            let constants = p.settings(tile, &stored);
            recorder.dispatch(Dispatch {
                entry: GEMM_DIRECT.on(operands),
                constants: &constants,
                params,
                groups,
            });
        }
        _ => {
            let entry = tile.tiled(in_fours, narrow).on(operands);
            let mut constants = p.settings(tile, &stored);
            constants.extend(tile.threads());
            recorder.dispatch(Dispatch { entry, constants: &constants, params, groups });
        }
    }
    Ok(())
}

/// The overrides of every shader of a product.
trait TakesProduct:
    TakesEpilogue
    + Takes<names::TransposeA, bool>
    + Takes<names::TransposeB, bool>
    + Takes<names::Triangular, bool>
    + Takes<names::Trapezoid, bool>
    + Takes<names::FormatA, u32>
    + Takes<names::FormatB, u32>
    + Takes<names::TileM, u32>
    + Takes<names::TileN, u32>
{
}

impl TakesProduct for shader::Overrides {}
impl TakesProduct for gemm_direct::Overrides {}

/// The depth in parts, each a matrix of `scratch`, and their sum.
fn split(recorder: &mut Recorder<'_>, p: &Product<'_>, splits: usize, scratch: &View<'_>) -> Result<()> {
    let [m, n, k] = p.sizes();
    let fits = p.gemm.c.shape.batch == 1 && splits > 0 && scratch.shape == Shape::new(splits, m, n);
    require(fits, p.name, || {
        format!("c is {}, the scratch of {splits} parts is {}", p.gemm.c.shape, scratch.shape)
    })?;
    if p.gemm.c.shape.is_empty() {
        return Ok(());
    }
    let tile = p.choice(recorder).tile;
    // whole slabs deep, so that parts stay aligned; without any depth there is one part, of zeros
    let depth = k.div_ceil(splits).max(1).next_multiple_of(shader::DEPTH as usize);
    let whole = k / depth;
    if whole > 0 {
        encode_part(recorder, tile, &p.deep(0, depth, whole, scratch.batches(0..whole)))?;
    }
    let rest = k - whole * depth;
    let parts = if rest > 0 || whole == 0 {
        let last = scratch.batches(whole..whole + 1);
        encode_part(recorder, tile, &p.deep(whole * depth, rest, 1, last))?;
        whole + 1
    } else {
        whole
    };
    sum_parts(recorder, p, &scratch.batches(0..parts))
}

fn sum_parts(recorder: &mut Recorder<'_>, p: &Product<'_>, parts: &View<'_>) -> Result<()> {
    let g = &p.gemm;
    let source = recorder.window(p.name, parts)?;
    let mut params = Params {
        k: parts.shape.batch as u32,
        a_offset: source.first,
        a_row_stride: parts.row_stride as u32,
        a_batch_stride: parts.batch_stride as u32,
        ..result_params(g)
    };
    let stored = Stored::new(recorder, p.name, g, false, &mut params)?;
    let groups = recorder.grid(p.name, g.c.shape.matrix_len() as u64, SUM_PARTS.workgroup)?;
    let operands = sum_parts::Bindings {
        a: source,
        c: stored.c,
        bias: stored.bias.unwrap_or(source),
        scale: stored.scale.map_or(source, |s| s.0),
    };
    let constants = stored.settings();
    recorder.dispatch(Dispatch { entry: SUM_PARTS.on(operands), constants: &constants, params, groups });
    Ok(())
}

fn operand_window<'v>(
    recorder: &Recorder<'_>,
    kernel: &'static str,
    operand: &Operand<'v>,
    in_fours: bool,
) -> Result<Window<'v>> {
    let view = &operand.view;
    let ordered = view.row_stride >= view.shape.cols || view.shape.rows <= 1;
    require(ordered, kernel, || {
        format!("rows of {} elements are {} apart", view.shape.cols, view.row_stride)
    })?;
    let unit = if in_fours { 16 } else { 4 };
    recorder.numbers(kernel, view.buffer, view.offset, view.span().max(1), operand.dtype, unit)
}

/// What the shaders must know of the result.
fn result_params(g: &Gemm<'_>) -> Params {
    Params {
        m: g.c.shape.rows as u32,
        n: g.c.shape.cols as u32,
        c_row_stride: g.c.row_stride as u32,
        c_batch_stride: g.c.batch_stride as u32,
        alpha: g.alpha,
        beta: g.beta,
        ..bytemuck::Zeroable::zeroed()
    }
}

/// What is bound for the result and the vectors of its epilogue.
struct Stored<'v> {
    c: WindowMut<'v>,
    bias: Option<Window<'v>>,
    /// And whether it is of rows or of columns.
    scale: Option<(Window<'v>, u32)>,
    activation: Option<Activation>,
}

/// The overrides of a shader that stores a result.
trait TakesEpilogue:
    Takes<names::Bias, bool>
    + Takes<names::Scale, u32>
    + Takes<names::Activation, bool>
    + Takes<names::Function, u32>
{
}

impl TakesEpilogue for shader::Overrides {}
impl TakesEpilogue for gemm_direct::Overrides {}
impl TakesEpilogue for sum_parts::Overrides {}

impl<'v> Stored<'v> {
    fn new(
        recorder: &Recorder<'_>,
        name: &'static str,
        g: &Gemm<'v>,
        in_fours: bool,
        params: &mut Params,
    ) -> Result<Self> {
        let Epilogue { scale, bias, activation } = g.epilogue;
        let c = operand_window(recorder, name, &Operand::from(g.c), in_fours).map(WindowMut)?;
        params.c_offset = c.first;
        let bias = bias.map(|bias| Ok((recorder.window(name, &bias)?, bias.batch_stride))).transpose()?;
        if let Some((window, stride)) = &bias {
            (params.bias_offset, params.bias_batch_stride) = (window.first, *stride as u32);
        }
        let scale = match scale {
            Some(Scaling::Rows(s)) => Some((s, shader::OF_ROWS)),
            Some(Scaling::Columns(s)) => Some((s, shader::OF_COLUMNS)),
            None => None,
        };
        let scale =
            scale.map(|(s, code)| Ok((recorder.window(name, &s)?, s.batch_stride, code))).transpose()?;
        if let Some((window, stride, _)) = &scale {
            (params.scale_offset, params.scale_batch_stride) = (window.first, *stride as u32);
        }
        Ok(Stored { c, bias: bias.map(|b| b.0), scale: scale.map(|s| (s.0, s.2)), activation })
    }

    fn settings<O: TakesEpilogue>(&self) -> Vec<Setting<O>> {
        let mut settings = Vec::new();
        settings.extend(self.bias.map(|_| shader::BIAS.is(true)));
        settings.extend(self.scale.map(|(_, code)| shader::SCALE.is(code)));
        if let Some(activation) = self.activation {
            settings.extend([shader::ACTIVATION.is(true), shader::FUNCTION.is(activation as u32)]);
        }
        settings
    }
}
