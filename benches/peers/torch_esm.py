"""Essential Subspace Merging as its authors released it, in plain PyTorch on a GPU: `pip install torch numpy`, then

    python torch_esm.py DIR OUT.safetensors [--device cuda] [--rounds 2]

The same steps as numpy_esm.py, one layer at a time, with every matrix on the device. Prints the time of each round with the reading
of the files, and without; the first round also warms the libraries up. OUT gets the merged deltas, after inter-layer
scaling, before alpha.
"""

import argparse
import re
import time
from pathlib import Path

import torch

import numpy_esm
import st


def svd(matrix):
    """The thin singular value decomposition, in full as the released code takes it."""
    return torch.linalg.svd(matrix, full_matrices=False)


def polar(matrix):
    u, sigma, vt = svd(matrix)
    return u @ vt, sigma.mean()


def esm(deltas, inputs, gain=2.0):
    """The merged delta of one layer (preset `esm`)."""
    rank = deltas[0].shape[0] // len(deltas)
    norms = torch.stack([torch.linalg.norm(delta) for delta in deltas])
    scales = (norms / norms.mean()) ** 2
    bases, projections = [], []
    for delta, x, scale in zip(deltas, inputs, scales):
        _, sigma, vt = svd(x @ delta.T)
        basis, eigenvalues = vt[:rank].T, sigma[:rank] ** 2 / (len(x) - 1)
        weights = (eigenvalues / eigenvalues.mean()) ** 0.15
        weights = weights / weights.mean()
        bases.append(basis * weights)
        projections.append(scale * weights[:, None] * (basis.T @ delta))
    e_cat, a_cat = torch.cat(bases, dim=1), torch.cat(projections, dim=0)
    columns = torch.linalg.norm(a_cat, dim=0)
    a_cat = a_cat * (columns / columns.mean()) ** 2
    (e, e_sigma), (a, a_sigma) = polar(e_cat), polar(a_cat)
    return gain * e_sigma * a_sigma * (e @ a)


def tsv_m(deltas):
    """Task Singular Vectors merging of one matrix."""
    k = max(1, min(deltas[0].shape) // len(deltas))
    us, sigmas, vts = zip(*(svd(delta) for delta in deltas))
    u, _ = polar(torch.cat([u[:, :k] for u in us], dim=1))
    v, _ = polar(torch.cat([vt[:k] for vt in vts], dim=0))
    return u * torch.cat([sigma[:k] for sigma in sigmas]) @ v


def merge(directory, device):
    """The merged deltas, and the seconds that went into reading and into the device."""
    reading = 0.0
    models = [st.Reader(path) for path in sorted(directory.glob("expert*/model.safetensors"))]
    base = st.Reader(directory / "base/model.safetensors")
    calibrations = [st.Reader(path) for path in sorted(directory.glob("calibration/*.safetensors"))]

    def read(model, names):
        nonlocal reading
        started = time.perf_counter()
        tensor = torch.cat([torch.from_numpy(model[name].copy()) for name in names]).to(device)
        torch.cuda.synchronize() if device == "cuda" else None
        reading += time.perf_counter() - started
        return tensor

    merged = {}
    blocks = 1 + max(int(re.search(r"\.layers\.(\d+)\.", name)[1]) for name in base)
    for block in range(blocks):
        prefix = f"vision_model.encoder.layers.{block}"
        qkv = [f"{prefix}.self_attn.{part}_proj.weight" for part in "qkv"]
        for names in [qkv, [f"{prefix}.mlp.fc1.weight"], [f"{prefix}.mlp.fc2.weight"]]:
            first = read(base, names)
            deltas = [read(model, names) - first for model in models]
            inputs = [read(calibration, [f"{names[0]}.input"]) for calibration in calibrations]
            merged[" ".join(names)] = esm(deltas, inputs).cpu().numpy()
        out = f"{prefix}.self_attn.out_proj.weight"
        first = read(base, [out])
        merged[out] = tsv_m([read(model, [out]) - first for model in models]).cpu().numpy()
    numpy_esm.inter_layer_scaling(merged)
    return merged, reading


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    for turn in range(arguments.rounds):
        started = time.perf_counter()
        merged, reading = merge(arguments.directory, arguments.device)
        wall = time.perf_counter() - started
        print(f"PyTorch {torch.__version__}, round {turn + 1}: {wall:.2f} s, {wall - reading:.2f} s without reading", flush=True)
        if turn == 0:  # so that it is there if a later round is cut short
            st.write(arguments.output, numpy_esm.split(merged))


if __name__ == "__main__":
    main()
