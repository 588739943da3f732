"""The configuration: its schema, how it is composed and checked, and what is said about it."""

from cfdist.config.composing import compose as compose
from cfdist.config.composing import compose_prepared as compose_prepared
from cfdist.config.composing import compose_values as compose_values
from cfdist.config.composing import load as load
from cfdist.config.composing import register as register
from cfdist.config.installation import CONFIG_FOLDER as CONFIG_FOLDER
from cfdist.config.installation import group_choices as group_choices
from cfdist.config.messages import SEE_HELP as SEE_HELP
from cfdist.config.messages import help_text as help_text
from cfdist.config.messages import one_line as one_line
from cfdist.config.overrides import literal as literal
from cfdist.config.overrides import prepare_override as prepare_override
from cfdist.config.schema import CompareConfig as CompareConfig
from cfdist.config.schema import Config as Config
from cfdist.config.schema import DatasetConfig as DatasetConfig
from cfdist.config.schema import LogConfig as LogConfig
from cfdist.config.schema import ModelConfig as ModelConfig
from cfdist.config.schema import QuantizeConfig as QuantizeConfig
from cfdist.config.unused import flat as flat
from cfdist.config.unused import key_of as key_of
from cfdist.config.unused import new_keys as new_keys
from cfdist.config.unused import refuse_twice as refuse_twice
from cfdist.config.unused import refuse_unused as refuse_unused
from cfdist.config.unused import typed_keys as typed_keys
