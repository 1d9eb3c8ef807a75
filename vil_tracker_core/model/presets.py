"""Every choice that shapes the network, and the named sets of choices."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

MAX_SIZE = 4096
"""Bound of every size in a config, so that a foreign weights file cannot ask for a huge net."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a `ViLTracker`. Weights carry it in their metadata."""

    name: str

    # tokens
    template_size: int = 128  # side of the template crop, px
    search_size: int = 256  # side of the search crop, px
    template_factor: float = 2.0  # template crop's side over sqrt(w * h) of the box
    search_factor: float = 4.0  # search crop's side over sqrt(w * h) of the box
    patch: int = 16  # px of a token's side; the stride of every stem
    stem: Literal["patch", "conv", "mobile"] = "patch"  # one 16x16 convolution; four of stride 2;
    # FBNet's trunk, see mobile.py
    stem_channels: tuple[int, ...] = ()  # channels of the conv stem's first three layers
    match_width: int = 0  # channels compared with the template's, see matching.py; 0 for no such

    # backbone
    dim: int = 384  # width of a token
    depth: int = 24  # blocks in all
    tmoe_blocks: int = 2  # how many of them, the last ones, carry a TMoE-MLP
    heads: int = 4  # heads of the matrix memory
    conv_kernel: int = 4  # taps of the causal convolution before q and k
    qkv_block: int = 4  # size of a block of the block-diagonal q, k, v projections
    chunk: int = 320  # tokens that the mLSTM takes in parallel; longer sequences go chunk by chunk
    drop_path: float = 0.0  # stochastic depth of the last block (0 at the first, linear between)
    scan: Literal["joint", "regional"] = "joint"  # see backbone.py
    memory: Literal["reset", "carry"] = "reset"  # carry: even blocks hand their state to the
    # next frame, beside the templates' (regional scan only)
    memory_keep: float = 0.5  # what the handed state weighs, times the frame's confidence

    # TMoE-MLP
    experts: int = 4  # routed experts beside the shared one

    # FiLM temporal modulation
    film: Literal["off", "token", "pooled"] = "token"  # what makes gamma and beta
    film_every: int = 6  # modulate after every so many blocks
    film_hidden: int = 96  # hidden width of the generators
    film_init: Literal["identity", "small_random"] = "identity"  # their last layer's weights
    film_keep: float = 0.7  # weight of the old context in the running average

    # heads
    head_channels: int = 152  # width of the centre head's towers
    uncertainty_channels: int = 144  # width of the uncertainty head

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            allowed = get_args(hints[field.name])
            value = getattr(self, field.name)
            if allowed and isinstance(allowed[0], str) and value not in allowed:
                raise ValueError(f"{field.name}: {value!r} is not one of {', '.join(allowed)}")
            if hints[field.name] is int:
                low = 0 if field.name in ("tmoe_blocks", "match_width") else 1
                if type(value) is not int or not low <= value <= MAX_SIZE:
                    raise ValueError(
                        f"{field.name}: {value!r} is not a whole number from {low} to {MAX_SIZE}"
                    )
        if self.template_size % self.patch or self.search_size % self.patch:
            raise ValueError("template_size and search_size must be multiples of patch")
        if (2 * self.dim) % (self.heads * self.qkv_block):
            raise ValueError("2 * dim must be a multiple of heads * qkv_block")
        if self.stem == "conv" and len(self.stem_channels) != 3:
            raise ValueError("stem 'conv' needs three stem_channels")
        if self.stem != "patch" and self.patch != 16:
            raise ValueError(f"stem {self.stem!r} has a stride of 16: it needs patch 16")
        for name in ("drop_path", "film_keep", "memory_keep"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        for name in ("template_factor", "search_factor"):
            if not 1 <= getattr(self, name) <= 16:
                raise ValueError(f"{name}: {getattr(self, name)} is not in 1..16")
        if self.memory == "carry" and self.scan != "regional":
            raise ValueError("memory 'carry' needs scan 'regional'")

    @property
    def inner(self) -> int:
        """Width inside an mLSTM cell."""
        return 2 * self.dim

    @property
    def template_grid(self) -> int:
        """Tokens along a side of the template."""
        return self.template_size // self.patch

    @property
    def search_grid(self) -> int:
        """Tokens along a side of the search region."""
        return self.search_size // self.patch

    @property
    def film_layers(self) -> int:
        """How many places between the blocks are modulated."""
        return 0 if self.film == "off" else self.depth // self.film_every

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The config of a dict as `to_dict` gives it; raises ValueError naming unknown keys."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown model config keys: {', '.join(unknown)}")
        channels = values.get("stem_channels", ())
        if not isinstance(channels, list | tuple) or not all(type(c) is int for c in channels):
            raise ValueError(f"stem_channels: {channels!r} is not a list of whole numbers")
        return cls(**{**values, "stem_channels": tuple(channels)})


PRESETS = {
    config.name: config
    for config in (
        # The reference: ViL-S with two TMoE blocks, 36 M parameters.
        ModelConfig(name="vil_s"),
        # Shipped: small enough for a drone's CPU.
        ModelConfig(
            name="vil_nano",
            template_size=128,
            search_size=224,
            template_factor=1.6,
            stem="mobile",
            match_width=256,
            dim=192,
            depth=4,
            tmoe_blocks=0,
            scan="regional",
            film_every=2,
            film_hidden=48,
            head_channels=64,
            uncertainty_channels=32,
        ),
        # For tests and the smoke run: every part of the net, as small as it goes.
        ModelConfig(
            name="vil_tiny",
            template_size=32,
            search_size=64,
            stem="conv",
            stem_channels=(8, 8, 16),
            match_width=8,
            dim=32,
            depth=4,
            tmoe_blocks=1,
            heads=2,
            scan="regional",
            film_every=2,
            film_hidden=8,
            head_channels=16,
            uncertainty_channels=8,
        ),
    )
}


def preset(name: str) -> ModelConfig:
    """The preset of that name; raises ValueError listing the names there are."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}") from None
