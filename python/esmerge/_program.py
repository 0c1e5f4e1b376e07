"""The program: where it is, how it is called, what it says."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig


class Error(RuntimeError):
    """The program's message; ``code`` is what it exited with (2: something is wrong with what it was given)."""

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


def program():
    """The path of the program: that which was installed with this module, else the one on the path."""
    name = "esmerge.exe" if os.name == "nt" else "esmerge"
    schemes = [sysconfig.get_path("scripts")]
    if sys.platform != "win32":
        schemes.append(os.path.join(os.path.dirname(sys.executable)))
    user = sysconfig.get_preferred_scheme("user") if hasattr(sysconfig, "get_preferred_scheme") else None
    if user:
        schemes.append(sysconfig.get_path("scripts", user))
    for folder in schemes:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError("the program esmerge is not installed; `pip install --force-reinstall esmerge` brings it")
    return found


def version():
    """The program's version."""
    from importlib import metadata

    try:
        return metadata.version("esmerge")
    except metadata.PackageNotFoundError:
        return "unknown"


def words(flags):
    """``{"seed": 3, "force": True, "allow_mismatch": ["a", "b"]}`` as the command line has it."""
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is True:
                yield flag
            elif one is not False and one is not None:
                yield flag
                yield os.fspath(one) if isinstance(one, os.PathLike) else str(one)


def run(arguments, flags, hear=None, reads=json.loads):
    """Runs the program to its end, and gives what it prints. ``hear`` gets each line that it says meanwhile."""
    command = [program(), *arguments, *words(flags)]
    if reads is not None:
        command.append("--json")
    said = []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, encoding="utf-8", errors="replace") as process:
        try:
            output = _listen(process, said, hear)
        except BaseException:
            process.terminate()  # it removes what it has written
            raise
    if process.returncode != 0:
        message = "\n".join(said[-20:])
        start = message.find("error: ")
        raise Error(message[start + len("error: "):] if start >= 0 else message or "esmerge was ended", process.returncode)
    return reads(output) if reads is not None else output


def _listen(process, said, hear):
    import threading

    output = []
    reader = threading.Thread(target=lambda: output.append(process.stdout.read()), daemon=True)
    reader.start()
    for line in process.stderr:
        said.append(line.rstrip("\n"))
        if hear is not None:
            hear(said[-1])
    process.wait()
    reader.join()
    return output[0] if output else ""
