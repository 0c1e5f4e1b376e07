"""esmerge's CPU backend beside NumPy with its BLAS, by turns: `pip install numpy`, then

    cargo build --release
    python benches/peers/cpu.py [--rounds 5] [--seconds 0.3] [--shape MxNxK | BATCH:MxNxK ...]

A time is that of the fastest sample of a turn; the ratio is NumPy's over esmerge's, the median over the turns. Both use all
threads. NumPy's error is relative to float64, as benches/peers/src/shape.rs has it; esmerge's is printed by
`cargo bench --bench accuracy -- cpu`, and NumPy's by the same measure below the table.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SHAPES = [
    "256x256x256",
    "512x512x512",
    "1024x1024x1024",
    "3072x768x1600",
    "2304x96x2304",
    "768x3072x1600",
    "768x96x768",
    "8:384x384x384",
]


def read(shape):
    """Batch, rows, columns and depth."""
    batch, _, sizes = shape.rpartition(":")
    m, n, k = (int(size) for size in sizes.split("x"))
    return int(batch or 1), m, n, k


def esmerge_seconds(program, shape, seconds):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [program, "bench", "--device", "cpu", "--kernel", "gemm", "--shape", shape]
        subprocess.run(
            [*command, "--seconds", str(seconds), "--json", file.name], check=True, stdout=subprocess.DEVNULL
        )
        return json.load(open(file.name))["results"][0]["seconds"]["min"]


class Product:
    def __init__(self, shape):
        batch, m, n, k = read(shape)
        random = np.random.default_rng(0)
        self.a = random.standard_normal((batch, m, k), dtype=np.float32)
        self.b = random.standard_normal((batch, k, n), dtype=np.float32)
        self.c = np.empty((batch, m, n), np.float32)

    def run(self, repetitions):
        started = time.perf_counter()
        for _ in range(repetitions):
            np.matmul(self.a, self.b, out=self.c)
        return (time.perf_counter() - started) / repetitions

    def seconds(self, seconds):
        self.run(2)
        repetitions = max(1, int(5e-3 / self.run(1)))
        started, samples = time.perf_counter(), []
        while len(samples) < 3 or time.perf_counter() - started < seconds:
            samples.append(self.run(repetitions))
        return min(samples)

    def error(self):
        exact = self.a[0, :48].astype(np.float64) @ self.b[0].astype(np.float64)
        return np.linalg.norm(self.c[0, :48] - exact) / np.linalg.norm(exact)


def largest_error():
    """max |error| / (|a| |b|) at the sizes of benches/accuracy.rs."""
    random = np.random.default_rng(0)
    a = random.standard_normal((129, 1600), dtype=np.float32)
    b = random.standard_normal((1600, 120), dtype=np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return np.max(np.abs(a @ b - exact) / (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--shape", action="append")
    parser.add_argument("--esmerge", type=Path, default=HERE / "../../target/release/esmerge")
    arguments = parser.parse_args()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    print(f"numpy {np.__version__}, {blas['name']} {blas['version']}")
    print(f"{'shape':<16} {'esmerge ms':>11} {'GFLOP/s':>9} {'numpy ms':>11} {'GFLOP/s':>9} {'ratio':>6} {'numpy error':>12}")
    for shape in arguments.shape or SHAPES:
        batch, m, n, k = read(shape)
        product = Product(shape)
        turns = [
            (esmerge_seconds(arguments.esmerge, shape, arguments.seconds), product.seconds(arguments.seconds))
            for _ in range(arguments.rounds)
        ]
        ours, theirs = (min(column) for column in zip(*turns))
        ratio = statistics.median(b / a for a, b in turns)
        gflop = 2e-9 * batch * m * n * k
        rates = f"{1e3 * ours:11.2f} {gflop / ours:9.1f} {1e3 * theirs:11.2f} {gflop / theirs:9.1f}"
        print(f"{shape:<16} {rates} {ratio:6.2f} {product.error():12.1e}", flush=True)
    print(f"numpy, k = 1600: max |error| / (|a| |b|) {largest_error():.1e}")


if __name__ == "__main__":
    main()
