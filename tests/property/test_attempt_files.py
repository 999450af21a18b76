"""Decisions on the files of an attempt, for every outcome and every kind of file; no file is touched."""

from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.spec.job import Target, TargetKind
from snakemake_executor_plugin_forge.spec.verdict import Outcome
from snakemake_executor_plugin_forge.staging.attempt_files import Disposal, disposal
from snakemake_executor_plugin_forge.staging.collect import unfit_target


@given(st.sampled_from(Outcome), st.booleans(), st.booleans())
def test_only_a_success_is_published_and_only_in_the_sight_of_snakemake(
    outcome: Outcome, detached: bool, keep_incomplete: bool
) -> None:
    decided = disposal(outcome, detached=detached, keep_incomplete=keep_incomplete)
    assert (decided is Disposal.PUBLISH) == (outcome is Outcome.SUCCEEDED and not detached)
    assert (decided is Disposal.STAGE) == (outcome is Outcome.SUCCEEDED and detached)
    assert (decided is Disposal.LEAVE) == (outcome is Outcome.LOST)
    assert (decided is Disposal.KEEP_BESIDE) <= keep_incomplete


targets = st.builds(Target, st.text(), st.text(), st.sampled_from(TargetKind), directory=st.booleans(),
                    non_empty=st.booleans())  # fmt: skip
kinds = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])


@given(targets, kinds, st.integers(0, 0o777), st.integers(0, 2), st.booleans())
def test_what_a_rule_declares_is_what_it_must_write(
    target: Target, kind: int, mode: int, size: int, is_root: bool
) -> None:
    problem = unfit_target(target, kind | mode, size, is_root=is_root)
    match kind:
        case stat.S_IFREG:
            fit = not target.directory and not (target.non_empty and size == 0)
        case stat.S_IFDIR:
            declared = target.directory or target.kind is not TargetKind.OUTPUT
            fit = declared and (is_root or mode & 0o700 == 0o700)
        case _:
            fit = kind == stat.S_IFLNK
    assert (problem is None) == fit
