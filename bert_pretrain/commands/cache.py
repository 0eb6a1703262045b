"""`bert-pretrain cache`: the copies of data that pretraining and evaluation keep.

Nothing enters; a list of the copies leaves on standard output, of prepared text and of decoded
images, and with --clean some of them are removed. A copy that a process uses stays.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Sequence

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.data.copies import Copy, is_used, list_copies, remove
from bert_pretrain.errors import InputError
from bert_pretrain.images.cache import decoded_copies
from bert_pretrain.images.corpus import default_cache_dir
from bert_pretrain.text.preparation import prepared_copies

_SECONDS_PER_DAY = 24 * 60 * 60


def main(arguments: Sequence[str] | None = None) -> int:
    """List the copies, or remove those that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="bert-pretrain cache",
        description="List the copies of text and of images that runs without a prepared corpus "
        "have made, longest unused first: size, when last used, whether a process uses it, and "
        "what it holds. One that was removed is made again when it is needed.",
        allow_abbrev=False,
    )
    help_text = "Remove copies that no process uses: all, or those unused for so many days."
    parser.add_argument("--clean", metavar="all|DAYS", help=help_text)
    help_text = "Show the traceback of an input error."
    parser.add_argument("--debug", action="store_true", help=help_text)
    options = parser.parse_args(arguments)
    with reporting_input_errors(debug=options.debug):
        latest = -math.inf if options.clean is None else time.time() - _seconds(options.clean)
        for shelf in (prepared_copies(), decoded_copies(default_cache_dir())):
            sizes = {False: 0, True: 0}  # of those kept and removed
            for copy in list_copies(shelf):
                is_gone = copy.last_used <= latest and remove(copy)
                sizes[is_gone] += copy.num_bytes
                state = "removed" if is_gone else "in use" if is_used(copy) else ""
                sys.stdout.write(_line(copy, state) + "\n")
            gone = f", {_megabytes(sizes[True])} removed" if options.clean else ""
            sys.stdout.write(f"{_megabytes(sizes[False])} in {shelf.folder}{gone}\n")
    return 0


def _seconds(clean: str) -> float:
    """Return the age that --clean asks for.

    Raises:
        InputError: it is neither `all` nor a number of days.
    """
    if clean == "all":
        return 0.0
    with contextlib.suppress(ValueError):
        days = float(clean)
        if 0 <= days < math.inf:
            return days * _SECONDS_PER_DAY
    raise InputError.out_of_range("clean", clean, "all, or a number of days, at least 0")


def _line(copy: Copy, state: str) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(copy.last_used))
    name = f"{copy.folder.name}  {copy.description}"
    return f"{_megabytes(copy.num_bytes):>13}  {used}  {state:<7}  {name}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
