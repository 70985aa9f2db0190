"""Attacks: image to poisoned image, so that a defence can be measured."""

from typing import TYPE_CHECKING

from zipcli.registry import Registry

if TYPE_CHECKING:
    from zipcli.attacks.trigger import Attack

ATTACKS: "Registry[Attack]" = Registry(
    "attack",
    {
        "badnets": "zipcli.attacks.patch:BADNETS",
        "blended": "zipcli.attacks.blended:BLENDED",
        "physical": "zipcli.attacks.physical:PHYSICAL",
        "wanet": "zipcli.attacks.wanet:WANET",
        "sig": "zipcli.attacks.sig:SIG",
        "bpp": "zipcli.attacks.bpp:BPP",
        "lc": "zipcli.attacks.lc:LC",
        "refool": "zipcli.attacks.refool:REFOOL",
        "cba": "zipcli.attacks.cba:CBA",
        "lf": "zipcli.attacks.lf:LF",
        "trojannn": "zipcli.attacks.trojannn:TROJANNN",
        "inputaware": "zipcli.attacks.inputaware:INPUTAWARE",
        "issba": "zipcli.attacks.issba:ISSBA",
        "dfst": "zipcli.attacks.dfst:DFST",
    },
)
