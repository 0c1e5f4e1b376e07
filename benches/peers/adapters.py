"""Adapters merged to one adapter, beside PEFT: `pip install numpy`, and `pip install peft torch` for the latter, then

    cargo build --release
    python benches/peers/adapters.py [--blocks 32] [--adapters 8] [--rank 16] [--rounds 3]

Makes adapters of all linear layers of a Llama-3-8B's shapes in float16 if they are not there (a base is there in name: its file has a
header and no values, which `out: lora` does not read), and merges them to one of the same rank on the CPU by several methods. Prints
of each the wall and the processor time, and the peak of resident memory.

Then the same sum is made of adapters of two smaller blocks by esmerge and by PEFT's `add_weighted_adapter(combination_type="svd")` in
turn, both with all threads, and printed with what either lacks of the exact sum.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
LLAMA_3_8B = {"hidden": 4096, "inner": 14336, "keys": 1024, "vocabulary": 128256}
SMALL = {"hidden": 1024, "inner": 3584, "keys": 256, "vocabulary": 1000}
METHODS = [
    ("linear", "truncate", ""),
    ("task_arithmetic", "truncate", ""),
    ("tsv_m", "truncate", ""),
    ("esm", "truncate", "parameters: {alpha: 1}"),
    ("task_arithmetic", "ctm", ""),
    ("ties", "ctm", "parameters: {density: 0.5}"),
]


def layers(blocks, hidden, inner, keys, **_):
    """Modules of all linear layers of the blocks, with outputs and inputs."""
    for i in range(blocks):
        at = f"model.layers.{i}"
        for name, outputs in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            yield f"{at}.self_attn.{name}_proj", outputs, hidden
        yield f"{at}.mlp.gate_proj", inner, hidden
        yield f"{at}.mlp.up_proj", inner, hidden
        yield f"{at}.mlp.down_proj", hidden, inner


def write(path, tensors):
    """A safetensors file of (name, shape, values); without values it has a hole in their place."""
    header, at = {}, 0
    for name, shape, dtype, _ in tensors:
        size = int(np.prod(shape)) * {"F16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + at)
        for name, _, _, values in tensors:
            if values is not None:
                file.seek(start + header[name]["data_offsets"][0])
                file.write(values.tobytes())


def make(folder, blocks, adapters, rank, sizes, dtype):
    """A base without values, and random adapters of it: the factors of each, in float64."""
    modules = list(layers(blocks, **sizes))
    table = ["model.embed_tokens.weight", [sizes["vocabulary"], sizes["hidden"]], dtype, None]
    write(folder / "base/model.safetensors", [table, *([f"{m}.weight", [o, i], dtype, None] for m, o, i in modules)])
    (folder / "base/config.json").write_text(json.dumps({"model_type": "llama"}))
    random = np.random.default_rng(0)
    numpy_type = {"F16": np.float16, "F32": np.float32}[dtype]
    made = []
    for t in range(adapters):
        tensors, factors = [], {}
        for module, outputs, inputs in modules:
            a = random.standard_normal((rank, inputs), np.float32) / np.sqrt(inputs)
            b = random.standard_normal((outputs, rank), np.float32) * 0.02
            pair = {"lora_A": a.astype(numpy_type), "lora_B": b.astype(numpy_type)}
            factors[module] = pair["lora_B"], pair["lora_A"]
            for key, values in pair.items():
                tensors.append((f"base_model.model.{module}.{key}.weight", list(values.shape), dtype, values))
        path = folder / f"adapters/{t}"
        write(path / "adapter_model.safetensors", tensors)
        names = sorted({module.rsplit(".", 1)[1] for module, _, _ in modules})
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": names, "bias": "none"}
        (path / "adapter_config.json").write_text(json.dumps(settings))
        made.append(factors)
    return made


def recipe(folder, method, compress, parameters, adapters, rank):
    calibration = ", calibration: none" if method == "esm" else ""
    models = "".join(f"  - {{model: {folder}/adapters/{t}{calibration}}}\n" for t in range(adapters))
    text = f"merge_method: {method}\nbase_model: {folder}/base\nmodels:\n{models}{parameters}\nout: lora\n"
    path = folder / "recipe.yaml"
    path.write_text(f"{text}rank: {rank}\ncompress: {compress}\n")
    return path


# in a process of its own, small as it is: a child's peak of memory begins with its parent's
MEASURE = """import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
wall, processor = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), wall, processor, usage.ru_maxrss / 2**20]))"""


def esmerge(program, folder, *method, adapters, rank):
    """Wall and processor seconds, and the peak of resident memory in GiB."""
    path, out = recipe(folder, *method, adapters, rank), folder / "out"
    command = [program, "merge", path, out, "--device", "cpu", "--force", "-q"]
    measured = subprocess.run([sys.executable, "-c", MEASURE, *command], check=True, stdout=subprocess.PIPE)
    status, *numbers = json.loads(measured.stdout)
    if status:
        sys.exit(f"esmerge failed: {status}")
    return numbers


def lacking(factors, merged):
    """What merged factors (B, A) lack of the sum of all, as a share of it."""
    missing = whole = 0.0
    for module, (b, a) in merged.items():
        exact = sum(f[module][0].astype(np.float64) @ f[module][1].astype(np.float64) for f in factors)
        missing += np.linalg.norm(exact - b.astype(np.float64) @ a.astype(np.float64)) ** 2
        whole += np.linalg.norm(exact) ** 2
    return (missing / whole) ** 0.5


def read_adapter(path):
    from safetensors.numpy import load_file

    tensors = load_file(path / "adapter_model.safetensors")
    stem = "base_model.model."
    modules = {key.removeprefix(stem).split(".lora_")[0] for key in tensors}
    part = lambda module, key: tensors[f"{stem}{module}.{key}.weight"]
    return {module: (part(module, "lora_B"), part(module, "lora_A")) for module in modules}


class Peft:
    """A model of the same linear layers with the same adapters."""

    def __init__(self, folder, adapters, rank, sizes):
        import peft
        import torch

        self.version = f"PEFT {peft.__version__}, torch {torch.__version__}"
        self.adapters, self.rank = [str(t) for t in range(adapters)], rank
        root = torch.nn.Module()
        for module, outputs, inputs in layers(2, **sizes):
            *path, last = module.split(".")
            at = root
            for name in path:
                if not hasattr(at, name):
                    at.add_module(name, torch.nn.Module())
                at = getattr(at, name)
            at.add_module(last, torch.nn.Linear(inputs, outputs, bias=False))
        root.config = None
        self.model = None
        for t in self.adapters:
            path = folder / f"adapters/{t}"
            if self.model is None:
                self.model = peft.PeftModel.from_pretrained(root, path, adapter_name=t)
            else:
                self.model.load_adapter(path, adapter_name=t)

    def merge(self):
        if "sum" in self.model.peft_config:
            self.model.delete_adapter("sum")
        started, processor = time.perf_counter(), time.process_time()
        weights = [1.0] * len(self.adapters)
        self.model.add_weighted_adapter(self.adapters, weights, "sum", combination_type="svd", svd_rank=self.rank)
        return time.perf_counter() - started, time.process_time() - processor

    def merged(self):
        found = {}
        for name, module in self.model.named_modules():
            if hasattr(module, "lora_A") and "sum" in module.lora_A:
                b, a = module.lora_B["sum"].weight, module.lora_A["sum"].weight
                scale = module.scaling["sum"]
                found[name.removeprefix("base_model.model.")] = scale * b.detach().numpy(), a.detach().numpy()
        return found


def beside_peft(program, folder, adapters, rank, rounds):
    factors = make(folder, 2, adapters, rank, SMALL, "F32")
    try:
        peft = Peft(folder, adapters, rank, SMALL)
    except ImportError as error:
        print(f"PEFT is left out: {error}")
        return
    print(f"\n{peft.version}: the sum of {adapters} adapters of rank {rank} of two blocks of {SMALL['hidden']} x {SMALL['inner']}, in turn")
    method = ("task_arithmetic", "truncate", "")
    turns = [(esmerge(program, folder, *method, adapters=adapters, rank=rank)[:2], peft.merge()) for _ in range(rounds)]
    for name, times, merged in [
        ("esmerge", [ours for ours, _ in turns], read_adapter(folder / "out")),
        ("PEFT svd", [theirs for _, theirs in turns], peft.merged()),
    ]:
        wall, processor = (statistics.median(column) for column in zip(*times))
        print(f"{name:<24} {wall:9.2f} s {processor:9.2f} s of processor; lacks {lacking(factors, merged):.5f} of the sum")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "esmerge-adapters")
    parser.add_argument("--esmerge", type=Path, default=HERE / "../../target/release/esmerge")
    arguments = parser.parse_args()
    program, count, rank = arguments.esmerge.resolve(), arguments.adapters, arguments.rank
    folder = arguments.folder / f"llama-{arguments.blocks}-{count}-{rank}"
    if not (folder / f"adapters/{count - 1}/adapter_config.json").exists():
        make(folder, arguments.blocks, count, rank, LLAMA_3_8B, "F16")
    print(f"{count} adapters of rank {rank}, {7 * arguments.blocks} matrices of Llama-3-8B's shapes, float16, {os.cpu_count()} cores")
    for method in METHODS:
        wall, processor, gib = esmerge(program, folder, *method, adapters=count, rank=rank)
        print(f"{' '.join(method[:2]):<24} {wall:9.2f} s {processor:9.2f} s of processor, {gib:.2f} GiB", flush=True)
    beside_peft(program, arguments.folder / "small", count, rank, arguments.rounds)


if __name__ == "__main__":
    main()
