"""Settings, one section for each component (`sections.py`), read from the environment and a file (`loading.py`)."""

from pipeline.settings.loading import CONFIG_FILE, load_settings
from pipeline.settings.sections import (
    PREFIX,
    ROLES,
    SDK_KEY_PATTERN,
    SERVERS,
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
    masked,
)

__all__ = [
    "CONFIG_FILE",
    "PREFIX",
    "ROLES",
    "SDK_KEY_PATTERN",
    "SERVERS",
    "CmabSettings",
    "DecideSettings",
    "KafkaSettings",
    "LogxSettings",
    "OdpSettings",
    "OpsSettings",
    "OptimizelySettings",
    "ProfilesSettings",
    "Role",
    "Settings",
    "TopicsSettings",
    "load_settings",
    "masked",
]
