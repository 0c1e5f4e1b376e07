"""Makes a family with the shapes of CLIP ViT-B/32 to merge: `pip install numpy`, then

    python make_family.py DIR [--blocks 12] [--experts 8] [--tokens 1600]

A base, experts with deltas whose singular values decay (a part of rank 16 that all experts share, a power law of their
own, and noise), and calibration: activations like a LayerNorm's, with a mean, a decaying covariance and three large
dimensions. Nothing in it was ever trained; it costs what a real family of these shapes costs.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import st

WIDTH, INNER = 768, 3072


def linear_layers(block):
    """Name, rows and columns of every linear weight of a block."""
    prefix = f"vision_model.encoder.layers.{block}"
    for part in "qkv":
        yield f"{prefix}.self_attn.{part}_proj.weight", WIDTH, WIDTH
    yield f"{prefix}.self_attn.out_proj.weight", WIDTH, WIDTH
    yield f"{prefix}.mlp.fc1.weight", INNER, WIDTH
    yield f"{prefix}.mlp.fc2.weight", WIDTH, INNER


def normal(random, *shape):
    return random.standard_normal(shape, dtype=np.float32)


def decaying(random, rows, cols):
    """A random matrix whose singular values follow a power law."""
    k = min(rows, cols)
    scale = np.arange(1, k + 1, dtype=np.float32) ** -0.7
    return normal(random, rows, k) * scale @ normal(random, k, cols) / np.float32(np.sqrt(rows * cols))


def shared_part(random, rows, cols):
    return normal(random, rows, 16) @ normal(random, 16, cols) / np.float32(np.sqrt(16 * rows * cols))


def activations(random, tokens, width):
    scale = np.arange(1, width + 1, dtype=np.float32) ** -0.5
    mixed = normal(random, tokens, width) * scale @ normal(random, width, width) / np.float32(np.sqrt(width))
    mixed += 0.1 * normal(random, tokens, width) + 0.3 * normal(random, width)
    mixed[:, random.choice(width, 3, replace=False)] *= 8
    return mixed


def make(directory, blocks, experts, tokens):
    for name in ["base", "calibration"] + [f"expert{t}" for t in range(experts)]:
        (directory / name).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    layers = [layer for block in range(blocks) for layer in linear_layers(block)]
    base = {name: normal(random, rows, cols) * np.float32(0.02) for name, rows, cols in layers}
    common = {name: shared_part(random, rows, cols) for name, rows, cols in layers}
    config = {"model_type": "clip_vision_model", "hidden_size": WIDTH, "num_hidden_layers": blocks}
    (directory / "base/config.json").write_text(json.dumps(config))
    st.write(directory / "base/model.safetensors", base)
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork"), adopt, (base, common)) as pool:
        jobs = [pool.submit(write_expert, directory, layers, t, blocks, tokens) for t in range(experts)]
        for job in jobs:
            job.result()
    models = "".join(
        f"  - model: expert{t}\n    calibration: calibration/expert{t}.safetensors\n" for t in range(experts)
    )
    recipe = f"merge_method: esm\nbase_model: base\nmodels:\n{models}parameters:\n  alpha: 0.8\n"
    (directory / "recipe.yaml").write_text(recipe)


def adopt(*tensors):
    """Keeps what all experts need in the process that makes one of them."""
    global BASE, COMMON
    BASE, COMMON = tensors


def write_expert(directory, layers, t, blocks, tokens):
    random = np.random.default_rng(1 + t)
    expert = {}
    for name, rows, cols in layers:
        delta = decaying(random, rows, cols) + COMMON[name] + np.float32(1e-5) * normal(random, rows, cols)
        expert[name] = BASE[name] + np.float32(0.5) * delta
    st.write(directory / f"expert{t}/model.safetensors", expert)
    write_calibration(directory / f"calibration/expert{t}.safetensors", random, blocks, tokens)


def write_calibration(path, random, blocks, tokens):
    tensors, count, alias = {}, {}, {}
    for block in range(blocks):
        prefix = f"vision_model.encoder.layers.{block}"
        query = f"{prefix}.self_attn.q_proj.weight"
        for name, width in [(query, WIDTH), (f"{prefix}.mlp.fc1.weight", WIDTH), (f"{prefix}.mlp.fc2.weight", INNER)]:
            tensors[f"{name}.input"] = activations(random, tokens, width)
            count[name] = tokens
        for part in "kv":
            alias[f"{prefix}.self_attn.{part}_proj.weight"] = query
    metadata = {
        "format": "esmerge-calibration-1",
        "n": json.dumps(count),
        "samples": "32",
        "alias": json.dumps(alias),
    }
    st.write(path, tensors, metadata)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1600)
    arguments = parser.parse_args()
    make(arguments.directory, arguments.blocks, arguments.experts, arguments.tokens)
