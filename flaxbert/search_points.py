"""Named points of a search for length configurations: the front.json of `python -m train.search`."""

import math
from pathlib import Path

from flaxbert.config import AdaptiveArguments
from flaxbert.files import read_json


def load_point(point: str) -> AdaptiveArguments:
    """Return a named point of a search as keyword arguments of models and pipelines; `point` is NAME@FILE.

    Lengths are those for rows as long as in the search; a point that keeps all tokens of these keeps all of any row.

    Raises:
        FileNotFoundError, ValueError: there is no such file or no such point; the message lists the points.
    """
    name, _, file = point.partition("@")
    if not file:
        raise ValueError(f"point is {point!r}; give a name and the front.json of a search: 50%@runs/search/front.json")
    what = "give the front.json that `python -m train.search` wrote"
    try:
        front = read_json(Path(file))
        length = front.get("length", math.inf)
        found = {
            one: AdaptiveArguments(
                layer_config=values["layer_config"],
                length_config=None if min(values["length_config"]) >= length else values["length_config"],
                always_keep_cls_token=values["always_keep_cls_token"],
            )
            for one, values in front["points"].items()
        }
    except OSError as error:
        raise type(error)(f"{file}: {(error.strerror or str(error)).lower()}; {what}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).removeprefix(f"{file}: ") if isinstance(error, ValueError) else "its points cannot be read"
        raise ValueError(f"{file}: not the front.json of a search: {reason}; {what}") from error
    if name not in found:
        raise ValueError(f"{file} has no point {name!r}; it has {', '.join(found)}")
    return found[name]
