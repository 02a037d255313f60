"""Measure the package on this machine.

    python scripts/benchmark.py hspace --size=128 --batch_size=40
    python scripts/benchmark.py NAME --help

Each benchmark is a program in scripts/benchmarks/ and prints a table.
"""

import runpy
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Run the benchmark that `argv` names, with the flags that follow; return the exit status."""
    programs = {path.stem: path for path in sorted((Path(__file__).parent / "benchmarks").glob("*.py"))}
    if len(argv) < 2 or argv[1] not in programs:
        asked = len(argv) > 1 and argv[1] in ("-h", "--help")
        text = f"{__doc__}\nBenchmarks: {', '.join(programs)}"
        if not asked:
            found = repr(argv[1]) if len(argv) > 1 else "none"
            text = f"benchmark: give one of {', '.join(programs)}; found {found}"
        print(text, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    program = str(programs[argv[1]])
    sys.argv = [program, *argv[2:]]
    runpy.run_path(program, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
