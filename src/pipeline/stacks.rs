//! The layers that adapters change, with the factors of all of them.

use super::decompose::is_calibrated;
use super::inputs::input_requests;
use super::members::members;
use super::reader::{Reader, Request};
use super::weights::base_request;
use super::{Error, Job, low_rank};
use crate::adapter::Linear;
use crate::backend::{Backend, Shape, Tensor};
use crate::checkpoint::{self, LoraModule as Module, widen};
use crate::plan::{Layer, Part, Role};

/// A layer that adapters change, with the factors of its tensors. It has the sizes of the matrix that methods see: that of the
/// stored weights, one below the other, or its transpose where methods look at inputs and the weight is stored across.
pub(super) struct Stack<'a> {
    /// Its place in the plan.
    pub index: usize,
    pub layer: &'a Layer,
    pub d_out: usize,
    pub d_in: usize,
    /// By expert: the part, its first row, and its factors.
    factors: Vec<Vec<(usize, usize, Linear)>>,
}

impl Stack<'_> {
    /// Rows of the factors of the expert that has most.
    fn rank(&self) -> usize {
        let of_expert = |own: &Vec<(usize, usize, Linear)>| own.iter().map(|(.., one)| one.rank).sum();
        self.factors.iter().map(of_expert).max().unwrap_or(0)
    }

    fn all(&self) -> impl Iterator<Item = &Linear> {
        self.factors.iter().flatten().map(|(.., one)| one)
    }

    pub fn bytes(&self) -> u64 {
        self.all().map(|one| (one.a.bytes() + one.b.bytes()) as u64).sum()
    }

    /// The tensors that any expert has factors of.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        let has = |place: usize| self.factors.iter().flatten().any(|(part, ..)| *part == place);
        self.layer.parts.iter().enumerate().filter(move |(place, _)| has(*place)).map(|(_, part)| part)
    }

    /// What its modules are: the same for all adapters.
    pub fn module(&self) -> Module {
        self.all().next().map_or(Module::Linear, |one| one.module)
    }

    /// Whether the product of the factors, `d_out x d_in` of the module, is the transpose of the matrix that methods see.
    pub fn is_turned(&self) -> bool {
        (self.module() != Module::Linear) != self.layer.transposed
    }

    /// `B_t^T` (`T x r x d_out`, with the adapter's scale) and `A_t` (`T x r x d_in`) of all experts, zeros where one has fewer
    /// rows: `dW_t = B_t A_t`.
    pub fn read<B: Backend>(&self, backend: &B, reader: &mut Reader<'_>) -> Result<[B::Tensor; 2], Error> {
        let (r, d_out, d_in) = (self.rank(), self.d_out, self.d_in);
        let tasks = self.factors.len();
        let (mut b, mut a) = (vec![0f32; tasks * r * d_out], vec![0f32; tasks * r * d_in]);
        for (t, own) in self.factors.iter().enumerate() {
            let mut k = t * r;
            for (_, row, one) in own {
                let of_a = reader.other(one.a.clone())?;
                let of_a = widen(of_a.dtype(), &of_a);
                let of_b = reader.other(one.b.clone())?;
                let of_b = widen(of_b.dtype(), &of_b).into_iter().map(|v| (f64::from(v) * one.scale) as f32);
                let of_b: Vec<f32> = of_b.collect();
                // (B A)^T = A^T B^T
                let (rows, columns, row) =
                    if self.is_turned() { (&mut a, &mut b, 0) } else { (&mut b, &mut a, *row) };
                let (height, width) = if self.is_turned() { (d_in, d_out) } else { (d_out, d_in) };
                columns[k * width..(k + one.rank) * width].copy_from_slice(&of_a);
                for (i, values) in of_b.chunks(one.rank).enumerate() {
                    values.iter().enumerate().for_each(|(j, &v)| rows[(k + j) * height + row + i] = v);
                }
                k += one.rank;
            }
        }
        let upload = |values: &[f32], cols| backend.upload(Shape::new(tasks, r, cols), values);
        let pair = upload(&b, d_out).and_then(|b| Ok([b, upload(&a, d_in)?]));
        pair.map_err(Error::device(&self.layer.name))
    }

    /// The base's weights as methods see them.
    pub fn base<B: Backend>(&self, job: &Job<'_, B>, reader: &mut Reader<'_>) -> Result<B::Tensor, Error> {
        let (backend, base) = (job.backend, &job.family.base);
        let device = || Error::device(&self.layer.name);
        let mut values_of = |part: &Part| -> Result<B::Tensor, Error> {
            let shape = Shape::matrix(part.rows, part.elements() / part.rows.max(1));
            let stored = reader.base(base.values(&part.name, 0..part.elements())?)?;
            let values = backend.unpack(shape, stored.dtype(), &stored).map_err(device())?;
            if self.layer.transposed { backend.transpose(&values).map_err(device()) } else { Ok(values) }
        };
        if let [only] = &self.layer.parts[..] {
            return values_of(only);
        }
        let mut whole = backend.zeros(Shape::matrix(self.d_out, self.d_in)).map_err(device())?;
        let mut row = 0;
        for part in &self.layer.parts {
            let values = values_of(part)?;
            let Shape { rows, cols, .. } = values.shape();
            backend
                .copy_block(&values, [0, 0, 0], &mut whole, [0, row, 0], [1, rows, cols])
                .map_err(device())?;
            row += rows;
        }
        Ok(whole)
    }
}

/// The layers that adapters change; an error where one does what factors of matrices cannot say.
pub(super) fn stacks<'a, B>(job: &Job<'a, B>) -> Result<Vec<Stack<'a>>, Error> {
    let mut stacks = Vec::new();
    for (index, layer) in job.plan.layers.iter().enumerate() {
        if matches!(layer.role, Role::Base | Role::Pretrained | Role::Experts) {
            continue;
        }
        let mut factors = Vec::with_capacity(job.family.experts.len());
        let mut module = None;
        for adapter in job.family.experts.iter().filter_map(|expert| expert.adapter.as_ref()) {
            let refused =
                |reason: String| checkpoint::Error::BadAdapter { path: adapter.path().to_path_buf(), reason };
            let (mut own, mut row) = (Vec::new(), 0);
            for (place, part) in layer.parts.iter().enumerate() {
                if let Some(linear) = adapter.linear(&part.name)? {
                    if part.shape.len() != 2 {
                        let name = &part.name;
                        let reason = format!(
                            "it adds to `{name}`, which is no matrix; `out: lora` merges linear layers and embeddings"
                        );
                        return Err(refused(reason).into());
                    }
                    if linear.module != Module::Linear && layer.parts.len() > 1 {
                        let reason = format!(
                            "its factors of `{}` are stored across, and the layer is merged as one of several tensors; set \
                             `fuse_qkv: false`",
                            part.name
                        );
                        return Err(refused(reason).into());
                    }
                    if *module.get_or_insert(linear.module) != linear.module {
                        let name = &part.name;
                        let reason = format!(
                            "it has factors of `{name}` as of another kind of module than other adapters"
                        );
                        return Err(refused(reason).into());
                    }
                    own.push((place, row, linear));
                }
                row += part.rows;
            }
            factors.push(own);
        }
        let rows: usize = layer.parts.iter().map(|part| part.rows).sum();
        let columns = layer.elements().checked_div(rows).unwrap_or(0);
        let (d_out, d_in) = if layer.transposed { (columns, rows) } else { (rows, columns) };
        let stack = Stack { index, layer, d_out, d_in, factors };
        if stack.rank() > 0 {
            stacks.push(stack);
        }
    }
    Ok(stacks)
}

/// What is read for some layers.
pub(super) fn requests<'a, B: Backend>(
    job: &'a Job<'_, B>,
    stacks: &'a [Stack<'a>],
) -> impl Iterator<Item = Request> + 'a {
    stacks.iter().flat_map(move |stack| {
        let factors = stack.all().flat_map(|one| [one.a.clone(), one.b.clone()]).map(Request::other);
        let inputs = match is_calibrated(job, stack.layer.role) {
            true => input_requests(job.family, &members(&[stack.layer], job.family.experts.len())),
            false => Vec::new(),
        };
        let of_base = |part: &Part| base_request(&job.family.base, &part.name, 0..part.elements());
        let base: Vec<Request> = match low_rank::wants_base(job, stack) {
            true => stack.layer.parts.iter().filter_map(of_base).collect(),
            false => Vec::new(),
        };
        factors.collect::<Vec<_>>().into_iter().chain(inputs).chain(base)
    })
}
