"""A text of the command line reaches the job as it was typed."""

from __future__ import annotations

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cfdist import config
from cfdist.config.overrides import literal, prepare_override
from cfdist.errors import UserError

# What Hydra or OmegaConf would read as something else, and names in other alphabets.
NAMES = [
    *("20250614_153000", "2024_06_14", "2024-06-14", "1.10", "0.50", "1e3", "007", "0x10", "12:30"),
    *("true", "No", "Null", "NULL", "nan", "-inf", "a${b}c", "${job}", "a\\${b}", "a${", "$HOME"),
    *("my\\preds", "C:\\a\\", "a\\'b", "文件夹/é", " a b ", "a,b", "it's", '"', "'a", "a'b'"),
    *("[a]", "{a: 1}", "a=b", "~x", "~/x", "#1", "choice(a)", "a (1)", "caf\udce9", "a\nb", "*?"),
]
# A configuration takes a tenth of a second to compose.
some_examples = settings(max_examples=30, deadline=None)

texts = st.text(st.characters(exclude_characters="\0"), min_size=1)


def is_plain(text: str) -> bool:
    """Whether it is a path, and not the word null, a missing value or quoted by the person."""
    return text not in ("null", "???") and not (len(text) > 1 and text[0] == text[-1] in "'\"")


def of_sweep(setting: str) -> list[str]:
    """The values of the runs of a sweep over one setting, as the runs get them."""
    prepared = prepare_override(setting, is_multirun=True)
    (batch,) = BasicSweeper.split_arguments(
        OverridesParser.create().parse_overrides([prepared]), None
    )
    config.register()
    key, values = setting.partition("=")[0], []
    with initialize_config_dir(str(config.CONFIG_FOLDER), version_base="1.3"):
        for overrides in batch:
            values.append(config.load(hydra_compose("config", overrides)).model_dump()[key])
    return values


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_the_text_that_was_typed(name):
    composed = config.compose(f"predictions={name}", f"++dataset.root={name}")
    assert (composed.predictions, composed.dataset.root) == (name, name)


@pytest.mark.slow
@some_examples
@given(texts.filter(is_plain))
def test_any_path_is_the_text_that_was_typed(path):
    assert config.compose(f"output_dir={path}").output_dir == path


@pytest.mark.slow
@some_examples
@given(texts.filter(lambda text: is_plain(text) and "," not in text and text == text.strip()))
@example("2024_06_14")
@example("a${b}c\\")
def test_any_path_of_a_sweep_is_the_text_that_was_typed(path):
    assert of_sweep(f"predictions={path},'a,b', 1_0") == [path, "a,b", "1_0"]


@pytest.mark.slow
@some_examples
@given(st.lists(st.sampled_from([*"ab\\${}'\""])).map("".join))
def test_an_escaped_text_is_no_interpolation(text):
    assert config.compose(f"output_dir=/{text}/").output_dir == f"/{text}/"
    assert literal(literal("a")) == "a"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("predictions=null", None),
        ("predictions='null'", "null"),
        ('predictions="a b"', "a b"),
        ("predictions='it\\'s'", "it's"),
        ("output_dir=null", "null"),  # a run needs a folder
        ("model.name=1_0", "1_0"),
        ("model.name=00123", "00123"),
        ("model.outputs=[1_0, 007,'a,b',1.10]", ["1_0", "007", "a,b", "1.10"]),
        ("model.outputs=null", None),
        ("backend.providers=[a]", ["a"]),
        ("model.batch=1_0", 10),
    ],
)
def test_null_quotes_lists_and_other_texts(setting, value):
    found = config.compose(setting)
    for name in setting.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("setting", "prepared"),
    [
        ("eval=null", "eval='null'"),
        ("backend=om,1", "backend='om','1'"),
        ("dataset=我的 数据", "dataset='我的 数据'"),
        ("+experiment=[1]", "+experiment=['1']"),
        ("backend=choice(om, torch)", "backend=choice('om','torch')"),
        ("backend=glob(o*)", "backend=glob(o*)"),
        ("experiment=null", "experiment=[]"),
        ("experiment=Null,published_table", "experiment=[],'published_table'"),
        ("experiment=", "experiment="),
        ("model={batch: 1}", "model={batch: 1}"),
        ("model.batch=1,2", "model.batch=1,2"),
        ("-m", "-m"),
        ("nosuch=1_0", "nosuch=1_0"),
    ],
)
def test_choices_of_a_group_are_names_and_other_settings_are_hydra_s(setting, prepared):
    assert prepare_override(setting, is_multirun=False) == prepared


@pytest.mark.parametrize(
    ("setting", "prepared"),
    [
        ("predictions=choice(1_0,b)", "predictions=choice('1_0','b')"),
        ("predictions=null,a", "predictions=null,'a'"),
        ("model.outputs=[a,1_0],[null]", "model.outputs=['a','1_0'],['null']"),
        ("infer.name=shuffle(a,b)", "infer.name=shuffle(a,b)"),
    ],
)
def test_a_sweep_over_texts_stays_one(setting, prepared):
    assert prepare_override(setting, is_multirun=True) == prepared


def test_a_sweep_takes_the_paths_that_fit_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("2024_06_15", "2024_06_14", "a b", "other"):
        (tmp_path / name).mkdir()
    assert of_sweep("predictions=glob(2024*)") == ["2024_06_14", "2024_06_15"]
    assert of_sweep("predictions=glob('a *')") == ["a b"]
    with pytest.raises(UserError, match=r"predictions=glob\(x\*\): no file or folder fits"):
        prepare_override("predictions=glob(x*)", is_multirun=True)
    # Outside a sweep it is a name, and for a group Hydra's own function.
    assert config.compose("predictions=glob(x*)").predictions == "glob(x*)"


@pytest.mark.parametrize("values", ["a,", ",a", "a,,b", ","])
def test_nothing_beside_a_comma_is_refused(values):
    with pytest.raises(UserError, match=r"^predictions=.*: a value is missing beside a comma"):
        prepare_override(f"predictions={values}", is_multirun=True)


def test_a_number_from_elsewhere_is_no_text():
    # YAML has lost how it was written.
    with pytest.raises(UserError, match=r"^model\.name=20240614: must be text, a number here: put"):
        config.compose("model={name: 2024_06_14}")
