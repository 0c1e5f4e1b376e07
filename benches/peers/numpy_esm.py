"""Essential Subspace Merging as its authors released it, written plainly: `pip install numpy`, then

    python numpy_esm.py DIR OUT.safetensors [--torch]

DIR is what `make_family.py` makes. Float32 and full singular value decompositions throughout, one layer at a time; q, k and v
are one matrix, and the attention's output projection is merged by TSV-M. OUT gets the merged deltas, after inter-layer
scaling, before alpha. With --torch PyTorch decomposes: on a CPU by the same gesdd, of another LAPACK.
"""

import re
import sys
from pathlib import Path

import numpy as np

import st


def svd(matrix):
    """The thin singular value decomposition."""
    return np.linalg.svd(matrix, full_matrices=False)


def esd(delta, x, rank):
    """Essential subspace of a task: leading right singular vectors of the output shift, and their eigenvalues."""
    shift = x @ delta.T
    _, sigma, vt = svd(shift)
    return vt[:rank].T, sigma[:rank] ** 2 / np.float32(len(x) - 1)


def polar(matrix):
    """The nearest orthonormal matrix, and the mean singular value."""
    u, sigma, vt = svd(matrix)
    return u @ vt, sigma.mean()


def esm(deltas, inputs, gain=np.float32(2)):
    """The merged delta of one layer (preset `esm`)."""
    rank = deltas[0].shape[0] // len(deltas)
    norms = np.array([np.linalg.norm(delta) for delta in deltas])
    scales = (norms / norms.mean()) ** 2
    bases, projections = [], []
    for delta, x, scale in zip(deltas, inputs, scales):
        basis, eigenvalues = esd(delta, x, rank)
        weights = (eigenvalues / eigenvalues.mean()) ** np.float32(0.15)
        weights /= weights.mean()
        bases.append(basis * weights)
        projections.append(scale * weights[:, None] * (basis.T @ delta))
    e_cat, a_cat = np.concatenate(bases, axis=1), np.concatenate(projections, axis=0)
    columns = np.linalg.norm(a_cat, axis=0)
    a_cat = a_cat * (columns / columns.mean()) ** 2
    (e, e_sigma), (a, a_sigma) = polar(e_cat), polar(a_cat)
    return gain * e_sigma * a_sigma * (e @ a)


def tsv_m(deltas):
    """Task Singular Vectors merging of one matrix."""
    k = max(1, min(deltas[0].shape) // len(deltas))
    us, sigmas, vts = zip(*(svd(delta) for delta in deltas))
    u, _ = polar(np.concatenate([u[:, :k] for u in us], axis=1))
    v, _ = polar(np.concatenate([vt[:k] for vt in vts], axis=0))
    return u * np.concatenate([sigma[:k] for sigma in sigmas]) @ v


def inter_layer_scaling(merged):
    """Every delta times the square of its norm over the mean norm of its kind."""
    norms = {name: np.linalg.norm(delta) for name, delta in merged.items()}
    kinds = {name: re.sub(r"\.\d+\.", ".*.", name) for name in merged}
    for name, delta in merged.items():
        mean = np.mean([norms[other] for other in merged if kinds[other] == kinds[name]])
        delta *= np.float32((norms[name] / mean) ** 2)


def merge(directory):
    base = st.Reader(directory / "base/model.safetensors")
    experts = [st.Reader(path) for path in sorted(directory.glob("expert*/model.safetensors"))]
    calibrations = [st.Reader(path) for path in sorted(directory.glob("calibration/*.safetensors"))]

    def deltas(names):
        stack = lambda model: np.concatenate([model[name] for name in names])
        first = stack(base)
        return [stack(expert) - first for expert in experts]

    merged = {}
    blocks = 1 + max(int(re.search(r"\.layers\.(\d+)\.", name)[1]) for name in base)
    for block in range(blocks):
        prefix = f"vision_model.encoder.layers.{block}"
        qkv = [f"{prefix}.self_attn.{part}_proj.weight" for part in "qkv"]
        for names in [qkv, [f"{prefix}.mlp.fc1.weight"], [f"{prefix}.mlp.fc2.weight"]]:
            inputs = [calibration[f"{names[0]}.input"] for calibration in calibrations]
            merged[" ".join(names)] = esm(deltas(names), inputs)
        out = f"{prefix}.self_attn.out_proj.weight"
        merged[out] = tsv_m(deltas([out]))
    inter_layer_scaling(merged)
    return merged


def split(merged):
    """Stacked weights as the model names them."""
    tensors = {}
    for names, delta in merged.items():
        names = names.split()
        tensors.update(zip(names, np.split(delta.astype(np.float32), len(names))))
    return tensors


if __name__ == "__main__":
    files = [word for word in sys.argv[1:] if word != "--torch"]
    if len(files) != 2:
        sys.exit(__doc__)
    if len(sys.argv) > 3:
        import torch

        def svd(matrix):
            return [part.numpy() for part in torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False)]

    st.write(files[1], split(merge(Path(files[0]))))
