// The fullscreen page: nothing to touch, and nothing to read but one line where there has never been a picture.
import { Overlay } from "./overlay.js";
import { Player } from "./player.js";

const asked = new URLSearchParams(location.search);

// In a sandboxed frame the browser refuses storage and workers, by throwing.
function allowed(work, otherwise = null) {
  try {
    return work();
  } catch (error) {
    return otherwise;
  }
}

// A name that stays over reloads, so that the server can tell which screen keeps freezing: /?screen=lobby
const kept = allowed(() => localStorage.getItem("screen"));
const name = asked.get("screen") || kept || `screen-${Math.random().toString(36).slice(2, 8)}`;
allowed(() => localStorage.setItem("screen", name));

// How the picture fills a screen of another shape, or one that hangs on its side, and which part of a wall this screen is, in
// percent of the whole picture: /?fit=contain, /?rotate=90, /?x=0&w=48, /?shift=6. What the server has under the screen's
// name in its configuration holds where the address says nothing.
function frame(view) {
  const { classList, style } = document.body;
  // A message that is burned in is read whole; above the picture it lies in a place of its own.
  const whole = view.message ? { fit: "contain", x: "", y: "", w: "", h: "" } : {};
  const chosen = (key) => (key in whole ? whole[key] : asked.has(key) ? asked.get(key) : key in view ? view[key] : null);
  const number = (key, least, most) => {
    const found = chosen(key) === null || chosen(key) === "" ? NaN : Number(chosen(key));
    return found >= least && found <= most ? found : null;
  };
  for (const fit of ["contain", "fill"]) classList.toggle(fit, chosen("fit") === fit);
  for (const turn of ["90", "180", "270"]) classList.toggle(`rotate-${turn}`, String(chosen("rotate")) === turn);
  for (const key of ["x", "y", "w", "h"]) {
    const value = number(key, key === "w" || key === "h" ? 1 : 0, 100);
    if (value === null) style.removeProperty(`--${key}`);
    else style.setProperty(`--${key}`, value);
  }
  const shift = number("shift", 1, 50);
  classList.toggle("shift", shift !== null);
  style.setProperty("--shift", `${shift || 0}px`);
}
frame({});

const $ = (id) => document.getElementById(id);
window.player = new Player($("video"), $("still"), { screen: name, via: asked.get("via") || "", overlay: new Overlay($("overlay"), $("stage")), frame });

// One that never gets a picture says so; once it had one, it never says anything.
const PATIENCE = 60000;
const began = performance.now();
const waiting = setInterval(() => {
  const image = document.querySelector("#wall img");
  const there = $("video").videoWidth || (image && image.naturalWidth);
  $("word").hidden = Boolean(there) || performance.now() - began < PATIENCE;
  $("word").textContent = `No picture from ${location.host}${window.player.why ? `: ${window.player.why}` : ""}`;
  if (there) clearInterval(waiting);
}, 1000);

// With the page in its cache, a restart of the server finds a player and not the browser's error page.
allowed(() => navigator.serviceWorker && navigator.serviceWorker.register("sw.js").catch(() => {}));
// Keep the display awake where the browser can.
if ("wakeLock" in navigator) {
  const hold = () => document.visibilityState === "visible" && navigator.wakeLock.request("screen").catch(() => {});
  document.addEventListener("visibilitychange", hold);
  hold();
}
