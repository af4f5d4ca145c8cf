"""What may come in, and the bytes of what goes out."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from engineio.payload import Payload
from hypothesis import given, settings
from hypothesis import strategies as st

from server.transport.packets import (
    MAX_ACK_ID,
    Outgoing,
    Packet,
    PacketError,
    PacketLimits,
    outgoing,
    update_event,
    websocket_frame,
)
from server.transport.websocket import WebSocketPeer

EVENT, ACK, BINARY_EVENT, BINARY_ACK = 2, 3, 5, 6
LIMIT_BYTES = 1_000

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5)
    ),
    max_leaves=20,
)
placeholders = st.builds(
    lambda num: {"_placeholder": True, "num": num},
    st.integers(-3, 12) | st.none() | st.text(max_size=2) | st.floats() | st.lists(st.none()),
)
texts = (
    st.text()
    | st.text(alphabet='0123456789-/,?[]{}"\\_placehodrnum:²٣', max_size=60)
    | st.builds(
        "{}{}{}{}{}".format,
        st.sampled_from(["", "0", "1", "2", "3", "4", "5", "6", "7", "9", "x", "²"]),
        st.sampled_from(["", "-", "0-", "1-", "2-", "11-", "²-", "9999999999-", "-1-", "٣-"]),
        st.sampled_from(["", "/", "/a,", "/a?b,", "/yjs|workout:w,", "/a"]),
        st.sampled_from(["", "0", "1", "²", "9" * 20, "9" * 120, "-1"]),
        values.map(json.dumps) | st.lists(values | placeholders, max_size=4).map(json.dumps),
    )
)


@settings(max_examples=500, deadline=None)
@given(texts, st.lists(st.binary(max_size=400) | st.text(max_size=5), max_size=14))
def test_whatever_comes_in_is_a_packet_or_a_packet_error(text: str, parts: list[Any]) -> None:
    try:
        packet = Packet.read(text)
        assert 0 <= packet.attachment_count <= PacketLimits().max_attachments
        assert packet.id is None or 0 <= packet.id < MAX_ACK_ID
        if packet.attachment_count:
            assert packet.packet_type in (BINARY_EVENT, BINARY_ACK)
            for part in parts:
                is_last = packet.add_part(part, LIMIT_BYTES)
                assert packet.attachment_bytes <= LIMIT_BYTES
                if is_last:
                    break
    except PacketError:
        pass


@given(
    st.sampled_from(["sync-update", "awareness-update", "sync-step-1", "other"]),
    st.from_regex(r"/[^,?]{1,200}", fullmatch=True),
    st.none() | st.integers(0, 10**15 - 1),
    st.binary(max_size=50),
)
def test_the_short_way_of_reading_gives_what_the_long_one_does(
    event: str, namespace: str, ack_id: int | None, data: bytes
) -> None:
    text = f"51-{namespace},{'' if ack_id is None else ack_id}"
    short = Packet.read(f'{text}["{event}",{{"_placeholder":true,"num":0}}]')
    long = Packet.read(f'{text}["{event}", {{"_placeholder": true, "num": 0}}]')
    assert short.add_part(data, LIMIT_BYTES) is long.add_part(data, LIMIT_BYTES) is True
    for name in ("packet_type", "namespace", "id", "data", "attachment_count"):
        assert getattr(short, name) == getattr(long, name), name


@pytest.mark.parametrize(
    "text",
    [
        "50-[]",
        "5[]",
        "511-[]",
        "59999999999-[]",
        "21-[]",
        "01-{}",
        "6[]",
        f"2{2**53}[]",
        "2" + "[" * 100_000,
        '2["' + "x" * PacketLimits().max_json_bytes + '"]',
        "2[1",
        "x",
    ],
    ids=lambda text: text[:14],
)
def test_a_packet_beyond_the_limits_is_refused(text: str) -> None:
    with pytest.raises(PacketError):
        Packet.read(text)


@pytest.mark.parametrize("event", ["sync-update", "other"])
def test_the_bytes_of_all_attachments_are_limited(event: str) -> None:
    text = f'["{event}",{{"_placeholder":true,"num":0}}]'
    assert Packet.read(f"51-/yjs|a,{text}").add_part(bytes(LIMIT_BYTES), LIMIT_BYTES)
    with pytest.raises(PacketError):
        Packet.read(f"51-/yjs|a,{text}").add_part(bytes(LIMIT_BYTES + 1), LIMIT_BYTES)
    packet = Packet.read(f"52-/yjs|a,{text}")
    assert not packet.add_part(bytes(LIMIT_BYTES), LIMIT_BYTES)
    with pytest.raises(PacketError):
        packet.add_part(b"x", LIMIT_BYTES)


@pytest.mark.parametrize("num", [1, 10, '"0"', "null", "[]", 1.5])
def test_a_placeholder_that_names_no_attachment_is_refused(num: Any) -> None:
    packet = Packet.read(f'51-/a,["x",{{"_placeholder":true,"num":{num}}}]')
    with pytest.raises(PacketError):
        packet.add_part(b"data", LIMIT_BYTES)


# -- out ------------------------------------------------------------------------------------------


class Gathered(WebSocketDataQueue):
    """Stands where aiohttp's reader has its queue."""

    def __init__(self) -> None:
        protocol = SimpleNamespace(_reading_paused=False)
        super().__init__(protocol, 2**30, loop=asyncio.get_event_loop_policy().get_event_loop())  # type: ignore[arg-type]
        self.messages: list[Any] = []

    def feed_data(self, data: Any, size: int = 0) -> None:
        self.messages.append(data)


def read_frames(data: bytes) -> list[tuple[WSMsgType, Any]]:
    """What aiohttp makes of the bytes, whole and byte by byte."""
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        asyncio.set_event_loop(loop)
        try:
            whole, single = Gathered(), Gathered()
            WebSocketReader(whole, 0, compress=False, decode_text=True).feed_data(data)
            reader = WebSocketReader(single, 0, compress=False, decode_text=True)
            step = max(1, len(data) // 500)
            for at in range(0, len(data), step):
                reader.feed_data(data[at : at + step])
        finally:
            asyncio.set_event_loop(None)
    read = [(message.type, message.data) for message in whole.messages]
    assert read == [(message.type, message.data) for message in single.messages]
    return read


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("opcode", [0x81, 0x82])
def test_a_frame_of_any_length_is_read_by_aiohttp(size: int, opcode: int) -> None:
    payload = b"x" * size
    frame = websocket_frame(opcode, payload)
    head = 2 if size < 126 else 4 if size < 65_536 else 10
    assert len(frame) == head + size
    expected = (WSMsgType.TEXT, payload.decode()) if opcode == 0x81 else (WSMsgType.BINARY, payload)
    assert read_frames(frame + frame) == [expected, expected]


def test_a_control_frame_is_read_by_aiohttp() -> None:
    assert read_frames(websocket_frame(0x8A, b"hello")) == [(WSMsgType.PONG, b"hello")]


@settings(max_examples=50, deadline=None)
@given(
    st.text(min_size=1, max_size=10),
    values | st.binary(max_size=200),
    st.sampled_from(["/", "/yjs|workout:w"]),
    st.none() | st.integers(1, 1_000),
)
def test_a_message_out_is_what_our_own_reader_takes_in(
    event: str, value: Any, namespace: str, ack_id: int | None
) -> None:
    message = outgoing(EVENT, namespace, [event, value], ack_id)
    read = read_frames(message.frame)
    assert [data for _, data in read] == message.parts
    packet = Packet.read(read[0][1][1:])
    for _, part in read[1:]:
        packet.add_part(part, 10**6)
    assert packet.namespace_or_root == namespace
    assert packet.id == ack_id
    assert json.dumps(packet.data, default=repr) == json.dumps([event, value], default=repr)


def test_a_message_is_framed_once_for_all() -> None:
    message = update_event("/yjs|workout:w", "sync-update", b"\x00\x01")
    assert message.frame is message.frame
    assert read_frames(message.frame) == [
        (WSMsgType.TEXT, '451-/yjs|workout:w,["sync-update",{"_placeholder":true,"num":0}]'),
        (WSMsgType.BINARY, b"\x00\x01"),
    ]


def test_a_message_that_was_framed_can_still_be_polled() -> None:
    message = update_event("/yjs|workout:w", "sync-update", b"\x00\x01")
    assert message.frame
    for _ in range(2):
        text, binary = Payload(message.for_polling()).encode().split("\x1e")
        assert text == message.parts[0]
        assert binary == "b" + base64.b64encode(b"\x00\x01").decode()


def test_nothing_is_written_behind_a_close() -> None:
    class Transport:
        written = b""

        def write(self, data: bytes) -> None:
            self.written += data

        def close(self) -> None: ...

    async def run() -> bytes:
        transport = Transport()
        peer = WebSocketPeer(SimpleNamespace(), transport, 1_000)  # type: ignore[arg-type]
        peer.close(1001, "x" * 200)
        peer.write(Outgoing(["2"]).frame)
        peer.close()
        return transport.written

    ((kind, code),) = read_frames(asyncio.run(run()))
    assert (kind, code) == (WSMsgType.CLOSE, 1001)


LIMITS = PacketLimits(max_attachments=2, max_json_bytes=200, max_json_depth=4)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('27["n",' + " " * 200 + "]", "too_large"),
        ("2/yjs|workout:w,7[" + " " * 200 + "]", "too_large"),
        ("0{" + " " * 200 + "}", "too_large"),
        ("0/admin,{" + " " * 200 + "}", "too_large"),
        ('27["n",[[[[1]]]]]', "invalid"),
        ('27["n",{"a":[{"b":{}}]}]', "invalid"),
        ('51-7["n",[[[[{"_placeholder":true,"num":0}]]]]]', "invalid"),
        ("0[[[[[1]]]]]", "invalid"),
    ],
)
def test_a_packet_that_can_be_answered_is_refused_by_its_answer(text: str, code: str) -> None:
    packet = Packet.read(text, LIMITS)
    assert packet.refusal is not None
    assert packet.refusal.code == code
    assert packet.id == (None if text[0] == "0" else 7)
    if packet.attachment_count:
        assert packet.add_part(b"x", LIMIT_BYTES)


@pytest.mark.parametrize(
    "text",
    [
        '2["n",' + " " * 200 + "]",
        "37[" + " " * 200 + "]",
        "1" + " " * 200,
        '51-7["n",{"_placeholder":true,"num":0}' + " " * 200 + "]",
        '2["n",[[[[1]]]]]',
        "37[[[[[1]]]]]",
        '53-7["n"]',
    ],
)
def test_a_packet_that_cannot_be_answered_ends_its_connection(text: str) -> None:
    with pytest.raises(PacketError):
        Packet.read(text, LIMITS)


def test_brackets_in_a_text_are_no_depth() -> None:
    assert Packet.read(f'27["n","{"[{" * 20}"]', LIMITS).refusal is None
    assert Packet.read('27["n",[[[1]]]]', LIMITS).refusal is None


@settings(max_examples=300, deadline=None)
@given(text=texts, parts=st.lists(st.binary(max_size=400) | st.none(), max_size=4))
def test_whatever_comes_in_under_small_limits_is_a_packet_or_a_packet_error(
    text: str, parts: list[Any]
) -> None:
    try:
        packet = Packet.read(text, LIMITS)
        for part in parts:
            packet.add_part(part, LIMIT_BYTES)
    except PacketError:
        return
    assert packet.size_bytes >= len(text)
    if packet.refusal is None:
        assert len(text.encode()) <= LIMITS.max_json_bytes or packet.event is not None
