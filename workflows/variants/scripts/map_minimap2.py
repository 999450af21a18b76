"""Align interleaved pairs with minimap2 (mappy, short-read preset); write BAM in the order of the reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mappy
import pysam

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

MATCH, INSERTION, DELETION, SOFT_CLIP = 0, 1, 2, 4


class Read(NamedTuple):
    """A read as the sequencer wrote it; `number` is 1 or 2, or 0 if the name has neither."""

    name: str
    number: int
    sequence: str
    quality: str


def fragments(path: str) -> Iterator[list[Read]]:
    """Yield fragments: two reads of the same name in a row, or a single read."""
    waiting: list[Read] = []
    for name, sequence, quality in mappy.fastx_read(path):
        stem, _, number = name.rpartition("/")
        stem, number = (stem, number) if number in ("1", "2") else (name, "0")
        read = Read(stem, int(number), sequence, quality)
        if waiting and waiting[0].name == read.name:
            yield [waiting.pop(), read]
        else:
            if waiting:
                yield [waiting.pop()]
            waiting.append(read)
    if waiting:
        yield waiting


def aligned(aligner: mappy.Aligner, reads: list[Read]) -> Iterator[tuple[Read, mappy.Alignment | None]]:
    """Yield each read of a fragment with its primary alignment, or with None."""
    best: dict[int, mappy.Alignment] = {}
    for hit in aligner.map(*(read.sequence for read in reads)):
        if hit.is_primary:
            best.setdefault(hit.read_num, hit)
    for place, read in enumerate(reads, start=1):
        yield read, best.get(place)


def clips(hit: mappy.Alignment, length: int) -> tuple[int, int]:
    """The unaligned bases at the left and at the right end, as the reference reads.

    minimap2 reverses the second read of a pair before it aligns it, and mappy restores the strand, but not the
    positions in the read; so for that read they count from the other end.
    """
    ends = (hit.q_st, length - hit.q_en)
    return ends if (hit.strand > 0) == (hit.read_num == 1) else ends[::-1]


def edit_distance(cigar: list[tuple[int, int]], sequence: str, reference: str) -> int:
    """Mismatches and gap bases of an alignment; both sequences start at its first aligned base."""
    distance = read = ref = 0
    for operation, length in cigar:
        if operation == MATCH:
            pairs = zip(sequence[read : read + length], reference[ref : ref + length], strict=True)
            distance += sum(a != b for a, b in pairs)
        else:
            distance += length
        read += length if operation in (MATCH, INSERTION) else 0
        ref += length if operation in (MATCH, DELETION) else 0
    return distance


def record(read: Read, hit: mappy.Alignment | None, sample: str, aligner: mappy.Aligner) -> pysam.AlignedSegment:
    """The BAM record of one read; the fields of its mate are added later."""
    segment = pysam.AlignedSegment()
    segment.query_name = read.name
    segment.query_sequence = read.sequence
    segment.query_qualities = pysam.qualitystring_to_array(read.quality)
    if hit is None:
        segment.is_unmapped = True
    else:
        left, right = clips(hit, len(read.sequence))
        if hit.strand < 0:
            segment.query_sequence = mappy.revcomp(read.sequence)
            segment.query_qualities = pysam.qualitystring_to_array(read.quality[::-1])
        core = [(operation, length) for length, operation in hit.cigar]
        bases = segment.query_sequence[left : len(read.sequence) - right]
        if edit_distance(core, bases, aligner.seq(hit.ctg, hit.r_st, hit.r_en)) != hit.NM:
            raise RuntimeError(f"{read.name}/{read.number}: mappy's alignment and edit distance disagree")
        segment.is_reverse = hit.strand < 0
        segment.reference_id = aligner.seq_names.index(hit.ctg)
        segment.reference_start = hit.r_st
        segment.mapping_quality = hit.mapq
        segment.cigartuples = [
            *([(SOFT_CLIP, left)] if left else []),
            *core,
            *([(SOFT_CLIP, right)] if right else []),
        ]
        segment.set_tag("NM", hit.NM)
    segment.set_tag("RG", sample)
    return segment


def is_proper(first: pysam.AlignedSegment, second: pysam.AlignedSegment, max_insert: int) -> bool:
    """Whether the reads of a pair point at each other from a plausible distance."""
    if first.is_unmapped or second.is_unmapped or first.is_reverse == second.is_reverse:
        return False
    forward, reverse = (second, first) if first.is_reverse else (first, second)
    if forward.reference_id != reverse.reference_id or reverse.reference_end is None:
        return False
    return 0 < reverse.reference_end - forward.reference_start <= max_insert


def pair_up(first: pysam.AlignedSegment, second: pysam.AlignedSegment, max_insert: int) -> None:
    """Set the flags of two reads of the same fragment; their mate fields are left to `samtools fixmate`."""
    proper = is_proper(first, second, max_insert)
    for segment, mate in ((first, second), (second, first)):
        segment.is_paired = True
        segment.is_proper_pair = proper
        segment.mate_is_unmapped = mate.is_unmapped
        segment.mate_is_reverse = mate.is_reverse
    first.is_read1 = second.is_read2 = True


def main(reads: str, reference: str, sample: str, output: str, log: str, max_insert: int) -> None:
    """Align every fragment and write BAM."""
    aligner = mappy.Aligner(reference, preset="sr")
    if not aligner:
        raise RuntimeError(f"{reference}: cannot be indexed")
    header = {
        "HD": {"VN": "1.6", "SO": "unsorted", "GO": "query"},
        "SQ": [{"SN": name, "LN": len(aligner.seq(name))} for name in aligner.seq_names],
        "RG": [{"ID": sample, "SM": sample, "PL": "ILLUMINA"}],
    }
    total = mapped = proper = 0
    with pysam.AlignmentFile(output, "wb", header=header) as bam:
        for fragment in fragments(reads):
            segments = [record(read, hit, sample, aligner) for read, hit in aligned(aligner, fragment)]
            if len(segments) == 2:
                pair_up(segments[0], segments[1], max_insert)
            for segment in segments:
                bam.write(segment)
                total += 1
                mapped += not segment.is_unmapped
                proper += segment.is_proper_pair
    Path(log).write_text(f"{total} reads, {mapped} mapped, {proper} in proper pairs\n")


main(
    reads=snakemake.input.reads,
    reference=snakemake.input.reference,
    sample=snakemake.wildcards.sample,
    output=snakemake.output[0],
    log=snakemake.log[0],
    max_insert=snakemake.params.max_insert,
)
