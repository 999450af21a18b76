"""Run samtools or bcftools from pysam, with their own command line: `pysam_tools.py samtools sort -o …`.

So one rule serves both tool sets. Streams and exit codes are those of the program.
"""

import shutil
import sys
import tempfile

import pysam.bcftools
import pysam.samtools
from pysam.utils import SamtoolsError
from pysam.version import __bcftools_version__, __samtools_version__, __version__

PROGRAMS = {"samtools": pysam.samtools, "bcftools": pysam.bcftools}
VERSIONS = {"samtools": __samtools_version__, "bcftools": __bcftools_version__}


def main(program: str, command: str, *arguments: str) -> int:
    """Run one command of one program and return its exit code."""
    if command == "--version":
        print(f"{program} {VERSIONS[program]} (pysam {__version__})")
        return 0
    dispatcher = getattr(PROGRAMS[program], command, None)
    if dispatcher is None:
        print(f"{program}: pysam {__version__} has no command {command!r}", file=sys.stderr)
        return 2
    # pysam can put a printed table only into a file; BAM and BCF go to stdout by themselves.
    with tempfile.NamedTemporaryFile() as printed:
        try:
            dispatcher(*arguments, save_stdout=printed.name)
        except SamtoolsError as error:
            print(error.value, file=sys.stderr)
            return 1
        sys.stderr.write(dispatcher.get_messages() or "")
        shutil.copyfileobj(printed, sys.stdout.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
