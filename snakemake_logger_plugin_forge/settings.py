"""The command line of the plugin: ``--logger-forge-…``.

Snakemake reads the annotations at run time: no ``from __future__ import annotations``.
"""

from dataclasses import dataclass, field

from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

INTERVAL = 60


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):  # type: ignore[misc]
    """The flags."""

    interval: int = field(
        default=INTERVAL,
        metadata={
            "help": "The most seconds between two lines about the progress of the run, where the output is not a "
            "terminal. A line also comes after each 5 percent, at most six in this time. Default: 60.",
            "env_var": True,
            "required": False,
            "metavar": "SECONDS",
        },
    )
