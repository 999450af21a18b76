"""The variables of Snakemake's environment that a job gets. Pure.

Forge passes on all variables except secrets, ways out of the sandbox, and variables that change every program. It
always passes on variables that a workflow declares with ``envvars:``. docs/reference/environment.md has the list, and a
test compares both.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from fnmatch import translate

SECRETS = (
    # by their content
    "*TOKEN", "*_TOKEN_*", "*SECRET*", "*PASSWORD*", "*PASSWD*", "*PASSPHRASE*", "*CREDENTIAL*", "*API_KEY",
    "*API_KEY_*", "*APIKEY*", "*ACCESS_KEY*", "*PRIVATE_KEY*", "*ENCRYPTION_KEY*", "*SIGNING_KEY*", "*ACCOUNT_KEY*",
    "*_PAT", "*_SAS", "*WEBHOOK*", "*CONNECTION_STRING*", "*_DSN", "DATABASE_URL", "*_DATABASE_URL",
    "MONGO*_UR[IL]", "REDIS_URL", "AMQP_URL", "*_PASS", "*_PWD", "PGPASSFILE", "PGSERVICEFILE",
    # of clouds
    "AWS_*", "AZURE_*", "ARM_CLIENT_*", "GCP_*", "GCLOUD_*", "CLOUDSDK_*", "GOOGLE_APPLICATION_*", "BOTO_CONFIG",
    "DIGITALOCEAN_*", "HCLOUD_*", "OS_AUTH_*", "RCLONE_CONFIG*", "S3_*_KEY*",
    # of services that keep or run software
    "GITHUB_*", "GH_*", "GITLAB_*", "ACTIONS_*", "BITBUCKET_*", "BUILDKITE_AGENT_*", "CI_JOB_JWT*", "VAULT_*",
    "CONSUL_*", "KUBECONFIG", "DOCKER_AUTH_*", "DOCKER_CONFIG", "TWINE_*", "NETRC", "*_ASKPASS", "KRB5CCNAME",
    "SNAKEMAKE_STORAGE_*_KEY",
)  # fmt: skip
"""Patterns of names, without regard to case: ``*`` is anything."""

SERVICES = (
    "SSH_AUTH_SOCK", "SSH_AGENT_PID", "GPG_AGENT_INFO", "DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS",
    "DBUS_STARTER_*", "XDG_RUNTIME_DIR", "XDG_SESSION_*", "DOCKER_HOST", "CONTAINER_HOST", "PODMAN_*", "TMUX",
    "TMUX_PANE", "STY", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_*",
    "INVOCATION_ID", "JOURNAL_STREAM", "VSCODE_*", "SUDO_COMMAND",
)  # fmt: skip
"""Variables that name services of the host, which a job cannot reach."""

CODE = ("LD_PRELOAD", "LD_AUDIT", "LD_DEBUG*", "LD_PROFILE*", "BASH_ENV", "ENV", "PROMPT_COMMAND", "PS4")
"""Variables that make programs load or execute code that the rule does not name."""

HARMLESS = (
    "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_NO_SIGN_REQUEST", "AWS_EC2_METADATA_DISABLED", "PWD", "OLDPWD",
    "OLD_PWD", "GITHUB_ACTIONS", "GITLAB_CI", "TOKENIZERS_PARALLELISM",
)  # fmt: skip
"""Exceptions, passed on although a pattern fits."""


def withheld(names: Iterable[str], declared: Iterable[str]) -> tuple[str, ...]:
    """Return the variables that a job does not get, sorted.

    Args:
        names: of Snakemake's environment. Their values are not read: each reader leaves a copy in the memory.
        declared: names that the workflow declares (``envvars:``).
    """
    return tuple(sorted(name for name in set(names).difference(declared) if _removed(name)))


def secret(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of variables that hold secrets."""
    pattern = re.compile("|".join(map(translate, SECRETS)))
    return tuple(name for name in names if pattern.match(name.upper()))


@functools.lru_cache(maxsize=4096)  # the same hundred names for every job
def _removed(name: str) -> bool:
    removed, harmless = _patterns()
    upper = name.upper()
    return upper not in harmless and removed.match(upper) is not None


@functools.cache
def _patterns() -> tuple[re.Pattern[str], frozenset[str]]:
    return re.compile("|".join(translate(pattern) for pattern in (*SECRETS, *SERVICES, *CODE))), frozenset(HARMLESS)
