"""The project that an event names by its SDK key, or may leave out where the worker has only one."""

from __future__ import annotations

from pipeline.datafile.poller import Datafiles
from pipeline.errors import Rejected
from pipeline.messages.words import SDK_KEY_MISSING
from pipeline.project import ProjectConfig


def project_of(datafiles: Datafiles, sdk_key: str | None) -> ProjectConfig:
    """The project in use. Raises Rejected for a key that is missing, not configured or known to be bad."""
    key = sdk_key or datafiles.sole_key
    if key is None:
        raise Rejected("sdk_key_missing", SDK_KEY_MISSING)
    project = datafiles.project(key)
    if project is None:
        raise Rejected("sdk_key_unusable", datafiles.error(key) or "its datafile is not there")
    return project
