"""Purification methods."""

from zipcli.protocols import Method
from zipcli.registry import Registry

METHODS: Registry[Method] = Registry(
    "method",
    {
        "zip": "zipcli.methods.zip:purify",
        "nullspace": "zipcli.methods.nullspace:purify",
        "blur": "zipcli.methods.blur:purify",
    },
)
