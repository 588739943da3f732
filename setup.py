"""Where the parts of the package are: jobs/ and conf/ stand beside it here, inside it installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cfdist", "cfdist.*"]), "cfdist.jobs", "cfdist.conf"],
    package_dir={"cfdist.jobs": "jobs", "cfdist.conf": "conf"},
    package_data={
        "cfdist": ["py.typed"],
        "cfdist.report.page": ["templates/*"],
        "cfdist.conf": ["*.yaml", "*/*.yaml"],
    },
)
