"""What a user would run on a folder of checkpoints instead of jaxguard: other scanners, and CLP's published loop.

    python fleet_tools.py TOOL FILE_OF_PATHS     # clp, modelscan or modelaudit; `bench_fleet.py --python` calls it

Runs in an environment of its own, without jaxguard: torch and safetensors for `clp`, the scanners' packages for the
others. Prints a line of JSON: how many files were examined (a scanner may pass over what it does not know), the seconds
they took without imports, and the version. ModelAudit and modelscan look for code in files, not at weights. `clp` is
written from the paper and the description of its authors' code: load a file, and for each BatchNorm, in the order of
the modules, one SVD per channel of the convolution before it, a threshold, and zeros where it is exceeded.
"""

import contextlib
import json
import os
import sys
import time
from importlib import metadata
from typing import Any

U = 3.0
BLOCK = ("bn1", "conv1", "bn2", "conv2", "shortcut.0")
"""Order of a block's modules in PreActResNet-18; a file has its leaves sorted by name."""
SILENT = ("DO_NOT_TRACK", "NO_ANALYTICS", "PROMPTFOO_DISABLE_TELEMETRY")


def clp(path: str) -> int:
    import torch
    from safetensors.torch import load_file

    state = load_file(path)
    blocks = sorted({".".join(name.split(".")[:2]) for name in state if name.startswith("layer")})
    kernel = state["conv1.weight"]
    for module in (f"{block}.{name}" for block in blocks for name in BLOCK):
        if f"{module}.running_var" in state:
            weight, bias = state[f"{module}.weight"], state[f"{module}.bias"]
            scale = (weight / state[f"{module}.running_var"].sqrt()).abs()
            channels = [scale[c] * kernel[c].flatten(1) for c in range(len(kernel))]
            bounds = torch.stack([torch.linalg.svd(one, full_matrices=False)[1].max() for one in channels])
            cut = bounds > bounds.mean() + U * bounds.std()
            weight[cut], bias[cut] = 0, 0
        elif f"{module}.weight" in state:
            kernel = state[f"{module}.weight"]
    return 1


def modelscan(path: str) -> int:
    from modelscan.modelscan import ModelScan

    return ModelScan().scan(path)["summary"]["scanned"]["total_scanned"]


def modelaudit(path: str) -> int:
    from modelaudit.core import scan_model_directory_or_file

    return scan_model_directory_or_file(path, cache_enabled=False).files_scanned


TOOLS = {"clp": (clp, "torch"), "modelscan": (modelscan, "modelscan"), "modelaudit": (modelaudit, "modelaudit")}


def main() -> None:
    tool, package = TOOLS[sys.argv[1]]
    os.environ.update(dict.fromkeys(SILENT, "1"))
    with open(sys.argv[2], encoding="utf-8") as file:
        paths = file.read().split("\n")[:-1]
    with contextlib.redirect_stdout(sys.stderr):
        tool(paths[0])  # imports
        start = time.perf_counter()
        examined = sum(tool(path) for path in paths)
        seconds = time.perf_counter() - start
    result: dict[str, Any] = {"examined": examined, "seconds": seconds, "version": metadata.version(package)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
