"""The help page, every kind of setting that does not fit, and the one line that it gets."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cfdist import config
from cfdist.config.messages import SEE_HELP, allowed, help_text, shown
from cfdist.config.schema import all_fields
from cfdist.config.uses import JOBS as JOB_NAMES
from cfdist.errors import ExitCode, UserError
from tests.conftest import refusal


@pytest.fixture(scope="module")
def defaults() -> DictConfig:
    """What Hydra composes without a command line."""
    config.register()
    with initialize_config_dir(str(config.CONFIG_FOLDER), version_base="1.3"):
        return compose("config")


DEVICES = (
    "auto, a whole number from 1 to 1024 or a list of different device numbers (0 and up, at most "
    "1024)"
)
BATCH = "a whole number from 1 to 1024"
FACTOR = "a number from 0.000001 to 1000000"
STD = f"a list of 3 values in brackets, each value {FACTOR}"
MEAN = "a list of 3 values in brackets, each value a number from -1000000 to 1000000"
SOC = "a chip's name as ATC takes it, such as Ascend310P3 or null"
SCALES = (
    "a list of different values in brackets, each value a factor from 0.01 to 8, or the short side "
    "in pixels from 32 to 16384"
)
PARTS = "a list of different values in brackets, each value inference, host or end_to_end"
BATCHES = f"a list of different values in brackets, each value {BATCH}"
NAMES = "a list of 4 different values in brackets, each value text"
JOBS = f"{', '.join(JOB_NAMES[:-1])} or {JOB_NAMES[-1]}"


@pytest.mark.parametrize(
    ("key", "values", "must_be"),
    [
        (
            "devices",
            ["0", "1025", "null", "many", "2.0", "true", "[1, 1]", "[]", "[-1]", "[auto]"],
            DEVICES,
        ),
        ("devices", ["{a: 1}"], DEVICES),
        ("pipeline.readers", ["null", "0", "2000", "[1]"], "auto or a whole number from 1 to 1024"),
        (
            "benchmark.readers",
            ["null", "0", "many", "[1, 0]", "[]", "[2, 2]"],
            f"auto, {BATCH} or a list of different values in brackets, each value {BATCH}",
        ),
        (
            "model.batch",
            ["abc", "0", "1.5", "4.0", "true", "null", "[1]", "2000", "", "{a: 1}", "4 5"],
            BATCH,
        ),
        ("model.height", ["801", "0", "32000"], "a multiple of 32 from 32 to 16384"),
        ("model.nms", ["1.5", "nan", "inf", "true", "abc"], "a number from 0 to 1 or null"),
        ("model.scale", ["0", "-1", "nan", "inf", "true", "null", "1e+300", "1e-300"], FACTOR),
        ("model.mean", ["[nan, 0, 0]", "[inf, 0, 0]", "[1e+300, 0, 0]", "[0, 0]"], MEAN),
        ("model.sha256", ["abc", "0f"], "64 hexadecimal digits or null"),
        ("convert.soc_version", ["foo", "310P3", "Ascend", "Ascend 310"], SOC),
        (
            "model.std",
            [
                "[1, 0, 1]",
                "[1, 1e-300, 1]",
                "[1, 1e+300, 1]",
                "[1, 1]",
                "1",
                "null",
                "[1, a, 1]",
                "[true, 1, 1]",
            ],
            STD,
        ),
        (
            "model.convention",
            ["other", "null", "1"],
            "centerface, centerface_pytorch or <module>:<name> of your own code",
        ),
        ("model.color", ["rgb"], "RGB or BGR"),
        ("model.name", ["null"], "text"),
        ("model.outputs", ["537", "[a, null]", "[a, b, c]", "[a, a, b, c]"], f"null or {NAMES}"),
        ("model.expected.easy", ["nan", "2"], "a number from 0 to 1 or null"),
        ("model.weights.size", ["0"], "a whole number from 1 up or null"),
        ("model.top_k", ["0", "10001"], "a whole number from 1 to 10000 or null"),
        ("model.peaks", ["all", "null"], "maxima or threshold"),
        ("model.score", ["-0.1", "2"], "a number from 0 to 1"),
        ("preprocess.scales", ["[9]", "[0]", "[1, nan]", "[1, 1]"], SCALES),
        ("preprocess.size", ["full", "null"], "letterbox or own"),
        ("dataset.kind", ["zip"], "sample or wider"),
        ("dataset.limit", ["0", "1.5"], "a whole number from 1 up or null"),
        ("output_dir", ["null"], "a path or a URI"),
        (
            "convert.output",
            ["null", "s3://b/c"],
            "a path on this machine; copy the files elsewhere when the run has ended",
        ),
        ("eval.gate", ["maybe", "null", "2"], "true or false"),
        ("eval.protocol", ["both"], "official or guide"),
        ("backend.streams", ["0", "many", "null", "2.5"], "auto or a whole number from 1 up"),
        ("backend.precision", ["f64", "null"], "f32, f16 or bf16"),
        ("backend.gpus_per_device", ["0", "2", "half"], "a number from 0.01 to 1"),
        (
            "backend.providers",
            ["X", "null", "[X, X]"],
            "a list of different values in brackets, each value text",
        ),
        (
            "backend.provider_options",
            ["5", "[a]", "text", "{a: null}", "{a: [1]}"],
            "a mapping {option:value,...} or null",
        ),
        ("backend.latency_ms", ["-1", "nan", "abc"], "a number from 0 to 3600000 or null"),
        ("backend.preset", ["910"], "310P3 or null"),
        (
            "backend.fault",
            ["none", "1", "true"],
            "nan, inf, inf_scores, fail, die, stop, hang, fail_opening, die_opening, stop_opening, "
            "hang_opening or null",
        ),
        ("backend.fault_device", ["-1", "nan"], "a whole number from 0 up or null"),
        (
            "benchmark.parts",
            ["[inference, hosts]", "[host, host]", "host", "null", "[null]"],
            PARTS,
        ),
        ("benchmark.loops", ["0"], "a whole number from 1 to 1000000"),
        ("export.opset", ["18"], "a whole number from 11 to 17"),
        ("convert.batches", ["[1, 0]", "4", "[1, 2.5]", "[1, 1]", "[2000]"], BATCHES),
        ("convert.log", ["loud"], "debug, info, warning, error or null"),
        ("compare.ap", ["-1", "nan", "1e+300"], "a number from 0 to 1"),
        ("compare.cosine", ["-2"], "a number from -1 to 1"),
        ("preprocess.where", ["null", "node"], "auto, device or cluster"),
        ("preprocess.cache", ["1", "null", "[auto]", "yes"], "auto, true or false"),
        ("cluster.dashboard", ["0", "off"], "auto, true or false"),
        ("job", ["train", "null", ""], JOBS),
    ],
)
def test_a_value_that_does_not_fit(defaults, key, values, must_be):
    for value in values:
        settings = defaults.copy()
        override = OverridesParser.create().parse_override(f"{key}={value}")
        OmegaConf.update(settings, key, override.value())
        with pytest.raises(UserError) as refused:
            config.load(settings)
        line = str(refused.value).partition("; did you mean ")[0]
        assert line == f"{key}={value}: must be {must_be}"


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("modle.batch=4", "modle.batch: no such key; did you mean model.batch?"),
        ("model.bacth=4", "model.bacth: no such key; did you mean model.batch?"),
        ("model.weights.pth=4", "model.weights.pth: no such key; did you mean model.weights.path?"),
        ("+model.bacth=1", "model.bacth: no such key; did you mean model.batch?"),
        ("+model.batch=1", "+model.batch: is a key already; leave the + out"),
        (
            "dataset.count=4",
            "dataset.count: no such key; dataset has name, kind, root, ground_truth, l",
        ),
        ("model.weight=a", "model.weight: no such key; did you mean model.weights?"),
        ("output=a", "output: no such key; did you mean output_dir or "),
        ("model.size=640", "model.size: no such key; model has name, path, "),
        (
            "device=0",
            "device=0: holds further keys; set these, such as device.timeout=...; did you me",
        ),
        (
            "device=cuda",
            "device=cuda: holds further keys; set these, such as device.timeout=...; "
            "did you mean devices or backend or backend.device?",
        ),
        ("batch_size=4", "batch_size: no such key; did you mean model.batch?"),
        ("BS=4", "BS: no such key; did you mean model.batch?"),
        ("gpus=2", "gpus: no such key; did you mean devices?"),
        ("gpu_ids=0,1", "gpu_ids: no such key; did you mean devices?"),
        ("workers=4", "workers: no such key; did you mean pipeline.readers?"),
        ("input_dir=a", "input_dir: no such key; did you mean dataset.root or input?"),
        ("weights=a", "weights: no such key; did you mean model.path?"),
        ("+anything=4", f"anything: no such key; {SEE_HELP}"),
        ("model.expected={eas: 1}", "model.expected.eas: no such key; did you mean"),
        ("model={bacth: 1}", "model.bacth: no such key; did you mean model.batch?"),
        ("pipeline.feeders=3", "pipeline.feeders: no such key; did you mean pipeline.readers?"),
        ("benchmark.feeders=3", "benchmark.feeders: no such key; did you mean benchmark.readers?"),
        ("preprocess.cache_gb=3", "preprocess.cache_gb: no such key; did you mean preprocess.ca"),
        (
            "model.expected=null",
            "model.expected=null: holds further keys; set these, such as model",
        ),
        (
            "backend.provider_options.a=1",
            "backend.provider_options.a: not in the mapping so far; add it as +backend.prov",
        ),
        ("output_dir=", "output_dir: must not be empty"),
        ("benchmark.parts=[]", "benchmark.parts: must not be empty"),
        ("convert.batches=[]", "convert.batches: must not be empty"),
        ("backend.providers=[]", "backend.providers: must not be empty"),
        ("backend=tensorrt", "backend=tensorrt: no such choice; there are auto, om, onnxruntime"),
        ("eval=null", "eval=null: no such choice; there are guide, official"),
        ("model=Null", "model=Null: no such choice; there are centerface, centerface_pytorch"),
        (
            "model=w/a.onnx",
            "model=w/a.onnx: no such choice; there are centerface, centerface_pytorch; "
            "a file or folder is named by model.path=...",
        ),
        ("backend=1", "backend=1: no such choice; there are auto, om"),
        ("backend=[1]", "backend=1: no such choice; there are auto, om"),
        ("experiment=[2]", "experiment=2: no such choice; there are ascend, authors_own_size"),
        ("experiment=2", "experiment=2: no such choice; there are ascend, authors_own_size"),
        ("batch", f"batch: not of the form key=value; {SEE_HELP}"),
        ("model.batch=(3", f"model.batch=(3: must be {BATCH}"),
        ("model.batch='a", f"model.batch='a: must be {BATCH}"),
        ("model.mean=[1,2,3", f"model.mean=[1,2,3: must be {MEAN}"),
        ("model.outputs=[a,b", "model.outputs=[a,b: must be null or a list of 4 different values"),
        # Digits and signs of other keyboards.
        (
            "dataset.limit=\u0663",
            "dataset.limit=\u0663: must be a whole number from 1 up or null; d",
        ),
        ("model.batch=\uff14", f"model.batch=\uff14: must be {BATCH}; did you mean 4?"),
        (
            "devices=\uff3b0\uff0c1\uff3d",
            f"devices=\uff3b0\uff0c1\uff3d: must be {DEVICES}; did you mean [0,1]?",
        ),
        ("model.batch=1,2", "model.batch=1,2: several values; for a run of each add -m"),
        ("model.batch=choice(1,2)", "model.batch=choice(1,2): several values; for a run of each"),
        ("model.batch=${nosuch}", "model.batch: Interpolation key 'nosuch' not found"),
        ("model.name=???", "model.name: no value given; add model.name=... to the command"),
    ],
)
def test_what_else_is_refused(argument, line):
    assert refusal(argument).startswith(line)


def test_the_first_of_several_is_named():
    assert refusal("model.batch=0", "devices=0").startswith("devices=0: ")


def test_every_key_says_what_it_may_be():
    for key, field in all_fields().items():
        assert allowed(field), key


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("a b", "a b"),
        ([1, None, "x"], "[1, null, x]"),
        (2.5, "2.5"),
    ],
)
def test_values_are_shown_as_they_are_typed(value, text):
    assert shown(value) == text


def test_every_key_is_explained_on_a_line_of_its_own():
    page = help_text().replace("\n" + 25 * " ", " ")
    lines = {line.split()[0]: line for line in page.splitlines() if line.strip()}
    for key, field in all_fields().items():
        meaning, _, allowed = lines[key].partition("[")
        assert len(meaning.split()) > 2, f"{key} is not explained"
        assert ("; default " in allowed) == (not field.is_required())


@pytest.mark.parametrize("job", [None, *JOB_NAMES])
@pytest.mark.parametrize("width", [100, 60])
def test_the_page_fits_and_breaks_no_word(job, width):
    page, wide = help_text(job, width), help_text(job, 100)
    assert max(map(len, page.splitlines())) <= width
    assert page.split() == wide.split()


def test_the_page_of_one_job_has_its_keys_alone():
    page = help_text("score")
    assert "  predictions " in page
    assert "only with dataset.kind=wider" in " ".join(page.split())
    assert "model.batch" not in page
    assert "convert." not in page
    with pytest.raises(UserError, match="job=train: must be evaluate, score"):
        help_text("train")


def test_every_exit_code_is_explained():
    page = help_text()
    for code in ExitCode:
        assert f"\n  {code.value:<4} {code.meaning}\n" in page
