"""The configuration: its schema, how it is composed and checked, and what is said about it."""

from cfdist.config.composing import compose as compose
from cfdist.config.composing import load as load
from cfdist.config.composing import option_keys as option_keys
from cfdist.config.composing import path_keys as path_keys
from cfdist.config.composing import register as register
from cfdist.config.installation import CONFIG_FOLDER as CONFIG_FOLDER
from cfdist.config.installation import group_choices as group_choices
from cfdist.config.messages import SEE_HELP as SEE_HELP
from cfdist.config.messages import one_line as one_line
from cfdist.config.schema import CompareConfig as CompareConfig
from cfdist.config.schema import Config as Config
from cfdist.config.schema import DatasetConfig as DatasetConfig
from cfdist.config.schema import ModelConfig as ModelConfig
