#!/usr/bin/env python3
"""Shares a merge out among the nodes of a Ray cluster, and joins it.

    python esmerge_ray.py RECIPE OUT [--shards N] [--address auto] [--gpus-per-shard 1]
                          [--retries 3] [--files N] [-- FLAGS OF esmerge merge]

Needs `pip install ray` and nothing else. Recipe, models and OUT must be reachable by
the same paths from every node, where `esmerge` is on the path (or named by --esmerge).
A share whose process or node dies is tried again, and goes on from the journal.
"""

import argparse
import os
import subprocess
import sys
import time

import ray


class Refused(Exception):
    """The recipe or the command line is wrong: to try again is of no use."""


def run(program, arguments, variables):
    """Runs the program, and gives what it says; an error if it fails."""
    done = subprocess.run(
        [program, *arguments],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode == 2:
        raise Refused(done.stdout)
    if done.returncode != 0:
        raise RuntimeError(f"{program} ended with {done.returncode}: {done.stdout}")
    return done.stdout


def share(program, recipe, out, index, count, flags):
    variables = {"RAY_ESMERGE_SHARD": str(index), "RAY_ESMERGE_SHARDS": str(count)}
    return run(program, ["merge", recipe, out, "--shard", "auto", *flags], variables)


def files(program, out, index, count, flags):
    return run(program, ["join", out, "--shard", f"{index + 1}/{count}", *flags], {})


def finish(program, out, flags):
    return run(program, ["join", out, *flags], {})


def flags_of_join(flags):
    """Of the flags of a merge those that a join knows and that the journal does not have."""
    with_value = ("--device", "--max-memory", "--batch-bytes")
    alone = ("--force", "--verify", "-q", "--quiet")
    found = []
    for i, flag in enumerate(flags):
        if flag in with_value:
            found += flags[i : i + 2]
        elif flag in alone or flag.startswith(tuple(f"{name}=" for name in with_value)):
            found.append(flag)
    return found


def wait(what, tasks):
    """Waits for tasks, and says how far they are and how long the rest may take."""
    started, total, left = time.monotonic(), len(tasks), list(tasks)
    while left:
        done, left = ray.wait(left, num_returns=1)
        ray.get(done)
        spent = time.monotonic() - started
        ready = total - len(left)
        rest = spent / ready * len(left)
        print(f"{what}: {ready} of {total} done in {spent:.0f} s, about {rest:.0f} s left", flush=True)


def main():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("out")
    parser.add_argument("--shards", type=int, help="shares of the layers [default: the GPUs, or the nodes, of the cluster]")
    parser.add_argument("--files", type=int, default=1, help="tasks that write the output's files [default: 1]")
    parser.add_argument("--address", help="the cluster [default: one on this machine]")
    parser.add_argument("--gpus-per-shard", type=float, default=0.0)
    parser.add_argument("--cpus-per-shard", type=float, default=1.0)
    parser.add_argument("--retries", type=int, default=3)
    parser.add_argument("--esmerge", default="esmerge")
    words, flags = sys.argv[1:], []
    if "--" in words:
        at = words.index("--")
        words, flags = words[:at], words[at + 1 :]
    args = parser.parse_args(words)
    recipe, out = os.path.abspath(args.recipe), os.path.abspath(args.out)
    ray.init(address=args.address, log_to_driver=False)
    cluster = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    count = args.shards or int(cluster.get("GPU", 0)) or nodes
    options = {
        "num_cpus": args.cpus_per_shard,
        "num_gpus": args.gpus_per_shard,
        "max_retries": args.retries,
        # whatever kills the program, but for an error of the user
        "retry_exceptions": [RuntimeError],
    }
    remote = lambda function: ray.remote(**options)(function)
    join = flags_of_join(flags)
    try:
        wait("shares", [remote(share).remote(args.esmerge, recipe, out, i, count, flags) for i in range(count)])
        if args.files > 1:
            wait("files", [remote(files).remote(args.esmerge, out, i, args.files, join) for i in range(args.files)])
        print(ray.get(remote(finish).remote(args.esmerge, out, join)))
    except ray.exceptions.RayTaskError as error:
        sys.exit(str(error.cause))


if __name__ == "__main__":
    main()
