"""The schema of the configuration: every key with its type, its range and what it means.

Hydra composes `conf/` and the command line into plain values, these pydantic models check them,
and `--help` prints the text below each key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

PATH = "a path"  # a field's title says what its value must be, where its type does not


def _from_text(value: object) -> object:
    """The number that a text holds, such as an environment variable's; other values unchanged."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _different(numbers: list[int]) -> list[int]:
    if len(set(numbers)) != len(numbers):
        raise ValueError("the same number twice")
    return numbers


def _word(value: object) -> str:
    """The word that was typed; Hydra reads null, nan and inf as values of other types."""
    return "null" if value is None else str(value)


def _between(low: int, high: int | None = None, name: str = "a whole number") -> Any:
    """A field's limits with the words for them."""
    end = "up" if high is None else f"to {high}"
    return Field(ge=low, le=high, title=f"{name} from {low} {end}")


PathText = Annotated[str, Field(title=PATH)]
Strict = Field(strict=True)  # true is no number, 1 is not true, 4.0 is not 4
Whole = Annotated[int, Strict, BeforeValidator(_from_text)]
Natural = Annotated[Whole, _between(0)]
Positive = Annotated[Whole, _between(1)]
UpTo1024 = Annotated[Whole, _between(1, 1024)]
UpToMillion = Annotated[Whole, _between(1, 1_000_000)]
PixelCount = Annotated[Whole, Field(ge=32, multiple_of=32, title="a multiple of 32 from 32 up")]
Real = Annotated[
    float, Strict, BeforeValidator(_from_text), Field(allow_inf_nan=False, title="a finite number")
]
PositiveReal = Annotated[Real, Field(gt=0, title="a finite number above 0")]
Fraction = Annotated[Real, _between(0, 1, "a number")]
StrictBool = Annotated[bool, Strict]
_DEVICES = "a list of different device numbers (0 and up, at most 1024)"
DeviceList = Annotated[
    list[Natural], Field(min_length=1, max_length=1024, title=_DEVICES), AfterValidator(_different)
]
Protocol = Literal["official", "guide"]
InputKind = Literal["f32", "u8"]
BenchmarkPart = Literal["inference", "host", "end_to_end"]
Job = Literal[
    "evaluate",
    "score",
    "benchmark",
    "export",
    "convert",
    "compare",
    "preprocess",
    "infer",
    "postprocess",
]


class Section(BaseModel):
    """Keys that belong together; any other key is refused."""

    model_config = ConfigDict(
        extra="forbid", coerce_numbers_to_str=True, use_attribute_docstrings=True
    )


class DatasetConfig(Section):
    """Which pictures: `dataset=sample` or `dataset=wider_val`."""

    name: str
    """name in tables and results"""
    kind: Literal["sample", "wider"]
    """sample: the embedded set; wider: a folder in WIDER FACE's layout"""
    root: PathText | None = None
    """folder that holds images/<event>/<name>.jpg (WIDER_val); for the sample set: where to
    generate it"""
    ground_truth: PathText | None = None
    """folder with wider_face_val.mat and wider_{easy,medium,hard}_val.mat"""
    limit: Positive | None = None
    """take only the first N pictures; null: all"""
    repeat: Positive = 1
    """job=evaluate, benchmark: passes over the pictures, for longer measurements"""


class ExpectedConfig(Section):
    """The AP that the model should have, for the table and for `eval.gate`."""

    easy: Fraction | None = None
    """expected AP of the easy faces, a fraction"""
    medium: Fraction | None = None
    """the same for medium"""
    hard: Fraction | None = None
    """the same for hard"""
    protocol: Protocol = "official"
    """the protocol of the expected AP"""
    tolerance: Fraction = 0.002
    """how far the measured AP may be below the expected one"""


class WeightsConfig(Section):
    """The weights that a model comes with."""

    path: PathText | None = None
    """a file, or package://<package>/<file> inside an installed Python package"""
    size: Positive | None = None
    """its size in bytes; null: any"""
    sha256: str | None = None
    """its SHA-256; null: any"""


class ModelConfig(Section):
    """Which network: `model=centerface` (the authors' ONNX) or `model=centerface_pytorch`."""

    name: str
    """name in tables and results"""
    path: PathText | None = None
    """your own model file ({batch} in it stands for model.batch); null: the weights below"""
    sha256: str | None = None
    """expected SHA-256 of your own file, with its weights in other files; null: any"""
    weights: WeightsConfig
    checkpoint: PathText | None = None
    """job=export, backend=torch: the .pth file"""
    batch: UpTo1024 = 1
    """pictures a batch"""
    convention: Literal["centerface", "centerface_pytorch"]
    """how head maps become boxes"""
    outputs: list[str] | None = None
    """names of the heat map, size, offset and landmark outputs; null: in the file's order"""
    height: PixelCount = 800
    """input rows, pixels, a multiple of 32"""
    width: PixelCount = 800
    """input columns, pixels, a multiple of 32"""
    color: Literal["RGB", "BGR"]
    """order of the channels that the network wants"""
    scale: PositiveReal = 1.0
    """factor for the u8 values, applied first"""
    mean: Annotated[list[Real], Field(min_length=3, max_length=3)]
    """subtracted after the scaling, per channel in `color` order"""
    std: Annotated[list[PositiveReal], Field(min_length=3, max_length=3)]
    """divisor after the subtraction, per channel in `color` order"""
    top_k: Annotated[Whole, _between(1, 10000)] = 200
    """peaks kept a picture"""
    nms: Fraction | None = None
    """IoU threshold of the suppression after decoding; null: none"""
    expected: ExpectedConfig


class BackendConfig(Section):
    """What runs the network: `backend=auto`, `openvino`, `onnxruntime`, `torch`, `om`.

    Or nothing does: `backend=simulated`.
    """

    name: str
    """auto: om where NPUs and ais_bench are, else openvino, else onnxruntime"""
    streams: Literal["auto"] | Positive = "auto"
    """inferences a device takes at once; auto: as many as its threads and memory allow"""
    precision: Literal["f32", "bf16"] = "f32"
    """openvino: f32, or bf16 (faster where the processor has it, not the model's numbers)"""
    providers: list[str] = ["CPUExecutionProvider"]
    """onnxruntime: execution providers by falling preference"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """torch: auto (CUDA where there is one), cpu or cuda"""
    latency_ms: Annotated[Real, _between(0, 3_600_000, "a number")] | None = None
    """simulated: milliseconds a batch, 0 is instant; null: the preset's"""
    preset: Literal["310P3"] | None = None
    """simulated: the chip whose published times are taken"""
    fault: Annotated[Literal["nan", "inf", "inf_scores"], BeforeValidator(_word)] | None = None
    """simulated: the fault in the devices' head maps, to try how a run deals with it"""
    fault_device: Natural | None = None
    """simulated: the number of the only faulty device; null: all are faulty"""


class EvalConfig(Section):
    """Which protocol comes first and how boxes are written: `eval=official` or `eval=guide`."""

    protocol: Protocol
    """official: IoU 0.5, boxes written and scored as the detector gives them; guide: IoU 0.4, boxes
    and scores rounded as the CenterFace script does. Both IoUs are always computed"""
    gate: bool = False
    """exit code 5 if the AP misses model.expected"""


class BenchmarkConfig(Section):
    """`job=benchmark`: how fast the devices are, how fast the host, and both together."""

    parts: Annotated[list[BenchmarkPart], Field(min_length=1)] = list(get_args(BenchmarkPart))
    """which to run: inference, the model alone; host, reading the pictures alone; end_to_end, both,
    as job=evaluate"""
    loops: UpToMillion = 20
    """inference: batches in each slot of a device, after a warm-up"""
    input: Literal["zeros", "random"] = "zeros"
    """inference: what the model is given"""
    readers: Literal["auto"] | UpTo1024 | Annotated[list[UpTo1024], Field(min_length=1)] = "auto"
    """host: number of reader threads, or a list of numbers; auto: 1, 2, 4, ... up to the number of
    cores, and the number that the run has"""
    pictures: UpToMillion = 300
    """host, end_to_end: the first N of the data set, which is repeated if it has fewer"""


class ExportConfig(Section):
    """`job=export`: a checkpoint to ONNX."""

    output: PathText | None = None
    """the ONNX file to write; null: <output_dir>/CenterFace.onnx"""
    opset: Annotated[Whole, _between(11, 17)] = 11
    """ONNX operator set; ATC of CANN 6 takes 11"""
    input: InputKind = "f32"
    """f32: normalised NCHW; u8: pictures as they are, NHWC BGR, normalised in the graph"""
    peaks: bool = False
    """pick the peaks inside the graph: K x 15 numbers a picture come out"""


class ConvertConfig(Section):
    """`job=convert`: ONNX (model.path) to OM, through ATC."""

    output: PathText = "models"
    """folder for the OM files"""
    batches: Annotated[list[Positive], Field(min_length=1)] = [1, 4, 8, 16, 32]
    """batch sizes, one OM each"""
    soc_version: str | None = None
    """the chip, Ascend310P3; null: asked from npu-smi"""
    aipp: bool = False
    """normalise on the chip: the OM takes u8 NHWC"""
    log: Annotated[Literal["debug", "info", "warning", "error", "null"], BeforeValidator(_word)] = (
        "error"
    )
    """ATC's log level"""
    dry_run: bool = False
    """only print the command lines"""


class CompareConfig(Section):
    """`job=compare`: past one of these, the exit code is 4."""

    ap: Annotated[Real, _between(0, None, "a finite number")] = 0.002
    """how far the candidate's AP may be from the reference's"""
    boxes: Fraction = 0.98
    """share of the reference's boxes that the candidate must find again, at IoU 0.9"""
    cosine: Annotated[Real, _between(-1, 1, "a number")] = 0.999
    """least cosine similarity of each head's maps"""


class PreprocessConfig(Section):
    """Letterboxed pictures: where they are made and kept, and `job=preprocess`."""

    where: Literal["auto", "device", "cluster"] = "auto"
    """where pictures are read and letterboxed: device, beside the device that infers them; cluster,
    on the CPUs of any node, by a stage of a Ray Dataset; auto: cluster where the cluster has nodes
    whose CPUs no device uses, else device"""
    cache: Literal["auto"] | StrictBool = "auto"
    """materialise the letterboxed Dataset once and hand its blocks to every run of a sweep: auto
    (where the object store holds it all), true (Ray spills what does not fit; also for the passes
    of dataset.repeat) or false"""
    output: PathText | None = None
    """folder for the .bin files; null: <output_dir>/bins"""
    input: InputKind = "f32"
    """f32: normalised NCHW, as the guide; u8: NHWC BGR for an OM with AIPP"""


class InferConfig(Section):
    """`job=infer`: .bin files to output files, the guide's second step."""

    input: PathText | None = None
    """folder of .bin files, as job=preprocess leaves them"""
    output: PathText | None = None
    """folder that gets <name>/ and <name>_summary.json; null: <output_dir>"""
    name: PathText | None = None
    """folder of the output files; null: dumpout_bs<batch>"""
    cli: bool = False
    """call `python -m ais_bench` instead of a backend"""


class PostprocessConfig(Section):
    """`job=postprocess`: output files to WIDER FACE prediction files, the guide's last step."""

    input: PathText | None = None
    """folder of <name>_{0..3}.bin files, flat or sorted into event folders"""
    output: PathText | None = None
    """folder for the prediction files; null: <output_dir>/predictions"""


class ClusterConfig(Section):
    """Where Ray runs."""

    address: str | None = None
    """a running Ray cluster (auto, or host:port); null: one on this machine for this run"""
    dashboard: Literal["auto"] | StrictBool = "auto"
    """start Ray's dashboard with the run's own cluster, which takes about two seconds: true, false,
    or auto: if the command runs in a terminal"""


class PipelineConfig(Section):
    """How each device gets its pictures."""

    readers: Literal["auto"] | UpTo1024 = "auto"
    """reader threads a device, which read, decode and letterbox pictures; auto: its share of the
    cores"""


class Config(Section):
    """Every key that the command line takes as `key=value`."""

    job: Job
    """what to do"""
    devices: Literal["auto"] | UpTo1024 | DeviceList = "auto"
    """device actors: a number, a list such as [0,1], or auto (every accelerator; on CPUs one for
    each 8 cores)"""
    output_dir: Annotated[PathText, Field(min_length=1)]
    """folder for results.json, predictions and the run's log"""
    predictions: PathText | None = None
    """job=score: folder of WIDER prediction files, <event>/<name>.txt"""
    reference: PathText | None = None
    """job=compare: a model file, or <backend>:<file>; its suffix chooses the backend"""
    candidate: PathText | None = None
    """job=compare: the model to compare with the reference, in the same form"""
    dataset: DatasetConfig
    model: ModelConfig
    backend: BackendConfig
    eval: EvalConfig
    benchmark: BenchmarkConfig
    export: ExportConfig
    convert: ConvertConfig
    compare: CompareConfig
    preprocess: PreprocessConfig
    infer: InferConfig
    postprocess: PostprocessConfig
    cluster: ClusterConfig
    pipeline: PipelineConfig


def sections(
    section: type[Section] = Config, prefix: str = ""
) -> Iterator[tuple[type[Section], dict[str, FieldInfo]]]:
    """A section and those inside it, each with its own keys ("model.batch") and their fields."""
    fields = {prefix + name: field for name, field in section.model_fields.items()}
    kinds = {key: field.annotation for key, field in fields.items()}
    inner = {k: v for k, v in kinds.items() if isinstance(v, type) and issubclass(v, Section)}
    yield section, {key: field for key, field in fields.items() if key not in inner}
    for key, kind in inner.items():
        yield from sections(kind, f"{key}.")


def all_fields() -> dict[str, FieldInfo]:
    """Every key of the configuration, such as "model.batch", with its field."""
    return {key: field for _, fields in sections() for key, field in fields.items()}
