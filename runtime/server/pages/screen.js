// The fullscreen page: nothing to touch, nothing to read, never an error.
import { Player } from "./player.js";

const asked = new URLSearchParams(location.search);

// In a sandboxed frame the browser refuses storage and workers, by throwing.
function allowed(work, otherwise = null) {
  try {
    return work();
  } catch {
    return otherwise;
  }
}

// A name that stays over reloads, so that the server can tell which screen keeps freezing: /?screen=lobby
const kept = allowed(() => localStorage.getItem("screen"));
const name = asked.get("screen") || kept || `screen-${Math.random().toString(36).slice(2, 8)}`;
allowed(() => localStorage.setItem("screen", name));

// How the picture fills a screen of another shape, or one that hangs on its side: /?fit=contain, /?rotate=90
if (asked.get("fit") === "contain") document.body.classList.add("contain");
if (["90", "180", "270"].includes(asked.get("rotate"))) document.body.classList.add(`rotate-${asked.get("rotate")}`);

window.player = new Player(document.getElementById("video"), document.getElementById("still"), { screen: name });

// With the page in its cache, a restart of the server finds a player and not the browser's error page.
allowed(() => navigator.serviceWorker && navigator.serviceWorker.register("sw.js").catch(() => {}));
// Keep the display awake where the browser can.
if ("wakeLock" in navigator) {
  const hold = () => document.visibilityState === "visible" && navigator.wakeLock.request("screen").catch(() => {});
  document.addEventListener("visibilitychange", hold);
  hold();
}
