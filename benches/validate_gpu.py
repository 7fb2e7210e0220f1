"""``python benches/validate_gpu.py``: everything that a GPU has to show, in one report.

Builds this checkout, runs the tests with a device, every CUDA kernel against its emulation on the
CPU and float64, the benchmarks, compute-sanitizer, and the rest of the test suite. What crashes,
hangs or is missing is reported, and the rest goes on. Without a GPU it is a rehearsal on the CPU.

The folder of the report holds report.md, report.json, the benchmarks' tables and plots, and all
output in log.txt. Exit status: 0 if nothing failed, 1 if something did, 3 if nothing failed but not
all of it ran.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from validation import facts, parts, report
from validation.runner import Session

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benches" / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the validation and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="below 3 minutes; full: below 10")
    parser.add_argument(
        "--output", type=Path, help="folder of the report (benches/results/GPU/DATE-COMMIT)"
    )
    parser.add_argument("--commit", help="what is validated, where there is no git to ask")
    parser.add_argument(
        "--limit",
        type=float,
        help=f"seconds in all ({parts.FULL_LIMIT:.0f}; quick: {parts.QUICK_LIMIT:.0f})",
    )
    arguments = parser.parse_args(argv)
    limit = arguments.limit or (parts.QUICK_LIMIT if arguments.quick else parts.FULL_LIMIT)
    commit = arguments.commit or git_commit(ROOT)
    folder = arguments.output or new_folder(RESULTS, device_name(), commit)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name in report.FILES:
        (folder / name).unlink(missing_ok=True)  # of an earlier run
    scratch = Path(tempfile.mkdtemp(prefix="dasr-ops-validation-"))
    try:
        session = Session(
            ROOT,
            folder,
            scratch,
            limit=limit,
            quick=arguments.quick,
            save=report.save,
            say=say,
        )
        session.facts["commit"] = commit
        session.execute(parts.all_parts(arguments.quick, limit))
        say(report.summary(session))
        return report.exit_code(session)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def say(text: str) -> None:
    """Print, if anybody is still there to read: a closed pipe must not end the validation."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def device_name() -> str:
    """The GPU's name, or the processor's where there is none."""
    name = facts.ask_smi("name")
    if not name:
        # nvidia-smi can be absent where CUDA works.
        code = (
            "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
        )
        name = facts.output_of([sys.executable, "-c", code], timeout=60)
    return name or facts.cpu_name()


def git_commit(root: Path) -> str:
    """The abbreviated commit of a checkout, with "-dirty" if it has changes; else "unknown"."""

    def git(*words: str) -> str:
        return facts.output_of(["git", "-C", str(root), *words])

    # The repository that holds an unpacked archive is not the archive's.
    top = git("rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root.resolve():
        return "unknown"
    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    changes = git("status", "--porcelain", "--", ".", ":!benches/results")
    return f"{commit}-dirty" if changes else commit


def new_folder(results: Path, device: str, commit: str) -> Path:
    """A folder that does not exist yet: a report never replaces another one by itself."""
    date = time.strftime("%Y-%m-%d", time.gmtime())
    base = results / report.slug(device) / f"{date}-{report.slug(commit)}"
    number, folder = 1, base
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


if __name__ == "__main__":
    sys.exit(main())
