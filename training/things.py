"""Things in a picture, found by plain image measurement: sun or moon, fish, windows, trees, flakes. Nothing is learned.

All take uint8 RGB frames [T, H, W, 3]. Sizes are in pixels at the demo's height of 144; colours are those of the scenes
(a fish is redder than the water, a tree darker than the sky), so what is not drawn clearly is not found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from measures import Frames, luma

Mask = NDArray[np.bool_]
Plane = NDArray[np.floating]

DISC_AREA, DISC_CONTRAST = (60, 500), 6.0  # pixels; grey levels above the ring around it
FISH_AREA, FISH_RED = (30, 400), 60.0
WINDOW_AREA, WINDOW_LIGHT, WINDOW_PITCH = (4, 20), 25.0, 6
TREE_DARK, TREE_TIP = 0.62, 8  # of the sky's luma beside it; pixels that a tip stands above its surroundings
FLAKE_LIGHT, FLAKE_AREA = 30.0, (2, 60)


@dataclass(frozen=True)
class Blob:
    """A connected region of a mask."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]

    @property
    def area(self) -> int:
        return len(self.rows)

    @property
    def axes(self) -> tuple[float, float]:
        """Semi-axes of the ellipse with the same second moments, the longer first."""
        points = np.stack([self.rows, self.columns]).astype(float)
        spread = np.cov(points, bias=True) + np.eye(2) / 12 if self.area > 1 else np.eye(2) / 12
        small, large = np.linalg.eigvalsh(spread)
        return 2 * float(large) ** 0.5, 2 * float(small) ** 0.5

    @property
    def roundness(self) -> float:
        """1 for a disc: shorter over longer axis, and less where the region does not fill its ellipse."""
        longer, shorter = self.axes
        return shorter / longer * min(1.0, self.area / (np.pi * longer * shorter))


def blobs(mask: Mask, area: tuple[int, int]) -> list[Blob]:
    """The 4-connected regions of a mask [H, W] with an area in the range."""
    h, w = mask.shape
    left = mask.copy()
    found = []
    for start in np.argwhere(mask).tolist():
        if not left[tuple(start)]:
            continue
        left[tuple(start)] = False
        region, front = [], [start]
        while front:
            y, x = front.pop()
            region.append((y, x))
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < h and 0 <= u < w and left[v, u]:
                    left[v, u] = False
                    front.append([v, u])
        if area[0] <= len(region) <= area[1]:
            rows, columns = np.array(region).T
            found.append(Blob(rows, columns))
    return found


def box_mean(plane: Plane, side: int) -> Plane:
    """Mean over side × side around every pixel, borders repeated."""
    half = side // 2
    sums = np.pad(plane, ((half + 1, half), (half + 1, half)), mode="edge").cumsum(0).cumsum(1)
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2


def ring_contrast(plane: Plane, blob: Blob) -> float:
    """Mean of a blob less that of the ring two to four pixels outside it."""
    longer, _ = blob.axes
    y, x = blob.rows.mean(), blob.columns.mean()
    distance = np.hypot(*(np.indices(plane.shape) - np.array([y, x])[:, None, None]))
    ring = (distance > longer + 2) & (distance < longer + 4)
    return float(plane[blob.rows, blob.columns].mean() - plane[ring].mean()) if ring.any() else 0.0


def disc(frame: NDArray[np.uint8], above: float = 0.5) -> Blob | None:
    """The sun or the moon: the round bright region with the strongest contrast in the upper part of the picture."""
    sky = luma(frame[None])[0, : int(above * len(frame))]
    best, contrast = None, DISC_CONTRAST
    for level in np.unique(np.linspace(sky.max() - 2, np.median(sky), 24)):
        for blob in blobs(sky > level, DISC_AREA):
            if blob.roundness > 0.75 and (found := ring_contrast(sky, blob)) > contrast:
                best, contrast = blob, found
    return best


def background(plane: Plane, cell: int = 4, reach: int = 4) -> Plane:
    """What stands behind small things: a median of cell means over 2·reach + 1 cells each way."""
    h, w = (n // cell for n in plane.shape)
    cells = plane[: h * cell, : w * cell].reshape(h, cell, w, cell).mean((1, 3))
    padded = np.pad(cells, reach, mode="edge")
    side = 2 * reach + 1
    stack = [padded[i : i + h, j : j + w] for i in range(side) for j in range(side)]
    wide = np.median(stack, 0).repeat(cell, 0).repeat(cell, 1)
    return np.pad(wide, ((0, plane.shape[0] - h * cell), (0, plane.shape[1] - w * cell)), mode="edge")


def fish(frame: NDArray[np.uint8], above: float = 0.8) -> list[Blob]:
    """Regions redder than the water around them, above the sand; blades, bubbles and beams are not."""
    red = frame[: int(above * len(frame)), :, 0].astype(np.float32)
    return blobs(red - background(red) > FISH_RED, FISH_AREA)


def stripe(frame: NDArray[np.uint8], blob: Blob) -> float:
    """How much darker than its flanks the darkest column in the middle of a fish is, as a share; 0 where there is none."""
    y = luma(frame[None])[0]
    first, last = blob.columns.min(), blob.columns.max()
    profile = np.array([y[blob.rows[blob.columns == c], c].mean() for c in range(first, last + 1)])
    n = len(profile)
    if n < 6:
        return 0.0
    middle = range(n // 5, n - n // 5)
    low = min(middle, key=lambda c: profile[c])
    if low in (middle[0], middle[-1]):
        return 0.0
    flanks = min(profile[:low].max(), profile[low + 1 :].max())
    return max(0.0, float(1 - profile[low] / flanks))


def windows(frame: NDArray[np.uint8], rows: tuple[float, float] = (0.15, 0.84)) -> list[Blob]:
    """Small regions brighter than the wall around them, above the road."""
    return blobs(window_light(frame, rows) > WINDOW_LIGHT, WINDOW_AREA)


def window_light(frame: NDArray[np.uint8], rows: tuple[float, float] = (0.15, 0.84)) -> Plane:
    first, last = (int(r * len(frame)) for r in rows)
    y = frame[first:last].astype(np.float32).max(-1)
    return y - box_mean(y, 7)


def grid(frame: NDArray[np.uint8], pitch: int = WINDOW_PITCH) -> float:
    """How regularly windows stand: correlation of their light with itself one pitch on, mean of both directions."""
    light = window_light(frame).clip(0)
    light = light - light.mean()
    power = float((light**2).mean())
    if power < 1:
        return 0.0
    along = ((light[:, pitch:] * light[:, :-pitch]).mean(), (light[pitch:] * light[:-pitch]).mean())
    return float(np.mean(along) / power)


def tree_tips(frames: Frames) -> list[int]:
    """Heights in pixels, above the foot of the trees, of the tips in the dark outline that stands still."""
    still = np.median(luma(frames), 0)
    h, _ = still.shape
    foot = int(0.8 * h)
    sky = np.quantile(still[:foot], 0.85, axis=1, keepdims=True)
    dark = still[:foot] < TREE_DARK * sky
    dark &= np.cumprod(dark[::-1], 0)[::-1].astype(bool)  # from the ground upwards without a gap
    profile = dark.sum(0)
    tips, column = [], 0
    while column < len(profile):  # plateaus count once
        end = column
        while end + 1 < len(profile) and profile[end + 1] == profile[column]:
            end += 1
        if profile[column] >= TREE_TIP and prominence(profile, column, end) >= TREE_TIP:
            tips.append(int(profile[column]))
        column = end + 1
    return tips


def prominence(profile: NDArray[np.int_], first: int, last: int) -> int:
    """How far one must go down from a plateau to get higher; the picture's border counts as the bottom."""
    top = profile[first]
    low = []
    for side in (profile[:first][::-1], profile[last + 1 :]):
        higher = np.flatnonzero(side > top)
        way = side[: higher[0]] if len(higher) else np.append(side, 0)
        low.append(int(way.min()) if len(way) else int(top))
    return int(top) - max(low)


def flakes(frames: Frames) -> list[list[Blob]]:
    """For every frame the small bright regions that are not there most of the time."""
    y = luma(frames)
    still = np.median(y, 0)
    return [blobs(plane - still > FLAKE_LIGHT, FLAKE_AREA) for plane in y]


def median_area(found: list[Blob]) -> float:
    return float(np.median([b.area for b in found])) if found else 0.0


def steady_disc(frames: Frames, within: float = 4.0) -> float:
    """Share of the frames with a sun or moon within so many pixels of where it is most of the time."""
    found = [disc(frame) for frame in frames]
    centres = np.array([(b.rows.mean(), b.columns.mean()) for b in found if b])
    if not len(centres):
        return 0.0
    return float((np.hypot(*(centres - np.median(centres, 0)).T) <= within).sum() / len(frames))


def things_of(scene: str, frames: Frames, every: int = 6) -> dict[str, float]:
    """What there is to count in a clip of this scene, mean over every sixth frame."""
    some = frames[::every]
    if scene == "sea":
        return {"disc": steady_disc(some)}
    if scene == "reef":
        schools = [fish(f) for f in some]
        stripes = [stripe(f, b) for f, school in zip(some, schools, strict=True) for b in school]
        every_fish = [b for school in schools for b in school]
        return {
            "fish": float(np.mean([len(s) for s in schools])),
            "fish size": median_area(every_fish),
            "stripes": float(np.mean(stripes)) if stripes else 0.0,
        }
    if scene == "city":
        lit = [windows(f) for f in some]
        return {
            "windows": float(np.mean([len(found) for found in lit])),
            "window size": median_area([b for found in lit for b in found]),
            "grid": float(np.mean([grid(f) for f in some])),
        }
    if scene == "snow":
        tips, falling = tree_tips(frames), flakes(frames)[::every]
        return {
            "trees": float(len(tips)),
            "tree size": float(np.mean(tips)) if tips else 0.0,
            "flakes": float(np.mean([len(found) for found in falling])),
            "flake size": median_area([b for found in falling for b in found]),
        }
    return {}
