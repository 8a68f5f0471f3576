"""Starts the processes that decode: with nothing of this one but what they need."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

# `-I` and the path: it imports what this process would, but nothing of the folder it is started in.
_COMMAND: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from image_search.decoding.{module} import main; main(*map(int, sys.argv[1].split()))"
)
# One thread and one heap: less address space that is reserved and not used.
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    # Pillow keeps so many of its blocks of 16 MiB for the next image: a picture of 12 megapixels
    # is in memory that need not be made anew, which took a tenth of the time.
    "PILLOW_BLOCKS_MAX": "3",
}
# All else, keys among it, is none of a decoder's business.
_INHERITED: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


def how_it_ended(process: "subprocess.Popen[bytes]") -> str:
    """Wait for a process that has closed its socket: `time`, `memory` or `crashed`.

    Raises RuntimeError where it ended by itself, which is a defect.
    """
    code = process.wait()
    if code > 0:
        raise RuntimeError(f"a decoding process ended with exit code {code}")
    if code == -signal.SIGPROF:
        return "time"
    # The kernel does so where memory ends.
    return "memory" if code == -signal.SIGKILL else "crashed"


def start(module: str, descriptors: Sequence[int]) -> "subprocess.Popen[bytes]":
    """A process that runs `main` of a module of this package with these descriptors, all open."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return subprocess.Popen(  # noqa: S603
        [
            *(sys.executable, "-I", "-c", _COMMAND.format(module=module)),
            *(" ".join(map(str, descriptors)), json.dumps(sys.path)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=descriptors,
        env=inherited | _ENVIRONMENT,
    )
