"""The command `difflid`: `difflid COMMAND …` is `python -m difflid_jax.COMMAND …`."""

import ast
import importlib.util
import runpy
import sys

from difflid_jax.cli import tolerate_any_text

PROGRAMS = {
    name: f"difflid_jax.{name}"
    for name in (
        "restore",
        "serve",
        "train",
        "evaluate",
        "check_data",
        "synthesize",
        "reproduce",
        "study",
        "extract",
        "sample",
        "pretrain",
        "export",
    )
} | {
    f"convert_{name}": f"convert_weights.{name}"
    for name in ("openai_ddpm", "difflid_release", "perceptual", "peers")
}


def main() -> None:
    """Run the program that the first argument names, with the remaining arguments."""
    tolerate_any_text()
    name = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else ""
    if name in PROGRAMS:
        del sys.argv[1]
        runpy.run_module(PROGRAMS[name], run_name="__main__", alter_sys=True)
    elif name in ("", "help", "__help", "_h"):
        print(usage())
    else:
        print(f"difflid: unknown command {sys.argv[1]!r}; known: {', '.join(PROGRAMS)}", file=sys.stderr)
        sys.exit(2)


def usage() -> str:
    """The commands, each with the first line of its program's docstring."""
    lines = ["usage: difflid COMMAND [ARGUMENTS], difflid COMMAND --help", ""]
    for name, module in PROGRAMS.items():
        source = importlib.util.find_spec(module).loader.get_source(module)
        lines.append(f"  {name:23} {ast.get_docstring(ast.parse(source)).splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
