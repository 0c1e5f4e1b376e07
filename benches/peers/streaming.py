"""A merge that streams beside a plain copy of the same bytes, and beside mergekit: `pip install numpy`, and `pip install mergekit==0.1.5` for
the latter, then

    cargo build --release
    python benches/peers/streaming.py [--gib 1] [--rounds 3] [--cold] [--mergekit PYTHON]

Makes a base and two models of bfloat16 in Llama's names and shapes if they are not there, and in turn copies (reads all three, writes one, and
syncs it), merges by `ties` here, and merges by mergekit (with another Python, if --mergekit names one; left out if it has none). Prints for each
the medians of wall and of processor time and the peak of resident memory, and what esmerge's times are of a copy's and mergekit's of esmerge's. --cold takes the files out
of the system's cache before each turn, so that the disk is part of what is measured.

It also says what memory allows: one pass of memory bandwidth over the bytes that are read and written, measured by copying arrays with all
threads; `ties` looks at every tensor three times.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PASSES = 3
RECIPE = """merge_method: ties
base_model: {0}/base
models:
  - {{model: {0}/a, parameters: {{density: 0.5, weight: 0.5}}}}
  - {{model: {0}/b, parameters: {{density: 0.5, weight: 0.5}}}}
parameters: {{normalize: true}}
dtype: bfloat16
"""


def shapes(gib):
    """Names and shapes of a Llama of about so many GiB in 16 bits."""
    width, inner, vocabulary = 2048, 5632, 32000
    yield "model.embed_tokens.weight", (vocabulary, width)
    yield "lm_head.weight", (vocabulary, width)
    yield "model.norm.weight", (width,)
    block = 4 * width * width + 3 * inner * width
    blocks = max(1, round((gib * 2**29 - 2 * vocabulary * width) / block))
    for i in range(blocks):
        prefix = f"model.layers.{i}"
        for part in "qkvo":
            yield f"{prefix}.self_attn.{part}_proj.weight", (width, width)
        for part in ("gate", "up"):
            yield f"{prefix}.mlp.{part}_proj.weight", (inner, width)
        yield f"{prefix}.mlp.down_proj.weight", (width, inner)
        for part in ("input", "post_attention"):
            yield f"{prefix}.{part}_layernorm.weight", (width,)


def rounded(values):
    """To bfloat16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


def make(folder, gib):
    layers = list(shapes(gib))
    for model, seed in [("base", None), ("a", 1), ("b", 2)]:
        (folder / model).mkdir(parents=True, exist_ok=True)
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in layers:
            end = at + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        blocks = sum("q_proj" in name for name, _ in layers)
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
            "num_hidden_layers": blocks, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32000,
            "torch_dtype": "bfloat16", "tie_word_embeddings": False,
        }
        (folder / model / "config.json").write_text(json.dumps(config))
        with open(folder / model / "model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for i, (_, shape) in enumerate(layers):
                values = np.random.default_rng(i).standard_normal(shape, dtype=np.float32) * np.float32(0.02)
                if seed is not None:
                    values += np.random.default_rng([seed, i]).standard_normal(shape, dtype=np.float32) * np.float32(0.002)
                file.write(rounded(values).data)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder))


def drop(folder):
    """Takes files out of the system's cache."""
    os.sync()
    for path in folder.rglob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


COPY = """
import os, sys
out = open(sys.argv[-1], "wb", buffering=0)
for path in sys.argv[1:-1]:
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(8 << 20)
        while n := file.readinto(buffer):
            if path == sys.argv[1]:
                out.write(memoryview(buffer)[:n])
os.fsync(out.fileno())
"""


def run(command, environment=None):
    """Wall seconds, processor seconds and peak bytes of a process."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([str(part) for part in command], stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        if status != 0:
            said.seek(0)
            sys.exit(f"{command[0]} failed: {said.read().decode()[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def bandwidth():
    """Bytes read and written per second by all threads that copy arrays."""
    threads, size = os.cpu_count(), 128 << 20
    pairs = [(np.ones(size, np.uint8), np.ones(size, np.uint8)) for _ in range(threads)]
    best = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=np.copyto, args=(to, of)) for to, of in pairs]
        started = time.perf_counter()
        [worker.start() for worker in workers]
        [worker.join() for worker in workers]
        best = max(best, 2 * size * threads / (time.perf_counter() - started))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--family", type=Path, help="where the models are, or are to be made")
    parser.add_argument("--esmerge", type=Path, default=HERE / "../../target/release/esmerge")
    parser.add_argument("--mergekit", default=sys.executable, help="a Python that has mergekit")
    arguments = parser.parse_args()
    family = (arguments.family or Path(tempfile.gettempdir()) / f"esmerge-streaming-{arguments.gib:g}").resolve()
    if not (family / "recipe.yaml").exists():
        make(family, arguments.gib)
    files = [family / model / "model.safetensors" for model in ("base", "a", "b")]
    script = Path(arguments.mergekit).with_name("mergekit-yaml")
    with tempfile.TemporaryDirectory(dir=family) as scratch:
        scratch = Path(scratch)
        out = lambda name: scratch / f"{name}{turn}"
        commands = {
            "copy": lambda: [sys.executable, "-c", COPY, *files, out("copy")],
            "esmerge": lambda: [arguments.esmerge, "merge", family / "recipe.yaml", out("esmerge"), "-q", "--device", "cpu"],
        }
        if script.exists():
            commands["mergekit"] = lambda: [script, family / "recipe.yaml", out("mergekit"), "--lazy-unpickle", "--quiet"]
        else:
            print(f"{arguments.mergekit} has no mergekit beside it: left out")
        times = {name: [] for name in commands}
        for turn in range(arguments.rounds):
            for name, command in commands.items():
                if arguments.cold:
                    drop(family)
                times[name].append(run(command()))
                subprocess.run(["rm", "-rf", out(name)], check=True)
    medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in times.items()}
    for name, (wall, processors, peak) in medians.items():
        print(f"{name:8} {wall:7.2f} s  {processors:7.2f} s of processors  {peak / 2**20:6.0f} MiB")
    ratio = lambda a, b, at: statistics.median(x[at] / y[at] for x, y in zip(times[a], times[b]))
    print(f"esmerge over copy: {ratio('esmerge', 'copy', 0):.2f} of wall time")
    if "mergekit" in times:
        print(f"mergekit over esmerge: {ratio('mergekit', 'esmerge', 0):.2f} of wall time, {ratio('mergekit', 'esmerge', 1):.2f} of processors")
    size = files[0].stat().st_size
    one_pass = 4 * size / (rate := bandwidth())
    print(
        f"memory copies at {rate / 1e9:.1f} GB/s: a pass over {4 * size / 1e9:.1f} GB takes {one_pass:.2f} s, {PASSES} take {PASSES * one_pass:.2f} s; "
        f"esmerge takes {medians['esmerge'][0] / (PASSES * one_pass):.1f} times that"
    )


if __name__ == "__main__":
    main()
