"""A contestant in its own process, which computes when it is told to: see `measure.Contestant`."""

import importlib
import json
import os
import resource
import sys
import time
from typing import Any

from benchmarks.contestants import CONTESTANTS, CannotCompute, Workload


def main() -> None:
    # Libraries print; the answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    call: Any = None
    for line in sys.stdin:
        told = json.loads(line)
        answer: dict[str, Any] = {}
        start = time.perf_counter()
        try:
            if "work" in told:
                module, options = CONTESTANTS[told["contestant"]]
                made = importlib.import_module(f"benchmarks.contestants.{module}").make(
                    Workload(**told["work"]), told["form"], **options
                )
                start = time.perf_counter()
                made()  # compiles
                call = made
            else:
                call()
            answer["seconds"] = time.perf_counter() - start
        except CannotCompute as error:
            answer["refused"] = str(error)
        # On the host, in KiB on Linux.
        answer["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
