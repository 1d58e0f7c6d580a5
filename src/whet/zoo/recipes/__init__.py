"""The YAML recipes that made the zoo's weights."""
