"""What Triton makes of every kernel, read from the compiled code: no GPU is needed.

Each kernel is compiled ahead of time for an A100, an H100 and an MI300. Registers, spills and shared memory are what the
assembler says; bytes moved are counted from the loads and stores of Triton's GPU code (their shapes are exact there),
those of a loop once per round. Needed are the bytes of the operation itself, each once.

    python benchmarks/compiled_kernels.py            # compile, write benchmarks/compiled_kernels.json and docs/kernels.md
    python benchmarks/compiled_kernels.py --check    # compile, and fail if anything is worse than what is written there
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from interp.kernels.fused import apply_edits, edit_latents, prefix_attention, swap_subspace

HERE = Path(__file__).parent
TABLE = HERE / "compiled_kernels.json"
PAGE = HERE.parent / "docs" / "kernels.md"
BEGIN, END = "<!-- compiled: begin -->", "<!-- compiled: end -->"

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZE = {"fp32": 4, "bf16": 2}
WIDTH, LATENTS, HEAD = 4096, 32, 128
RANKS = (32, 64, 128)
INTEGERS = (
    "place_ptr",
    "first_ptr",
    "row_ptr",
    "rotation_ptr",
    "begin_ptr",
    "position_ptr",
    "tile_ptr",
    "bias_row_ptr",
)
FLOATS = (
    "keep_ptr",
    "grad_edit_ptr",
    "grad_source_ptr",
    "read_ptr",
    "told_ptr",
    "grad_basis_ptr",
    "bias_ptr",
    "threshold_ptr",
    "z_ptr",
)
UNALIGNED = (
    "n_places", "groups", "rank", "n_tiles", "group", "window", "bias_width", "basis_width", "bias_token", "n_latents",
    "gain_edit", "offset_edit",
)  # fmt: skip
"""Whole numbers of which the compiler may not assume that 16 divides them; those of rows and columns it may."""


@dataclass(frozen=True)
class Access:
    """A load or store of a program: its bytes, and in which loop it stands (None: in none)."""

    bytes: int
    loop: int | None


@dataclass(frozen=True)
class Row:
    """One compiled kernel. `spills` in bytes of memory; bytes are per edited number."""

    kernel: str
    dtype: str
    target: str
    registers: int
    spills: int
    shared: int
    moved: float | None
    needed: float | None


@dataclass(frozen=True)
class Case:
    """A kernel as it is launched for one workload.

    `rounds`: of each loop, in the order of the code. `elements`: numbers that a program edits. `needed`: bytes for them.
    """

    name: str
    kernel: object
    constants: Mapping[str, object]
    rounds: tuple[float, ...]
    elements: int
    needed: Callable[[int], float] | None


def cases(dtype: str) -> list[Case]:
    """Every kernel, at the sizes of an 8B model: width 4096, some ranks, 32 latents, heads of 128 in groups of 4."""
    places, columns = apply_edits.tile(WIDTH)
    head_places, head_columns = apply_edits.tile(HEAD)
    whole, heads = {"PLACES": places, "COLUMNS": columns}, {"PLACES": head_places, "COLUMNS": head_columns}
    index = 16  # place, first, row, keep: four numbers of 32 bits for a place
    out = [
        Case(f"edit_places, add, width {WIDTH}", apply_edits.edit_places, whole, (1,), columns,
             lambda size: 3 * size * columns + index),
        Case(f"edit_places, add, heads of {HEAD}", apply_edits.edit_places, heads, (1,), head_places * HEAD,
             lambda size: 3 * size * head_places * HEAD + index * head_places),
        Case("edit_places_backward", apply_edits.edit_places_backward, {"EDITS": True, **whole}, (1,), columns,
             lambda size: (2 * size + 4) * columns + index),
    ]  # fmt: skip
    split = dtype == "bf16"
    for rank in RANKS:
        tiles = [swap_subspace.tile(rank, edits, split) for edits in (1, 10**6)]
        for sizes in tiles[: len({tile["EDITS"] for tile in tiles})]:
            edits, steps = sizes["EDITS"], WIDTH / sizes["COLUMNS"]
            made = partial(Case, constants=sizes, elements=edits * WIDTH)
            told = f"rank {rank}, {edits} edits"
            out += [
                made(f"swap_tile, {told}", swap_subspace.swap_tile, rounds=(steps, steps),
                     needed=lambda size, n=edits, r=rank: 3 * size * n * WIDTH + size * WIDTH * r),
                made(f"swap_tile_backward, {told}", swap_subspace.swap_tile_backward, rounds=(steps, steps),
                     needed=lambda size, n=edits, r=rank: (4 * size + 4) * n * WIDTH + size * WIDTH * r),
            ]  # fmt: skip
        basis = swap_subspace.basis_tile(tiles[0])
        out.append(Case(f"swap_basis_backward, rank {rank}", swap_subspace.swap_basis_backward, basis, (1,), 1, None))
    for many in (False, True) if split else (False,):
        sizes = edit_latents.tile(LATENTS, 10**6 if many else 1, split)
        edits, steps = sizes["EDITS"], WIDTH / sizes["COLUMNS"]
        made = partial(Case, elements=edits * WIDTH, rounds=(steps, steps))
        out += [
            made(f"latent_tile, {edits} edits", edit_latents.latent_tile,
                 constants={"SHORT": split, "KEPT": False, **sizes},
                 needed=lambda size, n=edits: size * (2 * n * WIDTH + 2 * WIDTH * LATENTS + 2 * n * LATENTS)),
            made(f"latent_tile_backward, {edits} edits", edit_latents.latent_tile_backward,
                 constants={"SHORT": split, "STATES": True, **sizes},
                 needed=lambda size, n=edits: size * (2 * n * WIDTH + 2 * WIDTH * LATENTS) + (size + 8) * n * LATENTS),
        ]  # fmt: skip
    for name, flags in (("", (False, False, False)), (", window, cap and cut edges", (True, True, True))):
        sizes = prefix_attention.tile(4, HEAD, DTYPES[dtype], flags[2])
        constants = dict(zip(("CAPPED", "WINDOWED", "BIASED"), flags, strict=True)) | sizes
        out.append(Case(f"attend_tile{name}", prefix_attention.attend_tile, constants, (1, 1), 1, None))
    return out


def compiled(case: Case, dtype: str, target: GPUTarget) -> triton.compiler.CompiledKernel:
    """The kernel's code for a target."""
    names = case.kernel.arg_names
    signature, constants, facts = {}, dict(case.constants), {}
    options = {"num_warps": constants.pop("num_warps", 4)}
    # The columns of a row are neighbours.
    constants |= {name: 1 for name in names if name in ("basis_rank", "encoder_width", "atoms_width")}
    for i, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*i32" if name in INTEGERS else "*fp32" if name in FLOATS else f"*{dtype}"
            facts[(i,)] = [["tt.divisibility", 16]]
        elif name in ("scaling", "softcap"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if name not in UNALIGNED:
                facts[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=facts)
    return triton.compile(source, target=target, options=options)


def accesses(code: str) -> list[Access]:
    """The loads and stores of global memory in Triton's GPU code.

    Of a load that the compiler has drawn ahead of its loop's rounds only the one inside counts: with those before the
    loop it is made once per round.
    """
    found, loops, depth = [], -1, []
    drawn = []
    for line in code.splitlines():
        if "scf.for" in line:
            loops += 1
            depth.append((loops, len(line) - len(line.lstrip())))
        elif depth and line.startswith(" " * depth[-1][1] + "}"):
            depth.pop()
        if not re.search(
            r"\btt\.(load|store)\b|async_copy_global_to_local|amdg?p?u?\.buffer_(load|store)|buffer_load_to_local", line
        ):
            continue
        size = _bytes(line)
        loop = depth[-1][0] if depth else None
        ahead = loop is None and ("async_copy" in line or "buffer_load_to_local" in line)
        (drawn if ahead else found).append(Access(size, loop))
    return found


def _bytes(line: str) -> int:
    """Bytes of a load or store: of the tensor of pointers, or of the values of a buffer operation."""
    kinds = re.search(r"tensor<([0-9x]+)x!tt\.ptr<(\w+?)>", line) or re.search(
        r"tensor<([0-9x]+)x([a-z]+[0-9]+)[,>]", line
    )
    if kinds is None:
        scalar = re.search(r"!tt\.ptr<(\w+?)>", line)
        assert scalar, line
        return int(re.sub(r"\D", "", scalar[1])) // 8
    if "buffer_" in line:  # its offsets are a tensor too: the result or the stored value stands last
        kinds = re.findall(r"tensor<([0-9x]+)x([a-z]+[0-9]+)[,>]", line)[-1]
        shape, kind = kinds
    else:
        shape, kind = kinds[1], kinds[2]
    return math.prod(int(n) for n in shape.split("x")) * int(re.sub(r"\D", "", kind)) // 8


def measured(case: Case, dtype: str, target: str) -> Row:
    """Compile a case and read its row."""
    kernel = compiled(case, dtype, TARGETS[target])
    if target.startswith("sm"):
        registers, spills = _assembled(kernel.asm["ptx"], target)
    else:
        text = kernel.asm["amdgcn"]
        registers = _number(r"\.vgpr_count:\s*(\d+)", text)
        # Scalar registers that do not suffice are kept in lanes of vector registers: only this is memory.
        spills = _number(r"\.private_segment_fixed_size:\s*(\d+)", text)
    moved = None
    if case.needed is not None:
        every = accesses(kernel.asm["ttgir"])
        total = sum(a.bytes * (1 if a.loop is None else case.rounds[a.loop]) for a in every)
        moved = round(total / case.elements, 3)
    needed = None if case.needed is None else round(case.needed(SIZE[dtype]) / case.elements, 3)
    return Row(case.name, dtype, target, registers, spills, kernel.metadata.shared, moved, needed)


def _assembled(ptx: str, target: str) -> tuple[int, int]:
    """(registers of a thread, bytes spilled), as the assembler reports them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        arch = re.search(r"\.target (\w+)", ptx)
        assert arch and arch[1].startswith(target)
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={arch[1]}", str(path), "-o", str(Path(folder) / "out")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return _number(r"Used (\d+) registers", said), sum(int(n) for n in re.findall(r"(\d+) bytes spill", said))


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"{pattern} in {text[:400]}"
    return int(found[1])


def worse(now: Row, before: Row) -> list[str]:
    """What has become worse: any spill, more bytes, a tenth more registers or shared memory."""
    found = []
    if now.spills > before.spills:
        found.append(f"spills {before.spills} → {now.spills}")
    if now.moved is not None and now.moved > (before.moved or 0) + 0.01:
        found.append(f"moves {before.moved} → {now.moved} bytes")
    for name in ("registers", "shared"):
        old, new = getattr(before, name), getattr(now, name)
        if new > 1.1 * old:
            found.append(f"{name} {old} → {new}")
    return found


def markdown(rows: list[Row]) -> str:
    """The table of docs/kernels.md: one line for each kernel and type, its targets side by side."""
    lines = [
        "| kernel | type | registers "
        + " · ".join(TARGETS)
        + " | spills | shared KiB | bytes moved / needed | ratio |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, dtype in dict.fromkeys((row.kernel, row.dtype) for row in rows):
        own = [
            row for target in TARGETS for row in rows if (row.kernel, row.dtype, row.target) == (name, dtype, target)
        ]
        first = own[1]
        bytes_ = "" if first.moved is None else f"{first.moved:.2f} / {first.needed:.2f}"
        ratio = "" if first.moved is None else f"{first.moved / first.needed:.2f}"
        lines.append(
            f"| {name} | {dtype} | {' · '.join(str(row.registers) for row in own)} | "
            f"{' · '.join(str(row.spills) for row in own)} | {' · '.join(f'{row.shared / 1024:.0f}' for row in own)} | "
            f"{bytes_} | {ratio} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Write the table, or check against it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is written, and fail if it is worse")
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--only", default="", help="a part of a kernel's name")
    asked = parser.parse_args()
    if triton.knobs.runtime.interpret:
        print("TRITON_INTERPRET is set: nothing would be compiled.")
        return 2
    rows = []
    for dtype in asked.dtypes:
        for case in (case for case in cases(dtype) if asked.only in case.name):
            for target in asked.targets:
                rows.append(measured(case, dtype, target))
                print(*asdict(rows[-1]).values(), sep="\t", flush=True)
    if asked.check:
        known = {
            (row["kernel"], row["dtype"], row["target"]): Row(**row) for row in json.loads(TABLE.read_text("utf-8"))
        }
        bad = []
        for row in rows:
            before = known.get((row.kernel, row.dtype, row.target))
            bad += [
                f"{row.kernel} {row.dtype} {row.target}: {text}"
                for text in (["not in the table"] if before is None else worse(row, before))
            ]
        print(*bad or ["nothing is worse"], sep="\n")
        return bool(bad)
    if len(rows) < sum(len(cases(dtype)) for dtype in DTYPES) * len(TARGETS):
        return 0  # a part is only shown
    TABLE.write_text(json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n", "utf-8")
    page = PAGE.read_text("utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(rows)}\n{END}{rest.split(END)[1]}", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
