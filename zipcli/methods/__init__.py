"""Purification methods."""

from collections.abc import Callable

from zipcli.config import MethodConfig, NoiseSchedule
from zipcli.protocols import AskingMethod, Method
from zipcli.registry import Registry

METHODS: Registry[Method | AskingMethod] = Registry(
    "method",
    {
        "blind": "zipcli.methods.blind:purify",
        "zip": "zipcli.methods.zip:purify",
        "nullspace": "zipcli.methods.nullspace:purify",
        "ddnm": "zipcli.methods.ddnm:purify",
        "diffpure": "zipcli.methods.diffpure:purify",
        "blur+diffpure": "zipcli.methods.diffpure:purify_transformed",
        "sampdetox": "zipcli.methods.sampdetox:purify",
        "shrinkpad": "zipcli.methods.shrinkpad:purify",
        "blur": "zipcli.methods.blur:purify",
        "bdmae": "zipcli.methods.bdmae:purify",
        "sancdifi": "zipcli.methods.sancdifi:purify",
        "gray": "zipcli.methods.gray:purify",
        "none": "zipcli.methods.none:purify",
    },
)

EVALUATIONS: Registry[Callable[[MethodConfig, NoiseSchedule, tuple[int, int]], float]] = Registry(
    "method with a network",
    {
        "blind": "zipcli.methods.blind:evaluations",
        "zip": "zipcli.methods.zip:evaluations",
        "nullspace": "zipcli.methods.few:evaluations",
        "ddnm": "zipcli.methods.grids:evaluations",
        "diffpure": "zipcli.methods.diffpure:evaluations",
        "blur+diffpure": "zipcli.methods.diffpure:evaluations",
        "sampdetox": "zipcli.methods.sampdetox:evaluations",
        "sancdifi": "zipcli.methods.diffpure:evaluations",
    },
)
"""How often each asks the network about an image of a size, (H, W), small copies of it counted by their
pixels; `ConfigError` where its chain does not fit a model."""
