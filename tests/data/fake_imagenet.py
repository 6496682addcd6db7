"""A small ImageNet of six classes in each of its published forms, with images of the built-in set.

Used by the tests of data sources and of searches on them.
"""

import io
import json
import shutil
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from scipy.io import savemat

from trainables.data.petals import images as petals

WNIDS: tuple[str, ...] = (
    "n01440764",
    "n02119789",
    "n01443537",
    "n03954731",
    "n07745940",
    "n02096294",
)  # in the order of the ILSVRC ids
TRAIN, VAL = 9, 3
FORMS = ("tree", "tars", "kaggle", "flat", "parquet", "parquet binary")


@cache
def images() -> dict[str, dict[str, bytes]]:
    """Return JPEG bytes by split and ``wnid/file``.

    Validation images are numbered across the classes, as in the original.
    """
    drawn, _ = petals.make_split("train", len(WNIDS) * (TRAIN + VAL), 0)
    jpegs = []
    for i, pixels in enumerate(drawn):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=60 + i % 30)
        jpegs.append(file.getvalue())
    train = {f"{wnid}/{wnid}_{7 * k + 3}.JPEG": jpegs.pop() for wnid in WNIDS for k in range(TRAIN)}
    val = {
        f"{WNIDS[(5 * i) % 6]}/ILSVRC2012_val_{i + 1:08d}.JPEG": jpegs.pop()
        for i in range(len(WNIDS) * VAL)
    }
    return {"train": train, "val": val}


def write(root: Path, form: str) -> Path:
    """Write the set to ``root`` in one of ``FORMS``."""
    root.mkdir(parents=True)
    if form == "tree":
        _tree(root, flat=())
    elif form == "flat":
        _tree(root, flat=("val",))
        write_kit(root / "ILSVRC2012_devkit_t12" / "data")
    elif form == "kaggle":
        _tree(root / "ILSVRC/Data/CLS-LOC", flat=("val",))
        lines = [f"{Path(name).stem},{name.split('/')[0]} 1 2 30 40 " for name in images()["val"]]
        (root / "LOC_val_solution.csv").write_text(
            "ImageId,PredictionString\n" + "\n".join(lines) + "\n"
        )
    elif form == "tars":
        _tars(root)
    else:
        write_parquet(root / "data", binary=form == "parquet binary")
    return root


def _tree(root: Path, flat: tuple[str, ...]) -> None:
    for split, files in images().items():
        for name, data in files.items():
            file = root / split / (Path(name).name if split in flat else name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


def _tars(root: Path) -> None:
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in WNIDS:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for name, data in reversed(images()["train"].items()):
                    if name.startswith(wnid):
                        _add(tar, Path(name).name, data)
            _add(outer, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for name, data in images()["val"].items():
            _add(tar, Path(name).name, data)
    write_kit(root / "kit")
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(root / "kit", "ILSVRC2012_devkit_t12/data")
    shutil.rmtree(root / "kit")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_kit(folder: Path) -> None:
    """Write the ground truth and meta.mat.

    The synsets of meta.mat are a (n, 1) struct with inner nodes after the classes.
    """
    folder.mkdir(parents=True)
    truth = [
        WNIDS.index(name.split("/")[0]) + 1
        for name in sorted(images()["val"], key=lambda name: name.split("/")[1])
    ]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(
        "".join(f"{label}\n" for label in truth)
    )
    nodes = [
        (i, wnid, f"words, {i}", "gloss", 0, [], 0, TRAIN)
        for i, wnid in enumerate((*WNIDS, "n00001740"), 1)
    ]
    fields = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    synsets = np.array(nodes, dtype=[(name, object) for name in fields]).reshape(-1, 1)
    savemat(folder / "meta.mat", {"synsets": synsets})


def write_parquet(
    folder: Path,
    *,
    binary: bool = False,
    file_names: bool = True,
    metadata: bool = True,
    shards: int = 3,
) -> None:
    """Write shuffled shards with row groups of four rows.

    Args:
        binary: store the bytes alone, with the class as text and without file names.
        file_names: store file names.
        metadata: store the hub's label names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels = {wnid: i for i, wnid in enumerate(sorted(WNIDS))}
    for split, part in (("train", "train"), ("val", "validation")):
        files = list(images()[split].items())
        order = np.random.default_rng(0).permutation(len(files))
        for shard in range(shards):
            rows = [files[i] for i in order[shard::shards]]
            wnids = [name.split("/")[0] for name, _ in rows]
            paths = [
                f"{Path(name).stem}_{wnid}.JPEG"
                for (name, _), wnid in zip(rows, wnids, strict=True)
            ]
            structs = [
                {"bytes": data, "path": path if file_names else None}
                for (_, data), path in zip(rows, paths, strict=True)
            ]
            table = pa.table({"image": structs, "label": [labels[wnid] for wnid in wnids]})
            if binary:
                table = pa.table(
                    {"image": pa.array([data for _, data in rows], pa.binary()), "label": wnids}
                )
            elif metadata:
                label = {"names": [f"word {i}" for i in range(6)], "_type": "ClassLabel"}
                info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
                table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
            # Statistics contain complete values if these are as short as here; a real image is too
            # long for them.
            file = folder / f"{part}-{shard:05d}-of-{shards:05d}.parquet"
            parquet.write_table(table, file, row_group_size=4, write_statistics=False)
