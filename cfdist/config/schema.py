"""The schema of the configuration: every key with its type, range, meaning, and who reads it.

Hydra composes `conf/` and the command line into plain values, these pydantic models check them,
and `--help` prints the text below each key.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from cfdist.config import uses
from cfdist.config.uses import Job, Uses
from cfdist.extensions import OWN_CODE
from cfdist.storage import is_uri

_T = TypeVar("_T")

# A field's title says what its value must be, where its type does not.
PATH = "a path"
OPTIONS = "a list of options in brackets, each --name=value"


def _from_text(value: object) -> object:
    """The number that a text holds, such as an environment variable's; other values unchanged."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _different(values: list[_T]) -> list[_T]:
    if len(set(values)) != len(values):
        raise ValueError("the same value twice")
    return values


def _as_list(value: object) -> object:
    """A list of a single name; "each" and other values unchanged."""
    return [value] if isinstance(value, str) and value != "each" else value


def _word(value: object) -> str:
    """The word that was typed; Hydra reads null, nan and inf as values of other types."""
    return "null" if value is None else str(value)


def _not_empty(text: str) -> str:
    # pydantic's own limit refuses names whose bytes are no UTF-8.
    if not text:
        raise PydanticCustomError("string_too_short", "empty")
    return text


def _local(text: str) -> str:
    if is_uri(text):
        raise ValueError("a URI")
    return text


_IMAGE_SIDE = re.compile("[1-9][0-9]{1,4}")


def _image_size(text: str) -> str:
    sides = text.split("x")
    if len(sides) != 2 or not all(
        _IMAGE_SIDE.fullmatch(one) and not int(one) % 32 for one in sides
    ):
        raise ValueError("no size")
    return text


def _scale(value: float) -> float:
    if not (0.01 <= value <= 8 or 32 <= value <= 16384):
        raise ValueError("neither a factor nor a side")
    return value


def _between(low: int, high: int | None = None, name: str = "a whole number") -> Any:
    """A field's limits with the words for them."""
    end = "up" if high is None else f"to {high}"
    return Field(ge=low, le=high, title=f"{name} from {low} {end}")


PathText = Annotated[str, AfterValidator(_not_empty), Field(title=PATH)]
_LOCAL = f"{PATH} on this machine; copy the files elsewhere when the run has ended"
LocalPath = Annotated[PathText, AfterValidator(_local), Field(title=_LOCAL)]
PathOrUri = Annotated[str, AfterValidator(_not_empty), Field(title=f"{PATH} or a URI")]
Name = Annotated[str, AfterValidator(_not_empty), Field(title="text")]
OptionList = Annotated[list[str], Field(title=OPTIONS)]
Strict = Field(strict=True)  # true is no number, 1 is not true, 4.0 is not 4
Whole = Annotated[int, Strict, BeforeValidator(_from_text)]
Natural = Annotated[Whole, _between(0)]
Positive = Annotated[Whole, _between(1)]
UpTo1024 = Annotated[Whole, _between(1, 1024)]
UpToMillion = Annotated[Whole, _between(1, 1_000_000)]
_SIDE = "a multiple of 32 from 32 to 16384"
PixelCount = Annotated[Whole, Field(ge=32, le=16384, multiple_of=32, title=_SIDE)]
Real = Annotated[float, Strict, BeforeValidator(_from_text), Field(allow_inf_nan=False)]
# float32 holds every u8 value after any of these factors, offsets and divisors.
Offset = Annotated[Real, _between(-1_000_000, 1_000_000, "a number")]
_FACTOR = "a number from 0.000001 to 1000000"
Factor = Annotated[Real, Field(ge=1e-6, le=1e6, title=_FACTOR)]
_SCALE = "a factor from 0.01 to 8, or the short side in pixels from 32 to 16384"
Scale = Annotated[Real, AfterValidator(_scale), Field(title=_SCALE)]
Fraction = Annotated[Real, _between(0, 1, "a number")]
StrictBool = Annotated[bool, Strict]
ImageSize = Annotated[
    str, AfterValidator(_image_size), Field(title="rows x columns, multiples of 32, as 704x1024")
]
_DEVICES = "a list of different device numbers (0 and up, at most 1024)"
Different = AfterValidator(_different)  # in a list: no value twice
NotEmpty = Field(min_length=1)
DeviceList = Annotated[
    list[Natural], Field(min_length=1, max_length=1024, title=_DEVICES), Different
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{64}$", title="64 hexadecimal digits")]
Md5 = Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{32}$", title="32 hexadecimal digits")]
Address = Annotated[str, Field(pattern=r"^https?://[^/\s]+/\S*$", title="an http(s) address")]
# What ATC's --soc_version takes: Ascend310P3, Ascend910ProA, Ascend910_9391.
SocVersion = Annotated[
    str,
    Field(
        pattern=r"^Ascend[0-9]{3}[A-Za-z0-9_]*$",
        title="a chip's name as ATC takes it, such as Ascend310P3",
    ),
]
OwnCode = Annotated[str, Field(pattern=OWN_CODE, title="<module>:<name> of your own code")]
Protocol = Literal["official", "guide"]
InputKind = Literal["f32", "u8"]
BenchmarkPart = Literal["inference", "host", "end_to_end"]
# The names of `cfdist.widerface.quirks.QUIRKS`, which is not imported here for its arrays' library.
Quirk = Literal[
    "iou_0.4",
    "iou_0.5",
    "no_pixel",
    "sizes_plus_1",
    "guide_style",
    "whole_corners",
    "scores_2_decimals",
    "count_line",
    "first_line",
    "scores_from_0.5",
    "skip_empty",
    "last_face",
    "reverse_ties",
    "raw_scores",
    "picture_scores",
    "ignored_wrong",
    "repeats_ignored",
    "every_score",
    "eleven_points",
]


def key_name(field: str) -> str:
    """The key of a field; one that is a word of Python's is written with a trailing `_`."""
    return field.rstrip("_")


class Section(BaseModel):
    """Keys that belong together; any other key is refused.

    Attributes:
        used: What reads those keys of the section that do not say it themselves.
    """

    # Built when it is used: the whole configuration has a validator of its own, and those of the
    # sections would only delay the start.
    model_config = ConfigDict(
        extra="forbid", alias_generator=key_name, serialize_by_alias=True, defer_build=True
    )
    used: ClassVar[Uses] = uses.WITH_FOLDER
    _typed: frozenset[str] = PrivateAttr(frozenset())

    def mark_typed(self, keys: frozenset[str]) -> None:
        """Remember, here and in the sections inside, which keys the person has typed."""
        self._typed = keys
        for name in type(self).model_fields:
            if isinstance(inner := getattr(self, name), Section):
                inner.mark_typed(keys)

    def typed(self) -> frozenset[str]:
        """The keys of the whole configuration that the person has typed: "model.batch"."""
        return self._typed


class DatasetConfig(Section):
    """Which pictures: `dataset=sample` or `dataset=wider_val`."""

    used: ClassVar[Uses] = uses.DATA_SET

    name: str
    """name in tables and results"""
    kind: Literal["sample", "wider"]
    """sample: the embedded set; wider: pictures in WIDER FACE's layout"""
    root: PathOrUri | None = None
    """WIDER_val.zip, the folder that holds images/<event>/<name>.jpg, or a URI of either, as in
    s3://bucket/WIDER_val; for the sample set: where to generate it"""
    ground_truth: PathOrUri | None = None
    """eval_tools.zip, the folder with wider_face_val.mat and wider_{easy,medium,hard}_val.mat, or a
    URI of either"""
    limit: Positive | None = None
    """take only the first N pictures; null: all"""
    repeat: Annotated[
        Positive,
        Field(le=10_000, title="a whole number from 1 to 10000"),
        uses.only("evaluate"),
        uses.only("benchmark", when=(uses.END_TO_END, uses.OFFLINE)),
    ] = 1
    """job=evaluate, benchmark: passes over the pictures, for longer measurements"""
    damaged: Annotated[
        Literal["fail", "use"],
        uses.only("evaluate", "benchmark", "quantize", "compare"),
        uses.only("preprocess", "postprocess", "detect", "tune"),
    ] = "fail"
    """a picture whose file is damaged: fail, it counts as failed; use, it is taken as it decodes,
    and listed"""
    ship: Annotated[
        StrictBool,
        uses.only("evaluate", "quantize", "compare", "detect", "tune"),
        uses.only("benchmark", when=(uses.DEVICES, uses.OFFLINE)),
    ] = False
    """send pictures and weights through Ray's object store, to nodes that do not see the files"""


class ExpectedConfig(Section):
    """The AP that the model should have, for the table and for `eval.gate`."""

    used: ClassVar[Uses] = uses.EXPECTED_AP

    easy: Fraction | None = None
    """expected AP of the easy faces, a fraction"""
    medium: Fraction | None = None
    """the same for medium"""
    hard: Fraction | None = None
    """the same for hard"""
    protocol: Annotated[Protocol, uses.also(uses.EXPECTED_AP, uses.EXPECTS_AP)] = "official"
    """the protocol of the expected AP"""
    tolerance: Annotated[Fraction, uses.also(uses.EXPECTED_AP, uses.EXPECTS_AP)] = 0.002
    """how far the measured AP may be below the expected one"""


class WeightsConfig(Section):
    """The weights that a model comes with."""

    used: ClassVar[Uses] = uses.also(
        uses.MODEL_FILE, uses.missing("model.path"), uses.given("model.weights.path", "FILE")
    )

    path: Annotated[PathOrUri | None, uses.also(uses.MODEL_FILE, uses.missing("model.path"))] = None
    """a file, its URI, or package://<package>/<file> inside an installed Python package"""
    size: Positive | None = None
    """its size in bytes; null: any"""
    sha256: Sha256 | None = None
    """its SHA-256; null: any"""


class ModelConfig(Section):
    """Which network: `model=centerface` (the authors' ONNX) or `model=centerface_pytorch`."""

    name: str
    """name in tables and results"""
    path: Annotated[PathOrUri | None, uses.MODEL_FILE] = None
    """your own model file or its URI ({batch} in it stands for model.batch); null: the weights
    below"""
    sha256: Annotated[
        Sha256 | None, uses.also(uses.MODEL_FILE, uses.given("model.path", "FILE"))
    ] = None
    """expected SHA-256 of your own file, with its weights in other files; null: any"""
    weights: WeightsConfig
    checkpoint: Annotated[PathOrUri | None, uses.backend_key("torch"), uses.only("export")] = None
    """job=export, backend=torch: the .pth file"""
    batch: Annotated[
        UpTo1024,
        uses.only("evaluate", "quantize", "compare", "infer", "detect", "tune"),
        uses.only("benchmark", when=(uses.DEVICES, uses.OFFLINE)),
        uses.only("export", "convert", when=(uses.BATCH_IN_NAME,)),
    ] = 1
    """pictures a batch"""
    convention: Annotated[
        Literal["centerface", "centerface_pytorch"] | OwnCode,
        uses.with_model("quantize", "compare", "infer", "export", "postprocess", "detect"),
    ]
    """how head maps become boxes; docs/extending.md has how a function of your own does it"""
    outputs: Annotated[
        Annotated[list[Name], Field(min_length=4, max_length=4), Different] | None,
        uses.also(uses.with_model("infer", "export", "detect"), uses.HAS_OUTPUT_NAMES),
        uses.only("quantize", "compare", "convert"),
    ] = None
    """names of the heat map, size, offset and landmark outputs; null: in the file's order"""
    height: Annotated[PixelCount, uses.also(uses.INPUT_SIZE, uses.LETTERBOX)] = 800
    """input rows, pixels, a multiple of 32"""
    width: Annotated[PixelCount, uses.also(uses.INPUT_SIZE, uses.LETTERBOX)] = 800
    """input columns, pixels, a multiple of 32"""
    color: Annotated[Literal["RGB", "BGR"], uses.NORMALISATION]
    """order of the channels that the network wants"""
    scale: Annotated[Factor, uses.NORMALISATION] = 1.0
    """factor for the u8 values, applied first"""
    mean: Annotated[list[Offset], Field(min_length=3, max_length=3), uses.NORMALISATION]
    """subtracted after the scaling, per channel in `color` order"""
    std: Annotated[list[Factor], Field(min_length=3, max_length=3), uses.NORMALISATION]
    """divisor after the subtraction, per channel in `color` order"""
    top_k: Annotated[
        Annotated[Whole, _between(1, 10000)] | None,
        uses.with_model("quantize", "compare", "postprocess", "convert", "detect"),
        uses.only("export", when=(uses.equal("export.peaks", True, "true"),)),
    ] = 200
    """peaks kept a picture; null: all"""
    peaks: Annotated[
        Literal["maxima", "threshold"],
        uses.with_model("quantize", "compare", "postprocess", "detect", parts=uses.END_TO_END),
    ] = "maxima"
    """which cells of the heat map are peaks: maxima, the highest of their 3x3 neighbourhood;
    threshold, all above model.score"""
    score: Annotated[
        Fraction,
        uses.with_model("quantize", "compare", "postprocess", "detect", parts=uses.END_TO_END),
    ] = 0.0
    """a peak's score is above this"""
    nms: Annotated[
        Fraction | None,
        uses.with_model("quantize", "compare", "postprocess", "detect", parts=uses.END_TO_END),
    ] = None
    """IoU threshold of the suppression after decoding; null: none"""
    expected: ExpectedConfig


class BackendConfig(Section):
    """What runs the network: `backend=auto`, `openvino`, `onnxruntime`, `torch`, `om`.

    Or nothing does: `backend=simulated`.
    """

    used: ClassVar[Uses] = uses.backend_key()

    name: Annotated[str, uses.backend_key(), uses.only("quantize")]
    """auto: om where NPUs and ais_bench are, else openvino, else onnxruntime; or a class of your
    own, <module>:<class>"""
    streams: Annotated[
        Literal["auto"] | Positive,
        uses.offline(uses.backend_key("openvino", "onnxruntime", "torch", "simulated")),
    ] = "auto"
    """inferences a device takes at once; auto: as many as its threads and memory allow"""
    precision: Annotated[Literal["f32", "f16", "bf16"], uses.model_option("openvino", "torch")] = (
        "f32"
    )
    """openvino, torch: f32, or f16 or bf16 (faster where the device has it, not the model's
    numbers)"""
    providers: Annotated[list[Name], NotEmpty, Different, uses.model_option("onnxruntime")] = [
        "CPUExecutionProvider"
    ]
    """onnxruntime: execution providers by falling preference"""
    provider_options: Annotated[
        dict[Name, bool | int | float | str] | None,
        uses.model_option("onnxruntime"),
        Field(title="a mapping {option:value,...} or null"),
    ] = None
    """onnxruntime: options of its providers by their own names, as in {trt_fp16_enable:true}"""
    device: Annotated[Literal["auto", "cpu", "cuda"], uses.model_option("torch")] = "auto"
    """torch: auto (CUDA where there is one), cpu or cuda"""
    gpus_per_device: Annotated[
        Annotated[Real, Field(ge=0.01, le=1, title="a number from 0.01 to 1")],
        uses.without("quantize", uses.backend_key("onnxruntime", "torch")),
    ] = 1.0
    """onnxruntime, torch on GPUs: the part of a GPU that a device has; with 0.25 four share one"""
    latency_ms: Annotated[
        Annotated[Real, _between(0, 3_600_000, "a number")] | None, uses.backend_key("simulated")
    ] = None
    """simulated: milliseconds a batch, 0 is instant; null: the preset's"""
    preset: Annotated[
        Literal["310P3"] | None,
        uses.backend_key("simulated", when=(uses.missing("backend.latency_ms"),)),
    ] = None
    """simulated: the chip whose published times are taken"""
    fault: Annotated[
        Annotated[
            Literal[
                "nan",
                "inf",
                "inf_scores",
                "fail",
                "die",
                "stop",
                "hang",
                "fail_opening",
                "die_opening",
                "stop_opening",
                "hang_opening",
            ],
            BeforeValidator(_word),
        ]
        | None,
        uses.backend_key("simulated"),
    ] = None
    """simulated: a fault, to try how a run deals with it: what is in the head maps, or what the
    device does in a batch or while it opens"""
    fault_device: Annotated[Natural | None, uses.WITH_FAULT] = None
    """simulated: the number of the only faulty device; null: all are faulty"""
    fault_after: Annotated[Natural, uses.WITH_FAULT] = 0
    """simulated: sound batches of the device before the fault"""
    fault_once: Annotated[StrictBool, uses.WITH_FAULT] = False
    """simulated: the device is sound once it was started again"""


class EvalConfig(Section):
    """Which protocol comes first and how boxes are written: `eval=official` or `eval=guide`."""

    protocol: Annotated[
        Protocol,
        uses.offline(
            uses.with_model("score", "quantize", "compare", "postprocess", parts=uses.END_TO_END)
        ),
    ]
    """official: IoU 0.5, boxes written and scored as the detector gives them; guide: IoU 0.4, boxes
    and scores rounded as the CenterFace script does. Both IoUs are always computed"""
    gate: Annotated[bool, uses.only("evaluate", "score")] = False
    """exit code 5 if the AP misses model.expected"""
    metrics: Annotated[
        list[OwnCode], Different, uses.only("evaluate", when=(uses.REAL,)), uses.only("score")
    ] = []
    """further figures by classes of your own, see docs/extending.md"""
    quirks: Annotated[
        Annotated[list[Quirk], Different] | Literal["each"],
        BeforeValidator(_as_list),
        uses.only("score"),
    ] = []
    """habits of other evaluators: also the AP with all of them, which is none of the benchmark's;
    each: with every one alone. docs/concepts.md says what they do"""


class BenchmarkConfig(Section):
    """`job=benchmark`: how fast the devices are, how fast the host, and both together."""

    used: ClassVar[Uses] = uses.only("benchmark")

    scenario: Literal["offline", "single_stream"] = "offline"
    """as MLPerf calls them. offline: as many pictures at once as the devices take, for their rate;
    single_stream: one picture after another on one device, for their latency"""
    min_seconds: Annotated[Real, _between(0, 86_400, "a number")] = 1
    """how long each measurement goes on at least, seconds; an end-to-end part that ends sooner has
    no rate"""
    parts: Annotated[
        list[BenchmarkPart], NotEmpty, Different, uses.only("benchmark", when=(uses.OFFLINE,))
    ] = list(get_args(BenchmarkPart))
    """which to run: inference, the model alone; host, reading the pictures alone; end_to_end, both,
    as job=evaluate"""
    loops: Annotated[UpToMillion, uses.only("benchmark", when=(uses.INFERENCE, uses.OFFLINE))] = 20
    """inference: batches in each stream of a device at least, after a warm-up"""
    input: Annotated[
        Literal["zeros", "random"], uses.only("benchmark", when=(uses.INFERENCE, uses.OFFLINE))
    ] = "zeros"
    """inference: what the model is given"""
    readers: Annotated[
        Literal["auto"] | UpTo1024 | Annotated[list[UpTo1024], NotEmpty, Different],
        uses.only("benchmark", when=(uses.HOST, uses.OFFLINE)),
    ] = "auto"
    """host: number of reader threads, or a list of numbers; auto: 1, 2, 4, ... up to the number of
    cores, and the number that the run has"""
    pictures: Annotated[UpToMillion, uses.only("benchmark", when=(uses.PICTURES,))] = 300
    """host, end_to_end, single_stream: the first N of the data set, which is repeated if it has
    fewer"""


class TuneConfig(Section):
    """`job=tune`: the fastest settings here that keep the model's AP; what is typed stays."""

    used: ClassVar[Uses] = uses.only("tune")

    minutes: Annotated[Real, _between(0.1, 10_080, "a number")] = 10
    """how long to look at most; a run that is under way comes to its end"""
    tolerance: Fraction = 0.002
    """how far an AP may be below that in float32 on a CPU: 0.002 is 0.2 points"""
    batches: Annotated[list[UpTo1024], NotEmpty, Different] = [1, 2, 4, 8, 16]
    """the batch sizes to try, unless model.batch is typed"""
    models: Annotated[list[PathOrUri], Different] = []
    """further files of the model to try, such as a quantised one"""
    reference: PathOrUri | None = None
    """a file of the model that a CPU runs in float32, such as the ONNX of an OM; null: the model's
    own"""
    pictures: UpToMillion = 200
    """the first N of the data set, by which APs are compared and rates measured"""


class ExportConfig(Section):
    """`job=export`: a checkpoint to ONNX."""

    used: ClassVar[Uses] = uses.only("export")

    output: LocalPath | None = None
    """the ONNX file to write; null: <output_dir>/CenterFace.onnx"""
    opset: Annotated[Whole, _between(11, 17)] = 11
    """ONNX operator set; ATC of CANN 6 takes 11"""
    input: InputKind = "f32"
    """f32: normalised NCHW; u8: pictures as they are, NHWC BGR, normalised in the graph"""
    peaks: bool = False
    """pick the peaks inside the graph: K x 15 numbers a picture come out"""


class ConvertConfig(Section):
    """`job=convert`: ONNX (model.path) to OM, through ATC."""

    used: ClassVar[Uses] = uses.only("convert", when=(uses.TO_OM,))

    output: Annotated[LocalPath, uses.only("convert")] = "models"
    """folder for the OM files"""
    batches: Annotated[list[UpTo1024], NotEmpty, Different] = [1, 4, 8, 16, 32]
    """batch sizes, one OM each"""
    dynamic: Annotated[bool, uses.only("convert", when=(uses.TO_OM, uses.ONE_SIZE))] = False
    """one OM for all of convert.batches; a run takes it at any of them"""
    sizes: Literal["dataset"] | Annotated[list[ImageSize], NotEmpty, Different] | None = None
    """input sizes of each OM, rows x columns, as in [640x640,704x1024]; dataset: all that the
    pictures need at preprocess.size=own and preprocess.scales; null: model.height x model.width"""
    soc_version: SocVersion | None = None
    """the chip, Ascend310P3; null: asked from npu-smi"""
    aipp: bool = False
    """normalise on the chip: the OM takes u8 NHWC"""
    extra: OptionList = []
    """further options for ATC, as in [--precision_mode=force_fp16]"""
    calibration: Annotated[Positive | None, uses.only("convert")] = None
    """write the first N pictures as AMCT's input for an int8 calibration, and convert nothing"""
    limit_s: Annotated[
        Real,
        _between(1, 604_800, "a number"),
        uses.only("convert", when=(uses.TO_OM, uses.NOT_DRY)),
    ] = 3600
    """seconds after which an ATC that has not made its OM is killed"""
    log: Annotated[Literal["debug", "info", "warning", "error", "null"], BeforeValidator(_word)] = (
        "error"
    )
    """ATC's log level"""
    dry_run: Annotated[bool, uses.only("convert")] = False
    """only print the command lines, and write the files that they name"""


class QuantizeConfig(Section):
    """`job=quantize`: int8 of a float32 ONNX (model.path), and what that costs and gains."""

    used: ClassVar[Uses] = uses.only("quantize")

    output: LocalPath | None = None
    """the ONNX file to write; null: <output_dir>/<model's name>_int8.onnx"""
    calibration: PathOrUri | None = None
    """pictures to calibrate with, none of them evaluated: a folder, a pattern in quotes, a zip
    archive or a URI; null: further pictures of the embedded sample set's kind"""
    pictures: UpTo1024 = 64
    """pictures to calibrate with, taken from all over their order; all of them where there are
    fewer"""
    keep: Annotated[list[Name], Different] = ["heads", "first"]
    """what stays in float32: heads, the last layers; first, those that read the picture at half its
    size or more; the name of an operator, its kind, its output or its weights (* for any part)"""
    method: Literal["minmax", "percentile"] = "minmax"
    """the range of an activation: all that was seen, or the quantize.percentile of it"""
    percentile: Annotated[
        Real,
        _between(50, 100, "a number"),
        uses.only("quantize", when=(uses.equal("quantize.method", "percentile", "percentile"),)),
    ] = 99.999
    """percent of an activation's values that its range holds"""
    per_channel: bool = True
    """weights have a scale for each output channel, not one for the layer"""
    reduce_range: bool = False
    """weights have 7 bits: for processors without VNNI, whose sums of bytes would overflow"""
    equalise: Annotated[
        bool,
        uses.only("quantize", when=(uses.equal("quantize.per_channel", True, "true"),)),
    ] = True
    """with per_channel: first scale the channels between layers so that their ranges are near each
    other; in float32 the network stays what it was"""


class CompareConfig(Section):
    """`job=compare`: past one of these, the exit code is 4."""

    used: ClassVar[Uses] = uses.only("compare")

    ap: Fraction = 0.002
    """how far the candidate's AP may be from the reference's"""
    boxes: Fraction = 0.98
    """share of the reference's boxes that the candidate must find again, at IoU 0.9"""
    cosine: Annotated[Real, _between(-1, 1, "a number")] = 0.999
    """least cosine similarity of each head's maps, or of each tensor"""
    layers: StrictBool = False
    """compare the tensors inside of two graphs of one topology, and neither boxes nor AP"""
    dump: Annotated[LocalPath | None, uses.only("compare", when=(uses.LAYERS,))] = None
    """layers: folder of what the NPU computed inside of the candidate, an OM, of the data set's
    first picture: .npy files and the OM's .json (docs/ascend.md)"""
    pictures: Annotated[
        Whole,
        _between(1, 100),
        uses.only("compare", when=(uses.LAYERS, uses.missing("compare.dump"))),
    ] = 4
    """layers: pictures to compare them on, from all over the data set"""
    relative: Annotated[
        Real, _between(0, 1_000_000, "a number"), uses.only("compare", when=(uses.LAYERS,))
    ] = 0.001
    """layers: how far a tensor may be from the reference's: norm of the difference by its norm"""


class PreprocessConfig(Section):
    """From pictures to inputs: their size, where they are made and kept, and `job=preprocess`."""

    used: ClassVar[Uses] = uses.only("preprocess")

    size: Annotated[Literal["letterbox", "own"], uses.only("evaluate", "compare", "detect")] = (
        "letterbox"
    )
    """letterbox: each picture is scaled into model.width x model.height, its proportions kept; own:
    it keeps its own size, stretched to the next multiple of 32 on each side"""
    scales: Annotated[
        list[Scale],
        NotEmpty,
        Different,
        uses.only("evaluate", "compare", "detect", when=(uses.OWN_SIZE,))
        + uses.only("convert", when=(uses.ALL_SIZES,)),
    ] = [1.0]
    """each picture is seen at all of these: a factor of its own size up to 8, or from 32 on the
    pixels of its short side, as in [500,800,1100]"""
    flip: Annotated[StrictBool, uses.only("evaluate", "compare", "detect")] = False
    """each picture is seen a second time, mirrored"""
    merge: Annotated[
        Literal["nms", "vote"],
        uses.only("evaluate", "compare", "detect", when=(uses.SEVERAL_VIEWS,)),
    ] = "nms"
    """boxes that were found more than once, at IoU model.nms: nms, the surest is kept; vote, their
    mean by score"""
    where: Annotated[
        Literal["auto", "device", "cluster"], uses.only("evaluate", when=(uses.LETTERBOX,))
    ] = "auto"
    """where pictures are read and letterboxed: device, beside the device that infers them; cluster,
    on the CPUs of any node, by a stage of a Ray Dataset; auto: cluster where the cluster has nodes
    whose CPUs no device uses, else device"""
    cache: Annotated[
        Literal["auto"] | StrictBool, uses.only("evaluate", when=(uses.LETTERBOX,))
    ] = "auto"
    """keep the letterboxed pictures in Ray's object store for the further runs of a sweep: auto
    (where the store holds them all), true (Ray spills what does not fit; also for the passes of
    dataset.repeat) or false"""
    output: LocalPath | None = None
    """folder for the .bin files; null: <output_dir>/bins"""
    input: InputKind = "f32"
    """f32: normalised NCHW, as the guide; u8: NHWC BGR for an OM with AIPP"""


class InferConfig(Section):
    """`job=infer`: .bin files to output files, the guide's second step."""

    used: ClassVar[Uses] = uses.only("infer")

    input: PathText | None = None
    """folder of .bin files, as job=preprocess leaves them"""
    output: LocalPath | None = None
    """folder that gets <name>/ and <name>_summary.json; null: <output_dir>"""
    name: PathText | None = None
    """folder of the output files; null: dumpout_bs<batch>"""
    cli: bool = False
    """call `python -m ais_bench` instead of a backend"""
    cli_args: Annotated[OptionList, uses.only("infer", when=(uses.BY_TOOL,))] = []
    """infer.cli: further options for it, as in [--profiler=1,--outfmt=NPY]"""


class PostprocessConfig(Section):
    """`job=postprocess`: output files to WIDER FACE prediction files, the guide's last step."""

    used: ClassVar[Uses] = uses.only("postprocess")

    input: PathText | None = None
    """folder of <name>_{0..3}.bin files, flat or sorted into event folders"""
    output: LocalPath | None = None
    """folder for the prediction files; null: <output_dir>/predictions"""


class DownloadConfig(Section):
    """`job=download`: WIDER_val.zip and eval_tools.zip, from where they are published."""

    used: ClassVar[Uses] = uses.only("download")

    to: LocalPath = "data"
    """folder for the two files"""
    from_: LocalPath | None = None
    """folder that holds them already, packed or not: they are checked, and linked or copied; what
    is not in it is fetched"""
    mirrors: Annotated[list[Address], NotEmpty, Different]
    """where to look, in this order: addresses that end in WIDER_val.zip or eval_tools.zip, or of a
    folder that holds both, ending in /"""
    size: Positive | None = None
    """bytes of WIDER_val.zip; null: any"""
    md5: Md5 | None = None
    """its MD5; null: any"""
    sha256: Sha256 | None = None
    """its SHA-256; null: any. Without one, every picture in it is read"""
    stall_s: Annotated[Real, _between(1, 3600, "a number")] = 30
    """seconds in which nothing comes, after which a connection is made anew"""


class DetectConfig(Section):
    """`job=detect`: the faces in any pictures."""

    used: ClassVar[Uses] = uses.only("detect")

    threshold: Fraction = 0.5
    """least score of a face"""
    annotate: StrictBool = True
    """write copies of the pictures with the faces drawn, into <output_dir>/annotated"""


class LogConfig(Section):
    """Where the results of a run are logged, beside its own folder, see docs/api.md."""

    used: ClassVar[Uses] = uses.only("evaluate", "score", "benchmark", "compare")

    mlflow: Name | None = None
    """MLflow's tracking URI, such as http://host:5000 or sqlite:///runs.db"""
    wandb: Name | None = None
    """a project of Weights & Biases"""
    tensorboard: LocalPath | None = None
    """a folder for TensorBoard, which gets one for each run"""


class ClusterConfig(Section):
    """Where Ray runs."""

    used: ClassVar[Uses] = uses.RAY

    address: str | None = None
    """a running Ray cluster: host:port, or auto (RAY_ADDRESS, or that of `ray start` here); local:
    one on this machine for this run; null: local, but in a command of `ray job submit` auto"""
    dashboard: Annotated[Literal["auto"] | StrictBool, uses.also(uses.RAY, uses.OWN_CLUSTER)] = (
        "auto"
    )
    """start Ray's dashboard with the run's own cluster, which takes about two seconds: true, false,
    or auto: if the command runs in a terminal"""
    wait_s: Annotated[Real, _between(1, 86_400, "a number")] = 30
    """seconds to wait for what the cluster has lost before the run goes on without it, or ends if
    it cannot: a head that does not answer (40 s at most), a node with room for a device"""
    keep_minutes: Annotated[
        Annotated[Real, _between(0, 1440, "a number")] | None,
        uses.also(uses.RAY, uses.OWN_CLUSTER),
    ] = None
    """leave the run's own Ray session for so many minutes to the next commands of this user and
    checkout; 0: end those that were left; null: use one that was left, and leave none anew"""

    @property
    def joined(self) -> str | None:
        """The address of the cluster that the run joins; `None`: it has one of its own."""
        return uses.joined_cluster(self.address)


class DeviceConfig(Section):
    """When a device is given up."""

    timeout: Annotated[
        Literal["auto"] | Annotated[Real, _between(1, 604_800, "a number")],
        uses.ON_DEVICES,
        uses.only("infer", when=(uses.BY_TOOL,)),
    ] = "auto"
    """seconds that a device may take to load the model, or for what it holds; one that takes longer
    is ended, and others do its work; auto: by the device's own pace, see docs/reliability.md;
    infer.cli: that the tool may be without a sign of life; auto: 600"""


class PipelineConfig(Section):
    """How each device gets its pictures."""

    readers: Annotated[
        Literal["auto"] | UpTo1024,
        uses.only("evaluate", "quantize", "compare", "detect", "tune"),
        uses.only("benchmark", when=(uses.END_TO_END, uses.OFFLINE)),
        uses.only(
            "benchmark",
            when=(uses.HOST, uses.equal("benchmark.readers", "auto", "auto"), uses.OFFLINE),
        ),
    ] = "auto"
    """reader threads a device, which read, decode and letterbox pictures; auto: its share of the
    cores"""


class Config(Section):
    """Every key that the command line takes as `key=value`."""

    job: Annotated[Job, uses.ALWAYS]
    """what to do"""
    devices: Annotated[
        Literal["auto"] | UpTo1024 | DeviceList,
        uses.only("evaluate", "quantize", "compare", "infer", "detect", "tune"),
        uses.only("benchmark", when=(uses.DEVICES,)),
        # The number of reader threads that a run would have is one of those measured.
        uses.only("benchmark", when=(uses.HOST, uses.equal("benchmark.readers", "auto", "auto"))),
    ] = "auto"
    """device actors: a number, a list such as [0,1] (counted within CUDA_VISIBLE_DEVICES or
    ASCEND_RT_VISIBLE_DEVICES), or auto (every accelerator; on CPUs one for each 8 cores)"""
    on_error: Annotated[Literal["report", "fail"], uses.offline(uses.ON_PICTURES)] = "report"
    """a picture that fails: report, it is listed and the others are done; fail, it ends the run,
    and job=evaluate can go on later"""
    output_dir: PathOrUri
    """folder for results.json, predictions and the run's log, or its URI (s3://, gs://, hdfs://,
    ...): the files go there at the run's end"""
    report: Annotated[
        StrictBool, uses.only("evaluate", "score", "benchmark", "compare", "tune", "quantize")
    ] = True
    """write report.html, a page that shows the results, beside results.json"""
    objective: Annotated[
        Literal["easy", "medium", "hard", "pictures_per_second"] | None,
        uses.only("evaluate", when=(uses.HAS_OBJECTIVE,)),
        uses.only("score", when=(uses.AP_OBJECTIVE,)),
    ] = None
    """the figure that a sweeper of Hydra's, such as hydra/sweeper=optuna, looks for the best of: an
    AP by the chosen protocol, or the speed (0 if the run misses eval.gate), see docs/api.md"""
    resume: Annotated[PathOrUri | None, uses.only("evaluate", "tune")] = None
    """go on with an unfinished run or sweep: its folder or URI, which holds its settings, or auto,
    the newest in outputs or in the output_dir that is given, with just the settings that are given,
    if there are any; null: a new run"""
    progress: Annotated[Literal["text", "json"], uses.ALWAYS] = "text"
    """text: lines for people; json: each line of the standard output is a JSON object, for
    programs, see docs/monitoring.md"""
    quiet: Annotated[StrictBool, uses.AS_TEXT] = False
    """show only results and errors"""
    verbose: Annotated[StrictBool, uses.also(uses.AS_TEXT, uses.NOT_QUIET)] = False
    """also show what else goes to run.log: the run's log, and what Ray and other libraries print"""
    predictions: Annotated[PathOrUri | None, uses.only("score")] = None
    """job=score: folder of WIDER prediction files, <event>/<name>.txt, a zip archive of it, a
    JSON file of detections as COCO has them (docs/detect.md), or a URI of one of these"""
    coco: Annotated[StrictBool, uses.only("evaluate", when=(uses.REAL,))] = False
    """write the detections also as COCO has them, coco.json"""
    missing: Annotated[Literal["skip", "empty"], uses.only("score")] = "skip"
    """job=score: pictures without a file: skip, their faces do not count; empty, nothing was found
    in them, which is what it means if their writer leaves such files out"""
    input: Annotated[PathOrUri | None, uses.only("detect")] = None
    """job=detect: a picture, a folder (with those inside), a pattern in quotes ('photos/*.jpg'), a
    zip archive, or a URI of a picture, folder or archive"""
    reference: Annotated[PathOrUri | None, uses.only("compare")] = None
    """job=compare: a model file or its URI, or <backend>:<file>; its content chooses the backend"""
    candidate: Annotated[PathOrUri | None, uses.only("compare")] = None
    """job=compare: the model to compare with the reference, in the same form"""
    dataset: DatasetConfig
    model: ModelConfig
    backend: BackendConfig
    eval: EvalConfig
    benchmark: BenchmarkConfig
    tune: TuneConfig
    export: ExportConfig
    convert: ConvertConfig
    quantize: QuantizeConfig
    compare: CompareConfig
    preprocess: PreprocessConfig
    infer: InferConfig
    postprocess: PostprocessConfig
    download: DownloadConfig
    detect: DetectConfig
    log: LogConfig
    cluster: ClusterConfig
    device: DeviceConfig
    pipeline: PipelineConfig


def sections(
    section: type[Section] = Config, prefix: str = ""
) -> Iterator[tuple[type[Section], dict[str, FieldInfo]]]:
    """A section and those inside it, each with its own keys ("model.batch") and their fields."""
    fields = {prefix + key_name(name): field for name, field in section.model_fields.items()}
    kinds = {key: field.annotation for key, field in fields.items()}
    inner = {k: v for k, v in kinds.items() if isinstance(v, type) and issubclass(v, Section)}
    yield section, {key: field for key, field in fields.items() if key not in inner}
    for key, kind in inner.items():
        yield from sections(kind, f"{key}.")


@functools.cache
def help_texts(section: type[Section]) -> Mapping[str, str]:
    """The text below each key of a section, by its name in the section.

    pydantic would read the source of every section for them whenever the program starts.
    """
    (tree,) = ast.parse(inspect.getsource(section)).body
    return {
        key_name(field.target.id): " ".join(text.value.value.split())
        for field, text in pairwise(cast(ast.ClassDef, tree).body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


@functools.cache
def all_fields() -> Mapping[str, FieldInfo]:
    """Every key of the configuration, such as "model.batch", with its field."""
    return {key: field for _, fields in sections() for key, field in fields.items()}


@functools.cache
def all_uses() -> Mapping[str, Uses]:
    """Every key with what reads it; job=doctor looks at what job=evaluate would take."""
    return {
        key: uses.without_layers(
            uses.as_looked_at(
                sum((one for one in field.metadata if isinstance(one, Uses)), Uses())
                or section.used,
                key,
            ),
            key,
        )
        for section, fields in sections()
        for key, field in fields.items()
    }
