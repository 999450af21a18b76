"""Find the stretches of the reference that are covered well enough to call variants: one BED file each."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

Span = tuple[int, int]  # 0-based, half open


def total_depth(paths: list[str]) -> dict[str, list[int]]:
    """The depth of all samples together at each base of each sequence."""
    totals: dict[str, list[int]] = {}
    for place, path in enumerate(paths):
        for line in Path(path).read_text().splitlines():
            name, position, depth = line.split("\t")
            depths = totals.setdefault(name, [])
            if place == 0:
                depths.append(int(depth))
            else:
                depths[int(position) - 1] += int(depth)
    return totals


def covered(depths: list[int], minimum: float, merge_gap: int) -> Iterator[Span]:
    """Yield the stretches at or above the minimum; a short gap does not end one."""
    current: Span | None = None
    position = 0
    for enough, run in itertools.groupby(depths, key=lambda depth: depth >= minimum):
        start, position = position, position + len(list(run))
        if not enough:
            continue
        if current and start - current[1] <= merge_gap:
            current = (current[0], position)
        else:
            if current:
                yield current
            current = (start, position)
    if current:
        yield current


def divided(span: Span, max_length: int) -> Iterator[Span]:
    """Yield the span in the fewest, equally long pieces that are short enough."""
    start, end = span
    pieces = -(-(end - start) // max_length)
    edges = [start + (end - start) * piece // pieces for piece in range(pieces + 1)]
    yield from itertools.pairwise(edges)


def main(
    paths: list[str],
    output: str,
    log: str,
    min_mean_depth: float,
    merge_gap: int,
    min_length: int,
    max_length: int,
) -> None:
    """Write one BED file per region; its name has its position and sorts in that order."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    minimum = min_mean_depth * len(paths)
    found = 0
    with open(log, "w") as report:
        for name, depths in total_depth(paths).items():
            width = len(str(len(depths)))
            for span in covered(depths, minimum, merge_gap):
                if span[1] - span[0] < min_length:
                    print(f"{name}:{span[0] + 1}-{span[1]} is too short", file=report)
                    continue
                for start, end in divided(span, max_length):
                    region = folder / f"{name}_{start + 1:0{width}}-{end:0{width}}.bed"
                    region.write_text(f"{name}\t{start}\t{end}\n")
                    mean = sum(depths[start:end]) / (end - start) / len(paths)
                    print(f"{name}:{start + 1}-{end} has {mean:.1f} reads per sample", file=report)
                    found += 1
    if not found:
        wanted = f"{min_mean_depth} reads per sample"
        raise RuntimeError(f"no region has {wanted} (config key regions.min_mean_depth)")


main(
    paths=list(snakemake.input),
    output=snakemake.output[0],
    log=snakemake.log[0],
    **dict(snakemake.params.items()),
)
