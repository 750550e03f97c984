"""A project: a datafile compiled into what decisions are made from. Pure; knows nothing of users or transport."""

from pipeline.project.config import OdpIntegration, ProjectConfig
from pipeline.project.datafile import compile_datafile

__all__ = ["OdpIntegration", "ProjectConfig", "compile_datafile"]
