"""Every kind of configuration that can be built and trained: a new architecture is one line here and one file."""

from __future__ import annotations

from cutaway.errors import SettingsError
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.recurrent import RecurrentConfig
from cutaway.models.transformer import TransformerConfig
from cutaway.settings import decode, nearest

AnyConfig = TransformerConfig | RecurrentConfig | ConvolutionConfig
CONFIGS: dict[str, type[AnyConfig]] = {"transformer": TransformerConfig, "recurrent": RecurrentConfig,
                                       "convolution": ConvolutionConfig}


def decode_config(tree: object) -> AnyConfig:
    """A configuration from plain JSON, told apart by ``kind``. Raises SettingsError with the nearest kind."""
    kind = tree.get("kind") if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or kind not in CONFIGS:
        near = nearest(str(kind), CONFIGS)
        raise SettingsError(f"no architecture is called {kind!r}", way_out=f"did you mean {near!r}?" if near else
                            f"there are {', '.join(CONFIGS)}")
    return decode(CONFIGS[kind], tree, where="")
