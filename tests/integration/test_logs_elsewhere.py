"""Logs and benchmarks that are links, FIFOs, devices or directories: Forge neither shows nor changes the files behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import forge, run

pytestmark = pytest.mark.security

SECRET = "the-secret-of-somebody-else"
BENCHMARK = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n0.0001\t0:00:00\t0.00\t0.00\t0.00\t0.00\t0.00\t0.00\t0.00\t0.00\n"
# commands of jobs that fail; the log of each is logs/NAME.log
LOGS = {
    "link": "ln -s {SECRET} {log}",
    "chain": "mkdir -p inner; ln -s {SECRET} inner/x; ln -s ../inner/x {log}",
    "fifo": "mkfifo {log}",
    "directory": "mkdir {log}; ln -s {SECRET} {log}/x",
    "parent": "rm -rf logs/parent; ln -s $(dirname {SECRET}) logs/parent",
    "replaced": "echo mine > {log}; rm {log}; ln -s {SECRET} {log}",
    "plain": "echo what-the-tool-said > {log}",
}


def test_nothing_behind_a_log_is_shown(workdir: Path) -> None:
    hidden = workdir.parent / "hidden"
    hidden.mkdir()
    (hidden / "secret.log").write_text(f"{SECRET}\n")
    (hidden / "bench.tsv").write_text(BENCHMARK)
    (workdir / "logs").mkdir(parents=True)
    rules = [f'SECRET = "{hidden}/secret.log"']
    for name, command in LOGS.items():
        log = "logs/parent/secret.log" if name == "parent" else f"logs/{name}.log"
        rules.append(
            f'rule {name}:\n    output: "{name}.out"\n    log: "{log}"\n'
            f'    shell: "{command}; exit 3"'
        )
    rules.append(f"""
rule good:
    output: "good.out"
    log: "logs/good.log"
    shell: "ln -s {{SECRET}} {{log}}; touch {{output}}"
rule measured:
    output: "measured.out"
    benchmark: "bench/bench.tsv"
    shell: "python3 -c 'sum(range(3000000))'; touch {{output}}; rm -r bench; ln -s {hidden} bench"
""")
    (workdir / "Snakefile").write_text("\n".join(rules))
    (workdir / "logs/replaced.log").write_text("of an earlier attempt\n")
    result = run(workdir, "-j4", "-k", "--show-failed-logs", *(f"{name}.out" for name in (*LOGS, "good", "measured")))
    attempts = {a["rule"]: a for a in result.attempts()}
    assert {name: attempts[name]["outcome"] for name in LOGS} == dict.fromkeys(LOGS, "failed"), result.output
    assert attempts["good"]["outcome"] == "succeeded", result.output
    assert any("logs/good.log could not be written: it is a symbolic link" in note for note in attempts["good"]["notes"])
    assert "what-the-tool-said" in result.output
    shown = [result.output]
    report = ("report", "-o", str(workdir / "report.html"))
    told = [*(("why", name) for name in (*LOGS, "good")), report, *(("logs", name) for name in LOGS), ("jobs",)]
    shown += [forge(workdir, *words).stdout for words in told]
    shown.append((workdir / "report.html").read_text())
    assert "what-the-tool-said" in "".join(shown[1:])
    assert [text for text in shown if SECRET in text] == []
    for record in (workdir / ".snakemake/forge/runs").rglob("*"):
        if record.is_file() and not record.is_symlink():
            assert SECRET.encode() not in record.read_bytes(), record
    left = {p.name: "link" if p.is_symlink() else p.read_text() if p.is_file() else "other" for p in (workdir / "logs").iterdir()}
    assert left.pop("plain.log") == "what-the-tool-said\n"
    assert set(left.values()) <= {"", "other"}, left  # Snakemake makes missing logs; a directory is unchanged
    assert (hidden / "bench.tsv").read_text() == BENCHMARK
