// The fullscreen page: nothing to touch, nothing to read, never an error.
import { Player } from "/static/player.js";

// A name that stays over reloads, so that the server can tell which screen keeps freezing: /?screen=lobby
const asked = new URLSearchParams(location.search).get("screen");
const name = asked || localStorage.getItem("screen") || `screen-${Math.random().toString(36).slice(2, 8)}`;
localStorage.setItem("screen", name);

window.player = new Player(document.getElementById("video"), document.getElementById("still"), { screen: name });

// With the page in its cache, a restart of the server finds a player and not the browser's error page.
if ("serviceWorker" in navigator) navigator.serviceWorker.register("/sw.js").catch(() => {});
// Keep the display awake where the browser can.
if ("wakeLock" in navigator) {
  const hold = () => document.visibilityState === "visible" && navigator.wakeLock.request("screen").catch(() => {});
  document.addEventListener("visibilitychange", hold);
  hold();
}
