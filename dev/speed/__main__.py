"""``python -m dev.speed [TABLE ...]``: print the tables of docs/speed.md, each measured from nothing."""

from __future__ import annotations

import argparse
import importlib
import sys

from dev.markdown import say


TABLES = {
    "launches": "what a step launches on an NPU, by operator (simulated, a minute)",
    "cpu": "CPU time of denoising against other loops (a minute)",
    "loading": "CPU time and memory of loading against the libraries (5 GB on disk, minutes; Linux)",
    "prices": "likeness of fewer evaluations, with the demo model (minutes)",
    "step": "a step on the GPU or NPU of this machine, at full size; on a CPU a tiny one",
}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Of the command line; None for those of the process.
    """
    listed = "\n".join(f"  {name:10}{text}" for name, text in TABLES.items())
    parser = argparse.ArgumentParser(
        prog="python -m dev.speed",
        description=f"{sys.modules[__name__].__doc__}\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="which (default: all)")
    parser.add_argument("--before", metavar="REVISION", help="launches: also of a revision of this repository")
    options = parser.parse_args(arguments)
    for name in options.tables:
        if name not in TABLES:
            parser.error(f"TABLE must be one of {', '.join(TABLES)}, got {name!r}.")
    if options.before and options.tables and "launches" not in options.tables:
        parser.error("--before needs the table launches.")
    for name in options.tables or TABLES:
        say(f"== {name}")
        more = {"before": options.before} if name == "launches" else {}
        print(f"## {name}\n\n{importlib.import_module(f'dev.speed.{name}').table(**more)}\n", flush=True)


if __name__ == "__main__":
    main()
