"""`import whet.auto` registers whet's model classes with transformers' Auto factories."""

from whet.models.registry import register

register()
