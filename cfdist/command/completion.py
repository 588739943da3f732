"""Completion of the command line in bash, zsh and fish.

Hydra's own asks the program at each press of the key, which takes seconds, and does not find the
choices that the schema has. Here a script holds all words; it is printed once for a shell.
"""

from __future__ import annotations

import shlex
from typing import get_origin

from cfdist.command.arguments import OPTIONS
from cfdist.config import group_choices
from cfdist.config.installation import groups
from cfdist.config.messages import choices
from cfdist.config.schema import all_fields
from cfdist.errors import UserError, did_you_mean

_BASH = """\
_cfdist() {
  local word=${COMP_LINE:0:COMP_POINT} words=$_cfdist_keys
  word=${word##* }
  [[ $word == *=* ]] && words=$_cfdist_settings
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  # bash begins a new word after each "=".
  [[ $word == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
}
_cfdist_python() { [[ ${COMP_WORDS[1]} == *main.py ]] && _cfdist; }
complete -o nospace -o default -F _cfdist cfdist run.sh ./run.sh
complete -o nospace -o default -F _cfdist_python python python3
"""

_ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_cfdist() {
  if [[ $PREFIX != *=* ]]; then
    compadd -S '' -- ${=_cfdist_keys}
  else
    compadd -- ${(M)${=_cfdist_settings}:#$PREFIX*} || { compset -P '*=' && _files; }
  fi
}
_cfdist_python() { [[ $words[2] == *main.py ]] && _cfdist || _default; }
compdef _cfdist cfdist run.sh ./run.sh
compdef _cfdist_python python python3
"""

_FISH = """\
function _cfdist
    if string match -q -- '*=*' (commandline -ct)
        string split ' ' -- $_cfdist_settings
    else
        string split ' ' -- $_cfdist_keys
    end
end
# A value without choices may be a file's name, which fish itself completes.
function _cfdist_knows
    set -l key (string replace -r '=.*' '=' -- (commandline -ct))
    not string match -q -- '*=' $key; or string match -q -- "* $key*" " $_cfdist_settings"
end
function _cfdist_python_knows
    string match -q -- '*main.py' (commandline -opc)[2]; and _cfdist_knows
end
for name in cfdist run.sh
    complete -c $name -n _cfdist_knows -f -a '(_cfdist)'
end
for name in python python3
    complete -c $name -n _cfdist_python_knows -f -a '(_cfdist)'
end
"""

# A shell -> how it sets a variable, and the rest of its script.
_SHELLS = {
    "bash": ("{}={}", _BASH),
    "zsh": ("typeset -g {}={}", _ZSH),
    "fish": ("set -g {} {}", _FISH),
}


def completion_script(shell: str) -> str:
    """What a shell has to read so that it completes options, keys and their choices.

    Raises:
        UserError: no such shell.
    """
    if shell not in _SHELLS:
        raise UserError(
            f"--shell-completion install={shell}: must be install={' or install='.join(_SHELLS)}"
            f"{did_you_mean(shell, list(_SHELLS))}"
        )
    assign, script = _SHELLS[shell]
    keys, settings = words()
    variables = {"_cfdist_keys": keys, "_cfdist_settings": settings}
    lines = [assign.format(name, shlex.quote(" ".join(held))) for name, held in variables.items()]
    return "\n".join([*lines, script])


def words() -> tuple[list[str], list[str]]:
    """The options, keys and groups as they begin ("model.batch="); and "job=score" and the like."""
    named = {key: choices(field) for key, field in all_fields().items()}
    named |= {group: group_choices(group) for group in groups()}
    lists = {key for key, field in all_fields().items() if get_origin(field.annotation) is list}
    settings = [
        f"{key}=[{choice}]" if key in lists else f"{key}={choice}"
        for key in sorted(named)
        if named[key] != ["null"]  # beside a path or a number; alone it would be taken for all
        for choice in named[key]
    ]
    options = [one for one in OPTIONS if one.startswith("--")]
    return [*options, *(f"{key}=" for key in sorted(named))], settings
