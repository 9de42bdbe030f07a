"""Does any file that another scanner of pickles flags pass without a word here, and what do we flag that is benign?

    python -m venv /tmp/scanners && /tmp/scanners/bin/pip install picklescan fickling modelscan modelaudit
    python experiments/code_scanners.py --python /tmp/scanners/bin/python
    python experiments/code_scanners.py --python ... --samples DIR --benign DIR    # files of one's own as well

What the scanners hold to be dangerous is taken from their packages, every function of every list, and made into pickles
by each opcode that calls (REDUCE, INST, OBJ, BUILD, NEWOBJ), in protocols 0, 2 and 4, and named without a call. Whole
modules are stood for by a function `x`. fickling injects its own payloads too. The packages ship no samples:
`--samples` takes those of their repositories (`tests/` of picklescan and modelaudit). Nothing is unpickled.
modelaudit, the slowest, sees every function by REDUCE only.

The verdicts here: `code` is a finding, `note` is in words in the report, `problem` could not be followed, else nothing.

Hardware: any. Time: 10 minutes, and a second for each file that modelaudit sees.
Expected: every call is `code`. What others flag and of which nothing is said here (`others_alone`) no loader runs: text
in metadata, data that is encoded twice, a name that is not called, sound checkpoints. Of benign files one is `code`: a
module of a class of its own. The committed run had, as samples, `tests/` of the repositories of picklescan (f15d54d),
modelaudit (5ddfcdc3) and modelscan (8b8ed4b); as benign files, torch modules, optimizers and tensors, all estimators of
scikit-learn, optax states, NumPy and pandas values and third-party checkpoints. There modelaudit was stopped after 71.
Result: experiments/results/code_scanners.json.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

SCANNERS = ("picklescan", "fickling", "modelscan", "modelaudit")
RESULT = pathlib.Path(__file__).parent / "results" / "code_scanners.json"
SUFFIXES = (".py", ".md", ".txt", ".csv")
LIMIT = 3000  # seconds for a scanner


# In the other environment: what the packages know and say.


def names() -> dict[str, list[str]]:
    """Every function of every deny list, `x` for all of a module."""
    from fickling import analysis, fickle
    from modelaudit.detectors import suspicious_symbols
    from modelscan import settings
    from picklescan import scanner

    lists = {"picklescan": scanner._unsafe_globals, "modelaudit": suspicious_symbols.SUSPICIOUS_GLOBALS}
    lists["modelaudit"] |= dict.fromkeys(suspicious_symbols.OS_MODULE_ALIASES, "*")
    unsafe = settings.DEFAULT_SETTINGS["scanners"] if "unsafe_globals" in settings.DEFAULT_SETTINGS["scanners"] else {}
    unsafe = unsafe.get("unsafe_globals") or settings.DEFAULT_SETTINGS["unsafe_globals"]
    lists["modelscan"] = {module: found for level in unsafe.values() for module, found in level.items()}
    ml = analysis.UnsafeImportsML
    lists["fickling"] = dict.fromkeys((*fickle.UNSAFE_IMPORTS, *ml.UNSAFE_MODULES), "*") | ml.UNSAFE_IMPORTS
    found = {}
    for scanner_name, modules in lists.items():
        each = [
            (module, name)
            for module, functions in modules.items()
            for name in (["x"] if functions == "*" else [functions] if isinstance(functions, str) else functions)
        ]
        found[scanner_name] = sorted({f"{module} {name}" for module, name in each})
    return found


def payloads(folder: pathlib.Path) -> None:
    """What fickling injects into a sound pickle."""
    import pickle

    from fickling.fickle import Pickled

    for number, (method, run_first) in enumerate([("exec", True), ("exec", False), ("eval", True), ("magic", False)]):
        program = Pickled.load(pickle.dumps({"w": [1.0, 2.0]}, 2))
        match method:
            case "exec":
                program.insert_python_exec("pass", run_first=run_first)
            case "eval":
                program.insert_python_eval("None", run_first=run_first)
            case "magic":
                program.insert_function_call_on_unpickled_object("def f(x):\n    return x", compile_code=False)
        (folder / f"fickling-{number}-{method}.pkl").write_bytes(program.dumps())


def flagged(scanner: str, path: str) -> bool:
    """Whether one of the other scanners raises its alarm."""
    match scanner:
        case "picklescan":
            from picklescan.scanner import scan_file_path

            return scan_file_path(path).issues_count > 0
        case "fickling":
            from fickling.analysis import Severity, check_safety
            from fickling.fickle import StackedPickle

            with open(path, "rb") as file:
                return any(check_safety(one).severity > Severity.LIKELY_SAFE for one in StackedPickle.load(file))
        case "modelscan":
            from modelscan.modelscan import ModelScan

            return bool(ModelScan().scan(path)["issues"])
        case _:
            from modelaudit.core import scan_model_directory_or_file

            issues = scan_model_directory_or_file(path, cache_enabled=False).issues
            return any(str(one.severity).lower().rpartition(".")[2] in ("warning", "critical") for one in issues)


def worker(scanner: str) -> None:
    """Reads paths, writes a line for each."""
    import contextlib
    import logging

    logging.disable()
    for line in sys.stdin:
        path = line.rstrip("\n")
        try:
            with contextlib.redirect_stdout(sys.stderr):
                verdict = "flagged" if flagged(scanner, path) else ""
        except Exception as error:
            verdict = f"failed: {type(error).__name__}"
        print(json.dumps([path, verdict]), flush=True)


# In this environment.


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def programs(module: str, name: str) -> dict[str, bytes]:
    """Pickles that call a function by every opcode, in three protocols."""
    line = f"{module}\n{name}\n".encode()
    made = {}
    for protocol in (0, 2, 4):
        head = bytes([0x80, protocol]) if protocol else b""
        found = text(module) + text(name) + b"\x93" if protocol == 4 else b"c" + line
        value = text("x") if protocol else b"Vx\n"
        made |= {
            f"REDUCE-{protocol}": head + found + b"(" + value + b"tR.",
            f"INST-{protocol}": head + b"(" + value + b"i" + line + b".",
            f"OBJ-{protocol}": head + b"(" + found + value + b"o.",
            f"BUILD-{protocol}": head + found + b"(" + value + b"I1\nd" + b"b.",
            f"NEWOBJ-{protocol}": head + found + b"(" + value + b"t\x81.",
            f"named-{protocol}": head + found + b".",
        }
    return made


def verdict(path: str) -> str:
    """What jaxguard says."""
    from jaxguard.checkpoints import examine

    code = examine(path)
    return "code" if code.calls else "problem" if code.problem else "note" if code.notes else "nothing"


def others(python: str, scanner: str, paths: list[str]) -> dict[str, str]:
    """What a scanner says of files, by path."""
    done = subprocess.run(
        [python, __file__, "--worker", scanner],
        input="\n".join(paths),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


def asked(python: str, *arguments: str) -> Any:
    done = subprocess.run([python, __file__, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout) if done.stdout else None


def main() -> None:
    import machine

    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True, help="of an environment with the other scanners")
    parser.add_argument("--samples", nargs="*", default=[], help="folders with malicious files")
    parser.add_argument("--benign", nargs="*", default=[], help="folders with files that call nothing")
    parser.add_argument("--seconds", action="store_true", help="how long each scanner takes")
    options = parser.parse_args()
    known = asked(options.python, "--names")
    every = sorted({one for found in known.values() for one in found})
    with tempfile.TemporaryDirectory() as folder:
        root, kinds, paths = pathlib.Path(folder), {}, []
        for number, full in enumerate(every):
            for kind, program in programs(*full.split(" ", 1)).items():
                path = root / f"{number}-{kind}.pkl"
                path.write_bytes(program)
                kinds[str(path)] = (f"{kind}", full.replace(" ", "."))
        asked(options.python, "--payloads", folder)
        paths = [*kinds, *(str(path) for path in sorted(root.glob("fickling-*")))]
        sets = {"made": paths}
        for name, folders in (("samples", options.samples), ("benign", options.benign)):
            found = [str(p) for top in folders for p in sorted(pathlib.Path(top).rglob("*")) if p.is_file()]
            sets[name] = [path for path in found if not path.endswith(SUFFIXES)]
        tally, alone, alarms, seconds = {}, [], collections.defaultdict(list), {}
        for name, files in sets.items():
            if not files:
                continue
            start = time.process_time()
            ours = {path: verdict(path) for path in files}
            seconds.setdefault("jaxguard", {})[name] = round(time.process_time() - start, 1)
            tally[name] = {"files": len(files), "jaxguard": dict(collections.Counter(ours.values()))}
            for scanner in SCANNERS:
                given = files
                if name == "made" and scanner == "modelaudit":
                    given = [path for path in files if kinds.get(path, ("REDUCE",))[0].startswith("REDUCE")]
                start = time.perf_counter()
                found = others(options.python, scanner, given)
                seconds.setdefault(scanner, {})[name] = round(time.perf_counter() - start, 1)
                counts = collections.Counter(found.values())
                # Fewer answers than files: it was stopped.
                told = {"files": len(given), "answered": len(found), "flagged": counts.pop("flagged", 0)}
                tally[name][scanner] = {**told, "other": dict(counts)}
                for path in (path for path, said in found.items() if said == "flagged"):
                    shown = " ".join(kinds[path]) if path in kinds else _shown(path, options)
                    if name == "benign":
                        alarms[scanner].append(shown)
                    elif ours[path] == "nothing":
                        alone.append({"file": shown, "by": scanner})
                    elif ours[path] != "code":
                        tally[name].setdefault("others_flag_we_say_less", []).append([shown, scanner, ours[path]])
            if name == "benign":
                alarms["jaxguard"] = [_shown(path, options) for path, said in ours.items() if said == "code"]
                alarms["jaxguard, not followed"] = [_shown(p, options) for p, said in ours.items() if said == "problem"]
        versions = asked(options.python, "--versions")
    result = {
        "environment": machine.environment(**versions),
        "names": {scanner: len(found) for scanner, found in known.items()} | {"all": len(every)},
        "tally": tally,
        "others_alone": alone,
        "false_alarms": alarms,
        "seconds": seconds,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("names", "tally", "false_alarms", "seconds")}, indent=1)[:6000])
    print(f"{len(alone)} files that another flags and of which nothing is said here: {alone[:20]}")


def _shown(path: str, options: argparse.Namespace) -> str:
    for top in (*options.samples, *options.benign):
        if path.startswith(str(top)):
            return path[len(str(top)) :].lstrip("/")
    return pathlib.Path(path).name


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--worker", scanner]:
            worker(scanner)
        case ["--names"]:
            print(json.dumps(names()))
        case ["--payloads", folder]:
            payloads(pathlib.Path(folder))
        case ["--versions"]:
            from importlib import metadata

            print(json.dumps({name: metadata.version(name) for name in SCANNERS}))
        case _:
            main()
