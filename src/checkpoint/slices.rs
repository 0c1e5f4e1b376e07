//! Weights of experts that a file has in one tensor, `experts x rows x columns`: every expert's matrix is a tensor of its own, `NAME[e]`.

use super::{Checkpoint, Kind, TensorMeta, kind};

/// The name of a matrix of a tensor.
pub fn slice_name(whole: &str, index: usize) -> String {
    format!("{whole}[{index}]")
}

/// The tensor whose matrix a name is of, and which; none for a name that is of no matrix of a tensor.
pub fn slice_of(name: &str) -> Option<(&str, usize)> {
    let (whole, index) = name.strip_suffix(']')?.rsplit_once('[')?;
    Some((whole, index.parse().ok()?))
}

/// A model whose experts' matrices are tensors of their own.
pub(super) fn experts_apart(mut model: Checkpoint) -> Checkpoint {
    let batch = |name: &&str| model.get(name).is_some_and(|meta| is_of_experts(name, meta));
    let batches: Vec<String> = model.names().filter(batch).map(str::to_owned).collect();
    batches.iter().for_each(|name| model.take_apart(name));
    model
}

/// Whether a tensor holds a matrix for each expert of a mixture: by its dimensions, and by the module it is in (`input_linear` and
/// `output_linear` are Granite's).
fn is_of_experts(name: &str, meta: &TensorMeta) -> bool {
    let within = |module: &str| name.split('.').any(|part| part == module);
    let named = within("experts") || within("input_linear") || within("output_linear");
    let is_batch = meta.shape.len() == 3 && meta.elements() > 0;
    is_batch && named && !name.ends_with("bias") && kind(meta.dtype) != Kind::Integer
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;

    #[test]
    fn a_slice_is_named_after_its_tensor() {
        let name = slice_name("model.layers.0.mlp.experts.down_proj", 12);
        assert_eq!(name, "model.layers.0.mlp.experts.down_proj[12]");
        assert_eq!(slice_of(&name), Some(("model.layers.0.mlp.experts.down_proj", 12)));
        for other in ["a.weight", "a[]", "a[x]", "a]", "[3"] {
            assert_eq!(slice_of(other), None, "{other}");
        }
    }

    #[test]
    fn convolutions_and_biases_are_no_experts() {
        let is = |name: &str, shape: &[usize], dtype| {
            is_of_experts(name, &TensorMeta { dtype, shape: shape.to_vec(), offset: 0, bytes: 0 })
        };
        assert!(is("model.layers.0.mlp.experts.gate_up_proj", &[4, 6, 8], Dtype::BF16));
        assert!(is("model.layers.0.block_sparse_moe.input_linear.weight", &[4, 6, 8], Dtype::F32));
        assert!(!is("model.layers.0.mlp.experts.gate_up_proj", &[24, 8], Dtype::BF16));
        assert!(!is("model.layers.0.mlp.experts.gate_up_proj_bias", &[4, 1, 8], Dtype::BF16));
        assert!(!is("model.layers.0.mlp.experts.down_proj", &[4, 0, 8], Dtype::BF16));
        assert!(!is("model.layers.0.mlp.experts.qweight", &[4, 6, 8], Dtype::I32));
        assert!(!is("model.layers.0.conv1d.weight", &[16, 1, 4], Dtype::F32));
    }
}
