"""The programs that do the work."""

import importlib.util
import shlex
import shutil
import sys

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

NEEDED = {"native": ("bwa", "samtools", "bcftools"), "pip": ("pysam", "mappy")}  # besides matplotlib


def missing(tools: str) -> list[str]:
    """The programs or Python modules that this tool set needs and this host lacks."""
    found = shutil.which if tools == "native" else importlib.util.find_spec
    return [name for name in NEEDED[tools] if found(name) is None]


def choose_tools(wanted: object) -> str:
    """Turn the configuration's `tools` into `native` or `pip`, or fail with the reason."""
    allowed = ("auto", *sorted(NEEDED))
    if wanted not in allowed:
        raise WorkflowError(f"config key 'tools': unknown value {wanted!r}; allowed: {', '.join(allowed)}")
    tools = wanted
    if wanted == "auto":
        tools = "pip" if missing("native") else "native"
    if lacking := missing(tools):
        remedy = "pip install -r requirements.txt" if tools == "pip" else "apt install bwa samtools bcftools"
        raise WorkflowError(f"config key 'tools': {wanted!r} needs {', '.join(lacking)} (try: {remedy})")
    if importlib.util.find_spec("matplotlib") is None:
        raise WorkflowError("the picture needs matplotlib (try: pip install -r requirements.txt)")
    return tools


def program(name: str) -> str:
    """The shell words that run samtools or bcftools in the chosen tool set."""
    return shlex.join([sys.executable, *WRAPPER, name]) if TOOLS == "pip" else name


TOOLS = choose_tools(config["tools"])
# The script that gives pysam the command line of samtools and bcftools; an input of the rules that run it.
WRAPPER = [f"{workflow.basedir}/scripts/pysam_tools.py"] if TOOLS == "pip" else []
SAMTOOLS = program("samtools")
BCFTOOLS = program("bcftools")

if workflow.is_main_process:
    logger.info(f"variants: tools = {TOOLS} ({', '.join(NEEDED[TOOLS])})")
