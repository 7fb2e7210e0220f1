"""What ``dasr upscale --dry-run`` prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dasr_ops.models import pictures
from dasr_ops.models._messages import one_line

from ._output import print_names
from .plan import Job, Kind

if TYPE_CHECKING:
    from dasr_ops.models.upscale import Upscaler


def dry_run(jobs: Sequence[Job], upscaler: Upscaler) -> int:
    """Print a line for each job, with sizes from the files' headers; return how many would fail."""
    failed = 0
    for job in jobs:
        try:
            width, height = _size(job)
            size = upscaler.output_size(width, height)
            suffix = job.target.suffix.lower()
            if job.kind is Kind.PICTURE:
                pictures.check_output_size(size, pictures.FORMATS[suffix])
            elif job.kind is Kind.ANIMATION:
                pictures.check_output_size(size, pictures.ANIMATION_FORMATS[suffix])
        except Exception as error:  # as many reasons as there are kinds of files
            failed += 1
            print(f"error: {job.source}: {one_line(error)}", file=sys.stderr)
            continue
        print_names(f"{job.source} ({width}x{height}) -> {job.target} ({size[0]}x{size[1]})")
    return failed


def _size(job: Job) -> tuple[int, int]:
    """Return width and height as they are seen."""
    if job.kind is Kind.VIDEO:
        from dasr_ops.models.video import probe

        return probe(job.source).size
    return pictures.read_size(job.source)
