"""Environment variables that a job gets."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.sandbox.environment import CODE, HARMLESS, SECRETS, SERVICES, withheld
from snakemake_executor_plugin_forge.sandbox.filesystem import mounts

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "environment.md"

REMOVED = [
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "GITHUB_TOKEN", "GITHUB_ENV", "GH_TOKEN", "HF_TOKEN", "OPENAI_API_KEY",
    "NCBI_API_KEY", "MYSQL_PWD", "PGPASSWORD", "DB_PASSWORD", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "LD_PRELOAD", "LD_AUDIT",
    "BASH_ENV", "ENV", "PROMPT_COMMAND", "GOOGLE_APPLICATION_CREDENTIALS", "SNAKEMAKE_STORAGE_S3_SECRET_KEY", "db_password", "MyToken",
    "SNAKEMAKE_STORAGE_S3_ACCESS_KEY", "DATABASE_URL", "AZURE_CLIENT_SECRET", "KUBECONFIG", "GIT_ASKPASS", "SENTRY_DSN", "SLACK_WEBHOOK_URL",
    "TOKEN", "SECRET", "PASSWORD", "API_KEY", "MONGODB_URI", "TMUX", "XDG_RUNTIME_DIR", "NPM_TOKEN", "CI_REGISTRY_PASSWORD", "SMTP_PASS",
]
KEPT = [
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_NUMERIC", "TZ", "TERM", "PWD", "OLDPWD", "HOSTNAME", "TMPDIR", "EDITOR",
    "LD_LIBRARY_PATH", "PYTHONPATH", "R_LIBS_USER", "R_HOME", "PERL5LIB", "JAVA_HOME", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "CONDA_PREFIX",
    "CONDA_EXE", "VIRTUAL_ENV", "MAMBA_ROOT_PREFIX", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_CACHE_DIR", "http_proxy",
    "https_proxy", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_INDEX_URL", "BASH_FUNC_module%%", "MODULEPATH", "LMOD_CMD",
    "LOADEDMODULES", "SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "DISPLAY", "CI", "BLASTDB", "AUGUSTUS_CONFIG_PATH",
    "SNAKEMAKE_PROFILE", "XDG_CACHE_HOME", "MPLBACKEND", "TOKENIZERS_PARALLELISM", "AWS_DEFAULT_REGION", "SPARK_HOME", "COMPASS", "PASSENGER", "KEYBOARD",
    "GROUP_KEY", "TOKENS_PER_BATCH", "ENVIRONMENT", "ENV_FILE", "CONDA_DEFAULT_ENV",
]


@pytest.mark.parametrize("name", REMOVED)
def test_secrets_services_and_code_are_not_passed_on(name: str) -> None:
    assert withheld([name], []) == (name,)
    assert withheld([name], [name]) == ()


@pytest.mark.parametrize("name", KEPT)
def test_what_programs_need_is_passed_on(name: str) -> None:
    assert withheld([name], []) == ()


def test_all_variables_that_lead_to_a_hidden_service_are_in_the_list() -> None:
    assert set(mounts.VARIABLES) <= set(SERVICES)


letters = st.text(st.characters(codec="utf-8", exclude_characters="=\0"), min_size=1)
names = st.one_of(
    letters, st.sampled_from(REMOVED + KEPT),
    st.builds("{}{}{}".format, st.sampled_from(["", "MY_", "X"]), st.sampled_from(REMOVED), st.sampled_from(["", "_2", "S"])),
)


@given(st.sets(names), st.lists(names))
def test_a_variable_is_withheld_if_a_pattern_fits_and_nobody_declares_it(environment: set[str], declared: list[str]) -> None:
    removed = withheld(environment, declared)
    assert set(removed) <= environment - set(declared)
    assert list(removed) == sorted(removed)
    for name in environment - set(declared):
        fits = any(fnmatchcase(name.upper(), pattern) for pattern in (*SECRETS, *SERVICES, *CODE))
        assert (name in removed) == (fits and name.upper() not in HARMLESS), name


def test_the_page_lists_every_pattern_and_no_others() -> None:
    listed = set(re.findall(r"`([^`]+)`", PAGE.read_text().split("## The list")[1]))
    assert listed == {*SECRETS, *SERVICES, *CODE, *HARMLESS}
