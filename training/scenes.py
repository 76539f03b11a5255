"""Procedural ambient scenes: endless, seeded training data that nobody has to download.

A *scene instance* is drawn from (scene, variant, seed). It is a pure function of time, so any moment of it can be
rendered without its past: the first chunk for the sinks, and a window hours later for far-out positions.

``render(scene, variant, seed, frames)`` returns float32 RGB in [0, 1], shape [T, H, W, 3].
Coordinates: y runs from 0 (top) to 1 (bottom), x from 0 to W/H; one unit is the picture's height. Time is in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from brushes import BASE, Canvas, Texture, mix, palette, ramp, rgb, ridge, seconds, shaded, sky, splat
from prompts import PROMPTS
from wishes import COLOURS, Wish

FPS = 16
PLAIN = Wish()
SUN = 0.055  # a sun's radius, in heights of the picture
FISH = 7  # of a reef that asks for no other number
CLOUDS = {"": 0.0, "clear": 2.5, "cloudy": -1.3}  # added to the level above which the noise is a cloud
Painter = Callable[[Tensor], Tensor]  # times [T] in seconds -> [T, H, W, 3]

# --- the scenes: each takes a canvas and a variant and returns a painter ---------------------------------------------


def sun_of(c: Canvas) -> tuple[float, float, float]:
    """The first that is drawn of a sea: its horizon, and where its sun or moon stands, across and down."""
    horizon = c.uniform(0.40, 0.48)
    across = c.across(0.35)
    return horizon, across, horizon - c.uniform(0.10, 0.24)


def wind_of(c: Canvas) -> tuple[float, float, float]:
    """The last: how fast its clouds drift and its waves run, and the level above which its noise is a cloud."""
    return c.uniform(0.04, 0.07), c.uniform(0.30, 0.42), c.uniform(0.1, 0.6)


def cover_of(c: Canvas) -> float:
    """That level, of a sea whose sun was drawn and that need not be painted."""
    for _ in range(3):  # its textures, in between
        Texture.drawn(c.rng)
    return wind_of(c)[-1]


def sea(c: Canvas, variant: str, wish: Wish) -> Painter:
    top, low, water, deep, light = {
        "sunset": ("#3b2a6b", "#ff9a4a", "#c8643c", "#2a1a48", "#fff0b0"),
        "noon": ("#2f86dc", "#bfe6ff", "#3fa3c8", "#0a4a86", "#ffffff"),
        "moonlit": ("#060a20", "#26386a", "#2a4878", "#040818", "#dfe8ff"),
    }[variant]
    if wish.colour:
        own, dim = COLOURS[wish.colour], {"sunset": 0.7, "noon": 1.0, "moonlit": 0.3}[variant]
        top, low, water, deep = (shaded(own, dim * part) for part in (0.5, 1.2, 0.8, 0.25))
        light = shaded(own, 1.8)
    horizon, sun_x, sun_y = sun_of(c)
    clouds, wave_a, wave_b = Texture(c.rng, 3.0), Texture(c.rng, 2.2), Texture(c.rng, 2.2)
    drift, speed, cover = wind_of(c)
    cover += CLOUDS[wish.weather]

    def paint(t: Tensor) -> Tensor:
        s = seconds(t)
        sun = torch.hypot(c.x - sun_x, c.y - sun_y)  # [1, H, W]
        image = mix(sky(c, top, low, horizon), rgb(light), (torch.exp(-sun * 5) * 0.6 + (sun < SUN) * 0.9).clamp(0, 1))
        cloud = ramp(cover, cover + 1.4, clouds(c.x * 0.28 + s * drift, c.y * 0.9 + s * 0.004))
        image = mix(image, rgb(low) * 0.55 + rgb(light) * 0.4, cloud * 0.75)
        depth = 1 / (c.y - horizon).clamp(min=0.012)  # perspective: far rows are compressed
        u, v = (c.x - sun_x) * depth * 0.06, depth * 0.11
        wave = wave_a(u + s * 0.02, v + s * speed * 0.5) + wave_b(u * 1.7 - s * 0.03, v * 1.5 + s * speed)
        near = ramp(horizon, 1.0, c.y) * torch.ones_like(c.x)
        swell = mix(rgb(water), rgb(deep), (near * 0.9).expand_as(wave))
        swell = swell + (wave * 0.055 * (0.5 + near)).unsqueeze(-1) * (rgb(light) * 0.7 + 0.3)
        glitter = ramp(0.9, 2.4, wave) * torch.exp(-((c.x - sun_x) ** 2) / (0.01 + 0.12 * near) * 2.2)
        swell = mix(swell, rgb(light), glitter * 0.9)
        return torch.where((c.y > horizon).unsqueeze(-1), swell, image)

    return paint


def hills(c: Canvas, variant: str, wish: Wish) -> Painter:
    top, low, cloud_c, far, near = {
        "morning": ("#7aa8d8", "#ffe2b8", "#fff4e4", "#8fa6a0", "#5c8a3a"),
        "midday": ("#2a78d0", "#b8dcf4", "#ffffff", "#6e98a8", "#3c8c2c"),
        "autumn": ("#6a7fa8", "#f0c890", "#f0dcd0", "#9a8a80", "#b0682a"),
    }[variant]
    if wish.colour:
        top, low = shaded(COLOURS[wish.colour], 0.8), shaded(COLOURS[wish.colour], 1.5)
    clouds, grass = Texture(c.rng, 3.2), Texture(c.rng, 1.8)
    lines = [ridge(c, b, a) for b, a in ((0.56, 0.035), (0.68, 0.045), (0.82, 0.05))]
    drift, cover = c.uniform(0.045, 0.075), c.uniform(-0.1, 0.4) + CLOUDS[wish.weather]

    def paint(t: Tensor) -> Tensor:
        s = seconds(t)
        cloud = clouds(c.x * 0.26 + s * drift, c.y * 0.75 + s * 0.006)
        image = mix(sky(c, top, low, 0.6), rgb(cloud_c), ramp(cover, cover + 1.1, cloud) * 0.92)
        wind = grass(c.x * 0.9 + s * 0.14, c.y * 1.6)  # gusts running over the slopes
        shadow = ramp(cover, cover + 1.5, clouds(c.x * 0.26 + s * drift + 0.37, c.y * 0.3))
        for i, line in enumerate(lines):
            tone = rgb(far) + (rgb(near) - rgb(far)) * (i / 2)
            light = 1.05 - 0.30 * shadow + 0.05 * (i + 0.6) * wind - 0.25 * (c.y - line)
            edge = ramp(-0.004, 0.004, c.y - line)
            image = mix(image, tone * light.unsqueeze(-1), edge.expand_as(light))
        return image

    return paint


def lava(c: Canvas, variant: str, wish: Wish) -> Painter:
    dark, glow, blob, hot = {
        "red": ("#2a0630", "#7a1446", "#ff4a1c", "#ffd060"),
        "blue": ("#03102e", "#0c3a7a", "#28a0ff", "#c8f4ff"),
        "green": ("#0c1a06", "#2c4a10", "#6ad020", "#f0ff90"),
    }[variant]
    if wish.colour:
        dark, glow, blob, hot = (shaded(COLOURS[wish.colour], part) for part in (0.14, 0.45, 1.0, 1.6))
    n = wish.count or 8
    cx, phase = c.draw(0.1, c.aspect - 0.1, n), c.draw(0, 2 * math.pi, n)
    if wish.count:  # none hides behind another, which could not be counted
        cx = (torch.arange(n) + 0.5) / n * c.aspect
    rate, size = c.draw(0.45, 0.95, n), c.draw(0.09, 0.16, n)
    sway, sway_rate = c.draw(0.03, 0.05 if wish.count else 0.14, n), c.draw(0.3, 0.7, n)

    def paint(t: Tensor) -> Tensor:
        s = t.double().view(-1, 1)
        bx = (cx + sway * torch.sin(s * sway_rate + phase * 1.7)).float()  # [T, n]
        by = (0.5 + 0.46 * torch.sin(s * rate + phase)).float()
        field = torch.zeros(len(t), c.height, c.width)
        for i in range(n):
            dx, dy = c.x - bx[:, i, None, None], c.y - by[:, i, None, None]
            field += size[i].float() ** 2 / (dx * dx + dy * dy * 0.8 + 1e-3)
        back = mix(rgb(dark), rgb(glow), (0.25 + 0.75 * c.y**2) * torch.ones_like(c.x))
        back = mix(back, rgb(blob) * 0.6, (field * 0.35).clamp(0, 0.8))
        body = mix(rgb(blob) * 0.85, rgb(hot), ramp(1.0, 4.0, field) * 0.8 + 0.2 * c.y)
        return mix(back, body, ramp(0.92, 1.08, field))

    return paint


def city(c: Canvas, variant: str, wish: Wish) -> Painter:
    top, low, wall, lamp_a, lamp_b = {
        "night": ("#04060f", "#1a2a4c", "#0a1020", "#ffd890", "#cfe4ff"),
        "neon": ("#0c0318", "#5a1860", "#140a24", "#ff4ac8", "#4ae8ff"),
        "dusk": ("#2c2a50", "#f08a4c", "#1c1626", "#ffb850", "#ffe0a0"),
    }[variant]
    if wish.colour:
        lamp_a = lamp_b = COLOURS[wish.colour]
    h, w, k = c.height, c.width, max(1, round(c.height / BASE))  # k: pixels of one of its own
    ground = int(h / k * 0.84) * k
    mask = torch.zeros(h, w)  # 1 inside a building
    shade = torch.zeros(h, w)
    lit = torch.zeros(h, w, 3)
    phase, rate = torch.zeros(h, w), torch.zeros(h, w)
    for layer in (0, 1):
        x = -int(c.uniform(0, 12)) * k
        while x < w:
            bw, tall = int(c.uniform(16, 34)) * k, c.uniform(0.34, 0.66) * (1.0 if layer == 0 else 0.72)
            y0, x0, x1 = ground - int(tall * h / k) * k, max(x, 0), min(x + bw, w)
            mask[y0:ground, x0:x1] = 1
            shade[y0:ground, x0:x1] = 1.6 - 0.6 * layer
            lit[y0:ground, x0:x1] = 0
            for wy in range(y0 + 4 * k, ground - 4 * k, 6 * k):
                for wx in range(x + 3 * k, x + bw - 4 * k, 6 * k):
                    if c.rng.random() < 0.5:
                        box = (slice(wy, wy + 3 * k), slice(max(wx, 0), max(wx + 3 * k, 0)))
                        lit[box] = (rgb(lamp_a) if c.rng.random() < 0.7 else rgb(lamp_b)) * c.uniform(0.55, 1.0)
                        phase[box], rate[box] = c.uniform(0, 6.28), c.uniform(0.15, 0.8)
            x += bw + int(c.uniform(0, 5)) * k
    haze = Texture(c.rng, 3.2)
    n = 9
    lane = torch.from_numpy(c.rng.integers(0, 2, n)).double()
    start, speed = c.draw(0, 3, n), c.draw(0.22, 0.40, n)
    beam = torch.stack([rgb("#fff4d8") if k == 0 else rgb("#ff3020") for k in lane.tolist()])

    def paint(t: Tensor) -> Tensor:
        s = seconds(t)
        image = sky(c, top, low, 0.84).expand(len(t), -1, -1, -1)
        image = image + (haze(c.x * 0.3 + s * 0.05, c.y * 0.8).clamp(min=0) * 0.22).unsqueeze(-1) * rgb(low)
        on = ramp(-0.55, -0.35, torch.sin(s.float() * rate + phase))  # windows go dark now and then
        building = rgb(wall) * shade.unsqueeze(-1) + lit * on.unsqueeze(-1)
        image = mix(image, building, mask.expand(len(t), -1, -1))
        road = ramp(ground - 1, ground, torch.arange(h).view(1, -1, 1)) * torch.ones(1, 1, w)
        image = mix(image, rgb(low) * 0.22 + rgb(wall) * 0.5, road.expand(len(t), -1, -1)).clone()
        direction = 1 - 2 * lane
        x = torch.remainder((start + direction * speed * s[:, :, 0]) / (c.aspect + 0.4), 1) * (c.aspect + 0.4) - 0.2
        y = (0.89 + 0.05 * lane).expand_as(x)
        splat(image, x, y, torch.full((n,), 1.7), beam * 1.2, stretch=1.8)
        splat(image, x, y + 0.03, torch.full((n,), 2.6), beam * 0.25, stretch=2.5)
        return image

    return paint


def snow(c: Canvas, variant: str, wish: Wish) -> Painter:
    top, low, tree, ground = {
        "night": ("#0a1230", "#2c3e6c", "#08101c", "#8a9cc8"),
        "dusk": ("#4a3a6a", "#d890a0", "#241a30", "#d8b8c8"),
        "day": ("#9ab0c4", "#dfe8ee", "#3c5048", "#f4f8fa"),
    }[variant]
    line = ridge(c, 0.80, 0.02)
    trees = torch.zeros(1, c.height, c.width)
    for i in range(wish.count or int(c.uniform(6, 11))):
        x, foot, tall = c.uniform(0, c.aspect), c.uniform(0.80, 0.9), c.uniform(0.28, 0.55)
        if wish.count:  # side by side
            x = (i + 0.3 + 0.4 * x / c.aspect) / wish.count * c.aspect
        k = ((c.y - (foot - tall)) / tall).clamp(0, 1)  # 0 at the tip, 1 at the foot
        wide = tall * 0.24 * k * (0.72 + 0.28 * torch.remainder(k * 5, 1))
        trees = torch.maximum(trees, ((c.x - x).abs() < wide) * ((c.y < foot) & (c.y > foot - tall)).float())
    amount = {"": 1, "light": 0.3, "heavy": 2.5}[wish.weather]
    layers = [
        (n, c.draw(0, 1, n), c.draw(0, 1, n), c.draw(0, 6.28, n), speed * c.uniform(0.9, 1.1), radius)
        for n, speed, radius in (
            (round(amount * 70), 0.20, 1.0),
            (round(amount * 45), 0.30, 1.45),
            (round(amount * 20), 0.42, 2.1),
        )
    ]
    wind = c.uniform(-0.10, 0.10)

    def paint(t: Tensor) -> Tensor:
        s = t.double().view(-1, 1)
        image = mix(sky(c, top, low, 0.85), rgb(tree), trees)
        image = mix(image, rgb(ground) * (1 - 0.3 * (c.y - 0.8)).unsqueeze(-1), ramp(-0.006, 0.006, c.y - line))
        image = image.expand(len(t), -1, -1, -1).clone()
        for n, fx, fy, phase, speed, radius in layers:
            x = torch.remainder(fx + (wind * s + 0.02 * torch.sin(1.3 * s + phase)) / c.aspect, 1) * c.aspect
            y = torch.remainder(fy + speed * s, 1) * 1.08 - 0.04
            splat(image, x, y, torch.full((n,), radius), torch.full((n, 3), 0.85))
        return image

    return paint


def aurora(c: Canvas, variant: str, wish: Wish) -> Painter:
    low, high = {"green": ("#30ff90", "#2080c0"), "violet": ("#b050ff", "#4030d0"), "rose": ("#30e8d0", "#ff4a90")}[
        variant
    ]
    if wish.colour:
        low, high = COLOURS[wish.colour], shaded(COLOURS[wish.colour], 0.7)
    fold, rays, slow = Texture(c.rng, 3.4), Texture(c.rng, 2.0), Texture(c.rng, 3.4)
    line = ridge(c, 0.84, 0.05)
    n = 60
    stars = (c.draw(0, c.aspect, n).expand(1, n), c.draw(0, 0.75, n).expand(1, n))
    bright = torch.from_numpy(c.rng.uniform(0.3, 0.9, (n, 1))).float().expand(n, 3)

    def paint(t: Tensor) -> Tensor:
        s = seconds(t)
        image = sky(c, "#02040e", "#0c1c38", 0.85).expand(len(t), -1, -1, -1).clone()
        splat(image, stars[0].expand(len(t), n), stars[1].expand(len(t), n), torch.full((n,), 0.95), bright)
        for k, (base, gain) in enumerate(((0.60, 1.0), (0.42, 0.6))):
            row = torch.full((1, 1, 1), 0.1 + 0.5 * k)
            foot = base + 0.11 * fold(c.x * 0.22 + s * 0.022, row + s * 0.02)  # [T, 1, W]
            above = foot - c.y
            curtain = torch.exp(-above.clamp(min=0) * 5.0) * ramp(-0.05, 0.02, above)
            stripe = 0.62 + 0.30 * rays(c.x * 0.7 + s * 0.085, row + s * 0.03 + 0 * c.x)
            power = gain * (0.75 + 0.35 * slow(c.x * 0.2 - s * 0.05, row + s * 0.015))
            glow = (curtain * stripe * power).clamp(0, 1.3)
            tint = mix(rgb(low), rgb(high), ramp(0.02, 0.42, above))
            image = image + tint * glow.unsqueeze(-1)
        return mix(image, rgb("#03060c"), ramp(-0.006, 0.006, c.y - line).expand(len(t), -1, -1))

    return paint


def fire(c: Canvas, variant: str, wish: Wish) -> Painter:
    colours = {
        "orange": ["#080302", "#5a1002", "#e04a06", "#ffb428", "#fff4c0"],
        "blue": ["#02040c", "#061a5a", "#1060e0", "#50c8ff", "#f0fcff"],
        "red": ["#080204", "#3c0408", "#a01010", "#f04828", "#ffc890"],
    }[variant]
    if wish.colour:
        colours = [shaded(COLOURS[wish.colour], part) for part in (0.03, 0.3, 0.9, 1.4, 1.85)]
    flame, lick = Texture(c.rng, 2.6), Texture(c.rng, 2.2)
    centre, wide, rise = c.aspect / 2 + c.uniform(-0.15, 0.15), c.uniform(0.40, 0.6), c.uniform(0.26, 0.36)
    n = 26
    sx, sp, sv, phase = c.draw(-1, 1, n), c.draw(0, 1, n), c.draw(0.25, 0.45, n), c.draw(0, 6.28, n)

    def paint(t: Tensor) -> Tensor:
        s = seconds(t)
        bend = 0.05 * lick(c.x * 0.5, c.y * 0.5 + s * 0.22)
        body = flame((c.x + bend) * 0.55, c.y * 0.36 + s * rise) + 0.5 * lick(c.x * 0.9, c.y * 0.6 + s * rise * 1.7)
        up = 0.92 - c.y  # height above the bed
        width = wide * (1 - 0.55 * up.clamp(0, 1))
        shape = 1.35 - 1.35 * up.clamp(min=0) / 0.62 - ((c.x - centre) / width) ** 2
        heat = (shape * 0.62 + 0.24 * body * (0.35 + up.clamp(0, 1))) * ramp(-0.06, 0.03, up)
        image = palette(colours, heat.clamp(0, 1) * 0.98 + 0.02)
        bed = torch.exp(-(((c.y - 0.93) / 0.05) ** 2) - ((c.x - centre) / (wide * 1.1)) ** 2)
        image = image + rgb(colours[2]) * (bed * (0.5 + 0.12 * lick(c.x * 1.4, c.y + s * 0.12))).unsqueeze(-1)
        life = torch.remainder(sp + sv * s[:, :, 0], 1)  # [T, n] sparks rise and go out
        x = centre + sx * wide * 0.6 + 0.05 * torch.sin(phase + 6 * life)
        image = image.contiguous()
        splat(image, x, 0.9 - 0.95 * life, torch.full((n,), 1.0), rgb(colours[3]).expand(n, 3) * 0.9)
        return image

    return paint


def life_of(c: Canvas, fish: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Of a reef, behind its textures: its sand's line; bubbles' places, ages, speeds, phases; so many fish's ways so far,
    depths, speeds, sizes, and 1 or -1: to the right or to the left."""
    line = ridge(c, 0.85, 0.015)
    air = [c.draw(*ends, 22) for ends in ((0, c.aspect), (0, 1), (0.18, 0.32), (0, 6))]
    shoal = [c.draw(*ends, fish) for ends in ((0, 3), (0.18, 0.72), (0.12, 0.26), (0.045, 0.075))]
    return line, air, [*shoal, torch.from_numpy(c.rng.integers(0, 2, fish) * 2.0 - 1)]


def along_reef(c: Canvas, way: Tensor) -> Tensor:
    """Where a fish is that has come so far: what leaves on one side comes back on the other."""
    span = c.aspect + 0.5
    return torch.remainder(way / span, 1) * span - 0.25


def reef(c: Canvas, variant: str, wish: Wish) -> Painter:
    top, low, sand, tones = {
        "turquoise": ("#48d8e0", "#0a6a90", "#c8b888", ("#ff8c28", "#ffe050")),
        "deep": ("#2060c0", "#041438", "#304868", ("#ff6a8a", "#d0d8ff")),
        "lagoon": ("#70e0a0", "#0c5848", "#98a868", ("#ffd030", "#f05038")),
    }[variant]
    if wish.colour:
        tones = COLOURS[wish.colour], COLOURS[wish.colour]
    ray, caustic = Texture(c.rng, 2.6), Texture(c.rng, 2.4)
    fish = wish.count or FISH
    line, (bx, bp, bv, bphase), (fx, fy, fv, size, fdir) = life_of(c, fish)
    fcol = torch.stack([rgb(tones[i % 2]) for i in range(fish)])
    weeds = [(c.uniform(0, c.aspect), c.uniform(0.16, 0.34), c.uniform(0, 6.28)) for _ in range(9)]
    if wish.count:  # one above the other, so that none hides another
        fy, size = 0.14 + (torch.arange(fish) + 0.3 + 0.4 * (fy - 0.18) / 0.54) / fish * 0.62, size + 0.01

    def paint(t: Tensor) -> Tensor:
        s = seconds(t)
        image = sky(c, top, low, 0.95)
        slant = c.x * 0.5 - c.y * 0.16
        beams = ray(slant + s * 0.03, s * 0.05 + 0 * c.y).clamp(min=0) * (1 - c.y).clamp(min=0)
        image = image + (beams * 0.22).unsqueeze(-1) * (rgb(top) * 0.6 + 0.4)
        net = 1 - (caustic(c.x * 0.8 + s * 0.06, c.y * 1.6 + s * 0.05) + caustic(c.x * 0.8 - s * 0.05, c.y * 1.6)).abs()
        floor = rgb(sand) * (0.72 + 0.30 * net.clamp(-0.6, 1)).unsqueeze(-1)
        image = mix(image, floor, ramp(-0.008, 0.008, c.y - line).expand(len(t), -1, -1))
        for x, tall, phase in weeds:
            k = ((0.9 - c.y) / tall).clamp(0, 1.2)
            sway = x + 0.05 * k * torch.sin(s.float() * 1.6 + phase + 3 * k)
            blade = ramp(1.0, 0.3, (c.x - sway).abs() / (0.016 * (1.15 - k) + 1e-4)) * ((k < 1.1) & (c.y < 0.9))
            image = mix(image, rgb(low) * 0.35 + rgb("#204a18") * 0.6, blade.expand(len(t), -1, -1))
        px = along_reef(c, fx + fdir * fv * s[:, :, 0])  # [T, fish]
        facing = fdir.expand_as(px)
        if wish.count:  # to and fro, so that all are there at any time
            turn = fv / (0.25 * c.aspect) * s[:, :, 0] + 5 * fx
            px = c.aspect * (0.5 + 0.1 * (fx - 1.5) / 1.5 + 0.3 * torch.sin(turn))
            facing = torch.tanh(4 * torch.cos(turn))
            facing = facing.sign() * facing.abs().clamp(min=0.2)  # seen from the front while it turns
        py = fy + 0.02 * torch.sin(s[:, :, 0] * 1.1 + fx * 5)
        for i in range(fish):
            x, y, ahead = (at[:, i, None, None].float() for at in (px, py, facing))
            dx, dy = (c.x - x) / ahead / float(size[i]), (c.y - y) / float(size[i])  # +1: the nose
            wag = 0.22 * torch.sin(s.float() * 9 + float(fx[i]) * 7) * (dx < -0.6) * (-0.6 - dx)
            body = (dx / 1.0) ** 2 + ((dy + wag) / 0.48) ** 2
            tail = (dx < -0.7) & (dx > -1.5) & ((dy + wag).abs() < (-0.62 - dx) * 0.62)
            inside = torch.maximum(ramp(1.12, 0.9, body), tail.float())
            stripe = 1 - 0.45 * ramp(0.16, 0.1, (dx - 0.1).abs())
            image = mix(image, fcol[i] * (stripe * (1.05 - 0.35 * dy)).unsqueeze(-1), inside)
        rise = torch.remainder(bp + bv * s[:, :, 0], 1)
        x = bx + 0.02 * torch.sin(4 * rise * 6 + bphase)
        image = image.contiguous()
        splat(image, x, 0.95 - rise, torch.full((len(bx),), 1.5), (rgb(top) * 0.4 + 0.35).expand(len(bx), 3))
        return image

    return paint


SCENES: dict[str, Callable[[Canvas, str, Wish], Painter]] = {
    "sea": sea,
    "hills": hills,
    "lava": lava,
    "city": city,
    "snow": snow,
    "aurora": aurora,
    "fire": fire,
    "reef": reef,
}


def canvas(scene: str, variant: str, seed: int, height: int = 144, width: int = 256) -> Canvas:
    rng = np.random.default_rng([list(SCENES).index(scene), list(PROMPTS[scene]).index(variant), seed])
    return Canvas(height, width, rng)


def painter(scene: str, variant: str, seed: int, height: int = 144, width: int = 256, wish: Wish = PLAIN) -> Painter:
    """The instance (scene, variant, seed) as a function of time."""
    return SCENES[scene](canvas(scene, variant, seed, height, width), variant, wish)


def render(
    scene: str, variant: str, seed: int, frames: Tensor, height: int = 144, width: int = 256, wish: Wish = PLAIN
) -> Tensor:
    """Frames (indices at 16 fps, [T]) of one instance: float32 RGB in [0, 1], [T, H, W, 3]."""
    return painter(scene, variant, seed, height, width, wish)(frames.double() / FPS).clamp(0, 1).float()
