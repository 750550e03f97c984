"""Settings, one section for each component (`sections.py`), read from the environment and a file (`loading.py`)."""

from pipeline.settings.effective import effective_settings
from pipeline.settings.files import needed_by_a_worker, read_password, usable_files, without_effect
from pipeline.settings.loading import Loaded, load, load_settings
from pipeline.settings.masking import masked
from pipeline.settings.names import CONFIG_FILE
from pipeline.settings.sections import (
    PREFIX,
    ROLES,
    CmabSettings,
    DecideSettings,
    KafkaSettings,
    LogxSettings,
    OdpSettings,
    OpsSettings,
    OptimizelySettings,
    ProfilesSettings,
    Role,
    Settings,
    TopicsSettings,
)
from pipeline.settings.values import SDK_KEY_PATTERN, servers

__all__ = [
    "CONFIG_FILE",
    "PREFIX",
    "ROLES",
    "SDK_KEY_PATTERN",
    "CmabSettings",
    "DecideSettings",
    "KafkaSettings",
    "Loaded",
    "LogxSettings",
    "OdpSettings",
    "OpsSettings",
    "OptimizelySettings",
    "ProfilesSettings",
    "Role",
    "Settings",
    "TopicsSettings",
    "effective_settings",
    "load",
    "load_settings",
    "masked",
    "needed_by_a_worker",
    "read_password",
    "servers",
    "usable_files",
    "without_effect",
]
