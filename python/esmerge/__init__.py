"""Merges fine-tuned models of one pre-trained checkpoint: the program ``esmerge``, called from Python.

>>> import esmerge
>>> report = esmerge.merge("recipe.yaml", "merged", alpha=0.8)
>>> report["alpha"], report["device"]

Every function runs the program with ``--json`` and gives what it prints as a ``dict``. Keyword arguments are the program's
flags: ``accuracy="exact"`` is ``--accuracy exact``, ``force=True`` is ``--force``, a list is a flag for each of its members;
``esmerge merge --help`` explains them. Paths in a recipe file are relative to that file; in a recipe given as a ``dict``, to
the working directory.
"""

from ._progress import Progress, shown
from ._program import Error, program, run, version

import json as _json
import os as _os
import tempfile as _tempfile
from contextlib import contextmanager as _contextmanager

__all__ = ["Error", "Progress", "capture", "evaluate", "load_report", "merge", "plan", "program", "version"]
__version__ = version()


@_contextmanager
def _recipe_file(recipe):
    """The path of a recipe; one that is a mapping lies in the working directory meanwhile, from which its paths start."""
    if not isinstance(recipe, dict):
        yield _os.fspath(recipe)
        return
    # JSON is YAML, too
    handle, path = _tempfile.mkstemp(prefix=".esmerge-recipe-", suffix=".yaml", dir=".", text=True)
    try:
        with _os.fdopen(handle, "w", encoding="utf-8") as file:
            _json.dump(recipe, file, indent=2, default=_os.fspath)
        yield path
    finally:
        _os.unlink(path)


def merge(recipe, out, *, progress=True, **flags):
    """Merges the models of a recipe, a path or a ``dict``, into the folder ``out``, and gives its report.

    ``progress`` is ``True`` for a line that moves (in notebooks, too), ``False`` for none, or a function that is called with a
    :class:`Progress`. ``out`` appears when it is complete, or not at all.

    Raises :class:`Error` with the program's message.
    """
    with _recipe_file(recipe) as path, shown(progress) as hear:
        return run(["merge", path, _os.fspath(out)], flags, hear)


def plan(recipe, **flags):
    """What :func:`merge` would do to every tensor, and what it would cost."""
    with _recipe_file(recipe) as path:
        return run(["merge", path, "--dry-run"], flags)


def capture(model, data, out, *, progress=True, **flags):
    """Runs an expert on samples (images, texts or tokens) and writes the inputs of its layers to ``out``, which ESM needs."""
    with shown(progress) as hear:
        run(["capture", _os.fspath(model), "--data", _os.fspath(data), "-o", _os.fspath(out)], flags, hear, reads=None)
    return _os.fspath(out)


def evaluate(model, tasks, *, progress=True, **flags):
    """The accuracy of a model on task files, each with its interval."""
    tasks = [tasks] if isinstance(tasks, (str, _os.PathLike)) else list(tasks)
    named = [word for task in tasks for word in ("--task", _os.fspath(task))]
    with shown(progress) as hear:
        return run(["eval", _os.fspath(model), *named], flags, hear)


def load_report(out):
    """The report of an earlier merge, by its folder."""
    with open(_os.path.join(_os.fspath(out), "esmerge-report.json"), encoding="utf-8") as file:
        return _json.load(file)
