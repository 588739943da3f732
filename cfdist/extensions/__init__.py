"""Code of other people, which a setting names as "module:name"; docs/extending.md tells how."""

from __future__ import annotations

import importlib
import re
from typing import Any

from cfdist.errors import UserError

# "my_package.my_module:MyClass"
OWN_CODE = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


def is_own_code(name: str) -> bool:
    """Whether a name is of the form "module:name"."""
    return re.match(OWN_CODE, name) is not None


def load_object(name: str, key: str) -> Any:
    """Import what "module:name" names, in whichever process it is needed.

    Args:
        name: See `OWN_CODE`.
        key: The setting, which the messages name.

    Raises:
        UserError: there is no such module, it cannot be imported, or it has no such name.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        remedy = f"put the folder of {error.name} into PYTHONPATH, or install it"
        raise UserError(f"{key}={name}: there is no module {error.name}; {remedy}") from None
    except AttributeError as error:
        raise UserError(f"{key}={name}: {error}; name a class or function of it") from None
    except Exception as error:
        raise UserError(
            f"{key}={name}: cannot be imported ({type(error).__name__}: {error}); see that "
            f"`python -c 'import {module}'` works"
        ) from error
