"""The timeline of the report: a band of lanes for each rule, and how many CPUs were in use. Pure.

All widths are in units of :data:`WIDTH`, to which the page stretches its pictures.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

WIDTH = 1000
_HEIGHT_PX = 100.0  # of a band at most
_LANE_PX = 10.0  # at most
_NARROWEST = 1.5  # what can still be seen
_END = 4.0  # of an attempt that did not succeed
_GOLDEN = 0.6180339887
_LUMINANCES = (0.2, 0.14, 0.27)  # 3:1 and more to both pages
_NAMED = ("#0072b2", "#b86e00", "#008763", "#b0578d", "#7a7a1f", "#a34a72", "#3f8f8f", "#6b5bb5", "#5f6b73", "#8c5a2b")
"""Near Okabe and Ito's, for the colour-blind, and as dark as a light and light as a dark page need them."""


@dataclass(frozen=True, slots=True)
class Bar:
    """An attempt in its rule's band, in seconds from the start of the page."""

    begin: float
    end: float
    lane: int
    ok: bool


@dataclass(slots=True)
class Band:
    """The attempts of one rule."""

    rule: str
    bars: list[Bar] = field(default_factory=list)
    _free: list[float] = field(default_factory=list)  # when each lane is

    def add(self, begin: float, end: float, *, ok: bool) -> int:
        """Put an attempt on the first free lane, in the order of their begin; return the lane."""
        lane = next((n for n, until in enumerate(self._free) if until <= begin), len(self._free))
        self._free[lane : lane + 1] = [end]
        self.bars.append(Bar(begin, end, lane, ok))
        return lane

    @property
    def lanes(self) -> int:
        """The number of attempts at a time."""
        return len(self._free)

    @property
    def lane_px(self) -> float:
        """The height of a lane."""
        return round(min(_LANE_PX, _HEIGHT_PX / max(1, self.lanes)), 2)

    @property
    def height_px(self) -> float:
        """The height of the band."""
        return round(self.lane_px * self.lanes, 2)

    def path(self, seconds: float) -> str:
        """The bars as a path of SVG, one stroke each.

        Args:
            seconds: the time that the whole width stands for.
        """
        return "".join(self._stroke(bar, seconds, _NARROWEST) for bar in self.bars)

    def ends(self, seconds: float) -> str:
        """The ends of the attempts that did not succeed, in the same way."""
        ends = (Bar(bar.end, bar.end, bar.lane, bar.ok) for bar in self.bars if not bar.ok)
        return "".join(self._stroke(bar, seconds, _END) for bar in ends)

    def _stroke(self, bar: Bar, seconds: float, least: float) -> str:
        scale = WIDTH / (seconds or 1.0)
        width = max(least, (bar.end - bar.begin) * scale)
        begin = min(bar.begin * scale, WIDTH - width)
        return f"M{begin:.4g} {(bar.lane + 0.5) * self.lane_px:.4g}h{width:.4g}"


def most_at_a_time(spans: Iterable[tuple[float, float, int]], seconds: float, bins: int = 250) -> list[int]:
    """The highest sum of what was in use in each of equal parts of a time.

    Args:
        spans: begin, end and number of each use.
        seconds: the whole time.
        bins: the number of parts.
    """
    changes: Counter[float] = Counter()
    for begin, end, number in spans:
        changes[begin] += number
        changes[end] -= number
    found, now, place = [0] * bins, 0, 0
    width = (seconds or 1.0) / bins
    for when, change in sorted(changes.items()):
        here = min(bins - 1, int(when / width))
        for part in range(place + 1, here + (when > here * width)):
            found[part] = now
        place, now = here, now + change
        found[place] = max(found[place], now)
    return found


def area(heights: Sequence[int], height_px: float) -> str:
    """A path of SVG around columns of equal width; the highest one is as high as the picture."""
    width, scale = WIDTH / max(1, len(heights)), height_px / (max(heights, default=0) or 1)
    tops = [f"V{height_px - number * scale:.4g}h{width:.4g}" for number in heights]
    return f"M0 {height_px:g}{''.join(tops)}V{height_px:g}Z"


def colour(number: int) -> str:
    """The colour of a rule. No two are alike, none is a red, and each can be told from a white and a black page."""
    if number < len(_NAMED):
        return _NAMED[number]
    extra = number - len(_NAMED)
    hue = 0.06 + 0.86 * ((extra + 1) * _GOLDEN % 1)  # between the reds
    wanted, low, high = _LUMINANCES[extra % len(_LUMINANCES)], 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if luminance(colorsys.hls_to_rgb(hue, middle, 0.55)) < wanted else (low, middle)
    return "#" + "".join(f"{round(part * 255):02x}" for part in colorsys.hls_to_rgb(hue, low, 0.55))


def luminance(rgb: Iterable[float]) -> float:
    """The relative luminance of a colour: w3.org/TR/WCAG21/#dfn-relative-luminance."""
    parts = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb)
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def ticks(seconds: float, most: int = 6) -> list[tuple[float, str]]:
    """Round times for an axis, each with its place in percent."""
    steps = [n * unit for unit in (0.1, 1, 60, 3600, 86400) for n in (1, 2, 5, 10, 15, 30)] + [43200, 604800]
    step = next((one for one in sorted(steps) if seconds / one <= most), max(steps) * (1 + seconds // max(steps)))
    count = int(seconds / step) if seconds > 0 else 0
    return [(round(100 * n * step / seconds, 2) if seconds else 0.0, _clock(n * step)) for n in range(count + 1)]


def _clock(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            whole, rest = divmod(seconds, unit)
            smaller = {"d": (3600, "h"), "h": (60, "min"), "min": (1, "s")}[name]
            return f"{whole:g} {name}" + (f" {rest / smaller[0]:g} {smaller[1]}" if rest else "")
    return f"{seconds:g} s"
