"""The schema of the configuration: every key with its type, its range and what it means.

The dataclasses are the schema that Hydra composes `conf/` into; their `help` texts are what
`python main.py --help` prints. Jobs read a `Config`; nothing below them does.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from cfdist.errors import UserError

JOBS = (
    "evaluate",
    "score",
    "benchmark",
    "export",
    "convert",
    "compare",
    "preprocess",
    "infer",
    "postprocess",
)
MAX_DEVICES = 1024
CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "conf"

SEE_HELP = "`python main.py --help` explains every key"


def _key(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """A field with its help text; `minimum`, `maximum` and `choices` are checked by `validate`."""
    metadata["help"] = help
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _path(help: str, default: Any = MISSING) -> Any:
    """A field that holds a path: on the command line its value needs no quotes."""
    return _key(help, default, path=True)


@dataclass
class DatasetConfig:
    """Which pictures: `dataset=sample` or `dataset=wider_val`."""

    name: str = _key("name in tables and results")
    kind: str = _key(
        "sample: the embedded set; wider: a folder in WIDER FACE's layout",
        choices=("sample", "wider"),
    )
    root: str | None = _path(
        "folder that holds images/<event>/<name>.jpg (WIDER_val); for the sample set: where to "
        "generate it",
        None,
    )
    ground_truth: str | None = _path(
        "folder with wider_face_val.mat and wider_{easy,medium,hard}_val.mat", None
    )
    limit: int | None = _key("take only the first N pictures; null: all", None, minimum=1)
    repeat: int = _key(
        "job=evaluate, benchmark: passes over the pictures, for longer measurements", 1, minimum=1
    )


@dataclass
class ExpectedConfig:
    """The AP that the model should have, for the table and for `eval.gate`."""

    easy: float | None = _key(
        "expected AP of the easy faces, a fraction", None, minimum=0, maximum=1
    )
    medium: float | None = _key("the same for medium", None, minimum=0, maximum=1)
    hard: float | None = _key("the same for hard", None, minimum=0, maximum=1)
    protocol: str = _key("which protocol's AP that is", "official", choices=("official", "guide"))
    tolerance: float = _key("how far below it the measured AP may be", 0.002, minimum=0, maximum=1)


@dataclass
class WeightsConfig:
    """The weights that a model comes with."""

    path: str | None = _path(
        "a file, or package://<package>/<file> inside an installed Python package", None
    )
    size: int | None = _key("its size in bytes; null: any", None, minimum=1)
    sha256: str | None = _key("its SHA-256; null: any", None)


@dataclass
class ModelConfig:
    """Which network: `model=centerface` (the authors' ONNX) or `model=centerface_pytorch`."""

    name: str = _key("name in tables and results")
    path: str | None = _path(
        "your own model file ({batch} in it stands for model.batch); null: the weights below", None
    )
    sha256: str | None = _key("expected SHA-256 of your own file; null: any", None)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    checkpoint: str | None = _path("job=export, backend=torch: the .pth file", None)
    batch: int = _key("pictures a batch", 1, minimum=1, maximum=1024)
    convention: str = _key(
        "how head maps become boxes", choices=("centerface", "centerface_pytorch")
    )
    outputs: list[str] | None = _key(
        "names of the heat map, size, offset and landmark outputs; null: in the file's order", None
    )
    height: int = _key("input rows, pixels, a multiple of 32", 800, minimum=32, multiple=32)
    width: int = _key("input columns, pixels, a multiple of 32", 800, minimum=32, multiple=32)
    color: str = _key("order of the channels that the network wants", choices=("RGB", "BGR"))
    scale: float = _key("what u8 values are multiplied with first", 1.0, positive=True)
    mean: list[float] = _key("subtracted after that, per channel in `color` order", length=3)
    std: list[float] = _key(
        "divided by after that, per channel in `color` order", length=3, positive=True
    )
    top_k: int = _key("peaks kept a picture", 200, minimum=1, maximum=10000)
    nms: float | None = _key(
        "IoU threshold of the suppression after decoding; null: none", None, minimum=0, maximum=1
    )
    expected: ExpectedConfig = field(default_factory=ExpectedConfig)


@dataclass
class BackendConfig:
    """What runs the network: `backend=auto`, `openvino`, `onnxruntime`, `torch`, `om`.

    Or nothing does: `backend=simulated`.
    """

    name: str = _key("auto: om where NPUs and ais_bench are, else openvino, else onnxruntime")
    streams: Any = _key(
        "inferences a device takes at once; auto: as many as its threads and memory allow",
        "auto",
        minimum=1,
        auto=True,
    )
    precision: str = _key(
        "openvino: f32, or bf16 (faster where the processor has it, not the model's numbers)",
        "f32",
        choices=("f32", "bf16"),
    )
    providers: list[str] = _key(
        "onnxruntime: execution providers by falling preference",
        ["CPUExecutionProvider"],
    )
    device: str = _key(
        "torch: auto (CUDA where there is one), cpu or cuda",
        "auto",
        choices=("auto", "cpu", "cuda"),
    )
    latency_ms: float | None = _key(
        "simulated: milliseconds a batch, 0 is instant; null: the preset's",
        None,
        minimum=0,
        maximum=3_600_000,
    )
    preset: str | None = _key(
        "simulated: the chip whose published times are taken", None, choices=("310P3",)
    )
    fault: str | None = _key(
        "simulated: what it gives wrong. nan: a heat map of NaN, inf: infinite box sizes, "
        "inf_scores: infinite scores; null: nothing",
        None,
        choices=("nan", "inf", "inf_scores"),
    )
    fault_device: int | None = _key(
        "simulated: the number of the one device with that fault, from 0; null: all have it",
        None,
        minimum=0,
    )

    def as_dict(self):
        from dataclasses import asdict

        return asdict(self)


@dataclass
class EvalConfig:
    """Which protocol comes first and how boxes are written: `eval=official` or `eval=guide`."""

    protocol: str = _key(
        "official: IoU 0.5, boxes written and scored as the detector gives them; guide: IoU 0.4, "
        "boxes and scores rounded as the CenterFace script does. Both IoUs are always computed",
        choices=("official", "guide"),
    )
    gate: bool = _key("exit code 5 where the AP misses model.expected", False)


@dataclass
class BenchmarkConfig:
    """`job=benchmark`: how fast the devices are, how fast the host, and both together."""

    parts: list[str] = _key(
        "which to run: inference, the model alone; host, reading the pictures alone; end_to_end, "
        "both, as job=evaluate",
        ["inference", "host", "end_to_end"],
        choices=("inference", "host", "end_to_end"),
        required=True,
    )
    loops: int = _key(
        "inference: batches in each slot of a device, after a warm-up",
        20,
        minimum=1,
        maximum=1_000_000,
    )
    input: str = _key("inference: what the model is given", "zeros", choices=("zeros", "random"))
    readers: Any = _key(
        "host: how many threads read, a number or a list; auto: 1, 2, 4, ... as far as the cores "
        "go, and as many as the run has",
        "auto",
        minimum=1,
        maximum=1024,
        auto=True,
        counts=True,
    )
    pictures: int = _key(
        "host, end_to_end: the first N of the data set, which is repeated where it has fewer",
        300,
        minimum=1,
        maximum=1_000_000,
    )


@dataclass
class ExportConfig:
    """`job=export`: a checkpoint to ONNX."""

    output: str | None = _path("the ONNX file to write; null: <output_dir>/CenterFace.onnx", None)
    opset: int = _key("ONNX operator set; ATC of CANN 6 takes 11", 11, minimum=11, maximum=17)
    input: str = _key(
        "f32: normalised NCHW; u8: pictures as they are, NHWC BGR, normalised in the graph",
        "f32",
        choices=("f32", "u8"),
    )
    peaks: bool = _key("pick the peaks inside the graph: K x 15 numbers a picture come out", False)


@dataclass
class ConvertConfig:
    """`job=convert`: ONNX (model.path) to OM, through ATC."""

    output: str = _path("folder for the OM files", "models")
    batches: list[int] = _key("batch sizes, one OM each", [1, 4, 8, 16, 32], positive=True)
    soc_version: str | None = _key("the chip, Ascend310P3; null: asked from npu-smi", None)
    aipp: bool = _key("normalise on the chip: the OM takes u8 NHWC", False)
    log: str = _key(
        "ATC's log level", "error", choices=("debug", "info", "warning", "error", "null")
    )
    dry_run: bool = _key("only print the command lines", False)


@dataclass
class CompareConfig:
    """`job=compare`: past one of these, the exit code is 4."""

    ap: float = _key("how far the candidate's AP may be from the reference's", 0.002, minimum=0)
    boxes: float = _key(
        "share of the reference's boxes that the candidate must find again, at IoU 0.9",
        0.98,
        minimum=0,
        maximum=1,
    )
    cosine: float = _key(
        "least cosine similarity of each head's maps", 0.999, minimum=-1, maximum=1
    )


@dataclass
class PreprocessConfig:
    """Letterboxed pictures: what is kept of them, and `job=preprocess`, the guide's first step."""

    cache: Any = _key(
        "keep letterboxed pictures in Ray's object store: auto (what fits, for the further runs of "
        "a sweep), true (also for the further passes of dataset.repeat; all must fit) or false",
        "auto",
        choices=("auto", True, False),
    )
    where: str = _key("where", "auto", choices=("device", "cluster", "auto"))

    output: str | None = _path("folder for the .bin files; null: <output_dir>/bins", None)
    input: str = _key(
        "f32: normalised NCHW, as the guide; u8: NHWC BGR for an OM with AIPP",
        "f32",
        choices=("f32", "u8"),
    )


@dataclass
class InferConfig:
    """`job=infer`: .bin files to output files, the guide's second step."""

    input: str | None = _path("folder of .bin files, as job=preprocess leaves them", None)
    output: str | None = _path(
        "folder that gets <name>/ and <name>_summary.json; null: <output_dir>", None
    )
    name: str | None = _key("folder of the output files; null: dumpout_bs<batch>", None)
    cli: bool = _key("call `python -m ais_bench` instead of a backend", False)


@dataclass
class PostprocessConfig:
    """`job=postprocess`: output files to WIDER FACE prediction files, the guide's last step."""

    input: str | None = _path(
        "folder of <name>_{0..3}.bin files, flat or sorted into event folders", None
    )
    output: str | None = _path(
        "folder for the prediction files; null: <output_dir>/predictions", None
    )


@dataclass
class ClusterConfig:
    """Where Ray runs."""

    address: str | None = _key(
        "a running Ray cluster (auto, or host:port); null: one on this machine for this run", None
    )
    dashboard: Any = _key(
        "start Ray's dashboard with the run's own cluster, which takes about two seconds: true, "
        "false, or auto: where the command runs in a terminal",
        "auto",
        choices=("auto", True, False),
    )


@dataclass
class PipelineConfig:
    """How each device is fed."""

    readers: Any = _key(
        "threads a device that read, decode and warp pictures; auto: its share of the cores",
        "auto",
        minimum=1,
        maximum=1024,
        auto=True,
    )


@dataclass
class Config:
    """Every key that `python main.py key=value` takes."""

    job: str = _key("what to do", choices=JOBS)
    devices: Any = _key(
        "device actors: a number, a list such as [0,1], or auto (every accelerator; on CPUs one "
        "for each 8 cores)",
        "auto",
        minimum=1,
        maximum=MAX_DEVICES,
        auto=True,
        listable=True,
    )
    output_dir: str = _key(
        "folder for results.json, predictions and the run's log", path=True, required=True
    )
    predictions: str | None = _path(
        "job=score: folder of WIDER prediction files, <event>/<name>.txt", None
    )
    reference: str | None = _path(
        "job=compare: a model file, or <backend>:<file>; its suffix chooses the backend", None
    )
    candidate: str | None = _path(
        "job=compare: the model to hold against it, in the same form", None
    )
    dataset: DatasetConfig = _key("", MISSING)
    model: ModelConfig = _key("", MISSING)
    backend: BackendConfig = _key("", MISSING)
    eval: EvalConfig = _key("", MISSING)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    infer: InferConfig = field(default_factory=InferConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)

    def as_dict(self):
        from dataclasses import asdict

        return asdict(self)


def load(composed: DictConfig) -> Config:
    """The composed configuration as plain dataclasses, every value checked.

    Raises:
        UserError: a value is missing or out of its range.
    """
    known = set(_all_keys(Config, ""))
    for key in _composed_keys(composed, ""):
        if key not in known:
            raise UserError(_no_such_key(key))
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise UserError(f"{missing[0]}: no value given; add {missing[0]}=... to the command")
    config: Config = OmegaConf.to_object(composed)
    _check(config, "")
    return config


def compose(*overrides: str) -> Config:
    """The configuration of a command line, for programs and tests."""
    register()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return load(hydra_compose("config", list(overrides)))


def _composed_keys(node: DictConfig, prefix: str) -> Iterator[str]:
    for key in node:
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(value, DictConfig):
            yield from _composed_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _check(node: Any, prefix: str) -> None:
    for item in fields(node):
        value = getattr(node, item.name)
        key = prefix + item.name
        if is_dataclass(value):
            _check(value, key + ".")
        else:
            if item.metadata.get("choices"):
                _check_choices(key, value, item)
            _check_value(key, value, item.metadata)


def _check_choices(key: str, value: Any, item: Field) -> None:
    if value is None and item.type != "Any":
        return  # OmegaConf has refused it where the type has no None
    choices = item.metadata["choices"]
    is_listing = isinstance(value, list) and str(item.type).startswith("list")
    for entry in value if is_listing else [value]:
        # 1 equals True, and is no yes.
        if not any(type(entry) is type(choice) and entry == choice for choice in choices):
            shown = "null" if entry is None else entry
            raise UserError(f"{key}={shown}: choose one of {_listed(choices)}")


def _check_value(key: str, value: Any, rules: Any) -> None:
    if value is None and rules.get("auto"):
        raise UserError(f"{key}=null: must be a number or auto")
    if value is None:
        return
    if rules.get("auto"):
        _check_auto(key, value, rules)
        if value == "auto" or isinstance(value, list):
            return
    low, high = rules.get("minimum"), rules.get("maximum")
    # Written so that NaN, which compares with nothing, is in no range.
    if not (low is None or value >= low) or not (high is None or value <= high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{key}={value}: must be {bounds}")
    if "multiple" in rules and value % rules["multiple"]:
        raise UserError(f"{key}={value}: must be a multiple of {rules['multiple']}")
    if "length" in rules and len(value) != rules["length"]:
        raise UserError(f"{key}={value}: must be a list of {rules['length']} numbers")
    if rules.get("positive") and min(value if isinstance(value, list) else [value]) <= 0:
        raise UserError(f"{key}={value}: must be above 0")
    if rules.get("required") and not value:
        raise UserError(f"{key}: must not be empty")


def _listed(choices: tuple) -> str:
    """Choices as a person writes them: true, not True."""
    return ", ".join(c if isinstance(c, str) else str(c).lower() for c in choices)


def _check_auto(key: str, value: Any, rules: Any) -> None:
    has_lists = rules.get("listable") or rules.get("counts")
    kinds = "a number, a list or auto" if has_lists else "a number or auto"
    if isinstance(value, list) and rules.get("counts"):
        low, high = rules["minimum"], rules["maximum"]
        if not value or not all(type(entry) is int and low <= entry <= high for entry in value):
            raise UserError(f"{key}={value}: a list must hold whole numbers from {low} to {high}")
    elif isinstance(value, list) and rules.get("listable"):
        indices = all(type(entry) is int and entry >= 0 for entry in value)
        if not value or not indices or len(set(value)) != len(value):
            raise UserError(f"{key}={value}: a list must hold different device numbers, 0 and up")
        if len(value) > rules["maximum"]:
            raise UserError(f"{key}: {len(value)} devices, at most {rules['maximum']}")
    elif value != "auto" and type(value) is not int:
        raise UserError(f"{key}={value}: must be {kinds}")


def help_text() -> str:
    """The page that `--help` prints: every key, what it means, and its default."""
    lines = [
        "cfdist: the WIDER FACE accuracy and the speed of CenterFace, on many devices at once",
        "",
        "  python main.py [key=value ...]",
        "  python main.py model.batch=16 devices=2",
        "  python main.py dataset=wider_val dataset.root=WIDER_val dataset.ground_truth=gt",
        "  python main.py job=score predictions=DIR dataset=wider_val dataset.ground_truth=gt",
        "  python main.py -m model.batch=1,4,8        a sweep: one run for each value",
        "  python main.py experiment=published_table  the sweep of the Ascend guide's table",
        "",
        "A sweep leaves each run in <output_dir>/<number>, the summary in <output_dir>: sweep.csv,",
        "sweep.md (with the published figures beside) and throughput.png.",
        "",
        "Exit codes: 0 done, 1 internal error (see the run's log), 2 bad input, 3 some pictures",
        "failed (listed in results.json), 4 job=compare past a tolerance, 5 eval.gate missed.",
        "",
        *_section(Config, ""),
    ]
    return "\n".join(lines) + "\n"


def _section(schema: type, prefix: str) -> list[str]:
    lines, nested = [], []
    for item in fields(schema):
        kind = _schema_of(item)
        if kind is not None:
            nested += ["", (kind.__doc__ or "").strip(), *_section(kind, f"{prefix}{item.name}.")]
            continue
        extras = []
        if "choices" in item.metadata:
            extras.append("one of " + _listed(item.metadata["choices"]))
        if item.default is not MISSING and not callable(item.default_factory):
            extras.append(f"default {'null' if item.default is None else item.default}")
        note = f" [{'; '.join(extras)}]" if extras else ""
        lines.append(f"  {prefix + item.name:<22} {item.metadata['help']}{note}")
    return lines + nested


def _schema_of(item: Any) -> type | None:
    """The nested dataclass of a field, if it is one (annotations are strings here)."""
    found = globals().get(str(item.type))
    return found if is_dataclass(found) else None


def one_line(error: Exception) -> str:
    """A Hydra or OmegaConf error as one line: what, where, and what to do."""
    message = " ".join(str(error).split())
    if found := re.search(
        r"Could not find '([^']+)' Available options in '[^']+': (.*?) Config ", message
    ):
        group, _, choice = found[1].rpartition("/")
        return no_such_choice(group, choice, found[2].split())
    if found := re.search(r"Could not override '([^']+)'", message):
        return _no_such_key(found[1])
    if found := re.match(r"Error merging override (\S*)", message):
        reason = str(error.__cause__ or "does not fit").splitlines()[0]
        if "is not a ListConfig" in reason:
            reason = "must be a list, such as [a,b]"
        return f"{found[1]}: {reason}; {SEE_HELP}"
    if message.startswith("Error parsing override"):
        found = re.match(r"Error parsing override '(.*?)'", message)
        return f"{found[1] if found else message!r}: not of the form key=value; {SEE_HELP}"
    return f"{message}; {SEE_HELP}"


def no_such_choice(group: str, choice: str, choices: Iterable[str]) -> str:
    """What a person is told of a choice that a group does not have."""
    return f"{group}={choice}: no such choice; there are {', '.join(choices)}"


def group_choices(group: str) -> list[str]:
    """The names that a group of `conf/` has, such as "model"; none where it is no group."""
    folders = [path for path in CONFIG_FOLDER.iterdir() if path.name == group]
    return sorted(path.stem for folder in folders for path in folder.glob("*.yaml"))


def path_keys() -> set[str]:
    """The keys whose values are paths."""
    return {key for key, item in _all_fields(Config, "") if item.metadata.get("path")}


def _no_such_key(key: str) -> str:
    close = difflib.get_close_matches(key, list(_all_keys(Config, "")), n=1)
    hint = f"did you mean {close[0]}?" if close else SEE_HELP
    return f"{key}: no such key; {hint}"


def _all_keys(schema: type, prefix: str) -> Iterator[str]:
    for key, _ in _all_fields(schema, prefix):
        yield key


def _all_fields(schema: type, prefix: str) -> Iterator[tuple[str, Field]]:
    for item in fields(schema):
        nested = _schema_of(item)
        if nested is None:
            yield prefix + item.name, item
        else:
            yield from _all_fields(nested, f"{prefix}{item.name}.")


def register() -> None:
    """Make the schema, the help page and the resolvers known to Hydra."""
    # Two runs that start in the same second get folders of their own.
    OmegaConf.register_new_resolver("process_id", lambda: os.getpid(), replace=True)
    OmegaConf.register_new_resolver(
        "absolute", lambda path: str(Path(path).expanduser().absolute()), replace=True
    )
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    page = help_text().replace("$", "$$")
    store.store(
        group="hydra/help",
        name="cfdist",
        node={"app_name": "cfdist", "header": "", "footer": "", "template": page},
    )
