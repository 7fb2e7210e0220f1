"""What is validated, and how the outcome of each step is read."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from .runner import FAILED, LEFT_OUT, PASSED, Failure, Finished, Outcome, Part, Session
from .suite import has_plugin, run_suite

HERE = Path(__file__).resolve().parent
COMPARISON = "tests/test_cuda_against_emulation.py"
# What is chosen only where an environment variable asks for it, as in benches/trials.py.
TRIED = "tests/test_cuda_conv_device.py"
TRIALS: dict[str, dict[str, str]] = {
    "chained": {"DASR_OPS_CUDA_CHAIN": "1"},
    "wgmma": {"DASR_OPS_CUDA_CONV": "wgmma"},
}
NO_DEVICE = "no CUDA device"
SANITIZERS = ("memcheck", "racecheck")
FINDING_CODE = 87  # an exit status that nothing else uses


FULL_LIMIT, QUICK_LIMIT = 540.0, 170.0  # seconds in all


def all_parts(quick: bool, limit: float | None = None) -> list[Part]:
    """The parts in the order of their worth: what is behind may find no time left.

    Their own limits grow and shrink with the limit of all.
    """
    # Benchmarks have the machine to themselves, as every part has: parts never overlap.
    if quick:
        parts = [
            Part("environment", environment, limit=40),
            Part("build", build, limit=100),
            Part("GPU tests", gpu_tests, limit=70),
            Part("emulation against hardware", comparison, limit=60, reserve=20),
            Part("kernels on trial", trials, limit=50, reserve=15),
            Part("benchmarks", benchmarks, limit=60, reserve=30),
            Part("sanitizer", sanitizer, limit=60),
            Part("rest of the tests", rest_of_tests, limit=60, minimum=0),
        ]
    else:
        parts = [
            Part("environment", environment, limit=60),
            Part("build", build, limit=240),
            Part("GPU tests", gpu_tests, limit=180),
            Part("emulation against hardware", comparison, limit=120, reserve=30),
            Part("kernels on trial", trials, limit=60, reserve=30),
            Part("benchmarks", benchmarks, limit=220, reserve=50),
            Part("training step", training_step, limit=50, reserve=20),
            Part("sanitizer", sanitizer, limit=120, reserve=30),
            Part("rest of the tests", rest_of_tests, limit=500, reserve=90),
        ]
    usual = QUICK_LIMIT if quick else FULL_LIMIT
    scale = (limit or usual) / usual
    return [replace(p, limit=p.limit * scale, reserve=p.reserve * scale) for p in parts]


def environment(session: Session) -> Outcome:
    """Facts about the machine; a GPU that torch cannot use is a failure, none at all is not."""
    done = session.run([sys.executable, HERE / "facts.py"])
    for line in done.output.splitlines():
        if line.startswith("{"):
            session.facts.update(json.loads(line))
    facts = session.facts
    device = facts.get("device", "unknown")
    if done.code != 0 or done.timed_out:
        facts["cuda"] = False
        return Outcome.failed("facts", f"the probe {done.ending}:\n{done.tail(5)}")
    if facts.get("gpu") and not facts["cuda"]:
        return Outcome.failed("device", f"there is a {facts['gpu']}, but torch cannot use it")
    if not facts["cuda"]:
        return Outcome(PASSED, f"no CUDA device: rehearsal on the CPU ({device})")
    return Outcome(PASSED, f"{device}, driver {facts.get('driver')}, torch {facts.get('torch')}")


_BUILD_DIRECTLY = """
import sys
sys.path.insert(0, "csrc")
from setuptools.dist import Distribution
from dasr_ops_build.extension import BuildExtension, extensions
command = BuildExtension(
    Distribution({"name": "dasr-ops", "packages": ["dasr_ops"], "ext_modules": extensions()})
)
command.inplace = True
command.ensure_finalized()
command.run()
"""
_LOADED = """
import json, dasr_ops
from dasr_ops._extension import extension
report = {"backends": dasr_ops.backends(), "path": str(extension.path), "info": extension.info}
print("LOADED " + json.dumps(report | {"reason": extension.reason}))
"""


def build(session: Session) -> Outcome:
    """Build in place by pip; where pip cannot, by the builder itself. Then look what is loaded."""
    variables: dict[str, str | None] = {
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "DASR_OPS_WITHOUT_EXTENSION": None,
        "DASR_OPS_WITHOUT_CUDA": None,
    }
    capability = session.facts.get("capability")
    if session.quick and capability and "DASR_OPS_CUDA_ARCHS" not in os.environ:
        # Hopper's own instructions need the "a".
        variables["DASR_OPS_CUDA_ARCHS"] = "9.0a" if capability == "9.0" else capability
    commands = {
        "pip": ["-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", "-e", "."],
        # setuptools before 77 does not read pyproject.toml; system Pythons refuse pip.
        "the builder": ["-c", _BUILD_DIRECTLY],
    }
    tried = []
    for name, arguments in commands.items():
        done = session.run([sys.executable, *arguments], environment=variables)
        if done.code == 0 and not done.timed_out:
            break
        tried.append(Failure(f"build by {name}", f"{done.ending}\n{done.tail(8)}"))
    else:
        return Outcome(FAILED, "nothing was built", tried)
    by = f"by {name}" + (f" ({tried[0].name} failed)" if tried else "")
    done = session.run([sys.executable, "-c", _LOADED])
    match = re.search(r"^LOADED (.*)$", done.output, re.MULTILINE)
    if match is None or done.code != 0:
        return Outcome.failed("import dasr_ops", f"it {done.ending}:\n{done.tail()}")
    loaded: dict[str, Any] = json.loads(match[1])
    faults = loading_faults(session, loaded)
    cuda = f"CUDA {loaded['info'].get('cuda')} for {loaded['info'].get('cuda_archs')}"
    failed = [Failure("extension", fault) for fault in faults]
    status = FAILED if faults else PASSED
    return Outcome(status, f"{by}; {cuda}", failed, {**loaded, "built": by})


def loading_faults(session: Session, loaded: dict[str, Any]) -> list[str]:
    """What is wrong with the extension that Python found."""
    if loaded["reason"] is not None:
        return [f"not loaded: {loaded['reason']}"]
    faults = []
    if Path(loaded["path"]).resolve().parent != (session.root / "dasr_ops").resolve():
        # Its sources are the same, but its build may be another.
        faults.append(f"{loaded['path']} was loaded, which is not the one that was built here")
    wanted = ["cpu", "cuda"] if session.facts.get("cuda") else ["cpu"]
    for name in wanted:
        if not loaded["backends"][name].startswith("available"):
            faults.append(f"backend {name}: {loaded['backends'][name]}")
    return faults


def gpu_tests(session: Session) -> Outcome:
    """All tests that need a device, but for the comparison with the emulation."""
    if not session.facts.get("cuda"):
        return Outcome(LEFT_OUT, NO_DEVICE)
    options = ["-m", "gpu and not slow", f"--ignore={COMPARISON}"]
    return run_suite(session, ["tests"], options=options)


def comparison(session: Session) -> Outcome:
    """Every kernel on the device against its emulation and float64; without a device these two."""
    if session.facts.get("cuda"):
        return run_suite(session, [COMPARISON], options=["-m", "gpu"])
    outcome = run_suite(session, [COMPARISON], options=["-m", "not gpu"])
    outcome.summary += " (emulation against float64 only)"
    return outcome


def trials(session: Session) -> Outcome:
    """Kernels that are chosen only on demand: the GPU tests of convolutions with each, and times.

    What fails here is chosen by nobody yet, and fails the validation all the same.
    """
    if not session.facts.get("cuda"):
        return Outcome(LEFT_OUT, NO_DEVICE)
    failures, words = [], []
    for i, (name, variables) in enumerate(TRIALS.items()):
        share = (session.remaining() - 15) / (len(TRIALS) - i)
        command = [sys.executable, "-m", "pytest", TRIED, "-q", "-x", "--tb=short", "-m", "gpu"]
        done = session.run(
            [*command, "-p", "no:cacheprovider"], limit=max(share, 5), environment=variables
        )
        words.append(f"{name}: {'right' if done.code == 0 else done.ending}")
        if done.code != 0 or done.timed_out:
            failures.append(Failure(f"GPU tests, {name}", f"{done.ending}\n{done.tail(8)}"))
    done = session.run(
        [sys.executable, session.root / "benches" / "trials.py", session.folder],
        limit=max(session.remaining(), 5),
    )
    if done.code != 0 or done.timed_out:
        failures.append(Failure("benches/trials.py", f"{done.ending}\n{done.tail(8)}"))
    return Outcome(FAILED if failures else PASSED, "; ".join(words), failures)


_BENCHMARK = """
import importlib.util, sys
from pathlib import Path
from dasr_ops import bench
selection, device, budget, commit, folder = sys.argv[1:]
folder = Path(folder)
bench.run(
    selection,
    device=device,
    budget=float(budget),
    json=folder / "benchmark.json",
    markdown=folder / "benchmark.md",
    plot=folder / "benchmark" if importlib.util.find_spec("matplotlib") else None,
    commit=commit,
)
"""
# The tables of what was measured before the end came.
_TABLES = """
import json, sys
from pathlib import Path
from dasr_ops.bench import tables
folder = Path(sys.argv[1])
report = json.loads((folder / "benchmark.json").read_text())
(folder / "benchmark.md").write_text(tables.markdown(report))
"""


def benchmarks(session: Session) -> Outcome:
    """The project's benchmarks; what was measured before a failure stays in the folder."""
    device = "cuda" if session.facts.get("cuda") else "cpu"
    selection = "quick" if session.quick or device == "cpu" else "default"
    # The case that has begun when the budget ends may have to compile first.
    budget = max(session.remaining() * 0.6 - 5, 5)
    commit = session.facts.get("commit", "unknown")
    arguments = [selection, device, f"{budget:.0f}", commit, session.folder]
    done = session.run(
        [sys.executable, "-c", _BENCHMARK, *arguments], limit=session.remaining() - 10
    )
    report = _read_json(session.folder / "benchmark.json")
    cases, left_out = report.get("cases", []), report.get("left_out", [])
    if cases and not (session.folder / "benchmark.md").exists():
        session.run([sys.executable, "-c", _TABLES, session.folder])
    words = f"{len(cases)} cases" if cases else "no results"
    if left_out:
        words += f", {len(left_out)} left out for lack of time"
    details = {"selection": selection, "device": device, "budget": round(budget)}
    # Formulations that are wrong or do not run.
    failures = [
        Failure(f"{case['id']}, {result['peer']}", str(result["failed"]))
        for case in cases
        for result in case["results"]
        if "failed" in result
    ]
    if done.code != 0 or done.timed_out:
        message = f"{done.ending}, {words}\n{done.tail(8)}"
        failures.insert(0, Failure("dasr_ops.bench", message))
        words = f"{done.ending}, {words}"
    elif not cases:
        failures.append(Failure("dasr_ops.bench", f"ended well, but with {words}"))
    status = FAILED if failures else PASSED
    return Outcome(status, f"{selection} on {device}: {words}", failures, details)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def training_step(session: Session) -> Outcome:
    """A step of training beside the same written the official way; what degradations cost."""
    cuda = bool(session.facts.get("cuda"))
    sizes = ["--rounds", "7"] if cuda else ["--rounds", "1", "--batch", "1", "--patch", "64"]
    environment = {"DASR_OPS_COMMIT": session.facts.get("commit")}
    failures, words = [], []
    for precision in ("bfloat16", "float32") if cuda else ("float32",):
        command = [sys.executable, session.root / "benches" / "training_step.py", *sizes]
        command += ["--device", "cuda" if cuda else "cpu", "--precision", precision]
        done = session.run(
            [*command, "--output", session.folder],
            limit=max(session.remaining() / (2 - len(words)), 5),
            environment=environment,
        )
        words.append(f"{precision}: {done.ending if done.code or done.timed_out else 'measured'}")
        if done.code != 0 or done.timed_out:
            failures.append(
                Failure(f"training_step.py, {precision}", f"{done.ending}\n{done.tail(8)}")
            )
    return Outcome(FAILED if failures else PASSED, "; ".join(words), failures)


def find_sanitizer(facts: dict[str, Any]) -> str | None:
    """The path of compute-sanitizer, or None."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), facts.get("toolkit")]
    nvcc = shutil.which("nvcc")
    places = [str(Path(nvcc).resolve().parent)] if nvcc else []
    for root in [*filter(None, roots), "/usr/local/cuda"]:
        places += [f"{root}/bin", f"{root}/extras/compute-sanitizer"]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(places)
    )


def sanitizer(session: Session) -> Outcome:
    """compute-sanitizer over small cases of every kernel."""
    if not session.facts.get("cuda"):
        return Outcome(LEFT_OUT, NO_DEVICE)
    tool = find_sanitizer(session.facts)
    if tool is None:
        return Outcome(LEFT_OUT, "compute-sanitizer was not found")
    outcomes = {}
    for i, name in enumerate(SANITIZERS):
        # Freed memory must go back to the driver, or memcheck takes PyTorch's cache for in use.
        variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if name == "memcheck" else {}
        command = [tool, "--tool", name, "--error-exitcode", str(FINDING_CODE)]
        command += [sys.executable, "-m", "tests.cuda_kernels"]
        limit = session.remaining() / (len(SANITIZERS) - i)
        outcomes[name] = read_sanitizer(
            name, session.run(command, limit=limit, environment=variables)
        )
    statuses = {outcome.status for outcome in outcomes.values()}
    status = next(s for s in (FAILED, PASSED, LEFT_OUT) if s in statuses)
    summary = "; ".join(f"{name}: {outcome.summary}" for name, outcome in outcomes.items())
    found = [failure for outcome in outcomes.values() for failure in outcome.failures]
    return Outcome(status, summary, found)


def read_sanitizer(name: str, done: Finished) -> Outcome:
    """The outcome of one tool. racecheck has a summary line of its own."""
    if re.search(r"device not supported", done.output, re.IGNORECASE):
        return Outcome(LEFT_OUT, "device not supported by the tool")
    text = done.output
    counts = re.findall(r"ERROR SUMMARY: (\d+) error", text)
    counts += re.findall(r"RACECHECK SUMMARY: (\d+) hazard", text)
    findings = [
        re.sub(r"^=+\s*", "", line)
        for line in text.splitlines()
        if re.match(r"=+\s+\S", line) and "COMPUTE-SANITIZER" not in line
    ]
    if any(int(count) for count in counts) or done.code == FINDING_CODE:
        return Outcome.failed(name, "\n".join(findings[:8]) or done.tail())
    if done.code != 0 or done.timed_out:
        return Outcome.failed(name, f"the program under it {done.ending}:\n{done.tail()}")
    if not counts:
        return Outcome.failed(name, f"it printed no summary:\n{done.tail()}")
    return Outcome(PASSED, "no finding")


def rest_of_tests(session: Session) -> Outcome:
    """The tests that need no device, spread over the processors."""
    if session.quick:
        return Outcome(LEFT_OUT, "--quick")
    cpus = len(os.sched_getaffinity(0))
    workers = min(8, cpus // 2) if has_plugin("xdist") else 0
    options = ["-m", "not slow and not gpu"]
    if not session.facts.get("cuda"):
        options.append(f"--ignore={COMPARISON}")  # has been run
    # Nothing comes after it, and a hang is unlikely: it gets the time to itself.
    return run_suite(session, ["tests"], options=options, workers=workers, first_share=0.95)
