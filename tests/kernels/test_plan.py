"""The canonical form of a blob, and what is refused."""

import json
import random
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import BlobCorrupt, ConfigError, ModelMismatch
from swarm_hpc.kernels.plan import (
    ALIGNMENT,
    MAX_HEADER_BYTES,
    WIDTHS,
    Layout,
    Rule,
    TensorSpec,
    check_same,
    model_hash,
    parse,
    place,
    segments,
)

SPECS = (
    TensorSpec("net.weight", "F32", (3, 5)),
    TensorSpec("net.bias", "F32", (3,)),
    TensorSpec("half", "BF16", (7,)),
    TensorSpec("half16", "F16", (2, 2)),
    TensorSpec("steps", "I64", ()),
    TensorSpec("nothing", "F32", (0, 4)),
    TensorSpec("größe.Σ", "F64", (2,)),
    TensorSpec("mask", "BOOL", (3,)),
)
ALIASES = {"tied.weight": "net.weight"}

names = st.text(min_size=1, max_size=30).filter(
    lambda name: name != "__metadata__" and not any("\ud800" <= char <= "\udfff" for char in name)
)
specs = st.builds(
    TensorSpec, names, st.sampled_from(sorted(WIDTHS)), st.lists(st.integers(0, 7), max_size=4).map(tuple)
)
models = st.lists(specs, max_size=8, unique_by=lambda spec: spec.name)


def header(fields: object, *, pad: int = ALIGNMENT) -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % pad)
    return len(text).to_bytes(8, "little") + text


def fields_of(layout: Layout) -> dict:
    return json.loads(layout.header[8:])


def refusal(raw: bytes) -> str:
    with pytest.raises(BlobCorrupt) as caught:
        parse(raw)
    return str(caught.value)


def test_wider_dtypes_come_first_then_dtype_then_name_without_gaps():
    layout = place(SPECS)
    order = [(placed.spec.dtype, placed.spec.name) for placed in layout.tensors]
    assert order == [
        ("F64", "größe.Σ"),
        ("I64", "steps"),
        ("F32", "net.bias"),
        ("F32", "net.weight"),
        ("F32", "nothing"),
        ("BF16", "half"),
        ("F16", "half16"),
        ("BOOL", "mask"),
    ]
    edges = [len(layout.header), *(placed.stop for placed in layout.tensors)]
    assert edges[:-1] == [placed.start for placed in layout.tensors]
    assert edges[-1] == layout.size_bytes


def test_the_order_in_which_tensors_are_named_does_not_matter():
    assert place(reversed(SPECS), ALIASES) == place(SPECS, ALIASES)
    assert model_hash(place(reversed(SPECS))) == model_hash(place(SPECS))


@given(models)
def test_data_and_every_tensor_are_aligned(model):
    layout = place(model)
    assert len(layout.header) % ALIGNMENT == 0
    assert all(placed.start % WIDTHS[placed.spec.dtype] == 0 for placed in layout.tensors)


@given(models, st.data())
def test_parse_gives_back_what_was_placed(model, data):
    stored = [spec.name for spec in model]
    aliases = data.draw(
        st.dictionaries(names.filter(lambda name: name not in stored), st.sampled_from(stored))
        if stored
        else st.just({})
    )
    layout = place(model, aliases)
    assert parse(layout.header) == layout
    assert parse(memoryview(layout.header + bytes(layout.size_bytes - len(layout.header)))) == layout
    assert layout.aliases == tuple(sorted(aliases.items()))


def test_safetensors_reads_a_blob():
    layout = place(SPECS, ALIASES)
    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    bf16 = np.linspace(-3, 3, 7).astype(ml_dtypes.bfloat16)
    blob = bytearray(layout.size_bytes)
    blob[: len(layout.header)] = layout.header
    for placed in layout.tensors:
        if placed.spec.name == "net.weight":
            blob[placed.start : placed.stop] = values.tobytes()
        if placed.spec.name == "half":
            blob[placed.start : placed.stop] = bf16.tobytes()
    tensors = safetensors.torch.load(bytes(blob))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {s.name: s.shape for s in SPECS}
    assert torch.equal(tensors["net.weight"], torch.from_numpy(values))
    assert tensors["half"].dtype == torch.bfloat16
    assert torch.equal(tensors["half"].float(), torch.from_numpy(bf16.astype(np.float32)))
    assert tensors["steps"].shape == ()
    # numpy's loader, which is another code path, agrees on the dtypes that numpy has
    plain = place([spec for spec in SPECS if spec.dtype != "BF16"])
    loaded = safetensors.numpy.load(plain.header + bytes(plain.size_bytes - len(plain.header)))
    assert loaded["mask"].dtype == np.bool_


def test_a_model_without_tensors_is_a_header_only():
    layout = place([])
    assert layout.size_bytes == len(layout.header) == ALIGNMENT
    assert parse(layout.header) == layout
    assert segments(layout) == ()


def test_segments_are_one_run_per_dtype_with_its_rule():
    layout = place([*SPECS, TensorSpec("empty", "I32", (0,))])
    found = segments(layout)
    assert [(segment.dtype, segment.rule) for segment in found] == [
        ("F64", Rule.MERGE),
        ("I64", Rule.MAX),
        ("F32", Rule.MERGE),
        ("BF16", Rule.MERGE),
        ("F16", Rule.MERGE),
        ("BOOL", Rule.FIRST),
    ]
    assert found[0].start == len(layout.header)
    assert [segment.stop for segment in found[:-1]] == [segment.start for segment in found[1:]]
    assert found[-1].stop == layout.size_bytes


@pytest.mark.parametrize("dtype", ["C64", "complex64", "F8_E4M3", "float32", ""])
def test_a_dtype_that_cannot_be_merged_names_the_tensor(dtype):
    with pytest.raises(ConfigError, match=r"tensor 'spectrum' has dtype"):
        place([TensorSpec("spectrum", dtype, (2,))])


@pytest.mark.parametrize(
    ("specs", "aliases", "message"),
    [
        ([TensorSpec("a", "F32", (1,)), TensorSpec("a", "I64", (1,))], {}, "'a' is there twice"),
        ([TensorSpec("__metadata__", "F32", ())], {}, "cannot name a tensor"),
        ([TensorSpec("", "F32", ())], {}, "cannot name a tensor"),
        ([TensorSpec("x" * 513, "F32", ())], {}, "513 characters"),
        ([TensorSpec("\ud800", "F32", ())], {}, "no valid Unicode"),
        ([TensorSpec("a", "F32", (-1,))], {}, "impossible shape"),
        ([TensorSpec("a", "F32", (1,) * 65)], {}, "65 dimensions"),
        ([TensorSpec("a", "F32", (1 << 40, 1 << 40, 0))], {}, "too large"),
        ([TensorSpec("a", "F64", (1 << 47,))], {}, "the model has"),
        ([TensorSpec("a", "F32", ())], {"b": "c"}, "alias of 'c'"),
        ([TensorSpec("a", "F32", ())], {"a": "a"}, "alias of 'a'"),
    ],
)
def test_what_cannot_be_placed_is_said(specs, aliases, message):
    with pytest.raises(ConfigError, match=message):
        place(specs, aliases)


def test_names_of_512_characters_are_fine():
    layout = place([TensorSpec("ü" * 512, "F32", ())])
    assert parse(layout.header) == layout


def test_check_same_names_the_tensor_that_differs():
    ours = place([TensorSpec("a", "F32", (2, 3)), TensorSpec("b", "F32", ())])
    check_same(ours, parse(ours.header), "beta/sl/sl-1")
    cases = {
        "tensor 'b' is missing; here it is F32 []": place([TensorSpec("a", "F32", (2, 3))]),
        "tensor 'c' is extra (I8 [1])": place([*(p.spec for p in ours.tensors), TensorSpec("c", "I8", (1,))]),
        "tensor 'a' is F32 [3, 2]; here it is F32 [2, 3]": place(
            [TensorSpec("a", "F32", (3, 2)), TensorSpec("b", "F32", ())]
        ),
        "tensor 'b' is BF16 []; here it is F32 []": place(
            [TensorSpec("a", "F32", (2, 3)), TensorSpec("b", "BF16", ())]
        ),
        "tensor 'd' is extra (shared with 'a')": place([p.spec for p in ours.tensors], {"d": "a"}),
    }
    for text, theirs in cases.items():
        with pytest.raises(ModelMismatch) as caught:
            check_same(ours, theirs, "beta/sl/sl-1")
        assert f"beta/sl/sl-1: {text}" in str(caught.value)


def test_a_header_that_is_cut_or_too_long_is_refused():
    layout = place(SPECS)
    assert "too short" in refusal(b"")
    assert "too short" in refusal(layout.header[:7])
    assert "the header speaks of" in refusal(layout.header[:-1])
    assert "the header speaks of" in refusal((1 << 63).to_bytes(8, "little") + b"{}")
    assert "bytes" in refusal(layout.header + b"\0")
    huge = MAX_HEADER_BYTES.to_bytes(8, "little") + b" " * MAX_HEADER_BYTES
    assert "at most" in refusal(huge)


def test_text_that_is_no_header_is_refused():
    for text in (b"", b"null", b"[]", b"{", b"{}", b"\xff\xfe{}", b'{"\xff":{}}', b'{"a', b'"{}"', b"1" * 5000):
        assert "no blob of swarm_hpc" in refusal(header(text))


def test_deep_nests_are_refused_without_recursion():
    limit = sys.getrecursionlimit()
    # a library may have raised it: then recursion does not end in an error, but with the process
    sys.setrecursionlimit(1_000_000)
    try:
        for text in (b"[" * 200_000, b'{"a":' * 200_000, b'{"\\"":' + b"[" * 200_000, b'{"a":{"b":' + b"[" * 200_000):
            assert "no blob of swarm_hpc" in refusal(header(text))
    finally:
        sys.setrecursionlimit(limit)


def test_deep_nests_in_another_encoding_are_refused_without_recursion():
    # in UTF-16 the name's one character has the byte of a quotation mark, behind which bytes look like a string
    text = '{"\u2200":' + "[" * 100_000 + '"}'
    for encoding in ("utf-16-le", "utf-16", "utf-32-le"):
        assert "no blob of swarm_hpc" in refusal(header(text.encode(encoding)))


def test_brackets_and_escapes_in_names_are_no_structure():
    layout = place([TensorSpec(name, "F32", ()) for name in ("[[[", "}}", 'a"b', "back\\", "\n", '"{')])
    assert parse(layout.header) == layout


def test_each_departure_from_the_canonical_form_is_refused_with_its_reason():
    layout = place(SPECS, ALIASES)

    def changed(edit) -> str:
        fields = fields_of(layout)
        edit(fields)
        return refusal(header(fields))

    def move(fields):
        fields["net.bias"]["data_offsets"], fields["nothing"]["data_offsets"] = [24, 36], [36, 36]

    assert "not where the order puts it" in changed(lambda f: f["net.weight"].update(data_offsets=[0, 60]))
    assert "not where the order puts it" in changed(lambda f: f["half"].update(shape=[6]))
    assert "has dtype 'F8_E5M2'" in changed(lambda f: f["half"].update(dtype="F8_E5M2"))
    assert "wrong type" in changed(lambda f: f["half"].update(shape=[True]))
    assert "wrong type" in changed(lambda f: f["half"].update(shape=7))
    assert "wrong type" in changed(lambda f: f["half"].update(data_offsets=[0, 1, 2]))
    assert "no whole number" in changed(lambda f: f["half"].update(shape=[7.0]))
    assert "no whole number" in changed(lambda f: f["half"].update(shape=[float("nan")]))
    assert "impossible shape" in changed(lambda f: f["half"].update(shape=[10**4000]))
    assert "not described by" in changed(lambda f: f["half"].update(more=1))
    assert "not described by" in changed(lambda f: f.update(half=None))
    assert "513 characters" in changed(lambda f: f.update({"x" * 513: f.pop("half")}))
    assert "swarm_hpc=1" in changed(lambda f: f.pop("__metadata__"))
    assert "swarm_hpc=1" in changed(lambda f: f["__metadata__"].update(swarm_hpc="2"))
    assert "holds 'format'" in changed(lambda f: f["__metadata__"].update(format="pt"))
    assert "alias of 'gone'" in changed(lambda f: f["__metadata__"].update({"alias:x": "gone"}))
    assert "holds 'alias:x'" in changed(lambda f: f["__metadata__"].update({"alias:x": ["half"]}))


def test_the_same_fields_in_other_bytes_are_refused():
    layout = place([TensorSpec("a", "F32", (2,)), TensorSpec("b", "F32", (2,))])
    fields = fields_of(layout)
    unsorted_fields = dict(sorted(fields.items(), reverse=True))
    assert "canonical form" in refusal(header(json.dumps(unsorted_fields, separators=(",", ":")).encode()))
    assert "canonical form" in refusal(header(json.dumps(fields, sort_keys=True).encode()))
    assert "canonical form" in refusal(header(fields, pad=1))
    text = layout.header[8:].rstrip()
    assert "twice" in refusal(header(text[:-1] + b',"a":' + json.dumps(fields["a"]).encode() + b"}"))


@given(st.integers(0, 1 << 62), st.integers(1, 4))
def test_a_mutated_header_is_refused_or_canonical(seed, changes):
    layout = place(SPECS, ALIASES)
    raw = bytearray(layout.header)
    chance = random.Random(seed)
    for _ in range(changes):
        position = chance.randrange(len(raw)) if chance.random() < 0.9 else chance.randrange(8)
        match chance.randrange(4):
            case 0:
                raw[position] = chance.randrange(256)
            case 1:
                del raw[position : position + chance.randrange(1, 20)]
            case 2:
                raw[position:position] = chance.choice([b'"', b"[", b"{", b"0", b"\\u0000", b"\\ud800", b"null", b"-"])
            case 3:
                other = chance.randrange(len(raw))
                raw[position : position + 8], raw[other : other + 8] = (
                    raw[other : other + 8],
                    raw[position : position + 8],
                )
        raw = raw or bytearray(1)
    try:
        found = parse(raw)
    except BlobCorrupt:
        return
    assert found.header == raw
