"""What a program compiled by XLA for a GPU consists of, counted from its text (HLO)."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

_TUPLE = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_INSTRUCTION = re.compile(rf"\s+(?:ROOT )?%\S+ = ({_TUPLE}|\S+) ([\w-]+)\(")
_COMPUTATION = re.compile(r"(ENTRY )?%?([^\s(]+).*\{$")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|branch_computations)=\{?([^\s}]+(?:, %[^\s}]+)*)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")

# Instructions that start nothing on the GPU.
_FREE = frozenset(
    (
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "call", "while",
        "conditional", "partition-id", "replica-id", "opt-barrier",
    )
)  # fmt: skip
_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
_HOST = ("send", "recv", "infeed", "outfeed")


@dataclasses.dataclass(frozen=True)
class Program:
    """Counts of one run of a program; the body of a loop counts once.

    kernels: what is launched, by kind: convolutions, GEMMs, fusions, copies, collectives and other library
    calls by their names. convolutions: {half of the step: {dtype: count}}. collectives: {kind: (count, bytes
    of the results on a device)}.
    """

    kernels: dict[str, int]
    convolutions: dict[str, dict[str, int]]
    collectives: dict[str, tuple[int, int]]
    loops: int
    host_transfers: int

    @property
    def launches(self) -> int:
        """All kernels together."""
        return sum(self.kernels.values())


def count(text: str) -> Program:
    """Count a program given as `jax.stages.Compiled.as_text()`.

    A convolution belongs to the frozen half if it was traced under `jax.named_scope("frozen")`.
    """
    kernels, collectives = collections.Counter(), {}
    convolutions = {"frozen": collections.Counter(), "trained": collections.Counter()}
    loops = host_transfers = 0
    for shape, opcode, line in _instructions(text):
        kind = _collective(opcode)
        loops += opcode == "while"
        host_transfers += opcode in _HOST or "callback" in line or "MoveToHost" in line or "S(5)" in shape
        if kind:
            many, size = collectives.get(kind, (0, 0))
            collectives[kind] = (many + 1, size + _bytes(shape, opcode))
        if "__cudnn$conv" in line:
            half = "frozen" if re.search(r'op_name="[^"]*frozen', line) else "trained"
            convolutions[half][_ARRAY.search(shape)[1]] += 1
        if opcode not in _FREE and not opcode.endswith(("-done", "-update")):
            kernels[kind or _kind(opcode, line)] += 1
    return Program(
        dict(kernels.most_common()),
        {half: dict(found) for half, found in convolutions.items()},
        collectives,
        loops,
        host_transfers,
    )


def _instructions(text: str) -> Iterator[tuple[str, str, str]]:
    """(result shape, opcode, line) of all instructions that run, without those inside fusions."""
    computations: dict[str, list[str]] = {}
    entry = lines = None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and (found := _COMPUTATION.match(line)):
            lines = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif line.startswith("  ") and lines is not None:
            lines.append(line)
    if entry is None:
        raise ValueError("the text of a compiled program has no ENTRY computation")
    waiting = [entry]
    while waiting:
        for line in computations[waiting.pop()]:
            found = _INSTRUCTION.match(line)
            if not found:
                continue
            shape, opcode = found.groups()
            if opcode in ("call", "while", "conditional", "async-start"):
                called = (name for names in _CALLED.findall(line) for name in names.split(", "))
                waiting += [name.lstrip("%").rstrip(",") for name in called]
                if opcode == "async-start":
                    continue
            yield shape, opcode, line


def _collective(opcode: str) -> str:
    if opcode.endswith("-done"):
        return ""
    return next((name for name in _COLLECTIVES if opcode.startswith(name)), "")


def _kind(opcode: str, line: str) -> str:
    if opcode == "custom-call":
        name = re.search(r'custom_call_target="([^"]*)"', line)[1]
        if name.startswith("__cudnn$conv"):
            return "convolution"
        return "GEMM" if name.startswith("__cublas") else name
    if opcode == "fusion":
        return "GEMM" if re.search(r'"kind":"__triton\w*gemm', line) else "fusion"
    return opcode.removesuffix("-start")


def _bytes(shape: str, opcode: str) -> int:
    """Bytes of a result; of the last half of it if a started collective gives (operands, results)."""
    sizes = [
        math.prod(map(int, filter(None, lengths.split(",")))) * _width(dtype)
        for dtype, lengths in _ARRAY.findall(shape)
    ]
    if opcode in ("all-gather-start", "reduce-scatter-start", "collective-permute-start"):
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def _width(dtype: str) -> int:
    """Bytes of a number: 2 of bf16, 1 of pred."""
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1
