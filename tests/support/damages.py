"""Damages that real checkpoints were seen with: each changes a layout of `tests.support.models` in place.

They are what archives, copies, web portals, trainers and converters do to files; none is subtle.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from staging.layout.inventory import INDEX_NAME
from tests.support.models import Blob, Layout, safetensors, shards

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 4871823472\n" % (b"9" * 64)
SIGN_IN = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body></body></html>\n"
ZIP = b"PK\x03\x04" + bytes(2_000)  # what torch.save writes


def weights(files: Layout) -> str:
    """A weights file that does not come first, where there are several."""
    return shards(files)[-1]


def truncated(files: Layout) -> None:
    path = weights(files)
    files[path] = files[path].cut(files[path].size - 1)


def cut_in_the_header(files: Layout) -> None:
    path = weights(files)
    files[path] = files[path].cut(len(files[path].head) // 2)


def never_written(files: Layout) -> None:
    path = weights(files)
    files[path] = Blob(bytes(len(files[path].head)), files[path].size)


def lfs_weights(files: Layout) -> None:
    files[weights(files)] = Blob.of(LFS)


def web_page_weights(files: Layout) -> None:
    files[weights(files)] = Blob.of(SIGN_IN)


def pickle_in_place(files: Layout) -> None:
    files[weights(files)] = Blob.of(ZIP)


def twice_in_the_header(files: Layout) -> None:
    path = weights(files)
    text = files[path].head[8:].rstrip()
    first = json.dumps(next(name for name in files[path].header if name != "__metadata__"))
    entry = json.dumps(files[path].header[json.loads(first)])
    text = text[:-1] + f",{first}:{entry}}}".encode()
    data = files[path].size - len(files[path].head)
    head = len(text).to_bytes(8, "little") + text
    files[path] = Blob(head, len(head) + data)


def weights_missing(files: Layout) -> None:
    del files[weights(files)]


def pickles_instead(files: Layout) -> None:
    for number, path in enumerate(shards(files)):
        files[f"pytorch_model-{number}.bin"] = Blob.of(ZIP)
        del files[path]
    files.pop(INDEX_NAME, None)


def pickle_beside(files: Layout) -> None:
    files["pytorch_model.bin"] = Blob.of(ZIP)


def gguf_instead(files: Layout) -> None:
    """A repository of llama.cpp's format, with what its converter was given."""
    for path in shards(files):
        del files[path]
    files.pop(INDEX_NAME, None)
    gguf_beside(files)


def gguf_beside(files: Layout) -> None:
    files["model-q4.gguf"] = Blob.of(b"GGUF\3\0\0\0" + bytes(500))


def training_checkpoint_beside(files: Layout) -> None:
    for rank in range(2):
        files[f"__{rank}_0.distcp"] = Blob.of(ZIP)
    files[".metadata"] = Blob.of(b"\x80\x02}q\0.")


def training_checkpoint_instead(files: Layout) -> None:
    for path in shards(files):
        del files[path]
    files.pop(INDEX_NAME, None)
    training_checkpoint_beside(files)


def optimizer_beside(files: Layout) -> None:
    files["optimizer.pt"] = Blob.of(ZIP)


def consolidated_beside(files: Layout) -> None:
    header = {
        name: entry
        for path in shards(files)
        if "/" not in path
        for name, entry in files[path].header.items()
    }
    files["consolidated.safetensors"] = safetensors(header)


def two_in_another_case(files: Layout) -> None:
    files["Generation_Config.json"] = Blob.of("{}")
    files["generation_config.json"] = Blob.of("{}")


def nested(files: Layout) -> None:
    for path in list(files):
        files[f"laguna/{path}"] = files.pop(path)


def archive_inside(files: Layout) -> None:
    files["laguna_xs.tar"] = Blob.of(bytes(10_240))


def apple_double(files: Layout) -> None:
    files["._model.safetensors"] = Blob.of(b"\0\5\x16\7" + bytes(160))


def unsafe_name(files: Layout) -> None:
    files["../config.json"] = Blob.of("{}")


def web_page_config(files: Layout) -> None:
    files[_config(files)] = Blob.of(SIGN_IN)


def lfs_config(files: Layout) -> None:
    files[_config(files)] = Blob.of(LFS)


def cut_config(files: Layout) -> None:
    files["config.json"] = files["config.json"].cut(files["config.json"].size // 2)


def empty_config(files: Layout) -> None:
    files["config.json"] = Blob.of("{}")


def config_missing(files: Layout) -> None:
    files.pop("config.json", None)
    files.pop("config.yaml", None)


def tokenizer_missing(files: Layout) -> None:
    for path in list(files):
        if path.rpartition("/")[2] in ("tokenizer.json", "vocab.txt"):
            del files[path]


def tokenizer_folder_missing(files: Layout) -> None:
    """A copy without subdirectories."""
    for path in list(files):
        if path.startswith("tokenizer/"):
            del files[path]


def lfs_tokenizer(files: Layout) -> None:
    [path] = [path for path in files if path.endswith("tokenizer.json")]
    files[path] = Blob.of(LFS)


def code_missing(files: Layout) -> None:
    """The configuration names code; a downloader of *.json and *.safetensors leaves it out."""
    config = files["config.json"].document
    config["auto_map"] = {"AutoConfig": "configuration_laguna.LagunaConfig"}
    files["config.json"] = Blob.json(config)
    files.pop("configuration_laguna.py", None)


def leftover_shard(files: Layout) -> None:
    """What an earlier version, in two shards, left behind."""
    path = weights(files)
    files["model-00001-of-00002.safetensors"] = files[path]


def index_missing(files: Layout) -> None:
    """Without it a server takes what lies in the root, and numbers alone tell what should."""
    del files[INDEX_NAME]


def index_and_shard_missing(files: Layout) -> None:
    del files[INDEX_NAME]
    del files[weights(files)]


def index_and_shard_of_another(files: Layout) -> None:
    del files[INDEX_NAME]
    header = {"another.weight": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}
    files["model-00001-of-00002.safetensors"] = safetensors(header)


def lfs_index(files: Layout) -> None:
    files[INDEX_NAME] = Blob.of(LFS)


def changed_index(files: Layout, change: Callable[[dict[str, Any]], None]) -> None:
    index = files[INDEX_NAME].document
    change(index)
    files[INDEX_NAME] = Blob.json(index)


def swapped_index_entries(files: Layout) -> None:
    def change(index: dict[str, Any]) -> None:
        places = index["weight_map"]
        by_shard = {place: name for name, place in places.items()}
        first, second = by_shard[shards(files)[0]], by_shard[shards(files)[-1]]
        places[first], places[second] = places[second], places[first]

    changed_index(files, change)


def index_names_what_is_nowhere(files: Layout) -> None:
    def change(index: dict[str, Any]) -> None:
        index["weight_map"]["model.layers.99.mlp.up_proj.weight"] = weights(files)

    changed_index(files, change)


def index_forgets_a_tensor(files: Layout) -> None:
    def change(index: dict[str, Any]) -> None:
        index["weight_map"].popitem()

    changed_index(files, change)


def index_of_another_size(files: Layout) -> None:
    def change(index: dict[str, Any]) -> None:
        index["metadata"]["total_size"] //= 2

    changed_index(files, change)


def tensor_in_two_shards(files: Layout) -> None:
    first, last = shards(files)[0], weights(files)
    name = next(name for name in files[first].header if name != "__metadata__")
    files[last] = safetensors({**files[last].header, name: files[first].header[name]})


def index_without_a_map(files: Layout) -> None:
    changed_index(files, lambda index: index.pop("weight_map"))


def config_of_another_model(files: Layout) -> None:
    config = files["config.json"].document
    config["hidden_size"] *= 2
    files["config.json"] = Blob.json(config)


def layer_missing(files: Layout) -> None:
    """A conversion that lost a layer, and wrote an index that agrees with it."""
    for path in shards(files):
        kept = {
            name: entry for name, entry in files[path].header.items() if ".layers.1." not in name
        }
        if set(kept) == {"__metadata__"}:
            del files[path]
        else:
            files[path] = safetensors(kept)
    if INDEX_NAME in files:
        places = {
            name: path
            for path in shards(files)
            for name in files[path].header
            if name != "__metadata__"
        }
        files[INDEX_NAME] = Blob.json({"metadata": {}, "weight_map": places})


def chat_template_missing(files: Layout) -> None:
    files.pop("chat_template.jinja", None)
    config = files["tokenizer_config.json"].document
    config.pop("chat_template", None)
    files["tokenizer_config.json"] = Blob.json(config)


def _config(files: Layout) -> str:
    return "config.json" if "config.json" in files else "config.yaml"
