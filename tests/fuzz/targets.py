"""All targets by name."""

from __future__ import annotations

from tests.fuzz.awareness import Awareness
from tests.fuzz.intents import Intents
from tests.fuzz.packets import Packets
from tests.fuzz.target import Target
from tests.fuzz.updates import Updates

TARGETS: dict[str, type[Target]] = {
    target.name: target for target in (Packets, Intents, Awareness, Updates)
}
