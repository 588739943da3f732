"""The functions and types for other programs, see docs/api.md."""

from cfdist.api.calls import InputError as InputError
from cfdist.api.calls import compare as compare
from cfdist.api.calls import detect as detect
from cfdist.api.calls import evaluate as evaluate
from cfdist.api.calls import score as score
from cfdist.api.surroundings import session as session
from cfdist.api.types import AveragePrecision as AveragePrecision
from cfdist.api.types import Comparison as Comparison
from cfdist.api.types import Detection as Detection
from cfdist.api.types import Evaluation as Evaluation
from cfdist.api.types import Face as Face
from cfdist.api.types import Run as Run
from cfdist.api.types import Score as Score
from cfdist.errors import StoppedError as StoppedError
