"""esmerge beside the plain NumPy version, on the CPU, from the same files: `pip install numpy`, then

    cargo build --release
    python benches/peers/end_to_end.py [--blocks 1] [--rounds 3] [--accuracy balanced] [--device cpu] [--torch]

Makes the family if it is not there (see make_family.py), runs both in turn, each in a process of its own, and prints the
median wall time, the median processor time (all threads; it is the same whatever else the machine does) and the peak
resident memory of each, their ratios, and how far the merged deltas are apart; exits with 1 if that is more than
--tolerance. (`balanced` is not `exact`; leaving out half of the calibration samples
moves the result by 0.36 at least, and the tolerance is half of that.)
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import compare_deltas
import make_family

HERE = Path(__file__).resolve().parent


def run(command):
    """Wall seconds, processor seconds and peak bytes of a process."""
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status != 0:
        sys.exit(f"{command[0]} failed")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--accuracy", default="balanced")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--family", type=Path, help="where the family is, or is to be made")
    parser.add_argument("--esmerge", type=Path, default=HERE / "../../target/release/esmerge")
    parser.add_argument("--torch", action="store_true", help="let PyTorch decompose, in place of NumPy")
    parser.add_argument("--tolerance", type=float, default=0.18, help="for the relative difference of the deltas")
    parser.add_argument("--only", choices=["esmerge", "numpy"])
    arguments = parser.parse_args()
    family = arguments.family or Path(tempfile.gettempdir()) / f"esmerge-family-{arguments.blocks}"
    if not (family / "recipe.yaml").exists():
        make_family.make(family, arguments.blocks, 8, 1600)

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        times = {"esmerge": [], "numpy": []}
        for turn in range(arguments.rounds):
            esmerge = [arguments.esmerge, "merge", family / "recipe.yaml", scratch / f"merged{turn}", "--quiet"]
            esmerge += ["--device", arguments.device, "--accuracy", arguments.accuracy]
            esmerge += ["--keep-delta", scratch / f"esmerge{turn}.safetensors"]
            numpy = [sys.executable, HERE / "numpy_esm.py", family, scratch / "numpy.safetensors"]
            numpy += ["--torch"] if arguments.torch else []
            for name, command in [("esmerge", esmerge), ("numpy", numpy)]:
                if arguments.only in (None, name):
                    times[name].append(run(command))
        report(arguments, times)
        if arguments.only is None and compare(scratch) > arguments.tolerance:
            sys.exit(f"the merged deltas are further apart than {arguments.tolerance}")


def report(arguments, times):
    print(f"{arguments.blocks} blocks of ViT-B/32, 8 experts, 1600 tokens; {arguments.accuracy} on {arguments.device}"
          f"{'; PyTorch decomposes' if arguments.torch else ''}")
    median = {
        name: [statistics.median(column) for column in zip(*rows)] for name, rows in times.items() if rows
    }
    for name, (wall, cpu, memory) in median.items():
        per = f"{wall / arguments.blocks:7.1f} s, {cpu / arguments.blocks:7.1f} s of processors"
        print(f"{name:8} a block: {per}; peak memory {memory / 2**30:.2f} GiB")
    if len(median) == 2:
        (wall, cpu, memory), (np_wall, np_cpu, np_memory) = median["esmerge"], median["numpy"]
        ratios = f"time {np_wall / wall:.2f}, processor time {np_cpu / cpu:.2f}, memory {np_memory / memory:.2f}"
        print(f"numpy over esmerge: {ratios}")


def compare(scratch):
    total, apart, worst = compare_deltas.distance(scratch / "esmerge0.safetensors", scratch / "numpy.safetensors")
    print(f"merged deltas differ, relatively, by {total:.1e}, at worst {apart:.1e} ({worst})")
    return total


if __name__ == "__main__":
    main()
