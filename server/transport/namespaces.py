"""Who is in which namespace, at the same price for one client and for twenty thousand.

The stock manager keeps a bidict for every client and room, scans lists of pending clients on every
event, and walks all rooms of a namespace, copied, whenever somebody leaves. RepSync's rooms live in
the hub, so all that is left to know is which client is which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import socketio

from server.transport.connection import Connection

Answer = Callable[..., Any]

MAX_QUESTIONS = 16


class Namespaces(socketio.AsyncManager):
    """The clients that are in, by id, and the questions that they have not answered.

    Only what `SocketServer` needs of a manager is here; rooms of python-socketio are not used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clients: dict[str, Connection] = {}
        self._questions: dict[str, dict[int, Answer]] = {}
        self._asked = 0

    def add(self, sid: str, connection: Connection) -> None:
        self.clients[sid] = connection

    def remove(self, sid: str) -> None:
        self.clients.pop(sid, None)
        self._questions.pop(sid, None)

    def expect(self, sid: str, answer: Answer) -> int:
        """Note a question to a client. Returns: the ack id to ask it with.

        A client that never answers holds `MAX_QUESTIONS` at most; the oldest is forgotten.
        """
        self._asked += 1
        questions = self._questions.setdefault(sid, {})
        questions[self._asked] = answer
        if len(questions) > MAX_QUESTIONS:
            del questions[next(iter(questions))]
        return self._asked

    def answered(self, sid: str, ack_id: int) -> Answer | None:
        """The one waiting for this ack, once; None for an ack that nobody asked for."""
        questions = self._questions.get(sid)
        return questions.pop(ack_id, None) if questions else None
