"""The checker of type annotations that the whole suite runs under."""

from beartype import BeartypeConf, beartype

# PEP 484's numeric tower: an int serves as a float.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
