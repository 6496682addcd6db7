"""Which files are images: by suffix, or by the first bytes of a file with an unknown suffix.

Used by the sources that list files in folders, tar files and Parquet shards.
"""

import os
import re
from collections.abc import Callable

# The suffixes of the raster formats that Pillow decodes without an external program. Documents
# (PDF, EPS), layered files (PSD), vector graphics, videos and scientific arrays are not included.
_IMAGE_SUFFIXES = (
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .bmp .dib .gif .webp .tif .tiff "
    ".ppm .pgm .pbm .pnm .pfm .jp2 .j2k .jpc .jpf .jpx .j2c .avif .avifs .qoi "
    ".tga .icb .vda .vst .ico .cur .icns .dds .pcx .dcx .sgi .rgb .rgba .bw .ras "
    ".xbm .xpm .msp .im .pcd .pxr .blp .ftc .ftu"
)
IMAGE_SUFFIXES = frozenset(_IMAGE_SUFFIXES.split())
# Suffixes of files beside images whose first bytes are not read. Raw photographs begin like TIFF
# files, but Pillow decodes their thumbnail. Backups are second copies, and downloads that have not
# ended are truncated.
_OTHER_SUFFIXES = (
    ".txt .md .csv .tsv .json .jsonl .xml .html .yaml .yml .toml .ini .log .py .ipynb .sh .mat "
    ".npy .npz .pt .pth .pkl .h5 .hdf5 .parquet .zip .tar .gz .tgz .7z .rar .pdf .psd .svg .eps "
    ".mp4 .avi .mov .db .lnk .url "
    ".cr2 .cr3 .nef .arw .dng .orf .rw2 .raf .pef .srw .thm "
    ".bak .old .orig .tmp .temp .swp .part .partial .crdownload .download"
)
OTHER_SUFFIXES = frozenset(_OTHER_SUFFIXES.split())
HEAD = 64  # bytes that identify an image format
# System folders and files whose names do not begin with a dot (macOS, Synology, Windows, Linux).
SYSTEM_NAMES = frozenset(
    name.lower()
    for name in (
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "Thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    )
)
_MAGIC = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|RIFF.{4}WEBP"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"  # BMP, with the size of its second header
    rb"|II(\*\0|\+\0)|MM(\0\*|\0\+)"  # TIFF and BigTIFF
    rb"|P[1-6]\s+(#|\d)|P[Ff]\s+\d"  # portable any map
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"  # JPEG 2000
    rb"|.{4}ftypavi[fs]"
    rb"|qoif.{8}[\x03\x04][\0\x01]"
    rb"|DDS \x7c\0\0\0",
    re.DOTALL,
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder name belongs to the system or an editor, not to the set.

    These are names with a leading dot (``._x.jpg`` of macOS, ``.ipynb_checkpoints``), the names of
    ``SYSTEM_NAMES``, and backups (``x.jpg~``).
    """
    return name[:1] == "." or name[-1:] == "~" or name.lower() in SYSTEM_NAMES


def is_hidden_path(path: str) -> bool:
    """Whether a step of a relative path, such as the name of a tar member, is hidden."""
    return any(is_hidden(step) for step in path.split("/") if step not in (".", ".."))


def is_image(name: str, head: Callable[[], bytes]) -> bool:
    """Whether a file is an image that Pillow decodes.

    Args:
        head: returns the first ``HEAD`` bytes; called only if the suffix is unknown.
    """
    suffix = os.path.splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    return suffix not in OTHER_SUFFIXES and _MAGIC.match(head()) is not None
