"""`python main.py [key=value ...]`: composes the configuration and runs jobs/<job>.py."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from cfdist import cli, config

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def run(composed: DictConfig) -> None:
    """Run one job."""
    cli.run_job(composed)


if __name__ == "__main__":
    sys.exit(cli.launch(run))
