"""What to know of an AP beside its value: notes on what limits it, and why it is near zero."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cfdist.backends.simulated import PUBLISHED_INPUT
from cfdist.config import CONFIG_FOLDER, Config
from cfdist.errors import UserError
from cfdist.preprocess import SIDE
from cfdist.report.results import expected_ap
from cfdist.widerface import diagnosis
from cfdist.widerface.ground_truth import WIDER_VAL_PICTURES, GroundTruth
from cfdist.widerface.metric import Reach

if TYPE_CHECKING:
    from cfdist.model import ModelSpec

# Below this there is a reason beyond the detector's quality, and it is always looked for; below
# the second one it is named if it is sure.
NEAR_ZERO, LOW = 0.01, 0.1

# Scores are taken to be cut off if the lowest one is more than this share of the highest one.
_CUT_OFF = 0.1
# A recall above this leaves nothing to be cut off.
_ALL_FACES = 0.99

_AT_OWN_SIZE = ("authors_own_size", "multi_scale")  # presets of published tests
_OWN = "their own size"  # in words, beside "800x800"

_LENIENT = "guide"  # whatever fails here fails by the other protocol


def accuracy_notes(
    ap: Mapping[str, Mapping[str, float]],
    reach: Reach,
    truth: GroundTruth,
    files: Mapping[str, Path | None],
    model: ModelSpec | None = None,
) -> list[str]:
    """Notes on an AP, a sentence each.

    Args:
        ap: Protocol -> difficulty -> AP, a fraction; the chosen protocol first.
        reach: How far the predictions reach.
        truth: The ground truth.
        files: Picture id -> prediction file; looked into only if the AP is near zero.
        model: What has found the boxes; `None` if the files are somebody's.
    """
    protocol = next(iter(ap))
    highest = max(ap[_LENIENT].values())
    says_something = bool(reach.predictions and any(reach.faces.values()))
    reason = _reason(truth, files, model) if says_something and highest < LOW else None
    # Boxes that are no boxes say nothing of where recall ends, and neither do absent files.
    is_whole = None not in files.values()
    notes = list(_limits(reach, protocol, with_recall=reason is None and is_whole))
    if reason is None and says_something and highest < NEAR_ZERO:
        reason = _unknown_reason(reach, model)
    if reason is None:
        return notes
    return [f"the AP is {'near zero' if highest < NEAR_ZERO else 'low'}: {reason}", *notes]


def how_tested(config: Config) -> str:
    """What an AP is the AP of, beside the model and the pictures: their size, the peaks, the boxes.

    Two figures can be compared only if this is the same for both.
    """
    model, shown = config.model, config.preprocess
    size = f"letterboxed to {config.model.width}x{config.model.height}"
    scales = shown.scales if shown.size == "own" else [1]  # letterboxing has one scale
    if shown.size == "own":
        sides = f"sides to the next multiple of {SIDE}"
        size = f"at their own size ({sides})"
        if shown.scales != [1]:
            words = [f"{one:g}" if one < SIDE else f"{one:g} pixels" for one in shown.scales]
            size = (
                f"scaled to {', '.join(words)} (factor of their own size, or short side; {sides})"
            )
    views = len(scales) * (1 + shown.flip)
    merged = {"nms": "suppression", "vote": "box voting"}[shown.merge]
    mirrored = "also mirrored" if shown.flip else "not mirrored"
    view = f"{mirrored}, {views} views merged by {merged}" if views > 1 else mirrored
    cells = "highest cells of their 3x3" if model.peaks == "maxima" else "all cells"
    above = f" with scores above {model.score:g}" if model.score else ""
    cap = "no cap" if model.top_k is None else f"the best {model.top_k} a picture"
    nms = "no suppression" if model.nms is None else f"suppression at IoU {model.nms:g}"
    return f"pictures {size}, {view}; {cells}{above}, {cap}; {nms}"


def expectation(
    config: Config, ap: dict[str, dict[str, float]], pictures: int
) -> dict[str, Any] | None:
    """The results' `expected` section, see `expected_ap`, and whether it can be compared.

    Args:
        config: The run's.
        ap: Protocol -> difficulty -> measured AP, a fraction.
        pictures: How many pictures count in the AP.
    """
    expected = expected_ap(config, ap)
    return expected and {
        **expected,
        "comparable": not expected_notes(config, expected, pictures),
    }


def expected_notes(config: Config, expected: Mapping[str, Any] | None, pictures: int) -> list[str]:
    """A note where a model's own expected AP stands beside another measurement than its own.

    Args:
        config: The run's.
        expected: The results' section of that name.
        pictures: How many pictures count in the AP.
    """
    # A person's own expectation may be one of any pictures.
    path = CONFIG_FOLDER / "model" / f"{config.model.name}.yaml"
    presets = [CONFIG_FOLDER / "experiment" / f"{name}.yaml" for name in _AT_OWN_SIZE]
    if _expects(path, "expected", expected):
        rows, columns = PUBLISHED_INPUT
        theirs = f"{columns}x{rows}"
    elif any(_expects(path, "model.expected", expected) for path in presets):
        theirs = _OWN
    else:
        return []
    is_own = config.preprocess.size == "own"
    ours = _OWN if is_own else f"{config.model.width}x{config.model.height}"
    if (pictures, ours) == (WIDER_VAL_PICTURES, theirs):
        return []
    return [
        f"the expected AP is that of all {WIDER_VAL_PICTURES} pictures of WIDER FACE val at "
        f"{theirs}; this is one of {pictures} pictures at {ours}, so they cannot be compared"
    ]


def _expects(path: Path, key: str, expected: Mapping[str, Any] | None) -> bool:
    """Whether a file of `conf/` has this expected AP."""
    own = OmegaConf.select(OmegaConf.load(path), key) if path.is_file() else None
    return bool(expected and own and all(own.get(k) == v for k, v in expected["ap"].items()))


# How the published figures were measured: the settings' defaults, as the guide has them.
_AS_PUBLISHED: Mapping[str, Any] = {
    "size": "letterbox",
    "scales": [1.0],
    "flip": False,
    "peaks": "maxima",
    "score": 0.0,
    "top_k": 200,
    "quirks": [],
}


def is_like_published(results: Mapping[str, Any]) -> bool:
    """Whether a run did what the published figures were measured in, but for chip and weights.

    That is all of WIDER FACE val, letterboxed to the published input size, the best peaks of a
    picture whatever their scores, scored by the guide's protocol.
    """
    config, pictures = results["config"], results["pictures"]
    # A run of an earlier version has not all of these keys.
    settings = config.get("preprocess", {}) | config["model"] | config["eval"]
    if any(settings.get(key, value) != value for key, value in _AS_PUBLISHED.items()):
        return False
    size = (config["model"]["height"], config["model"]["width"])
    return bool(
        config["dataset"]["kind"] == "wider"
        and pictures["done"] == pictures["total"] == WIDER_VAL_PICTURES
        and config["eval"]["protocol"] == published_ap().protocol
        and size == PUBLISHED_INPUT
    )


@functools.cache
def published_ap() -> Any:
    """The published AP: difficulty -> a fraction, the same at every batch size; and "protocol"."""
    return OmegaConf.load(CONFIG_FOLDER / "model" / "centerface_pytorch.yaml").expected


def _limits(reach: Reach, protocol: str, *, with_recall: bool) -> Iterator[str]:
    """What bounds the AP whatever the boxes are."""
    none = [name for name, count in reach.faces.items() if not count]
    if none:
        yield (
            f"no face of these pictures counts as {' or '.join(none)}; an AP of 0 there says "
            "nothing"
        )
    if reach.scores is None:
        if any(reach.faces.values()):
            yield "nothing was found in any picture; there is no prediction at all"
        return
    low, high = reach.scores
    # Of the difficulty with the most faces: the others' are among them.
    difficulty = max(reach.faces, key=lambda name: reach.faces[name])
    recall = reach.recall[protocol][difficulty]
    if low == high and reach.predictions > 1:
        yield (
            f"all {reach.predictions} predictions have the score {low:g}; without different scores "
            "an AP is only one point of precision and recall"
        )
    elif with_recall and low > _CUT_OFF * high and recall < _ALL_FACES:
        yield (
            f"no score is below {low:g}, as if the others were cut off: recall ends at "
            f"{100 * recall:.0f} % of the {difficulty} faces, and no AP is higher than that; keep "
            "predictions with scores down to 0.01"
        )
    if reach.backward:
        yield (
            f"{reach.backward} of {reach.predictions} boxes have a negative width or height; they "
            "hit no face and count as wrong"
        )


def _reason(
    truth: GroundTruth, files: Mapping[str, Path | None], model: ModelSpec | None
) -> str | None:
    """The likely reason of a low AP, found by trying; `None` if nothing else fits."""
    if model and (whose := _model_of_file(model)):
        return (
            f"the file {model.path.name} is that of model={whose}, but was run with the "
            f"conventions of model={model.name}; add model={whose}"
        )
    try:
        pictures = diagnosis.sample(truth, files)
    except UserError:
        return None  # the files have changed meanwhile
    if model is None:
        if layout := diagnosis.other_layout(pictures):
            return (
                f"{_few(layout)}; read as {layout.name}, the boxes hit {100 * layout.share:.0f} %: "
                "write x y w h score, in pixels of the picture"
            )
    elif convention := diagnosis.other_convention(pictures, model.convention):
        return (
            f"{_few(convention)}; with the boxes of the convention {convention.name} it would be "
            f"{100 * convention.share:.0f} %: the convention {model.convention} does not fit this "
            f"model, try model={convention.name} with model.path"
        )
    return None


def _few(reading: diagnosis.Reading) -> str:
    """How many faces are hit by the boxes as they stand."""
    if not reading.as_given:
        return f"no box reaches IoU {diagnosis.IOU_THRESHOLD} with a face"
    return (
        f"only {100 * reading.as_given:.2g} % of the faces are hit at IoU {diagnosis.IOU_THRESHOLD}"
    )


def _unknown_reason(reach: Reach, model: ModelSpec | None) -> str:
    """What can be said of an AP near zero if no other reading of the boxes fits."""
    recall = max(reach.recall[_LENIENT].values())
    high = reach.scores[1] if reach.scores else 0.0
    if recall > LOW:
        return (
            f"boxes hit {100 * recall:.0f} % of the faces, but wrong ones have higher scores; does "
            "a high score mean a sure face, and is the score in the last column?"
            if model is None
            else f"boxes hit {100 * recall:.0f} % of the faces, but wrong ones have higher scores; "
            f"do colours, mean and std of model={model.name} fit this model?"
        )
    hits = f"boxes reach IoU {diagnosis.IOU_THRESHOLD} with {100 * recall:.2g} % of the faces"
    if model is None:
        return f"{hits}, however their columns are read; are they those of these pictures?"
    return (
        f"{hits}, and the highest score is {high:.2g}; does model={model.name} (convention "
        f"{model.convention}, colours, mean, std, outputs) describe this model?"
    )


def _model_of_file(model: ModelSpec) -> str | None:
    """The `model=` whose weights or output names a file has, if that is another convention."""
    for path in sorted((CONFIG_FOLDER / "model").glob("*.yaml")):
        known = OmegaConf.load(path)
        if known.convention == model.convention:
            continue
        digest = OmegaConf.select(known, "weights.sha256")
        if digest == model.sha256 or (known.outputs and _has_outputs(model.path, known.outputs)):
            return str(known.name)
    return None


def _has_outputs(path: Path, names: list[str]) -> bool:
    """Whether a file is an ONNX with these outputs."""
    if path.suffix.lower() != ".onnx":
        return False
    import onnx  # takes a third of a second, and few APs are near zero

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception:  # a damaged file makes protobuf raise nearly anything
        return False
    return {output.name for output in graph.output} == set(names)
