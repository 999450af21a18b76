"""Makes report.png and top.png from a run of workflows/variants and failures.smk: python docs/images/make.py.

Needs chromium, chromedriver and pillow.
"""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from snakemake_executor_plugin_forge.cli.top import Sampler, picture
from snakemake_executor_plugin_forge.record.index import open_index
from snakemake_executor_plugin_forge.spec.errors import UsageError

HERE = Path(__file__).resolve().parent
WORKFLOW = HERE.parents[1] / "workflows" / "variants"
OPTIONS = ("-j4", "--keep-going", "--forge-oom-retries", "1", "--forge-wall", "8s", "pictured")
LOOKS_SECONDS = 0.1


def main() -> None:
    """Run the workflow, look on, and photograph."""
    with tempfile.TemporaryDirectory(prefix="variants-", dir="/var/tmp") as directory:
        workflow = Path(shutil.copytree(WORKFLOW, Path(directory, "workflow")))
        shutil.copy(HERE / "failures.smk", workflow)
        with (workflow / "Snakefile").open("a") as snakefile:
            snakefile.write('include: "failures.smk"\n')
        command = [sys.executable, "-m", "snakemake", "--snakefile", workflow / "Snakefile", "--directory", directory]
        with Path(directory, "snakemake.log").open("wb") as log:
            run = subprocess.Popen([*command, "--executor", "forge", *OPTIONS], stdout=log, stderr=log)
        best, page = 0, ""
        while run.poll() is None:
            found, html = look(directory)
            if found > best:
                best, page = found, html
            time.sleep(LOOKS_SECONDS)
        report = Path(directory, "report.html")
        forge = [sys.executable, "-m", "snakemake_executor_plugin_forge.cli.main", "report"]
        subprocess.run([*forge, "-d", directory, "-o", report], check=True)
        top = Path(directory, "top.html")
        top.write_text(page, encoding="utf-8")
        photograph(report, HERE / "report.png", 1200, 2000, _REPORT)
        photograph(top, HERE / "top.png", 1000, 170)


def look(directory: str) -> tuple[int, str]:
    """The present output of ``top``: the number of rules seen to use something, and the picture as HTML."""
    try:
        with open_index(directory) as index:
            sampler = Sampler(index)
            found = sampler.look()
            console = Console(record=True, width=102, file=io.StringIO(), force_terminal=True)
            console.print(picture(found, sampler.counts(), 24))
    except UsageError:  # not started yet
        return 0, ""
    return len({running.record["rule"] for running in found if running.live.memory_bytes}), console.export_html(
        inline_styles=True
    )


# The banner, the first failure and the timeline; the picture ends there.
_REPORT = """
const failures = document.querySelectorAll("#failures details");
failures.forEach((failure, number) => { failure.open = number === 0; });
return document.getElementById("graph").offsetTop;
"""


def photograph(page: Path, picture: Path, width: int, height: int, script: str = "") -> None:
    """A picture of the top of a page.

    Args:
        script: is run before, and returns the height.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height + 200}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        driver.get(page.as_uri())
        height = driver.execute_script(script) if script else height
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        seen = Image.open(io.BytesIO(base64.b64decode(shot["data"])))
        seen.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
