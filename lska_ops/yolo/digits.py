"""A small detection data set of real handwritten digits, made from what scikit-learn carries: no download."""

import numbers
from pathlib import Path

import numpy as np

SCENE = 320  # pixels a side
SMALLEST, LARGEST = 40, 112  # pixels a side of a pasted digit
HELD_OUT = 360  # of the 1,797 digits; only validation scenes show them


def digits_loader():
    """scikit-learn's function that gives its digits; ImportError, which says what would help, without it."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('demo: scikit-learn is not installed; pip install "lska_ops[demo]"') from error
    return load_digits


def write_digits(folder, train=640, val=96, seed=0):
    """Writes scenes with 3 to 6 digits of random size each, boxes in YOLO's label format, and the data YAML.

    Args:
        folder: is made; gets ``dataset/{train,val}/{images,labels}`` and ``digits.yaml``.
        train: number of training scenes, 1 or more.
        val: number of validation scenes, 1 or more, made from other digits than the training scenes.
        seed: same seed, same scenes.

    Returns:
        Path: the data YAML.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError, ValueError: train, val or seed is no integer or too small; nothing is written.
    """
    for name, number, least in (("train", train, 1), ("val", val, 1), ("seed", seed, 0)):
        if not isinstance(number, numbers.Integral) or isinstance(number, bool):
            raise TypeError(f"write_digits: {name} is {number!r}; expected an integer")
        if number < least:
            raise ValueError(f"write_digits: {name} is {number}; expected {least} or more")
    digits = digits_loader()()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    folder = Path(folder).resolve()
    for split, scenes, pool in (("train", train, order[HELD_OUT:]), ("val", val, order[:HELD_OUT])):
        images, labels = (folder / "dataset" / split / kind for kind in ("images", "labels"))
        for path in (images, labels):
            path.mkdir(parents=True, exist_ok=True)
            for stale in path.glob("digits_*"):  # of an earlier run with more scenes
                stale.unlink()
        for i in range(scenes):
            rng = np.random.default_rng([seed, split == "val", i])
            _write_scene(rng, digits, pool, images / f"digits_{i:04}.jpg", labels / f"digits_{i:04}.txt")
    names = "\n".join(f"  {i}: '{i}'" for i in range(10))
    data = folder / "digits.yaml"
    data.write_text(
        f"path: {folder / 'dataset'}\ntrain: train/images\nval: val/images\nnames:\n{names}\n",
        encoding="utf-8",
    )
    return data


def _write_scene(rng, digits, pool, image_path, label_path):
    from PIL import Image

    scene = np.full((SCENE, SCENE), rng.uniform(0, 90), np.float32)
    taken, lines = [], []
    for _ in range(rng.integers(3, 7)):
        digit = rng.choice(pool)
        ink = np.asarray(_enlarged(digits.images[digit], int(rng.integers(SMALLEST, LARGEST + 1))))
        rows, columns = (np.flatnonzero(ink.max(axis) > 48) for axis in (1, 0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        h, w = ink.shape
        y, x = int(rng.integers(0, SCENE - h + 1)), int(rng.integers(0, SCENE - w + 1))
        if any(x < x2 and x1 < x + w and y < y2 and y1 < y + h for x1, y1, x2, y2 in taken):
            continue  # no digit hides another
        taken.append((x, y, x + w, y + h))
        part = scene[y : y + h, x : x + w]
        part += (rng.uniform(170, 255) - part) * (ink / 255)
        centre = (x + w / 2, y + h / 2)
        lines.append(f"{digits.target[digit]} " + " ".join(f"{v / SCENE:.6f}" for v in (*centre, w, h)))
    scene += rng.normal(0, 6, scene.shape)
    Image.fromarray(scene.clip(0, 255).astype(np.uint8)).convert("RGB").save(image_path, quality=92)
    label_path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _enlarged(image, side):
    """An 8x8 digit of 17 grey levels as a smooth picture of 256."""
    from PIL import Image

    return Image.fromarray((image * (255 / 16)).astype(np.uint8)).resize((side, side), Image.BICUBIC)
