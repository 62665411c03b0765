"""Print tables: ``python -m dev.speed [loading|step ...]``; without a name all of them."""

from __future__ import annotations

import argparse
import importlib


TABLES = ("loading", "step")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m dev.speed")
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], default=[])
    for name in parser.parse_args().tables or TABLES:
        print(f"{importlib.import_module(f'dev.speed.{name}').table()}\n")


if __name__ == "__main__":
    main()
