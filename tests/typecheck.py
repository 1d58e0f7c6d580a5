"""The checker behind jaxtyping's import hook: beartype, with an int allowed where a float is."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
