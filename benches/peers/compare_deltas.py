"""How far the deltas that `esmerge merge --keep-delta` kept are from those of a plain version: `pip install numpy`, then

    python compare_deltas.py KEPT.safetensors PLAIN.safetensors
"""

import json
import sys
from pathlib import Path

import numpy as np

import st


def distance(kept, plain):
    """The relative distance in all, the largest of a tensor, and that tensor. The kept file holds deltas before inter-layer
    scaling, and the scales."""
    file, theirs = st.Reader(Path(kept)), st.Reader(Path(plain))
    beta = json.loads(file.metadata["beta"])
    squares = {}
    for name in theirs:
        ours, other = np.float32(beta[name]) * file[name], theirs[name]
        squares[name] = np.sum((ours - other) ** 2), np.sum(other**2)
    total = np.sqrt(sum(d for d, _ in squares.values()) / sum(s for _, s in squares.values()))
    worst = max(squares, key=lambda name: squares[name][0] / squares[name][1])
    return total, np.sqrt(squares[worst][0] / squares[worst][1]), worst


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    total, apart, worst = distance(*sys.argv[1:])
    print(f"merged deltas differ, relatively, by {total:.1e}, at worst {apart:.1e} ({worst})")
