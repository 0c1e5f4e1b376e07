use crate::backend::Dtype;
use safetensors::Dtype as Stored;

/// Where one tensor lies in its file and how it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMeta {
    /// How the values are stored.
    pub dtype: Stored,
    /// Sizes of the dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes in all.
    pub bytes: u64,
}

impl TensorMeta {
    /// The floating-point type of the values if it is one that can be merged.
    pub fn float(&self) -> Option<Dtype> {
        float(self.dtype)
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows and columns of a matrix.
    pub fn matrix(&self) -> Option<(usize, usize)> {
        match self.shape[..] {
            [rows, cols] => Some((rows, cols)),
            _ => None,
        }
    }
}

/// What is done with values of a stored type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Merged.
    Float(Dtype),
    /// Integers and booleans (position ids, masks): the base's, byte for byte.
    Integer,
    /// float64, complex, and 8-bit or smaller floats: refused, because taking the base's would silently drop what the
    /// experts learnt.
    Unsupported,
}

/// How values of a stored type are treated.
pub fn kind(dtype: Stored) -> Kind {
    use Stored::*;
    match dtype {
        F32 => Kind::Float(Dtype::F32),
        F16 => Kind::Float(Dtype::F16),
        BF16 => Kind::Float(Dtype::Bf16),
        BOOL | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64 => Kind::Integer,
        _ => Kind::Unsupported,
    }
}

fn float(dtype: Stored) -> Option<Dtype> {
    match kind(dtype) {
        Kind::Float(dtype) => Some(dtype),
        _ => None,
    }
}

/// The name a floating-point type has in a safetensors header.
pub fn stored(dtype: Dtype) -> Stored {
    match dtype {
        Dtype::F32 => Stored::F32,
        Dtype::F16 => Stored::F16,
        Dtype::Bf16 => Stored::BF16,
    }
}
