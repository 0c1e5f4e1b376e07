"""How well a merge overlaps reading, computing and writing: `python overlap.py PROGRAM RECIPE [--device cpu] [--runs 3]`

Each run merges twice: with `--max-memory 0`, where nothing overlaps, so that the report's `stages` are what each takes alone,
and with the usual budget. Printed are medians, and the wall time over the slowest stage alone. Files come from the system's
cache from the second merge on.
"""

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
from pathlib import Path


def merge(program, recipe, flags):
    with tempfile.TemporaryDirectory(dir=Path(recipe).resolve().parent) as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [program, "merge", recipe, f"{folder}/out", "-q", "--json", *flags]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    stages = report["stages"]
    parts = [stages["reading"]["seconds"], stages["computing"], stages["writing"]["seconds"]]
    return [report["seconds"], processor, *parts]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    device = ["--device", arguments.device]
    runs = {"alone": [], "together": []}
    for _ in range(arguments.runs):
        for name, flags in [("alone", ["--max-memory", "0"]), ("together", [])]:
            runs[name].append(merge(arguments.program, arguments.recipe, device + flags))
    print(f"{'':10}{'wall':>8}{'processor':>11}{'reading':>9}{'computing':>11}{'writing':>9}  (seconds, medians)")
    medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in runs.items()}
    for name, (wall, processor, reading, computing, writing) in medians.items():
        print(f"{name:10}{wall:8.2f}{processor:11.2f}{reading:9.2f}{computing:11.2f}{writing:9.2f}")
    slowest = max(medians["alone"][2:])
    print(f"wall time together is {medians['together'][0] / slowest:.2f} times the slowest stage alone")


if __name__ == "__main__":
    main()
