"""Flags for layers and tokens to leave out, given one by one or as a point of a search."""

import dataclasses

from flaxbert.config import AdaptiveArguments, given_adaptive_arguments


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveFlags:
    """Layers that run and tokens that they keep; by default those of the model's config.json, or all."""

    length_config: tuple[int, ...] = ()
    """Tokens that each layer keeps, one number for each layer, not increasing; by default the folder's, or all."""
    layer_config: tuple[int, ...] = ()
    """Numbers of the layers that run, from 0; by default the folder's, or all."""
    always_keep_cls_token: bool | None = None
    """Keep the first token in every layer; by default the folder's, or true except for answers."""
    point: str | None = None
    """A point of a search, such as 50%@front.json: its lengths and layers, instead of these three flags."""

    def adaptive_arguments(self) -> AdaptiveArguments:
        """Return the arguments of the model that were given.

        Raises:
            FileNotFoundError, ValueError: as `load_point`; or a point is given beside its own fields.
        """
        given = given_adaptive_arguments(self)
        if self.point is None:
            return given
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"--point is {self.point} and has all lengths and layers; leave {flags} out")
        from flaxbert.search_points import load_point

        return load_point(self.point)
