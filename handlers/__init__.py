"""The API of namespace `/` on one screen: every intent and the model of its payload."""

from handlers import connection, exercises, sets, streams, templates, workouts
from handlers.registry import Registry

REGISTRY = Registry.merge(
    connection.registry,
    workouts.registry,
    exercises.registry,
    sets.registry,
    templates.registry,
    streams.registry,
)
