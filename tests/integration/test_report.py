"""The report in a real browser: no complaint on its console, nothing from the network, the records' own numbers."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys

from ..conftest import forge, wait_until
from ..programs import need
from ..records import MIB, Made, write_run

pytestmark = pytest.mark.busy  # it mostly waits for other programs to start

NASTY = "</script><img src=x onerror=alert(1)>"
MADE = [
    *(Made("map", {"s": f"S{n}"}, start=n, seconds=2.5 + n, cpu_seconds=2.0, memory_bytes=(90 + n) * MIB, threads=2)
      for n in range(6)),
    Made("call", {"s": "A"}, evidence={"oom_kills": 1}, memory_bytes=512 * MIB, start=3, stderr="boom: Error\n"),
    Made("call", {"s": "A"}, attempt=2, start=8, memory_bytes=600 * MIB, resources={"mem_mb": 1024}),
    Made("plot", {"s": NASTY}, evidence={"exit_code": 1}, stderr=f"{NASTY}\n", start=9, wait=4),
    *(Made("plot", {"s": f"\udcff{n}"}, evidence={"exit_code": 1}, stderr="no such colour\n", start=11) for n in range(2)),
]
PLAN = {rule: {"jobs": jobs, "threads": threads, "after": after, "taken_over": 0} for rule, jobs, threads, after in
        (("map", 6, 2, []), ("call", 1, 1, ["map"]), ("plot", 5, 1, ["call", "map"]), ("all", 1, 0, ["plot"]))}


def _write(workdir: Path, *words: str) -> Path:
    done = forge(workdir, "report", *words)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def _verdicts(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text(errors="surrogateescape")) for p in sorted(workdir.glob(".snakemake/forge/runs/*/*/verdict.json"))]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = need("chromium", "chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(need("chromedriver", "chromium-driver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    write_run(directory, [Made("old")], "20260130-120000-1-aaaa")
    record = write_run(directory, MADE) / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"plan": PLAN}))
    return directory


@pytest.fixture
def page(browser: webdriver.Chrome, workdir: Path) -> webdriver.Chrome:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    browser.get(_write(workdir).as_uri())
    return browser


def _value(page: webdriver.Chrome, selector: str) -> float:
    return float(page.execute_script("return document.querySelector(arguments[0]).dataset.value", selector))


def test_no_complaint_and_no_network(page: webdriver.Chrome) -> None:
    assert page.get_log("browser") == []
    assert page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert page.execute_script("return document.querySelectorAll('img[onerror]').length") == 0
    assert NASTY in page.execute_script("return document.getElementById('failures').textContent")


def test_numbers_are_those_of_the_records(page: webdriver.Chrome, workdir: Path) -> None:
    found = [v for v in _verdicts(workdir) if v["rule"] != "old"]
    assert _value(page, "[data-name=attempts]") == len(found) == len(MADE)
    for outcome, count in Counter(v["outcome"] for v in found).items():
        assert _value(page, f"[data-name=outcome-{outcome}]") == count
    assert _value(page, "[data-name=cpu-seconds]") == pytest.approx(sum(v["usage"]["cpu_seconds"] for v in found))
    assert _value(page, "[data-name=seconds]") == pytest.approx(max(m.start + m.seconds for m in MADE))
    for rule in ("map", "call", "plot"):
        own = [v for v in found if v["rule"] == rule]
        row = f"[data-rule={rule}] "
        assert _value(page, f"#graph {row}[data-name=attempts]") == len(own)
        assert _value(page, f"#graph {row}[data-name=not-succeeded]") == sum(v["outcome"] != "succeeded" for v in own)
        assert _value(page, f"#time {row}[data-name=most]") == pytest.approx(max(v["seconds"] for v in own))
        assert _value(page, f"#memory {row}[data-name=most]") == max(v["usage"]["memory_peak_bytes"] for v in own)
        assert _value(page, f"#memory {row}[data-name=limit]") == own[-1]["limits"]["memory_bytes"]
        assert _value(page, f"#disk {row}[data-name=written]") == sum(v["usage"]["io_write_bytes"] for v in own)


def test_the_banner_and_what_failed_alike(page: webdriver.Chrome) -> None:
    said = page.execute_script("return document.querySelector('.banner').innerText")
    assert "Failed" in said and "7 of 12 jobs done, 3 failed, 2 not started." in said and "snakemake-forge resume" in said
    failures = page.execute_script("return [...document.querySelectorAll('#failures details')].map(e => [e.innerText, e.open])")
    assert ["2 × alike," in text for text, _ in failures] == [True, False, False]
    assert "run again, succeeded" in failures[2][0] and [is_open for _, is_open in failures] == [True, True, False]
    assert "map: {mem_mb: 140, runtime: 1}" in page.execute_script("return document.querySelector('#advice pre').textContent")


def test_pictures_have_the_same_numbers(page: webdriver.Chrome) -> None:
    drawn = dict(page.execute_script(
        "return [...document.querySelectorAll('svg.jobs')].map(e => [e.dataset.rule, e.querySelector('.done').getAttribute('d')])"))
    scale = max(m.start + m.seconds for m in MADE) / 1000
    for rule in ("map", "call", "plot"):
        widths = [float(text.partition("M")[0]) * scale for text in drawn[rule].split("h")[1:]]
        assert widths == pytest.approx([m.seconds for m in MADE if m.rule == rule], rel=0.01)
    assert page.execute_script("return document.querySelectorAll('svg.jobs .ends').length") == 3
    boxes = page.execute_script("return [...document.querySelectorAll('.graph .box')].map(e => e.textContent.trim().split('\\n').pop())")
    assert {text.partition(" ")[0] for text in boxes} and len(boxes) == len(PLAN)
    assert any("3 failed, 0 of 5 done" in text for text in boxes)
    assert _value(page, "#graph [data-rule=plot] [data-name=wait]") == 4
    fills = page.execute_script("return [...document.querySelectorAll('svg.jobs .done')].map(e => getComputedStyle(e).stroke)")
    assert len(set(fills)) == 3


def test_the_drawer_of_a_job(page: webdriver.Chrome, workdir: Path) -> None:
    def said() -> str:
        return str(page.execute_script("return document.getElementById('drawer').innerText"))

    page.find_element("css selector", "#failures details:nth-of-type(2) [data-open]").click()
    assert all(text in said() for text in (NASTY, "exit code 1", "true", "waited before", "4.00 s", "100.0 MiB", "512.0 MiB"))
    (href,) = page.execute_script("return [...document.querySelectorAll('#drawer a')].filter(e => e.textContent == 'verdict.json').map(e => e.href)")
    assert json.loads(Path(unquote(urlsplit(href).path)).read_text())["wildcards"] == {"s": NASTY}
    webdriver.ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert page.execute_script("return document.getElementById('drawer').open") is False
    bar = page.find_element("css selector", "svg.jobs[data-rule=call]")
    webdriver.ActionChains(page).move_to_element_with_offset(bar, int(bar.size["width"] * ((9 / 13) - 0.5)), -3).click().perform()
    assert "call s=A, attempt 2" in said()
    page.find_element("id", "close").send_keys(Keys.ENTER)
    button = page.find_element("css selector", "#attempts tbody button")
    button.send_keys(Keys.ENTER)
    assert "map s=S0" in said() and page.get_log("browser") == []
    webdriver.ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert page.execute_script("return document.activeElement === arguments[0]", button), "the focus returns"


def test_the_downloaded_table_is_that_of_the_command(page: webdriver.Chrome, workdir: Path) -> None:
    page.execute_script("URL.createObjectURL = (blob) => { blob.text().then((text) => { window.table = text; }); return '#'; }")
    page.find_element("id", "tsv").click()
    wait_until(lambda: page.execute_script("return window.table"))
    done = forge(workdir, "report", "--tsv")
    assert sorted(page.execute_script("return window.table").splitlines()) == sorted(done.stdout.splitlines())
    assert done.stdout.count("\n") == len(MADE) + 1


def test_dark(page: webdriver.Chrome) -> None:
    def colours() -> list[str]:
        seen: list[str] = page.execute_script("const of = getComputedStyle(document.body); return [of.color, of.backgroundColor]")
        return seen

    light = colours()
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    dark = colours()
    assert [sum(map(int, re.findall(r"\d+", text))) > 380 for text in (*light, *dark)] == [False, True, True, False]


def test_table_by_keyboard(page: webdriver.Chrome) -> None:
    def status() -> str:
        return str(page.execute_script("return document.getElementById('status').textContent"))

    def column(number: int) -> list[str]:
        cells: list[str] = page.execute_script(
            f"return [...document.querySelectorAll('#attempts tbody tr')].map(r => r.cells[{number}].textContent)")
        return cells

    assert status() == f"{len(MADE)} of {len(MADE)} attempts, page 1 of 1"
    page.find_element("id", "filter-text").send_keys("call")
    assert status().startswith(f"2 of {len(MADE)} attempts")
    page.find_element("id", "filter-text").send_keys(Keys.BACKSPACE * 4)
    page.find_element("id", "filter-outcome").send_keys("oom")
    assert column(3) == ["oom"]
    page.find_element("id", "filter-outcome").send_keys(Keys.HOME)
    head = page.find_element("css selector", "#attempts button[data-column='6']")
    head.send_keys(Keys.ENTER)
    assert [float(text.partition(" ")[0]) for text in column(6)] == sorted(m.seconds for m in MADE)
    head.send_keys(Keys.ENTER)
    assert [float(text.partition(" ")[0]) for text in column(6)] == sorted((m.seconds for m in MADE), reverse=True)
    assert page.execute_script("return document.querySelector('th[aria-sort]').ariaSort") == "descending"
    page.find_element("tag name", "body").send_keys(Keys.HOME)


def test_a_screen_reader_finds_names_and_headings(page: webdriver.Chrome) -> None:
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]
    for role in ("button", "searchbox", "combobox", "link", "image", "region", "img"):
        assert all(name for kind, name in named if kind == role), role
    assert {"Failures", "Timeline", "Advice", "All attempts"} <= {name for kind, name in named if kind == "heading"}
    assert [kind for kind, _ in named].count("main") == 1
    missing = page.execute_script(
        "return [...document.querySelectorAll('th')].filter(e => !e.scope).length + "
        "[...document.querySelectorAll('[id]')].length - new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size")
    assert missing == 0
    assert page.execute_script("return document.documentElement.lang") == "en"


def test_on_a_phone_and_in_print(page: webdriver.Chrome) -> None:
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                         {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True})
    page.refresh()
    assert page.execute_script("return document.documentElement.scrollWidth <= 390")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert page.execute_script("return getComputedStyle(document.querySelector('.controls')).display") == "none"
    pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000


def test_ten_thousand_attempts(browser: webdriver.Chrome, tmp_path: Path) -> None:
    run = write_run(tmp_path, [Made("map", {"s": "0"}), Made("call", evidence={"exit_code": 1})])
    kinds = [json.loads((run / name / "verdict.json").read_text()) for name in ("00001-map", "00002-call")]
    for number in range(3, 10_001):
        kind = kinds[number % 20 == 0]
        directory = run / f"{number:05d}-{kind['rule']}"
        directory.mkdir()
        second = number // 8
        started = f"2026-01-31T12:{second // 60 % 60:02d}:{second % 60:02d}+00:00"
        text = json.dumps(kind | {"wildcards": {"s": str(number)}, "started": started})
        (directory / "verdict.json").write_text(text)
    path = _write(tmp_path, "--output", str(tmp_path / "big.html"))
    assert path.stat().st_size <= 5_000_000
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    assert _value(browser, "[data-name=attempts]") == 10_000
    rows = browser.execute_script("return document.querySelectorAll('#attempts tbody tr').length")
    assert rows == 100
    assert "The page has commands and logs of 500 of 10,000 attempts" in browser.page_source
    assert "more failed attempts are in the" in browser.page_source
    shutil.rmtree(run)


def test_which_run(workdir: Path) -> None:
    every = _write(workdir, "--all", "-o", "all.html").read_text()
    assert 'data-rule="old"' in every and "on 2 runs" in every and not re.search(r"UTC\.?</time>\w|\.Made", every)
    assert 'data-rule="old"' not in _write(workdir, "-o", "one.html").read_text()
    done = forge(workdir, "report", "--run", "20260131-120000-1-aaab")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 20260131-120000-1-aaaa?" in done.stderr


def test_a_compacted_run(tmp_path: Path) -> None:
    (tmp_path / "call.log").write_text("Error: no such panel\n")
    run = write_run(tmp_path, [Made("call", evidence={"exit_code": 1}, stderr="x\n", logs=("call.log",))])
    os.utime(run / "run.json", (0, 0))
    assert forge(tmp_path, "gc", "--keep-runs", "0", "--compact-after", "1s").returncode == 0
    page = _write(tmp_path).read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["archived"] == ["20260131-120000-1-aaaa"]
    assert data["drawers"]["0"]["said"] == [["log call.log", "Error: no such panel"], ["stderr.log", "x"]]
    assert "log call.log" in page.partition('id="failures"')[2].partition("</section>")[0]
